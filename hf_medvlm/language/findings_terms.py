"""The lexicon of chest-radiograph reports: words -> MedKLIP entity, CheXpert finding, place. Holds no rule of scope.

The words are the project's own choice, after the kinds of mention that CheXpert's labeller knows. Departures from it:
vascular congestion and heart failure are entities of their own and not Edema, and a "nodular opacity" is an opacity.
"""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """`pattern`, a regular expression over lower-cased text, mentions `entity`; `finding` is its CheXpert name or None.

    `organ`, a key of `ORGANS` or None, is what "left" or "right" is said of where the sentence names no place;
    `named` marks words that name that organ themselves.
    """

    pattern: str
    entity: str
    finding: str | None = None
    organ: str | None = None
    named: bool = False


# Organ -> MedKLIP positions (left, right, side not said).
ORGANS: dict[str, tuple[str, str, str]] = {
    "hilar": ("left_hilar", "right_hilar", "hilar_unspec"),
    "pleural": ("left_pleural", "right_pleural", "pleural_unspec"),
    "diaphragm": ("left_diaphragm", "right_diaphragm", "diaphragm_unspec"),
    "costophrenic": ("left_costophrenic", "right_costophrenic", "costophrenic_unspec"),
    "lower lobe": ("lower_left_lobe", "lower_right_lobe", "lung_bases"),
    "middle lobe": ("left_mid_lung", "middle_right_lobe", "middle_right_lobe"),
    "lingula": ("upper_left_lobe",) * 3,
    "upper lobe": ("upper_left_lobe", "upper_right_lobe", "pulmonary"),
    "base": ("left_lower_lung", "right_lower_lung", "lung_bases"),
    "mid lung": ("left_mid_lung", "right_mid_lung", "pulmonary"),
    "upper lung": ("left_upper_lung", "right_upper_lung", "pulmonary"),
    "apex": ("left_apical_lung", "right_apical_lung", "lung_apices"),
    "lung": ("left_lung_unspec", "right_lung_unspec", "pulmonary"),
    # One position each, whatever the side.
    **{
        name: (name.replace(" ", "_"),) * 3
        for name in (
            *("trachea", "heart size", "heart border", "retrocardiac", "cardiophrenic sulcus", "mediastinal", "spine"),
            *("clavicle", "rib", "stomach", "right atrium", "right ventricle", "aorta", "svc", "interstitium"),
            *("cavoatrial junction", "cardiopulmonary", "pulmonary", "lung volumes", "other"),
        )
    },
}

ZONES = frozenset({"lower lobe", "middle lobe", "lingula", "upper lobe", "base", "mid lung", "upper lung", "apex"})
"""The organs that are a part of a lung: what is denied in general is seldom given one."""

# Words that name a place -> organs, joined by "+". The first that matches at a word wins, so the longer stand first.
PLACES: tuple[tuple[str, str], ...] = (
    (r"costophrenic(?: (?:angles?|sulc\w+|recess\w*|xxxx))?|cpa? angles?|costodiaphragmatic", "costophrenic"),
    (r"cardiophrenic(?: angles?| sulc\w+)?", "cardiophrenic sulcus"),
    (r"cavo-?atrial(?: junction)?", "cavoatrial junction"),
    (r"cardio-?mediastin\w+(?: silhouettes?| contours?)?", "heart size+mediastinal"),
    (r"retro-?cardiac", "retrocardiac"),
    (r"cardio-?thoracic ratio|ctr", "heart size"),
    (r"cardio-?pulmonary|cardio-?thoracic|intra-?thoracic|cardio-?respiratory", "cardiopulmonary"),
    (r"(?:cardiac|heart) borders?", "heart border"),
    (r"right atri(?:um|al)", "right atrium"),
    (r"right ventric\w+", "right ventricle"),
    (
        r"(?:heart|cardiac|cardiopericardial|pericardial)(?: size| silhouettes?| contours?| shadow)?"
        r"(?! (?:troponins?|enzymes?|(?:bio)?markers?|output|arrest|rate|rhythm|murmurs?|sounds?)\b)",
        "heart size",
    ),
    (r"mediastin\w+|paratracheal|para-?mediastinal", "mediastinal"),
    (r"superior vena cava|svc", "svc"),
    (r"trachea\w*|carina\w*", "trachea"),
    (r"aort\w+", "aorta"),
    (r"(?:hemi-?)?diaphragm\w*", "diaphragm"),
    (r"lower lobes?|basal segments?", "lower lobe"),
    (r"middle lobes?", "middle lobe"),
    (r"lingula\w*", "lingula"),
    (r"upper lobes?", "upper lobe"),
    (r"lower (?:lungs?|(?:lung )?zones?|hemithorax)|bas(?:ilar|al)|(?:lung )?bas(?:e|es|is)", "base"),
    (r"mid[- ]?(?:dle)? ?(?:lungs?|(?:lung )?zones?|hemithorax)|peri-?hilar", "mid lung"),
    (r"upper (?:lungs?|(?:lung )?zones?|hemithorax)", "upper lung"),
    (r"apical|apex|apices", "apex"),
    (r"hil(?:ar|um|a)", "hilar"),
    (r"(?:lung )?volumes?", "lung volumes"),
    (r"pleura\w*(?: spaces?)?|fissur\w+", "pleural"),
    (r"interstiti\w+", "interstitium"),
    (r"lungs?(?: fields?| zones?| parenchyma)?|hemithora\w+", "lung"),
    (r"pulmonary|vascular\w*|vasculature|parenchym\w+|broncho-?vascular|peribronchial", "pulmonary"),
    (r"(?:thoracic |cervical |lumbar |thoracolumbar )?(?:spine|spinal|vertebra\w*)|[ct]-spine|disc spaces?", "spine"),
    (r"clavic\w+", "clavicle"),
    (r"ribs?|rib ?cage", "rib"),
    (r"stomach|gastric", "stomach"),
    (
        r"oss?eous|bon(?:e|es|y)|skelet\w+|shoulders?|humer\w+|scapula\w*|stern(?:um|al)|abd?om\w+|soft tissues?|neck"
        r"|chest wall|axilla\w*|acromio\w*|thora(?:x|cic)|chest",
        "other",
    ),
)

# Words for a lobe or zone with its side.
SIDED_PLACES: tuple[tuple[str, str, str], ...] = (
    (r"bi-?bas(?:ilar|al)", "both", "base"),
    (r"bi-?apical", "both", "apex"),
    *(
        (rf"{letter}{short}", side, organ)
        for letter, side in (("r", "right"), ("l", "left"))
        for short, organ in (
            *(("ul", "upper lobe"), ("ml", "middle lobe"), ("ll", "lower lobe")),
            *(("uz", "upper lung"), ("mz", "mid lung"), ("lz", "base"), ("hd", "diaphragm")),
        )
    ),
)

SIDES: tuple[tuple[str, str], ...] = (
    (r"left(?:-sided)?|lt", "left"),
    (r"right(?:-sided)?|rt", "right"),
    (r"bilateral\w*|both|bilat|b/l", "both"),
)

# Words that name no finding, though a part of them does elsewhere.
IGNORED = (
    r"(?:pericardial|joint|knee|subdeltoid) effusions?",
    r"(?:soft tissue|subcutaneous|peripheral|leg|ankle|pedal) edema",
    r"mass effect|muscle mass|body mass|(?:bone|bony|soft tissue|mineral) density",
    r"(?:lytic|bone|bony|osseous|blastic|sclerotic|destructive)(?: \w+)? lesions?",
    r"granulomatous infections?",
    r"(?:vertebra\w*|body|bodies|endplate|tracheal)(?: \w+)? collapse",
    r"findings?(?: and impression)?:",
)

_OPACITY, _LESION, _DEVICES = "Lung Opacity", "Lung Lesion", "Support Devices"

TERMS: tuple[Term, ...] = (
    # Pleura
    Term(r"(?:hydro-?|haemo-?|hemo-?)?pneumothora\w+|ptx(?:es)?|pnx", "pneumothorax", "Pneumothorax", "pleural"),
    Term(r"pleural air(?: collections?)?", "pneumothorax", "Pneumothorax", "pleural", named=True),
    Term(
        r"effusions?|effs?|(?:hydro|ha?emo|chylo)-?thora(?:x|ces)|empyema\w*", "effusion", "Pleural Effusion", "pleural"
    ),
    Term(
        r"pleural (?:space )?(?:fluid|collections?)|(?:fluid|collection) in the (?:(?:left|"
        r"right) )?pleural (?:space|cavity)",
        *("effusion", "Pleural Effusion", "pleural"),
        named=True,
    ),
    Term(
        r"(?:pleural|apical|fissural|biapical|pleuro-?parenchymal)[ -](?:thickening|scarring|"
        r"capp?(?:ing)?|fibrosis|nodularity)",
        *("thicken", "Pleural Other", "pleural"),
        named=True,
    ),
    Term(
        r"pleural (?:based )?(?:plaques?|calcifications?|plaquing)|calcified pleura\w*(?: plaques?)?|fibrothorax",
        *("calcification", "Pleural Other", "pleural"),
        named=True,
    ),
    # Heart and vessels
    Term(r"cardio-?megal\w+", "cardiomegaly", "Cardiomegaly", "heart size", named=True),
    Term(
        r"(?:heart|cardiac)(?: (?!not?\b|and\b|or\b|with|in\b)\w+){0,3} (?:large|big)|(?:large|big) heart"
        r"|(?:cardio-?thoracic ratio|ctr)(?: (?!not?\b|and\b|or\b|with|within)\w+){0,3} (?:increased|"
        r"raised|elevated|above|abnormal)"
        r"|(?:increased|raised|elevated) (?:cardio-?thoracic ratio|ctr|heart size|cardiac size)|"
        r"(?:heart|cardiac) size is increased",
        *("enlarge", "Cardiomegaly", "heart size"),
        named=True,
    ),
    Term(r"enlarg\w+", "enlarge"),
    Term(r"widen\w*", "widen"),
    Term(r"borderline", "borderline"),
    Term(
        r"congestive (?:heart|cardiac) failure|(?:heart|cardiac|ventricular) failure|chf|ccf|lvf|"
        r"cardiac decompensation",
        "chf",
    ),
    Term(r"(?:fluid|volume) overload", "fluid"),
    Term(r"congest(?:ion|ed|ive)", "congestion", None, "pulmonary"),
    Term(r"engorge\w+", "engorgement", None, "pulmonary"),
    Term(r"redistribution|cephalization", "redistribution", None, "pulmonary"),
    Term(r"tortu\w+|ectatic|ectasia|unfold\w+", "tortuous"),
    Term(r"dilat\w+|aneurysm\w*", "dilation"),
    # Lungs
    Term(r"\w*atelect\w+|atx", "atelectasis", "Atelectasis", "pulmonary"),
    Term(r"collaps\w+", "collapse", "Atelectasis", "pulmonary"),
    Term(r"consol(?:idat\w+)?", "consolidation", "Consolidation", "pulmonary"),
    Term(r"o?edema(?:tous)?|apo", "edema", "Edema", "pulmonary"),
    Term(
        r"(?:broncho-?|pleuro-?)?pneumoni(?:a|as|ae|c|tis)|pna|infecti(?:on|ons|ous|ve)|lrti",
        "eumonia",
        "Pneumonia",
        "pulmonary",
    ),
    Term(r"aspiration", "aspiration", None, "pulmonary"),
    Term(
        r"opaci(?:t\w+|f\w+)|opaque|haz(?:e|y|iness)|ground[ -]glass|ggos?|shadowing|(?:airspace|"
        r"patchy|alveolar) shadows?",
        "opacity",
        _OPACITY,
        "pulmonary",
    ),
    Term(r"infiltrat\w+", "infiltrate", _OPACITY, "pulmonary"),
    Term(r"(?:air[ -]?space|alveolar) (?:disease|process\w*|changes?)", "process", _OPACITY, "pulmonary"),
    Term(r"(?:(?:reticulo|fibro)-?)nodul\w+|nodul(?:es?|arity)", "nodule", _LESION, "pulmonary"),
    Term(r"mass(?:es)?|mass-?like|spn", "mass", _LESION, "pulmonary"),
    Term(
        r"lesions?|neoplas\w+|tumou?rs?|carcinomas?|cancers?|malignan\w+|metasta\w+|mets|lymphoma\w*",
        "lesion",
        _LESION,
        "pulmonary",
    ),
    Term(r"densit\w+", "density", None, "pulmonary"),
    Term(
        r"(?:subcutaneous|soft tissue|mediastinal) (?:emphysema|gas|air)|pneumo(?:mediastinum|peritoneum)"
        r"|(?:free|intraperitoneal|abdominal) (?:intraperitoneal |abdominal )?air",
        *("air", None, "other"),
        named=True,
    ),
    Term(r"emphysem\w+", "emphysema", None, "pulmonary"),
    Term(r"hyper-?(?:inflat|expan|aerat)\w+", "hyperinflate", None, "lung volumes"),
    Term(r"scar(?:s|red|ring)?|cicatri\w+|fibro(?:sis|tic)", "scar", None, "pulmonary"),
    Term(r"calcifi\w+|granulom\w+", "calcification"),
    Term(r"markings?", "marking", None, "pulmonary"),
    Term(r"crowd\w+", "crowd", None, "pulmonary"),
    Term(r"volume loss|loss of volume", "loss", None, "lung volumes", named=True),
    Term(r"low (?:lung |inspiratory )?volumes?", "low", None, "lung volumes", named=True),
    Term(r"hypo-?(?:inflat|expan|aerat|ventilat)\w+", "low", None, "lung volumes"),
    # The rest of the chest
    Term(r"fractur\w+|fx", "fracture", "Fracture", "other"),
    Term(r"herni\w+", "hernia"),
    Term(r"blunt\w+", "blunt", None, "costophrenic"),
    Term(r"thicken\w+", "thicken"),
    Term(r"elevat\w+|eventration", "elevation", None, "diaphragm"),
    Term(r"prominen\w+", "prominence"),
    Term(r"degenerat\w+|osteophyt\w+|spondyl\w+|spurring|arthrit\w+", "degenerative"),
    Term(r"deformit\w+|\w*scolio\w+|kypho\w+|\w*curvature", "deformity"),
    Term(r"obscur\w+", "obscure"),
    Term(r"shift\w*", "shift"),
    Term(r"disten\w+", "distention"),
    # Devices
    Term(r"picc(?: lines?)?|peripherally inserted central catheters?", "picc", _DEVICES),
    Term(r"pace-?makers?|aicd|icds?|defibrillators?|pacers?|ppm|crt-?[dp]|loop recorder", "pacemaker", _DEVICES),
    Term(
        r"catheters?|port-?a-?cath\w*|medi-?port|(?:chest|infusion) port|infusaport|swan[ -]?ganz|"
        r"swan|cvcs?|cvls?|vas-?cath|perma?-?cath"
        r"|hickman|broviac|groshong|uvc|uac|cannula\w*|introducer|sheath|cordis|icc",
        "catheter",
        _DEVICES,
    ),
    Term(
        r"(?:central|venous|arterial|dialysis|subclavian|jugular|ij|support|picc|feeding|iv) lines?|"
        r"lines and tubes|lines? (?:or|/) tubes?",
        *("line", _DEVICES),
    ),
    Term(r"tub(?:es?|ing)|tracheostomy|trach|e\.?t\.?t|ngt|ogt|ett?s|dob(?:b)?hof+", "tube", _DEVICES),
    Term(r"pigtails?|drains?|pleurx", "drainage", _DEVICES),
    Term(r"stents?(?:-?grafts?)?", "stent", _DEVICES),
    Term(r"(?:sternotomy|cerclage) (?:sutures?|cerclages?)|wires?", "wire", _DEVICES),
    Term(r"leads(?! to)|(?:pacing|ventricular|atrial) lead", "lead", _DEVICES),
    Term(r"clips?", "clip", _DEVICES),
    Term(
        r"hardware|\w*prosthe\w+|arthroplast\w+|plates? and screws?|stimulators?|(?:spinal|pedicle|"
        r"harrington) (?:rods?|screws?)"
        r"|valve (?:replacement|repair)|(?:mechanical|replaced) (?:\w+ )?valve|tav[ir]",
        "hardware",
        _DEVICES,
    ),
    Term(
        r"devices?|iabp|(?:intra-?aortic )?balloon pumps?|l?vads?|impella|ecmo|(?:ivc )?filter|(?:vp |"
        r"ventriculoperitoneal )?shunts?"
        r"|(?<=of )(?:a|another)(?: (?:new|left|right|second|similar|longer|shorter)){0,2} one",
        *("device", _DEVICES),
    ),
    # What is as it should be, and what names nothing in particular
    Term(r"(?<!ab)normal\w*|negative (?:chest|exam\w*|study)|nad", "normal"),
    Term(r"unremarkable|not remarkable", "unremarkable"),
    Term(r"clear", "clear", None, "lung"),
    Term(r"sharp\w*", "sharp", None, "costophrenic"),
    Term(r"intact", "intact"),
    Term(r"(?:well|fully|normally)[ -](?:expanded|inflated|aerated)", "expand", None, "lung"),
    Term(r"abnormal(?:it\w+)?", "abnormality"),
    Term(r"disease|copd", "disease"),
    Term(r"process(?:es)?", "process"),
    Term(r"findings?", "finding"),
)

NORMAL_ENTITIES = frozenset({"normal", "unremarkable", "clear", "sharp", "intact", "expand"})
"""Entities that say that nothing is wrong."""

DEVICE_ENTITIES = frozenset(term.entity for term in TERMS if term.finding == _DEVICES)

SIZE_FINDING = {"heart size": "Cardiomegaly", "mediastinal": "Enlarged Cardiomediastinum"}
"""A place whose being large or normal says or denies a finding."""
