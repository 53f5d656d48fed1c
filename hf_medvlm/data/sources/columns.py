"""Which column of a table is what: names that others give to images, texts, patients and splits, in any case.

A column that was named with an option is taken as it is named; only where none was are these names looked for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_medvlm.data.fields import SECTIONS
from hf_medvlm.data.sources.base import require_columns
from hf_medvlm.errors import clipped
from hf_medvlm.labels import CHEXPERT_14

# As `plain_name` writes them, the surest first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "image": tuple(
        """image images imagepath imagepaths imgpath img imagefile imagefilename filename filenames filepath imageindex
        imagename imageid dicomid dicompath dicomfile dicom path file png jpg imagefilepath imagespath
        bilddatei bildpfad bildname bild dateiname dateipfad datei pfad
        cheminimage nomimage nomfichier cheminfichier fichier chemin
        rutaimagen nombreimagen imagen nombrearchivo rutaarchivo archivo ruta fichero
        sopinstanceuid sopuid imageuid seriesinstanceuid seriesuid studyinstanceuid studyuid accessionnumber
        accession""".split()
    ),
    "patient_id": tuple(
        """patientid patient subjectid subject patientidentifier patientnumber pid mrn
        patientenid patientennummer patientennr patientnr patnr patid
        identifiantpatient idpatient numeropatient npatient ipp
        idpaciente pacienteid paciente numeropaciente nhc""".split()
    ),
    "study_id": tuple(
        """studyid study examid reportid accessionnumber accession studyinstanceuid studyuid
        untersuchungsid untersuchungsnummer auftragsnummer idexamen numeroexamen idestudio estudio""".split()
    ),
    "split": tuple("split subset partition fold dataset set phase".split()),
    "study_date": tuple(
        """studydate examdate examinationdate dateofexam dateofstudy acquisitiondate studydatetime date
        untersuchungsdatum aufnahmedatum datum dateexamen datedexamen datedelexamen fechaestudio fechaexamen
        fecha""".split()
    ),
    "study_time": tuple("studytime examtime acquisitiontime time uhrzeit untersuchungszeit heure hora".split()),
    "view": tuple("view viewposition viewpos projection views viewpositions".split()),
    "labels": tuple("labels findinglabels findingslabels pathologies".split()),
    "findings": tuple(
        """findings finding findingssection reportfindings sectionfindings befund befunde resultats constatations
        hallazgos""".split()
    ),
    "impression": tuple(
        """impression impressions impressionsection reportimpression sectionimpression conclusion beurteilung
        impresion impresiondiagnostica""".split()
    ),
    "report": tuple(
        """report reports befundtext befundbericht bericht compterendu informe informeradiologico referto
        laudo""".split()
    ),
    "indication": tuple("indication indications indikation klinischeangaben fragestellung indicacion motivo".split()),
    "comparison": tuple("comparison comparisons vergleich comparaison comparacion".split()),
    "prior_study_id": ("priorstudyid",),
    "source": ("source",),
    "licence": tuple("licence license".split()),
}
FREE_TEXT = tuple(
    """reporttext fullreport fulltext radiologyreport reportcontent text caption captions description transcript
    narrative reporten""".split()
)
"""Columns of a whole report or caption, for tables without a findings, impression or report column."""

PICKED_UP = ("indication", "comparison", "prior_study_id", "source", "licence")


def plain_name(name: str) -> str:
    """`"Image Path"`, `"image_path"` and `"ImagePath"` are one name; accents do not count."""
    letters = unicodedata.normalize("NFKD", str(name).lower())
    return re.sub(r"[\W_]+", "", "".join(letter for letter in letters if not unicodedata.combining(letter)))


@dataclass
class Columns:
    """The role of each column that is used.

    Args:
        images: columns with images; several where a table has one for each view.
        texts: column -> section of the study that it fills.
        labels: columns of findings -> the finding.
        picked: field of the study -> column, for those that are taken along where they are there.
        notes: what was recognised that does not go by its usual name, for the user to check.
    """

    images: tuple[str, ...]
    texts: dict[str, str]
    patient: str | None = None
    split: str | None = None
    date: str | None = None
    time: str | None = None
    study_id: str | None = None
    view: str | None = None
    label_lists: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    picked: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def recognise(
    path: str,
    columns: Sequence[str],
    image: str | None = None,
    texts: str | Sequence[str] | None = None,
    patient: str | None = None,
    split: str | None = None,
    date: str | None = None,
    needs_text: bool = True,
) -> Columns:
    """The columns by the names that were given, and the others by the names that are common.

    Args:
        image: one column, or several divided by commas.
        needs_text: False where a table without texts will do; columns of text are then taken only if they were named.

    Raises:
        ValueError: a named column is not there (with its neighbour); none holds images, or none text.
    """
    if not columns:
        raise ValueError(f"{path}: no columns and no rows in it")
    sections = _sections(path, columns, texts) if needs_text or texts else {}
    several = [name.strip() for name in image.split(",")] if image and image not in columns else [image]
    named = [name for name in (*several, *sections, patient, split, date) if name]
    require_columns(f"{path}:1", columns, named)
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(plain_name(column), column)
    taken = set(named)

    def column_of(role: str, given: str | None = None) -> str | None:
        if given:
            return given
        exact = role if role in columns else None
        column = exact or next((by_name[name] for name in NAMES[role] if name in by_name), None)
        if column is None or column in taken:
            return None
        taken.add(column)
        return column

    image_column = column_of("image", several[0])
    if image_column is None:
        raise ValueError(
            f"{path}:1: no column 'image' or another that is known to hold images; name it with "
            f"--image_column{_shown(columns)}"
        )
    chosen = Columns((image_column, *filter(None, several[1:])), sections)
    chosen.patient, chosen.split = column_of("patient_id", patient), column_of("split", split)
    chosen.date = column_of("study_date", date)
    chosen.time = column_of("study_time") if chosen.date else None
    chosen.study_id = column_of("study_id") or (image_column if plain_name(image_column) in NAMES["study_id"] else None)
    chosen.view, chosen.label_lists = column_of("view"), column_of("labels")
    chosen.picked = {name: picked for name in PICKED_UP if (picked := column_of(name))}
    findings = {plain_name(name): name for name in CHEXPERT_14}
    chosen.labels = {
        column: findings[plain_name(column)]
        for column in columns
        if column not in taken and plain_name(column) in findings
    }
    usual = {
        "image": image_column,
        "patient_id": chosen.patient,
        "split": chosen.split,
        "study_date": chosen.date,
        "study_time": chosen.time,
        "study_id": chosen.study_id,
        "view": chosen.view,
        "labels": chosen.label_lists,
        **chosen.picked,
    }
    asked = set(filter(None, (*several, patient, split, date)))
    other = [f"{role} from {column!r}" for role, column in usual.items() if column and column not in (role, *asked)]
    if texts is None:
        other += [f"{section} from {column!r}" for column, section in sections.items() if column != section]
    if other:
        chosen.notes.append(f"columns recognised by their names: {', '.join(other)}")
    used = {*filter(None, usual.values()), *chosen.images, *sections, *chosen.labels}
    unused = [repr(column) for column in columns if column and column not in used]
    if unused:
        more = f" and {len(unused) - 12} more" if len(unused) > 12 else ""
        chosen.notes.append(f"columns that are not used: {', '.join(unused[:12])}{more}")
    return chosen


def _shown(columns: Sequence[str]) -> str:
    """The columns, for a message; a lone one is a sign of another separator."""
    one = "; columns are divided by a comma, semicolon, tab or bar" if len(columns) == 1 else ""
    return f" (columns: {clipped(', '.join(columns))}{one})"


def _sections(path: str, columns: Sequence[str], texts: str | Sequence[str] | None) -> dict[str, str]:
    """Text column -> the section of `Study` it fills."""
    if texts is None:
        return _known_texts(path, columns)
    names = [name.strip() for name in texts.split(",") if name.strip()] if isinstance(texts, str) else list(texts)
    if not names:
        raise ValueError(f"{path}: --text_columns names no column{_shown(columns)}")
    hides_report = any(name.lower() in ("findings", "impression") for name in names)
    free = "findings" if hides_report else "report"
    return {name: name.lower() if name.lower() in SECTIONS else free for name in names}


def _known_texts(path: str, columns: Sequence[str]) -> dict[str, str]:
    by_name = {plain_name(column): column for column in reversed(columns)}
    sections: dict[str, str] = {}
    for section in SECTIONS[:3]:
        column = section if section in columns else next((by_name[n] for n in NAMES[section] if n in by_name), None)
        if column is not None:
            sections[column] = section
    free = next((by_name[name] for name in FREE_TEXT if name in by_name), None)
    if not sections and free is not None:
        sections[free] = "report"
    if not sections:
        raise ValueError(f"{path}: no text column; name one with --text_columns{_shown(columns)}")
    return sections
