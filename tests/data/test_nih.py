"""NIH ChestX-ray14 in its official layout, made up, and the small copy of the shared data."""

from pathlib import Path

import pytest
from make_corpora import write_image

from hf_medvlm.data.prepare import prepare
from hf_medvlm.data.prepare_options import parse_options
from hf_medvlm.data.sources.nih import load_nih
from hf_medvlm.data.study import read_jsonl

SMALL = Path(__file__).parents[3] / "shared" / "data" / "nih64"
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,View Position\n"


def test_the_official_layout(tmp_path):
    lines = [
        "00000001_010.png,Effusion|Mass,10,1,58,PA",
        "00000001_002.png,No Finding,2,1,57,AP",
        "00000001_000.png,Cardiomegaly,0,1,57,PA",
        "00000002_000.png,Pleural_Thickening,0,2,80,PA",
        "00000002_000.png,Pleural_Thickening,0,2,80,PA",
        "00000003_000.png,Gout,0,3,80,PA",
        "00000004_000.png,Hernia,x,4,80,PA",
    ]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(HEADER + "\n".join(lines) + "\n")
    for number, line in enumerate(lines[:4]):
        write_image(tmp_path / f"images_00{number % 2 + 1}" / "images" / line.split(",")[0], number)
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n")
    corpus = load_nih(tmp_path)
    studies = {study.study_id: study for study in corpus.studies}
    assert {name: study.prior_study_id for name, study in studies.items()} == {
        "00000001_010": "00000001_002",  # by the number, not by the text of it
        "00000001_002": "00000001_000",
        "00000001_000": None,
        "00000002_000": None,
    }
    first = studies["00000001_010"]
    assert first.images[0].path == "images_001/images/00000001_010.png" and first.images[0].view == "PA"
    assert first.labels["Pleural Effusion"] == first.labels["Lung Lesion"] == 1 and first.labels["No Finding"] == 0
    assert first.labels["Edema"] == 0 and "not its text: effusion, mass." in first.report
    assert studies["00000002_000"].split == "test" and first.split is None
    assert [entry.reason for entry in corpus.rejected] == ["duplicate row", "impossible label", "impossible id"]
    with pytest.raises(ValueError, match="no NIH ChestX-ray14; wanted is Data_Entry_2017"):
        load_nih(tmp_path / "images_001")


@pytest.mark.skipif(not SMALL.is_dir(), reason="the shared data is not here")
def test_the_small_copy_prepares_with_follow_ups_as_priors(tmp_path):
    out = tmp_path / "m.jsonl"
    _, rejected = prepare(parse_options(["nih", "--root", str(SMALL), "--out", str(out)]))
    studies = {study.study_id: study for study in read_jsonl(out)}
    assert not rejected and len(studies) > 100
    later = [study for study in studies.values() if study.prior_study_id]
    assert later and all((SMALL / study.images[0].path).is_file() for study in studies.values())
    for study in later:
        prior = studies[study.prior_study_id]
        assert prior.patient_id == study.patient_id and prior.extra["follow_up"] < study.extra["follow_up"]
