"""The corpora: a small one of each layout, with one of its files damaged."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import make_corpora

from fuzzing import mutate
from fuzzing.pool import Made, Reader
from fuzzing.tables import TEXT, justify_table


def _nih(root: Path) -> None:
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,View Position"]
    for n in range(4):
        lines.append(f"0000000{n}_000.png,Effusion|Mass,0,{n},58,PA")
        make_corpora.write_image(root / "images" / f"0000000{n}_000.png", n)
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    (root / "test_list.txt").write_text("00000002_000.png\n")


def _vindr(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/image_labels_train.csv").write_text(
        "image_id,rad_id,Cardiomegaly,No finding\na,R1,1,0\nb,R1,0,1\n"
    )
    (root / "annotations/image_labels_test.csv").write_text("image_id,Cardiomegaly,No finding\nt,0,1\n")
    (root / "annotations/annotations_train.csv").write_text(
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\na,R1,Cardiomegaly,1,2,9,9\n"
    )
    for name in ("train/a", "train/b", "test/t"):
        make_corpora.write_image(root / f"{name}.dcm", 3)
        (root / f"{name}.dcm").rename(root / f"{name}.dicom")


def _chexpert_plus(root: Path) -> None:
    head = "path_to_image,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    head += "section_clinical_history,section_comparison,section_findings,section_impression,split"
    lines = [head]
    for n in range(4):
        path = f"train/patient0000{n % 2}/study{n}/view1_frontal.jpg"
        lines.append(f"{path},Frontal,PA,patient0000{n % 2},{n + 1},Whole report.,Cough.,None.,{TEXT},Clear.,train")
        make_corpora.write_image(root / "PNG" / path.replace(".jpg", ".png"), n)
    (root / "df_chexpert_plus_240401.csv").write_text("\n".join(lines) + "\n")
    (root / "chexbert_labels").mkdir()
    labels = {"path_to_image": "train/patient00000/study0/view1_frontal.jpg", "Edema": 1.0, "Fracture": None}
    (root / "chexbert_labels/impression_fixed.json").write_text(json.dumps(labels) + "\n")


def _rexgradient(root: Path) -> None:
    (root / "metadata").mkdir()
    for n, split in enumerate(("train", "valid", "test")):
        path = f"deid_png/GRDN{n}/ACC{n}/studies/{n}.1/series/0/instances/0.png"
        make_corpora.write_image(root / path, n)
        ids = {"StudyInstanceUid": f"{n}.1", "AccessionNumber": f"ACC{n}", "StudyDate": "20200301"}
        texts = {"Indication": "Cough.", "Comparison": "None", "Findings": TEXT, "Impression": "nan"}
        images = {"ImagePath": [f"../{path}"], "ImageViewPosition": ["PA"]}
        content = {f"pGRDN{n}_aACC{n}_s{n}.1": ids | texts | images}
        (root / f"metadata/{split}_metadata_view_position.json").write_text(json.dumps(content))


def _padchest(root: Path) -> None:
    lines = [
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,Projection,MethodProjection,Report,MethodLabel,Labels"
    ]
    for n in range(4):
        lines.append(
            f"{n},{n}.png,0,2014091{n},s{n},{n % 2},PA,Manual,derrame pleural izquierdo .,Physician,['normal']"
        )
        make_corpora.write_image(root / f"0/{n}.png", n)
    (root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_text("\n".join(lines) + "\n")


def _padchest_gr(root: Path) -> None:
    box = {"abnormal": True, "boxes": [[0.5, 0.25, 1.0, 0.75]], "labels": ["pleural effusion"], "extra_boxes": []}
    finding = {"sentence_en": "Small left pleural effusion.", "sentence_es": "Pequeño derrame pleural."} | box
    entries = [{"StudyID": f"s{n}", "ImageID": f"{n}.png", "findings": [finding]} for n in range(3)]
    (root / "grounded_reports_20240819.json").write_text(json.dumps(entries))
    rows = [f"s{n},{n}.png,{n},pleural effusion,Pleural effusion,train" for n in range(3)]
    (root / "master_table.csv").write_text(
        "\n".join(["StudyID,ImageID,PatientID,label,label_group,split", *rows]) + "\n"
    )
    for n in range(3):
        make_corpora.write_image(root / f"PadChest_GR/{n}.png", n)


CORPORA: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "Open-i": ("iu-xray", make_corpora.make_open_i),
    "IU Kaggle": ("iu-xray", make_corpora.make_iu_kaggle),
    "R2Gen": ("iu-xray", make_corpora.make_r2gen),
    "ROCO": ("roco", make_corpora.make_roco),
    "ROCO Kaggle": ("roco", lambda root: make_corpora.make_roco(root, kaggle=True)),
    "MIMIC": ("mimic-cxr", make_corpora.make_mimic),
    "MIMIC folders": ("mimic-cxr", lambda root: make_corpora.make_mimic(root, zipped=False)),
    "NIH": ("nih", _nih),
    "VinDr": ("vindr-cxr", _vindr),
    "CheXpert Plus": ("chexpert-plus", _chexpert_plus),
    "ReXGradient": ("rexgradient", _rexgradient),
    "PadChest": ("padchest", _padchest),
    "PadChest-GR": ("padchest-gr", _padchest_gr),
}


@cache
def _seed(name: str) -> Path:
    root = Path(tempfile.mkdtemp(prefix="fuzz-corpus-")) / "root"
    root.mkdir()
    CORPORA[name][1](root)
    return root


def make_corpus(rng: Random, folder: Path) -> Made:
    name = rng.choice(list(CORPORA))
    root = folder / "root"
    shutil.copytree(_seed(name), root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix not in (".png", ".jpg", ".dicom", ".dcm")]
    path = rng.choice(texts if rng.random() < 0.9 else files)
    if rng.random() < 0.1:
        what = mutate.special(path, rng)
    elif path.suffix == ".csv" and rng.random() < 0.7:
        rows = [line.split(",") for line in path.read_text().splitlines()]
        content, what = mutate.table_text(rows, rng)
        path.write_bytes(content)
    elif path.suffix == ".json" and rng.random() < 0.7:
        content, what = mutate.json_text(json.loads(path.read_text()), rng)
        path.write_bytes(content)
    elif path.suffix == ".gz" and rng.random() < 0.6:
        rows = [line.split(",") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        content, what = mutate.table_text(rows, rng)
        path.write_bytes(gzip.compress(content))
    else:
        content, what = mutate.bytes_of(path.read_bytes(), rng)
        path.write_bytes(content)
    return Made(root, f"{name}, {path.name}: {what}", [path.name, str(root)], known=name)


def read_corpus(made: Made) -> Any:
    from hf_medvlm.data.prepare import prepare
    from hf_medvlm.data.prepare_options import parse_options
    from hf_medvlm.data.study import read_jsonl

    out = made.target.parent / "out" / "master.jsonl"
    _, rejected = prepare(
        parse_options([CORPORA[made.known][0], "--root", str(made.target), "--out", str(out), "--workers", "1"])
    )
    return read_jsonl(out), rejected


READERS = [Reader("corpora", make_corpus, read_corpus, justify_table)]
