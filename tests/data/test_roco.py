"""ROCO in the repository's layout and in Kaggle's."""

from collections import Counter

import pytest
from make_corpora import ROCO_CAPTIONS, make_roco

from hf_medvlm.data.sources.roco import is_chest_radiograph, load_roco


@pytest.mark.parametrize("kaggle", [False, True], ids=["repository", "kaggle"])
def test_every_planted_count_comes_out(tmp_path, kaggle):
    planted = make_roco(tmp_path, kaggle)
    corpus = load_roco(tmp_path)
    assert Counter(entry.reason for entry in corpus.rejected) == planted.rejected
    assert Counter(study.split for study in corpus.studies) == planted.splits
    assert all((tmp_path / study.images[0].path).exists() for study in corpus.studies)
    study = corpus.studies[0]
    assert study.study_id == "ROCO_00002" and study.report.startswith("Case 2. AP chest") and not study.findings
    assert study.licence == "CC BY-NC" and study.extra == {"keywords": ["arrow"], "pmc_id": "PMC2"}
    assert {entry.line for entry in corpus.rejected if entry.reason == "image not on disk"} == {2 if kaggle else 1}


def test_only_chest_radiographs(tmp_path):
    make_roco(tmp_path)
    corpus = load_roco(tmp_path, chest_xray=True)
    wanted = {caption for caption, chest in ROCO_CAPTIONS.items() if chest}
    assert len(corpus.studies) == 3 * (len(wanted) - 1)  # the first of each split is not on disk
    assert all(study.report.split(". ", 1)[1] in wanted for study in corpus.studies)
    reasons = Counter(entry.reason for entry in corpus.rejected)
    assert (
        reasons["no chest radiograph"] == 3 * (len(ROCO_CAPTIONS) - len(wanted)) and reasons["image not on disk"] == 3
    )


# Of ROCO's own captions (razorx89/roco-dataset @ a1f0ad6), shortened.
@pytest.mark.parametrize(
    "caption, chest",
    [
        ("Chest radiograph obtained after endoscopic submucosal dissection showing left pleural fluid.", True),
        ("Chest X-ray (AP view) perfromed following the endotracheal intubation in this patient.", True),
        ("Chest radiography from a patient with right lower lobe pneumonia.", True),
        ("Chest CT scan shows culminal cavity partially filled, with thickened wall.", False),
        ("Thoracic computed tomographic scan showing a lesion suggestive of tuberculosis.", False),
        ("Anteroposterior radiograph of the left thigh showing a lesion of the left femur.", False),
        ("Plain X-ray of the abdomen showing multiple radio-opaque shadows in the colon", False),
        ("Patent ductus arteriosus (PDA) in Transthoracic echocardiography", False),
        ("Anteroposterior radiograph 8 years after surgery. The main thoracic curve was 28.1.", False),
        ("Radiographie thoracique de face montrant une opacite", True),
        ("CXR-PA view: cardiomegaly.", True),
    ],
)
def test_real_captions(caption, chest):
    assert is_chest_radiograph(caption) is chest


def test_keywords_speak_where_the_caption_does_not():
    assert is_chest_radiograph("Posteroanterior view.", ("chest", "xray"))
    assert not is_chest_radiograph("Posteroanterior view.", ("chest", "ct"))
    assert not is_chest_radiograph("Posteroanterior view.", ("chest", "xray", "ct"))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="no ROCO; wanted are train/radiology"):
        load_roco(tmp_path)
    (tmp_path / "data" / "train" / "radiology").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"neither captions\.txt nor Kaggle's"):
        load_roco(tmp_path)
    (tmp_path / "data" / "train" / "radiology" / "captions.txt").write_bytes(b"ROCO_00001\t one\nROCO_00002\t \xff\n")
    with pytest.raises(ValueError, match=r"captions\.txt:\d: not UTF-8"):
        load_roco(tmp_path)
