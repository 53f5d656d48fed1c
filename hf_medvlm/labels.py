"""The vocabularies and magic values of the field, each list once, with its source. Imports nothing of ours."""

from __future__ import annotations

from enum import IntEnum

IGNORE_INDEX = -100
"""Label that cross-entropy skips (`torch.nn.functional.cross_entropy`'s default)."""

IMAGE_TOKEN_INDEX = -200
"""LLaVA's stand-in id for one image before its features are merged (haotian-liu/LLaVA, `constants.py`)."""

SPLITS = ("train", "validate", "test")
"""MIMIC-CXR's own names: `validate`, not `val`."""


class Finding(IntEnum):
    """State of a finding in a report, with CheXpert's codes; "not mentioned" is None in a `Study`."""

    UNCERTAIN = -1
    ABSENT = 0
    PRESENT = 1


PROGRESSIONS = ("improving", "stable", "worsening")
"""How a finding changed since the prior study (MS-CXR-T, Bannur et al. 2023), in the order of BioViL-T's logits."""

TRIPLET_STATES = ("present", "absent", "uncertain")
"""States of a RadGraph-like triplet (entity, position, state)."""

FINDING_STATES = (Finding.PRESENT, Finding.ABSENT, Finding.UNCERTAIN, None)

# Irvin et al. 2019, "CheXpert" (arXiv 1901.07031); the order of MIMIC-CXR-JPG's chexpert.csv.gz.
CHEXPERT_14 = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)

# MediaBrain-SJTU/MedKLIP @ 8e60b035, the order of `observation explanation.json`; "eumonia" is its stem of pneumonia.
MEDKLIP_ENTITIES = tuple(
    """normal clear sharp sharply unremarkable intact stable free effusion opacity pneumothorax edema atelectasis tube
    consolidation process abnormality enlarge tip low eumonia line congestion catheter cardiomegaly fracture air
    tortuous lead disease calcification prominence device engorgement picc clip elevation expand nodule wire
    fluid degenerative pacemaker thicken marking scar hyperinflate blunt loss widen collapse density emphysema
    aerate mass crowd infiltrate obscure deformity hernia drainage distention shift stent pressure lesion
    finding borderline hardware dilation chf redistribution aspiration tail_abnorm_obs excluded_obs""".split()
)

# The same source, the order of its position list; the prompt is "It is located at " + name, underscores kept.
MEDKLIP_POSITIONS = tuple(
    """trachea left_hilar right_hilar hilar_unspec left_pleural right_pleural pleural_unspec heart_size heart_border
    left_diaphragm right_diaphragm diaphragm_unspec retrocardiac lower_left_lobe upper_left_lobe lower_right_lobe
    middle_right_lobe upper_right_lobe left_lower_lung left_mid_lung left_upper_lung left_apical_lung left_lung_unspec
    right_lower_lung right_mid_lung right_upper_lung right_apical_lung right_lung_unspec lung_apices lung_bases
    left_costophrenic right_costophrenic costophrenic_unspec cardiophrenic_sulcus mediastinal spine clavicle rib stomach
    right_atrium right_ventricle aorta svc interstitium parenchymal cavoatrial_junction cardiopulmonary pulmonary
    lung_volumes unspecified other""".split()
)
POSITION_PROMPT = "It is located at "
