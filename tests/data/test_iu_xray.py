"""IU X-ray in its three layouts, made up and real."""

import json
from collections import Counter
from pathlib import Path

import pytest
from make_corpora import SENTENCES, iu_xml, make_iu_kaggle, make_open_i, make_r2gen

from hf_medvlm.data.quality import check_studies, drop_broken_images
from hf_medvlm.data.sources.iu_xray import load_iu_xray

REAL = Path(__file__).parents[3] / "shared" / "data" / "iu_sample"


@pytest.mark.parametrize("make", [make_open_i, make_iu_kaggle, make_r2gen])
def test_every_planted_count_comes_out(tmp_path, make):
    planted = make(tmp_path)
    corpus = load_iu_xray(tmp_path)
    check_studies(corpus)
    drop_broken_images(corpus, tmp_path)
    assert Counter(entry.reason for entry in corpus.rejected) == planted.rejected
    assert len(corpus.studies) == planted.studies
    assert sum(len(study.images) for study in corpus.studies) == planted.images
    assert Counter(study.split for study in corpus.studies if study.split) == planted.splits
    assert all((tmp_path / image.path).exists() for study in corpus.studies for image in study.images)
    assert all(entry.file for entry in corpus.rejected)


def test_open_i_and_kaggle_give_the_same_studies(tmp_path):
    make_open_i(tmp_path / "a")
    make_iu_kaggle(tmp_path / "b")
    (tmp_path / "a" / "indiana_projections.csv").write_bytes((tmp_path / "b" / "indiana_projections.csv").read_bytes())
    first, second = (load_iu_xray(tmp_path / name) for name in "ab")
    first, second = ({study.study_id: study for study in corpus.studies} for corpus in (first, second))
    assert first.keys() == second.keys()
    for uid, study in first.items():
        assert (study.findings, study.impression) == (second[uid].findings, second[uid].impression)
        assert [image.view for image in study.images] == [image.view for image in second[uid].images]
        assert study.licence == second[uid].licence == "CC BY-NC-ND 4.0"
    assert [image.view for image in first["CXR2"].images] == [None, None, "LATERAL"]  # the frontals first
    assert first["CXR1"].extra == {"mesh": ["Cardiomegaly/mild"]} and first["CXR1"].comparison == "None."


def test_the_line_of_a_broken_xml_is_named(tmp_path):
    (tmp_path / "1.xml").write_text("<eCitation>\n<uId id='CXR1'/>\n<broken\n</eCitation>")
    (tmp_path / "2.xml").write_text(iu_xml(2, SENTENCES[0], SENTENCES[1], []))
    (entry,) = load_iu_xray(tmp_path).rejected
    assert entry.file.endswith("1.xml") and entry.line == 4 and entry.reason == "not XML"


def test_the_studies_do_not_depend_on_the_order_of_the_folder(tmp_path):
    for uid in (10, 9, 100, 2):
        (tmp_path / f"{uid}.xml").write_text(iu_xml(uid, SENTENCES[0], SENTENCES[1], []))
    assert [study.study_id for study in load_iu_xray(tmp_path).studies] == ["CXR2", "CXR9", "CXR10", "CXR100"]


def test_files_that_are_not_what_they_should_be_stop_with_their_line(tmp_path):
    with pytest.raises(ValueError, match="no IU X-ray corpus; wanted are"):
        load_iu_xray(tmp_path)
    (tmp_path / "annotation.json").write_text('{"train": [\n{"id": }]}')
    with pytest.raises(ValueError, match=r"annotation\.json:2: not JSON at column 8"):
        load_iu_xray(tmp_path)
    blank = {"id": "\u2028", "image_path": ["a.png"], "report": SENTENCES[0], "split": "train"}
    (tmp_path / "annotation.json").write_text(json.dumps({"train": [blank]}))
    corpus = load_iu_xray(tmp_path)
    assert not corpus.studies and "no study_id and no patient_id" in str(corpus.rejected[0])
    (tmp_path / "annotation.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"annotation\.json: not R2Gen's"):
        load_iu_xray(tmp_path)
    (tmp_path / "annotation.json").unlink()
    (tmp_path / "indiana_reports.csv").write_text("uid,findings\n")
    with pytest.raises(ValueError, match=r"indiana_projections\.csv: cannot be read: No such file"):
        load_iu_xray(tmp_path)
    (tmp_path / "indiana_projections.csv").write_text("uid,filename,projection\n")
    with pytest.raises(ValueError, match=r"indiana_reports\.csv:1: no column 'MeSH' \(columns: uid, findings\)"):
        load_iu_xray(tmp_path)


@pytest.mark.skipif(not REAL.exists(), reason="the shared data is not here")
def test_real_files():
    corpus = load_iu_xray(REAL)
    assert [study.study_id for study in corpus.studies] == ["CXR7", "CXR25", "CXR54", "CXR303", "CXR1900"]
    assert corpus.rejected == [] and all(study.findings and study.extra["mesh"] for study in corpus.studies)
    drop_broken_images(corpus, REAL)
    assert sum(len(study.images) for study in corpus.studies) == 8  # of 9 that the XML name, one is not in the sample
    assert [entry.reason for entry in corpus.rejected] == ["image not on disk"]
    kaggle = load_iu_xray(REAL / "kaggle_format")
    assert [(s.study_id, [i.view for i in s.images]) for s in kaggle.studies] == [
        ("CXR1000", [None, None, "LATERAL"]),
        ("CXR1001", [None, "LATERAL"]),
    ]
