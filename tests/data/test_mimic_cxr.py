"""MIMIC-CXR in its official layout: what comes out, what is left out and why, and what stops the run."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from make_corpora import SENTENCES, MimicStudy, append_rows, make_mimic, mimic_report, simulate_mimic, write_mimic

from hf_medvlm.data.quality import check_studies, drop_broken_images
from hf_medvlm.data.sources import mimic_cxr
from hf_medvlm.data.sources.base import find_priors
from hf_medvlm.data.sources.mimic_cxr import load_studies, read_tables
from hf_medvlm.data.study import Study
from hf_medvlm.labels import CHEXPERT_14

REPORT = mimic_report(SENTENCES[0], SENTENCES[1])


def load_mimic_cxr(root, suffix=None):
    """All studies in one piece; `prepare` reads a large corpus block by block."""
    tables = read_tables(root, suffix)
    corpus = load_studies(tables, tables.study_ids)
    corpus.rejected[:0] = tables.rejected
    return corpus


def one(**changes):
    return MimicStudy(**(dict(patient=10_000_032, study=50_414_267, split="train", report=REPORT) | changes))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("suffix", [".jpg", ".dcm"])
def test_every_planted_count_comes_out(tmp_path, zipped, suffix):
    planted = make_mimic(tmp_path, suffix, zipped)
    corpus = load_mimic_cxr(tmp_path)
    check_studies(corpus)
    drop_broken_images(corpus, tmp_path)
    assert Counter(entry.reason for entry in corpus.rejected) == planted.rejected
    assert len(corpus.studies) == planted.studies
    assert sum(len(study.images) for study in corpus.studies) == planted.images
    assert Counter(study.split for study in corpus.studies) == planted.splits
    assert {Path(i.path).suffix for s in corpus.studies for i in s.images} == {suffix}
    assert all(
        entry.file and (entry.line or "reports" in entry.file or "files" in entry.file) for entry in corpus.rejected
    )
    assert "Secret" not in str(corpus)


def test_lines_are_those_of_the_tables(tmp_path):
    make_mimic(tmp_path)
    corpus = load_mimic_cxr(tmp_path)
    for entry in corpus.rejected:
        if entry.line and entry.study_id and entry.reason != "no report":
            with gzip.open(entry.file, "rt") as handle:
                assert entry.study_id in handle.read().splitlines()[entry.line - 1]


def test_a_study_as_it_comes_out(tmp_path):
    text = mimic_report("The heart is large. " * 9, "1. Cardiomegaly. 2. No effusion.")
    labels = ["", "1.0", "", "-1.0", *[""] * 5, "0.0", *[""] * 4]
    write_mimic(tmp_path, [one(report=text, views=["LATERAL", "PA", "AP"], time="1014.5", labels=labels)])
    (study,) = load_mimic_cxr(tmp_path).studies
    assert (study.patient_id, study.study_id, study.split) == ("10000032", "50414267", "train")
    assert [image.view for image in study.images] == ["PA", "AP", "LATERAL"]
    assert study.images[0].path.startswith("files/p10/p10000032/s50414267/") and study.images[0].path.endswith(".jpg")
    assert study.findings == ("The heart is large. " * 9).strip()  # the lines of 79 characters are joined
    assert study.impression == "1. Cardiomegaly. 2. No effusion." and study.report == ""
    assert study.indication == "___ year old woman with cough." and study.study_date == "2180-05-06T00:10:14.5"
    assert study.labels == dict.fromkeys(CHEXPERT_14) | {"Cardiomegaly": 1, "Edema": -1, "Pleural Effusion": 0}
    assert study.licence.startswith("PhysioNet")


def test_the_last_paragraph_stands_in_where_there_is_neither_section(tmp_path):
    head = " FINAL REPORT\n CHEST, PA LATERAL:\n \n INDICATION:  Cough.\n \n COMPARISON:  ___.\n \n"
    text = head + " The lungs are clear.\n No effusion.\n"
    write_mimic(tmp_path, [one(report=text)])
    (study,) = load_mimic_cxr(tmp_path).studies
    assert (study.findings, study.impression) == ("", "")
    assert study.report == study.text() == "The lungs are clear. No effusion."
    assert study.comparison == "___." and study.extra == {}


def test_items_and_paragraphs_stay_apart(tmp_path):
    text = " FINAL REPORT\n IMPRESSION:\n \n 1. No pneumonia\n seen\n 2. Large heart\n \n - Lines as before\n"
    write_mimic(tmp_path, [one(report=text)])
    (study,) = load_mimic_cxr(tmp_path).studies
    assert study.impression == "1. No pneumonia seen\n\n2. Large heart\n\n- Lines as before"


def test_priors_are_the_latest_strictly_earlier_study_of_the_patient():
    dated = [
        *[("a", "3", "2180-01-03"), ("a", "1", "2180-01-01T10:00:00"), ("a", "2", "2180-01-01T09:59:59.5")],
        *[("a", "4", "2180-01-03"), ("b", "5", "2180-01-02"), ("a", "0", "2180-01-01")],
    ]

    def slowly(patient, moment):
        earlier = [(m, s) for p, s, m in dated if p == patient and m < moment]
        return max(earlier)[1] if earlier else None

    expected = {study: prior for patient, study, moment in dated if (prior := slowly(patient, moment))}
    assert find_priors(dated) == expected == {"2": "0", "1": "2", "3": "1", "4": "1"}


def test_priors_skip_studies_without_a_frontal_image(tmp_path):
    studies = [
        one(study=50_000_000 + n, date=f"2180010{n}", views=["LATERAL"] if n == 2 else ["PA"]) for n in (1, 2, 3)
    ]
    write_mimic(tmp_path, studies)
    assert [study.prior_study_id for study in load_mimic_cxr(tmp_path).studies] == [None, "50000001"]


def test_tables_are_the_same_from_one_process_and_from_several(tmp_path, monkeypatch):
    write_mimic(tmp_path, simulate_mimic(studies=300, images=500, patients=90))
    alone = load_mimic_cxr(tmp_path)
    monkeypatch.setattr(mimic_cxr, "LARGE", 0)
    assert load_mimic_cxr(tmp_path) == alone and len(alone.studies) > 250


def test_blocks_hold_every_study_once_and_no_patient_twice(tmp_path):
    write_mimic(tmp_path, simulate_mimic(studies=300, images=500, patients=90))
    tables = read_tables(tmp_path)
    blocks = tables.blocks(40)
    assert [study_id for block in blocks for study_id in block] == tables.study_ids
    patients = [{tables.by_study[study_id].patient_id for study_id in block} for block in blocks]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert len(blocks) > 5 and all(len(block) >= 40 for block in blocks[:-1])
    whole = {study.study_id: study for study in load_studies(tables, tables.study_ids).studies}
    assert [s for block in blocks for s in load_studies(tables, block).studies] == list(whole.values())


def test_images_are_those_that_a_master_file_gives_back(tmp_path):
    write_mimic(tmp_path, [one(views=["PA", "LATERAL"])])
    (study,) = load_mimic_cxr(tmp_path).studies
    again = Study.from_dict(study.to_dict())
    assert again == study and hash(again.images) == hash(study.images) and repr(again) == repr(study)


def test_without_a_split_table_the_split_is_open_and_without_labels_there_are_none(tmp_path, caplog):
    write_mimic(tmp_path, [one()])
    for name in ("split", "chexpert"):
        (tmp_path / f"mimic-cxr-2.0.0-{name}.csv.gz").unlink()
    (study,) = load_mimic_cxr(tmp_path).studies
    assert study.split is None and study.labels == {}
    assert "not the official one" in caplog.text and "no labels" in caplog.text


def test_unpacked_tables_and_newer_versions_are_read(tmp_path):
    write_mimic(tmp_path, [one()], version="2.1.0")
    packed = tmp_path / "mimic-cxr-2.1.0-metadata.csv.gz"
    (tmp_path / "mimic-cxr-2.1.0-metadata.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert len(load_mimic_cxr(tmp_path).studies) == 1


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("metadata.csv.gz", lambda b: b[: len(b) // 2], r"metadata\.csv\.gz:\d+: the gzip is broken off"),
        ("metadata.csv.gz", lambda b: b"", r"metadata\.csv\.gz:1: no column 'dicom_id'"),
        ("metadata.csv.gz", lambda b: b"no gzip", r"metadata\.csv\.gz:1: the gzip is broken off or damaged"),
        ("chexpert.csv.gz", lambda b: gzip.compress(b"subject_id,study_id\n"), r"chexpert\.csv\.gz:1: no column 'Atel"),
        ("split.csv.gz", lambda b: gzip.compress(b"dicom_id,study,subject_id,split\n"), "did you mean 'study'"),
        (
            "split.csv.gz",
            lambda b: gzip.compress(b"study_id,subject_id,split\n1,2,val\n"),
            r"split\.csv\.gz:2: split 'val'",
        ),
        (
            "split.csv.gz",
            lambda b: gzip.compress(b"study_id,subject_id,split\n1,2,train\n1,2,test\n"),
            r"split\.csv\.gz:3: patient 2, study 1, is in train and in test",
        ),
    ],
)
def test_a_broken_table_stops_with_file_and_line(tmp_path, name, change, message):
    write_mimic(tmp_path, simulate_mimic(studies=200, images=300, patients=50))
    damage(tmp_path / f"mimic-cxr-2.0.0-{name}", change)
    with pytest.raises(ValueError, match=message):
        load_mimic_cxr(tmp_path)


def test_a_broken_zip_stops_and_a_damaged_report_is_counted(tmp_path):
    path = tmp_path / "mimic-cxr-reports.zip"
    write_mimic(tmp_path, [one(study=50_000_001), one(study=50_000_002)])
    damage(path, lambda b: b.replace(b[60:70], b"0123456789", 1))
    corpus = load_mimic_cxr(tmp_path)
    assert [study.study_id for study in corpus.studies] == ["50000002"]
    assert [(e.reason, e.study_id) for e in corpus.rejected] == [("unreadable report", "50000001")]
    damage(path, lambda b: b[: len(b) // 2])
    with pytest.raises(ValueError, match=r"mimic-cxr-reports\.zip: not a whole ZIP"):
        load_mimic_cxr(tmp_path)
    write_mimic(tmp_path, [one(report=None)])
    with pytest.raises(ValueError, match=r"not one report s<study_id>\.txt is in it"):
        load_mimic_cxr(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="metadata.csv.gz; it comes with MIMIC-CXR-JPG"):
        load_mimic_cxr(tmp_path)
    write_mimic(tmp_path, [one()])
    (tmp_path / "mimic-cxr-reports.zip").unlink()
    with pytest.raises(ValueError, match="no mimic-cxr-reports.zip and no folder files/"):
        load_mimic_cxr(tmp_path)


def test_ids_that_would_leave_the_folder_are_refused(tmp_path):
    write_mimic(tmp_path, [one()])
    table = tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"
    append_rows(table, "../../../etc/passwd,10000032,50414267,,PA,1,1,21800101,1,,,", "x,../..,50414268,,PA,1,1,1,1,,,")
    corpus = load_mimic_cxr(tmp_path)
    assert [(e.line, e.reason) for e in corpus.rejected] == [(4, "impossible id"), (5, "impossible id")]
    assert json.dumps([study.to_dict() for study in corpus.studies]).count("..") == 0
