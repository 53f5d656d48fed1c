"""VinDr-CXR, CheXpert Plus, ReXGradient-160K, PadChest and PadChest-GR in the layouts that are documented, made up."""

import json

import pytest
from make_corpora import write_image
from PIL import Image

from hf_medvlm.data.prepare import prepare
from hf_medvlm.data.prepare_options import parse_options
from hf_medvlm.data.sources.chexpert_plus import load_chexpert_plus
from hf_medvlm.data.sources.padchest import load_padchest
from hf_medvlm.data.sources.padchest_gr import load_padchest_gr
from hf_medvlm.data.sources.rexgradient import load_rexgradient
from hf_medvlm.data.sources.vindr import load_vindr
from hf_medvlm.data.study import read_jsonl


def by_id(corpus):
    return {study.study_id: study for study in corpus.studies}


def reasons(corpus):
    return sorted(entry.reason for entry in corpus.rejected)


# ---------------------------------------------------------------- VinDr-CXR

VINDR = "Cardiomegaly,Nodule/Mass,Lung tumor,Infiltration,Lung Opacity,No finding"


@pytest.fixture(scope="module")
def vindr(tmp_path_factory):
    root = tmp_path_factory.mktemp("vindr")
    votes = {
        "a": ["1,0,0,0,1,0", "1,1,0,0,0,0", "0,0,0,0,0,0"],
        "b": ["0,0,0,0,0,1"] * 3,
        "gone": ["0,0,0,0,0,1"] * 3,
        "odd": ["0,0,0,0,2,1"],
    }
    lines = [f"{image},R{n},{row}" for image, rows in votes.items() for n, row in enumerate(rows)]
    (root / "annotations").mkdir()
    (root / "annotations/image_labels_train.csv").write_text("\n".join([f"image_id,rad_id,{VINDR}", *lines]) + "\n")
    (root / "annotations/image_labels_test.csv").write_text(f"image_id,{VINDR}\nt,0,0,1,0,0,0\n")
    (root / "annotations/annotations_train.csv").write_text(
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
        "a,R0,Cardiomegaly,1.5,2,11.5,22\na,R1,Nodule/Mass,3,3,6,8\nb,R0,No finding,,,,\n"
    )
    for name in ("train/a", "train/b", "test/t"):
        write_image(root / f"{name}.dcm", len(name))
        (root / f"{name}.dcm").rename(root / f"{name}.dicom")
    return root


def test_vindr_counts_its_readers_and_keeps_their_boxes(vindr):
    corpus = load_vindr(vindr)
    studies = by_id(corpus)
    assert set(studies) == {"a", "b", "t"} and reasons(corpus) == ["image not on disk", "impossible label"]
    first = studies["a"]
    assert first.images[0].path == "train/a.dicom" and first.split is None and studies["t"].split == "test"
    assert first.labels == {"Cardiomegaly": 1, "Lung Lesion": -1, "Lung tumor": 0, "Lung Opacity": -1, "No Finding": 0}
    assert studies["b"].labels["No Finding"] == 1 and studies["t"].labels["Lung tumor"] == 1
    assert first.report == "Labels of radiologists, not a report: cardiomegaly." and studies["b"].boxes == ()
    assert [(box.phrase, box.finding, box.xywh) for box in first.boxes] == [
        ("Cardiomegaly", "Cardiomegaly", (1.5, 2, 10, 20)),
        ("Nodule/Mass", "Lung Lesion", (3, 3, 3, 5)),
    ]
    with pytest.raises(ValueError, match="no VinDr-CXR; wanted is annotations/image_labels_train.csv"):
        load_vindr(vindr / "train")


def test_no_training_image_is_dealt_into_a_test_split_that_the_corpus_names(vindr, tmp_path):
    options = ["vindr-cxr", "--root", str(vindr), "--out", str(tmp_path / "m.jsonl"), "--test", "0.9"]
    prepare(parse_options([*options, "--validate", "0"]))
    assert {study.study_id: study.split for study in read_jsonl(tmp_path / "m.jsonl")} == {
        "a": "train",
        "b": "train",
        "t": "test",
    }
    with pytest.raises(ValueError, match="--labels text reads English reports; those of vindr-cxr are made of labels"):
        parse_options([*options, "--labels", "text"])


# ---------------------------------------------------------------- CheXpert Plus

PLUS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_clinical_history,section_history,section_comparison,section_findings,section_impression,split\n"
)


@pytest.fixture(scope="module")
def chexpert_plus(tmp_path_factory):
    root = tmp_path_factory.mktemp("plus")
    rows = [
        # path, frontal or lateral, AP or PA, patient, order, findings, impression, split
        ("train/patient00001/study10/view1_frontal.jpg", "Frontal", "AP", "patient00001", "2", "", "Worse.", "train"),
        ("train/patient00001/study9/view2_lateral.jpg", "Lateral", "", "patient00001", "1", "Clear.", "", "train"),
        ("train/patient00001/study9/view1_frontal.jpg", "Frontal", "PA", "patient00001", "1", "Clear.", "", "train"),
        ("train/patient00002/study1/view1_frontal.jpg", "Frontal", "AP", "patient00002", "", "Clear.", "", "train"),
        ("valid/patient64541/study1/view1_frontal.jpg", "Frontal", "AP", "patient64541", "1.0", "", "", "valid"),
        ("train/strange.jpg", "Frontal", "AP", "patient3", "1", "", "x", "train"),
        ("train/patient00005/study1/view1_frontal.jpg", "Frontal", "AP", "patient00005", "first", "Hm.", "", "train"),
    ]
    lines = [
        f'{path},,{view},{ap},{patient},{order},"Whole, report.",Cough.,,None.,{findings},{impression},{split}'
        for path, view, ap, patient, order, findings, impression, split in rows
    ]
    (root / "df_chexpert_plus_240401.csv").write_text(PLUS + "\n".join(lines) + "\n")
    labels = {"path_to_image": "train/patient00001/study9/view1_frontal.jpg", "Edema": 1.0, "Fracture": None}
    (root / "chexbert_labels").mkdir()
    (root / "chexbert_labels/impression_fixed.json").write_text(json.dumps(labels) + '\n{"Edema": 7}\n')
    for row in rows[:3]:
        write_image(root / "PNG" / row[0].replace(".jpg", ".png"))
    return root


def test_chexpert_plus_joins_views_and_orders_by_the_reports_number(chexpert_plus):
    corpus = load_chexpert_plus(chexpert_plus)
    studies = by_id(corpus)
    assert reasons(corpus) == ["impossible id", "impossible label", "impossible order"]
    later, first = studies["patient00001-study10"], studies["patient00001-study9"]
    assert later.prior_study_id == first.study_id and first.prior_study_id is None  # by number, not by the text of it
    assert [(image.path, image.view) for image in first.images] == [
        ("PNG/train/patient00001/study9/view1_frontal.png", "PA"),
        ("PNG/train/patient00001/study9/view2_lateral.png", "LATERAL"),
    ]
    assert (first.findings, first.report, first.indication, first.comparison) == ("Clear.", "", "Cough.", "None.")
    assert first.labels["Edema"] == 1 and first.labels["Fracture"] is None
    held = studies["patient64541-study1"]
    assert held.split == "validate" and first.split is None and held.report == "Whole, report."
    assert studies["patient00002-study1"].prior_study_id is None
    with pytest.raises(ValueError, match="no CheXpert Plus; wanted is df_chexpert_plus_240401.csv"):
        load_chexpert_plus(chexpert_plus / "PNG")


# ---------------------------------------------------------------- ReXGradient-160K


@pytest.fixture(scope="module", params=["json", "csv"])
def rexgradient(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("rex")

    def record(patient, study, date, split, views=("PA",)):
        base = f"deid_png/{patient}/ACC{study}/studies/{study}/series"
        paths = [f"{base}/{n}/instances/{n}.png" for n in range(len(views))]
        for number, path in enumerate(paths):
            write_image(root / path, number)
        return {
            "id": f"p{patient}_a{study}_s{study}",
            "StudyInstanceUid": study,
            "AccessionNumber": f"ACC{study}",
            "StudyDate": date,
            "Indication": "Cough.",
            "Comparison": "None",
            "Findings": f"Clear lungs in {study}.",
            "Impression": "nan",
            "ImagePath": [f"../{path}" for path in paths],
            "ImageViewPosition": list(views),
        }

    rows = {
        "train": [
            record("GRDN1", "1.2", "20200301", "train", ("LATERAL", "AP")),
            record("GRDN1", "1.1", "20200415", "t"),
        ],
        "valid": [record("GRDN2", "2.1", "20200101.0", "valid")],
        "test": [record("GRDN3", "3.1", "", "test"), {"id": "pGRDN4_a_s", "ImagePath": ["../deid_png/no.png"]}],
    }
    (root / "metadata").mkdir()
    for split, records in rows.items():
        if request.param == "json":
            content = {record["id"]: {k: v for k, v in record.items() if k != "id"} for record in records}
            (root / f"metadata/{split}_metadata_view_position.json").write_text(json.dumps(content))
            (root / f"metadata/{split}_metadata.csv").write_text("is,passed,over\n")
        else:  # without paths: every image of the study's folder
            import csv

            names = [name for name in rows["train"][0] if not name.startswith("Image")]
            with open(root / f"metadata/{split}_metadata.csv", "w", newline="") as handle:
                writer = csv.DictWriter(handle, names, extrasaction="ignore", restval="")
                writer.writeheader()
                writer.writerows(records)
    return root, request.param


def test_rexgradient_takes_its_splits_views_and_dates(rexgradient):
    root, kind = rexgradient
    corpus = load_rexgradient(root)
    studies = by_id(corpus)
    assert {name: study.split for name, study in studies.items()} == {
        "1.2": "train",
        "1.1": "train",
        "2.1": "validate",
        "3.1": "test",
    }
    assert reasons(corpus) == ["image not on disk"]
    first = studies["1.2"]
    assert (first.patient_id, first.study_date, studies["2.1"].study_date) == ("GRDN1", "2020-03-01", "2020-01-01")
    assert (first.findings, first.impression, first.comparison) == ("Clear lungs in 1.2.", "", "")
    assert [image.view for image in first.images] == (["AP", "LATERAL"] if kind == "json" else [None, None])
    assert first.images[-1].path.startswith("deid_png/GRDN1/ACC1.2/studies/1.2/series/")
    with pytest.raises(ValueError, match="no ReXGradient-160K; wanted is metadata/train_metadata"):
        load_rexgradient(root / "deid_png")


def test_rexgradients_priors_go_by_date_and_not_by_uid(rexgradient, tmp_path):
    root, _ = rexgradient
    prepare(
        parse_options(["rexgradient", "--root", str(root), "--out", str(tmp_path / "m.jsonl"), "--min_characters", "5"])
    )
    priors = {study.study_id: study.prior_study_id for study in read_jsonl(tmp_path / "m.jsonl")}
    assert priors == {"1.2": None, "1.1": "1.2", "2.1": None, "3.1": None}


# ---------------------------------------------------------------- PadChest

PADCHEST = ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,Projection,MethodProjection,Report,MethodLabel,Labels\n"
OWN = "['pleural effusion', ' costophrenic angle blunting', 'unchanged']"


@pytest.fixture(scope="module")
def padchest(tmp_path_factory):
    root = tmp_path_factory.mktemp("padchest")
    rows = [
        ("1.png", 0, 20140915, "s2", 7, "PA", "sin hallazgos patologicos .", "['normal']"),
        ("2.png", 0, 20140915, "s2", 7, "L", "sin hallazgos patologicos .", "['normal']"),
        ("3.png", "14.0", 20131231, "s9", "7.0", "AP_horizontal", "derrame pleural izquierdo .", OWN),
        ("4.png", 0, 20140101, "s3", 8, "EXCLUDE", "x", "['exclude']"),
        ("5.png", 0, 20140101, "s4", 8, "PA", "nan", "nan"),
        ("6.png", 0, 20140101, "s5", 8, "PA", "no en disco .", "['normal']"),
        ("1.png", 0, 20140915, "s2", 7, "PA", "sin hallazgos patologicos .", "['normal']"),
    ]  # fmt: skip
    lines = [
        f'{n},{image},{folder},{date},{study},{patient},{view},Manual,{report},Physician,"{labels}"'
        for n, (image, folder, date, study, patient, view, report, labels) in enumerate(rows)
    ]
    (root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_text(PADCHEST + "\n".join(lines) + "\n")
    for place in ("0/1.png", "0/2.png", "images/3.png", "0/4.png", "0/5.png"):
        write_image(root / place)
    return root


def test_padchest_keeps_spanish_reports_and_its_own_labels(padchest, tmp_path):
    corpus = load_padchest(padchest)
    studies = by_id(corpus)
    assert reasons(corpus) == ["duplicate row", "image not on disk", "no chest view"]
    newer, older = studies["s2"], studies["s9"]
    assert [(image.path, image.view) for image in newer.images] == [("0/1.png", "PA"), ("0/2.png", "LATERAL")]
    assert older.images[0].path == "images/3.png" and older.patient_id == newer.patient_id == "7"
    assert older.labels["Pleural Effusion"] == older.labels["costophrenic angle blunting"] == 1
    assert older.labels["Cardiomegaly"] == older.labels["No Finding"] == 0 and "unchanged" not in older.labels
    assert newer.labels["No Finding"] == 1 and studies["s4"].labels == {} and studies["s4"].report == ""
    assert older.report == "derrame pleural izquierdo ." and older.extra["language"] == "es"
    options = ["padchest", "--root", str(padchest), "--out", str(tmp_path / "m.jsonl"), "--min_characters", "9"]
    prepare(parse_options(options))
    assert {s.study_id: s.prior_study_id for s in read_jsonl(tmp_path / "m.jsonl")} == {"s2": "s9", "s9": None}
    with pytest.raises(ValueError, match="those of padchest are Spanish"):
        parse_options([*options, "--labels", "text"])


# ---------------------------------------------------------------- PadChest-GR


@pytest.fixture(scope="module")
def padchest_gr(tmp_path_factory):
    root = tmp_path_factory.mktemp("gr")
    effusion = {
        "sentence_en": "Small left pleural effusion.",
        "sentence_es": "Pequeño derrame pleural izquierdo.",
        "abnormal": True,
        "boxes": [[0.5, 0.25, 1.0, 0.75]],
        "extra_boxes": [[0, 0, 1, 1]],
        "labels": ["pleural effusion"],
    }
    normal = {"sentence_en": "Normal heart size.", "sentence_es": "Corazón normal.", "abnormal": False}
    entries = [
        {"StudyID": "s1", "ImageID": "i1.png", "findings": [effusion, normal]},
        {"StudyID": "s2", "ImageID": "i2.png", "findings": [normal]},
        {"StudyID": "s3", "ImageID": "gone.png", "findings": [normal]},
        {"StudyID": "s4", "ImageID": "i1.png", "findings": [effusion | {"boxes": [[0.5, 0.5, 0.4, 2]]}]},
        {"StudyID": "nobody", "ImageID": "i1.png", "findings": [normal]},
    ]
    (root / "grounded_reports_20240819.json").write_text(json.dumps(entries, ensure_ascii=False))
    (root / "master_table.csv").write_text(
        "StudyID,ImageID,PatientID,label,label_group,split\ns1,i1.png,7,pleural effusion,Pleural effusion,train\n"
        "s1,i1.png,7,,,train\ns2,i2.png,8,,,validation\ns3,gone.png,9,,,test\ns4,i1.png,9,,,test\n"
    )
    for name in ("i1", "i2"):
        (root / "PadChest_GR").mkdir(exist_ok=True)
        Image.new("L", (40, 80)).save(root / f"PadChest_GR/{name}.png")
    return root


def test_padchest_gr_has_boxes_in_pixels_and_both_languages(padchest_gr):
    corpus = load_padchest_gr(padchest_gr)
    studies = by_id(corpus)
    assert reasons(corpus) == ["image not on disk", "impossible box", "no patient"]
    first = studies["s1"]
    assert (first.patient_id, first.split, studies["s2"].split) == ("7", "train", "validate")
    assert first.findings == "Small left pleural effusion. Normal heart size."
    assert [(box.phrase, box.finding, box.xywh) for box in first.boxes] == [
        ("Small left pleural effusion.", "Pleural Effusion", (20, 20, 20, 40))
    ]
    assert first.labels["Pleural Effusion"] == 1 and first.labels["No Finding"] == 0
    assert studies["s2"].labels["No Finding"] == 1 and studies["s2"].boxes == ()
    spanish = by_id(load_padchest_gr(padchest_gr, "es"))["s1"]
    assert spanish.findings.startswith("Pequeño derrame") and spanish.extra["language"] == "es"
    with pytest.raises(ValueError, match="--language fr: there are en, es"):
        load_padchest_gr(padchest_gr, "fr")
