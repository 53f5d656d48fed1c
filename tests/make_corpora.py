"""Corpora in their official layouts, made up: small ones with broken entries planted, and MIMIC-CXR at any size.

Each `make_*` lays a corpus out below `root` and returns what was planted: `Planted.rejected` counts what must be left
out for each reason, the rest says what must be found. The tests check every count; the benchmarks time the readers.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

CHEXPERT_14 = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
).split(",")

SENTENCES = """The cardiac silhouette is mildly enlarged.|The lungs are clear without focal consolidation.
There is no pleural effusion or pneumothorax.|A small left pleural effusion is new.|Mediastinal contours are normal.
Right lower lobe opacity has increased, and may reflect pneumonia in the appropriate clinical setting.
An endotracheal tube terminates ___ cm above the carina.|Bibasilar atelectasis is unchanged.
The osseous structures are intact.|Heart size is within normal limits.
Mild interstitial edema has improved in comparison with the study of ___.
The patient is status post median sternotomy.|A right-sided central venous catheter ends in the low SVC.
No free air is seen below the right hemidiaphragm.|There is a tiny right apical pneumothorax.
Hilar contours are within normal limits.|Healed left rib fractures are noted.
Emphysematous changes are most severe in the upper lobes.""".replace("\n", "|").split("|")


@dataclass
class Planted:
    """What stands in a corpus: the studies that must come out, and how often each reason must be given."""

    studies: int = 0
    images: int = 0
    splits: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)


# ---------------------------------------------------------------- images


def write_image(path: Path, seed: int = 0, size: int = 24) -> None:
    """A small grey picture; its suffix says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    if path.suffix == ".dcm":
        write_dicom(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """A radiograph with a patient's name in it, which must never come out."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.PatientName, data.PatientID, data.Modality = "Secret^Patient", "SECRET-1", "DX"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    pydicom.dcmwrite(path, data, enforce_file_format=True)


# ---------------------------------------------------------------- MIMIC-CXR


@dataclass
class MimicStudy:
    """One study of MIMIC-CXR as its tables tell it; `report` None leaves it out of the ZIP."""

    patient: int
    study: int
    split: str
    report: str | bytes | None
    views: Sequence[str] = ("PA", "LATERAL")
    date: str = "21800506"
    time: str = "213014.531"
    labels: Sequence[str] = ("",) * 14

    def image_id(self, number: int) -> str:
        return f"{self.study:08x}-{number:08x}-00000000-00000000-0000abcd"

    @property
    def folder(self) -> str:
        return f"files/p{str(self.patient)[:2]}/p{self.patient}/s{self.study}"


def mimic_report(findings: str, impression: str, indication: str = "___ year old woman with cough.") -> str:
    """A report as MIMIC-CXR prints it: one space before each line, a space on blank lines, lines of 79 characters."""
    lines = [" " * 33 + "FINAL REPORT", " EXAMINATION:  CHEST (PA AND LAT)", " ", f" INDICATION:  {indication}", " "]
    for name, text in (("FINDINGS", findings), ("IMPRESSION", impression)):
        if text:
            lines += [f" {name}: ", " "]
            line = ""
            for word in text.split():
                if len(line) + len(word) > 77:
                    lines, line = [*lines, line], ""
                line += f" {word}"
            lines += [line, " "]
    return "\n".join(lines) + "\n"


def write_mimic(root: Path, studies: Iterable[MimicStudy], zipped: bool = True, version: str = "2.0.0") -> None:
    """The tables of MIMIC-CXR-JPG and the reports of MIMIC-CXR, below `root`; no images."""
    root.mkdir(parents=True, exist_ok=True)
    metadata = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,"
    metadata += "StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    metadata += "PatientOrientationCodeSequence_CodeMeaning\n"
    tables = {name: gzip.open(root / f"mimic-cxr-{version}-{name}.csv.gz", "wt", compresslevel=6) for name in TABLES}
    archive = zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) if zipped else None
    tables["metadata"].write(metadata)
    tables["split"].write("dicom_id,study_id,subject_id,split\n")
    tables["chexpert"].write(",".join(["subject_id", "study_id", *CHEXPERT_14]) + "\n")
    for s in studies:
        for number, view in enumerate(s.views):
            image = s.image_id(number)
            tables["metadata"].write(
                f"{image},{s.patient},{s.study},CHEST (PA AND LAT),{view},3056,2544,{s.date},{s.time},"
                "CHEST (PA AND LAT),postero-anterior,Erect\n"
            )
            tables["split"].write(f"{image},{s.study},{s.patient},{s.split}\n")
        tables["chexpert"].write(",".join([str(s.patient), str(s.study), *s.labels]) + "\n")
        if s.report is not None and archive:
            archive.writestr(f"{s.folder}.txt", s.report)
        elif s.report is not None:
            path = root / f"{s.folder}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s.report if isinstance(s.report, bytes) else s.report.encode())
    for table in [*tables.values(), *([archive] if archive else [])]:
        table.close()


TABLES = ("metadata", "split", "chexpert")


REAL_MIMIC = {"studies": 227_835, "images": 377_110, "patients": 65_379}


def simulate_mimic(studies: int, images: int, patients: int) -> Iterator[MimicStudy]:
    """As many studies, images and patients as MIMIC-CXR has, with reports of a like length (about 900 characters).

    A third has "No Finding" alone, the rest about three findings, as CheXpert's table has them.
    """
    draw = random.Random(0)
    views = ["AP"] * 147 + ["PA"] * 96 + ["LATERAL"] * 83 + ["LL"] * 35 + [""] * 16
    for number in range(studies):
        patient = number * patients // studies
        findings = " ".join(draw.choices(SENTENCES, k=12))
        labels = [""] * 14
        if draw.random() < 0.33:
            labels[CHEXPERT_14.index("No Finding")] = "1.0"
        else:
            for place in draw.sample(range(14), draw.choice((1, 2, 3, 4, 5))):
                labels[place] = draw.choice(("1.0", "1.0", "0.0", "-1.0"))
        count = (number + 1) * images // studies - number * images // studies
        yield MimicStudy(
            patient=10_000_000 + patient * 13,
            study=50_000_000 + number * 7919 % 9_999_991,
            split="test" if patient % 200 == 0 else "validate" if patient % 130 == 0 else "train",
            report=mimic_report(findings, " ".join(draw.choices(SENTENCES, k=2))),
            views=["PA" if draw.random() < 0.3 else "AP", *draw.choices(views, k=count - 1)],
            date=f"{2110 + draw.randrange(90)}{draw.randrange(1, 13):02}{draw.randrange(1, 29):02}",
            time=f"{draw.randrange(24) * 10000 + draw.randrange(60) * 100 + draw.randrange(60)}.{draw.randrange(1000)}",
            labels=labels,
        )


def make_mimic(root: Path, suffix: str = ".jpg", zipped: bool = True) -> Planted:
    """Twelve good studies of six patients, then one study or row for each thing that can be wrong."""
    words = mimic_report(SENTENCES[0] + " " + SENTENCES[1], SENTENCES[2])
    good = [
        MimicStudy(
            patient=10_000_000 + number // 2,
            study=50_000_000 + number,
            split=("train", "train", "train", "train", "validate", "test")[number // 2],
            report=mimic_report(f"Study {number}. " + SENTENCES[number], SENTENCES[2] if number % 3 else ""),
            views=["LATERAL", "PA"] if number % 4 else ["AP", "PA", "LL"],
            date=f"2180{1 + number % 2:02}06",
            labels=["1.0", "0.0", "-1.0", *[""] * 11],
        )
        for number in range(12)
    ]
    patient = 10_000_100
    bad = {
        "short text": dict(report=mimic_report("Normal.", "")),
        "empty text": dict(report=" " * 33 + "FINAL REPORT\n INDICATION:  ___ year old man\n"),
        "no report": dict(report=None),
        "unreadable report": dict(report=words.encode() + b"\xff"),
        "no frontal image": dict(views=["LATERAL", "LL"]),
        "neither frontal nor lateral": dict(views=["PA", "LAO", ""]),
        "impossible date": dict(date="21801350"),
        "impossible label": dict(labels=["2.0", *[""] * 13]),
        "unreadable image": dict(views=["PA", "AP"]),
        "image not on disk": dict(views=["LATERAL", "AP"]),
    }
    odd = {
        reason: MimicStudy(
            **(dict(patient=patient + place, study=50_000_100 + place, split="train", report=words) | changes)
        )
        for place, (reason, changes) in enumerate(bad.items())
    }
    studies = [*good, *odd.values()]
    write_mimic(root, studies, zipped)
    for study in studies:
        for number in range(len(study.views)):
            write_image(root / study.folder / (study.image_id(number) + suffix), seed=study.study + number)
    (root / odd["unreadable image"].folder / (odd["unreadable image"].image_id(1) + suffix)).write_bytes(b"no image")
    (root / odd["image not on disk"].folder / (odd["image not on disk"].image_id(1) + suffix)).unlink()
    first = good[0]
    append_rows(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        f"{first.image_id(0)},{first.patient},{first.study},,AP,1,1,21800106,1,,,",  # the very same image again
        f"{first.image_id(9)},10000999,{first.study},,AP,1,1,21800106,1,,,",  # a study of two patients
        f"{first.image_id(8)},../../etc,50000200,,AP,1,1,21800106,1,,,",
        "three,fields,only",
    )
    stray = dict(report=words, patient=patient + 50, study=50_000_150, split="train")
    if zipped:
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MimicStudy(**stray).folder + ".txt", words)
    else:
        (root / MimicStudy(**stray).folder).parent.mkdir(parents=True)
        (root / f"{MimicStudy(**stray).folder}.txt").write_text(words)
    whole = ("neither frontal nor lateral", "impossible label", "unreadable image")  # these lose a part of themselves
    gone = Counter(bad.keys() - whole) + Counter({"report without images": 1})
    return Planted(
        studies=len(good) + len(whole),
        images=sum(len(study.views) for study in good) + 1 + 2 + 1,
        splits=Counter(study.split for study in good) + Counter(train=len(whole)),
        rejected=gone
        + Counter({"neither frontal nor lateral": 2, "impossible label": 1, "unreadable image": 1})
        # what follows from the above: both rows of the bad date, its report, the study whose only frontal is missing
        + Counter({"impossible date": 1, "report without images": 1, "no frontal image": 1})
        + Counter(["duplicate row", "two patients", "impossible id", "wrong number of fields"]),
    )


def append_rows(path: Path, *lines: str) -> None:
    """Add lines to a gzipped table."""
    with gzip.open(path, "at") as handle:
        handle.writelines(line + "\n" for line in lines)


# ---------------------------------------------------------------- IU X-ray


def iu_xml(uid: int, findings: str, impression: str, images: Sequence[str]) -> str:
    """A report as Open-i gives it."""
    pictures = "".join(
        f'<parentImage id="{name}"><caption>Xray Chest PA and Lateral</caption></parentImage>' for name in images
    )
    texts = {"COMPARISON": "None.", "INDICATION": "XXXX-year-old", "FINDINGS": findings, "IMPRESSION": impression}
    abstract = "\n".join(f'<AbstractText Label="{name}">{escape(text)}</AbstractText>' for name, text in texts.items())
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><meta type="rr"/><uId id="CXR{uid}"/>'
        "<licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL><MedlineCitation><Article><Abstract>\n"
        f"{abstract}\n</Abstract></Article></MedlineCitation><MeSH><major>Cardiomegaly/mild</major></MeSH>"
        f"{pictures}</eCitation>\n"
    )


def _iu_reports() -> dict[int, tuple[str, str, int]]:
    """uid -> findings, impression, number of images."""
    reports = {uid: (f"Case {uid}. {SENTENCES[uid]}", SENTENCES[0], uid % 3 + 1) for uid in range(1, 13)}
    return reports | {20: ("", "", 2), 21: ("Normal.", "", 1), 22: (SENTENCES[0], SENTENCES[1], 0)}


IU_REJECTED = Counter({"empty text": 1, "short text": 1, "no image": 1, "unreadable image": 1, "image not on disk": 2})


def _iu_images(paths: dict[int, list[Path]]) -> Planted:
    """Write the pictures but one of study 3 and the only one of study 6; damage the last of study 5."""
    for uid, names in paths.items():
        for number, path in enumerate(names):
            write_image(path, seed=10 * uid + number)
    paths[3][0].unlink()
    paths[6][0].unlink()
    paths[5][-1].write_bytes(paths[5][-1].read_bytes()[:60])
    images = sum(uid % 3 + 1 for uid in range(1, 13)) - 3
    # study 3 has one image and 6 has one: both go out with it
    return Planted(10, images, Counter(), IU_REJECTED + Counter({"no frontal image": 2}))


def make_open_i(root: Path) -> Planted:
    """Open-i's XML and PNG; broken: an XML cut short, one of another kind, one without an id for its image."""
    names = {uid: [f"CXR{uid}_IM-{uid:04}-{k}001" for k in range(n)] for uid, (*_, n) in _iu_reports().items()}
    folder = root / "NLMCXR_reports" / "ecgen-radiology"
    folder.mkdir(parents=True)
    for uid, (findings, impression, _) in _iu_reports().items():
        (folder / f"{uid}.xml").write_text(iu_xml(uid, findings, impression, names[uid]))
    (folder / "30.xml").write_text(iu_xml(30, "Fine.", "Fine.", [])[:300])
    (folder / "31.xml").write_text("<html><body/></html>")
    (folder / "32.xml").write_text(iu_xml(32, SENTENCES[0], SENTENCES[1], ["../../CXR32"]))
    (folder / "33.xml").write_text(iu_xml(1, SENTENCES[0], SENTENCES[1], []))
    planted = _iu_images({uid: [root / "NLMCXR_png" / f"{name}.png" for name in n] for uid, n in names.items()})
    planted.rejected += Counter(["not XML", "wrong layout", "path leaves the image folder", "duplicate row"])
    return planted


def make_iu_kaggle(root: Path) -> Planted:
    """Kaggle's two tables; broken: a projection that is none, a picture without a report, a report given twice."""
    reports = _iu_reports()
    names = {uid: [f"{uid}_IM-{uid:04}-{k}001.dcm.png" for k in range(n)] for uid, (*_, n) in reports.items()}
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "indiana_projections.csv", "w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["uid", "filename", "projection"])
        for uid, files in names.items():
            rows.writerows([uid, name, "Lateral" if k == 1 else "Frontal"] for k, name in enumerate(files))
        rows.writerows([[1, "1_IM-9.dcm.png", "Oblique"], [99, "99_IM-1.dcm.png", "Frontal"]])
    with open(root / "indiana_reports.csv", "w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow("uid MeSH Problems image indication comparison findings impression".split())
        for uid, (findings, impression, _) in reports.items():
            rows.writerow([uid, "Cardiomegaly/mild;normal", "", "", "XXXX-year-old", "None.", findings, impression])
        rows.writerow([1, "", "", "", "", "", "Again.", "Again."])
    folder = root / "images" / "images_normalized"
    planted = _iu_images({uid: [folder / name for name in files] for uid, files in names.items()})
    planted.rejected += Counter(["unknown view", "image without a report", "duplicate row"])
    return planted


def make_r2gen(root: Path) -> Planted:
    """R2Gen's annotation.json with the damaged key of one public copy; broken: two entries, one path, one split."""
    parts: dict[str, list] = {"train": [], "val": [], "    ": []}
    paths = {}
    for uid in range(1, 13):
        key, split = [("train", "train"), ("val", "val"), ("    ", "test")][uid % 3]
        name = f"CXR{uid}_IM-{uid:04}"
        files = [f"{name}/{k}.png" for k in range(uid % 3 + 1)]
        parts[key].append({"id": name, "report": f"Case {uid}. {SENTENCES[uid]}", "image_path": files, "split": split})
        paths[uid] = [root / "images" / file for file in files]
    parts["train"] += [
        {"id": "CXR90_IM-1", "report": SENTENCES[0], "split": "train"},
        {"id": "CXR91_IM-1", "report": SENTENCES[0], "image_path": ["../x.png"], "split": "train"},
        {"id": "CXR93_IM-1", "report": None, "image_path": "x.png", "split": "train"},
        {"id": "CXR92_IM-1", "report": SENTENCES[0], "image_path": ["x.png"], "split": "holdout"},
    ]
    parts["    "].append({"id": "CXR2_IM-0002", "report": SENTENCES[0], "image_path": ["x.png"], "split": "test"})
    root.mkdir(parents=True, exist_ok=True)
    (root / "annotation.json").write_text(json.dumps(parts))
    planted = _iu_images(paths)
    planted.splits = Counter(train=2, validate=4, test=4)
    planted.rejected = Counter({"unreadable image": 1, "image not on disk": 2, "no frontal image": 2})
    planted.rejected += Counter(["path leaves the image folder", "unknown split", "duplicate row"])
    planted.rejected["wrong layout"] = 2
    return planted


# ---------------------------------------------------------------- ROCO

ROCO_CAPTIONS = {
    "Chest X-ray showing basal right pulmonary infiltrate.": True,
    "AP chest radiograph showing bilateral reticular pattern with honeycombing.": True,
    "Plain radiograph of the chest with a large right pleural effusion.": True,
    "CXR on admission, both lungs are clear and the heart is normal.": True,
    "Computed tomography of chest showing largest pulmonary metastatic nodule.": False,
    "Chest CT after a normal chest X-ray: a cavity in the left upper lobe.": False,
    "Lateral radiograph of the thoracic spine with a compression fracture.": False,
    "Panoramic radiograph, only the roots of the second molar remain.": False,
    "Levoposition of the heart, seen in the posteroanterior view (arrow).": True,  # by its keywords
}


def make_roco(root: Path, kaggle: bool = False) -> Planted:
    """Each caption once in each split; one picture of each split is missing, one line of each list is no entry."""
    planted, number = Planted(rejected=Counter()), 0
    for split in ("train", "validation", "test"):
        base = root / ("all_data" if kaggle else "data") / split
        folder = base / "radiology"
        (folder / "images").mkdir(parents=True)
        captions, keywords, licences = [], [], ["ROCO_ID,PMC_ID,CC"]
        for caption in ROCO_CAPTIONS:
            number += 1
            name = f"ROCO_{number:05}"
            captions.append((name, f"Case {number}. {caption}"))
            keywords.append(f"{name}\t\tchest\txray\tarrow" if "Levo" in caption else f"{name}\t\tarrow")
            licences.append(f"{name},PMC{number},{'CC BY' if number % 2 else 'CC BY-NC'}")
            write_image(folder / "images" / f"{name}.jpg", seed=number)
        (folder / "images" / f"{captions[0][0]}.jpg").unlink()
        if kaggle:
            short = {"validation": "val"}.get(split, split)
            with open(base / f"radiology{short}data.csv", "w", newline="") as handle:
                rows = csv.writer(handle)
                rows.writerows([["id", "name", "caption"], *([n, f"{n}.jpg", text] for n, text in captions)])
        else:
            lines = [f"{name}\t {text}" for name, text in captions] + ["no tab in this line"]
            (folder / "captions.txt").write_text("\n".join(lines) + "\n")
            planted.rejected["wrong layout"] += 1
        (folder / "keywords.txt").write_text("\n".join(keywords) + "\n")
        (folder / "licences.txt").write_text("\n".join(licences) + "\n")
        planted.rejected["image not on disk"] += 1
        planted.splits["validate" if split == "validation" else split] = len(ROCO_CAPTIONS) - 1
    planted.studies = planted.images = sum(planted.splits.values())
    return planted
