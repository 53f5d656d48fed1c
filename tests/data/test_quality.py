"""Checks that count what they leave out, the leak check, and label policies."""

from dataclasses import replace

import pytest
from PIL import Image

from hf_medvlm.data.load import drop_broken
from hf_medvlm.data.quality import (
    LABEL_POLICIES,
    apply_label_policy,
    check_studies,
    drop_broken_images,
    find_leakage,
    refuse_leakage,
    without_images,
)
from hf_medvlm.data.sources.base import Corpus
from hf_medvlm.data.study import Study, StudyBox, StudyImage

TEXT = "The heart is large, and there is a small effusion."


def study(number, **changes):
    values = dict(
        study_id=f"s{number}", patient_id=f"p{number}", images=(StudyImage(f"{number}.png", "PA"),), findings=TEXT
    )
    return Study(**(values | changes))


def corpus_of(*studies):
    corpus = Corpus()
    for line, each in enumerate(studies, start=2):
        corpus.add(each, "table.csv", line)
    return corpus


def test_each_reason_is_counted_with_its_line():
    corpus = corpus_of(
        study(0),
        study(1, images=()),
        study(2, findings=""),
        study(3, findings="Normal."),
        study(4, images=(StudyImage("0.png", "PA"),)),  # the image and the text of study 0
        study(5, images=(StudyImage("0.png", "PA"),), findings=TEXT + " Another text."),
        study(6),
    )
    check_studies(corpus, min_characters=30)
    assert [s.study_id for s in corpus.studies] == ["s0", "s5", "s6"]
    assert [(r.file, r.line, r.study_id, r.reason) for r in corpus.rejected] == [
        ("table.csv", 3, "s1", "no image"),
        ("table.csv", 4, "s2", "empty text"),
        ("table.csv", 5, "s3", "short text"),
        ("table.csv", 6, "s4", "duplicate row"),
    ]
    assert corpus.rejected[2].detail == "7 characters, 30 are wanted"


def test_the_limit_is_of_characters_kept():
    at, below = study(0, findings="x" * 30), study(1, findings="x" * 29)
    corpus = corpus_of(at, below)
    check_studies(corpus, min_characters=30)
    assert corpus.studies == [at]


def test_broken_images_go_and_take_along_only_what_needs_them(tmp_path):
    for name in ("0", "1", "2", "3"):
        Image.linear_gradient("L").resize((8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:50])
    frontal, lateral = StudyImage("0.png", "PA"), StudyImage("1.png", "LATERAL")
    corpus = corpus_of(
        study(0, images=(frontal, StudyImage("cut.png", "AP"), lateral)),
        study(1, images=(StudyImage("gone.png", "PA"), lateral)),
        study(2),
        study(3, images=(StudyImage("gone.png"),)),
    )
    drop_broken_images(corpus, tmp_path)
    assert [(s.study_id, [i.path for i in s.images]) for s in corpus.studies] == [
        ("s0", ["0.png", "1.png"]),
        ("s2", ["2.png"]),
    ]
    assert [(r.study_id, r.line, r.reason) for r in corpus.rejected] == [
        ("s0", 2, "unreadable image"),
        *[("s1", 3, "image not on disk"), ("s1", 3, "no frontal image")],
        *[("s3", 5, "image not on disk"), ("s3", 5, "no frontal image")],
    ]


def test_where_no_image_is_there_the_option_that_names_their_folder_is_told(tmp_path, cache):
    with pytest.raises(ValueError, match=r"none of 2 images in .*; --image_folder names the folder that image paths"):
        drop_broken([study(0), study(1)], tmp_path, [])


def test_a_picture_of_one_grey_value_is_named(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "0.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "1.png")
    corpus = corpus_of(study(0), study(1))
    drop_broken_images(corpus, tmp_path)
    assert [s.study_id for s in corpus.studies] == ["s0"]
    assert [(r.study_id, r.reason) for r in corpus.rejected] == [
        ("s1", "image of one grey value"),
        ("s1", "no frontal image"),
    ]
    assert "every pixel has the same grey value, 7 of 255" in corpus.rejected[0].detail


def test_boxes_move_with_their_images():
    images = tuple(StudyImage(f"{n}.png") for n in "abc")
    boxes = tuple(StudyBox(image, f"box on {image}", (0, 0, 1, 1)) for image in (0, 1, 2, 2))
    left = without_images(study(0, images=images, boxes=boxes), [0])
    assert [(left.images[box.image].path, box.phrase) for box in left.boxes] == [
        *[("b.png", "box on 1"), ("c.png", "box on 2"), ("c.png", "box on 2")]
    ]


def test_a_patient_in_two_splits_is_named():
    fine = [study(0, split="train"), study(1, split="test"), study(2, patient_id="p0", split="train")]
    assert find_leakage(fine) == find_leakage([*fine, study(3, patient_id="p0")]) == {}  # the last is not split yet
    refuse_leakage({})
    leaks = find_leakage([*fine, study(3, patient_id="p0", split="test")])
    with pytest.raises(ValueError, match=r"1 patient\(s\) in two splits: p0 in test and train"):
        refuse_leakage(leaks)
    many = [study(n, patient_id=f"p{n // 2}", split=("train", "test")[n % 2]) for n in range(24)]
    with pytest.raises(ValueError, match=r"12 patient\(s\) in two splits: p0 in .*; and 2 more"):
        refuse_leakage(find_leakage(many))


@pytest.mark.parametrize(
    "policy, states",
    [
        ("keep", [1, 0, -1, None]),
        ("positive-only", [1, 0, 0, 0]),
        ("u-ones", [1, 0, 1, None]),
        ("u-zeros", [1, 0, 0, None]),
        ("ignore", [1, 0, None, None]),
    ],
)
def test_label_policies(policy, states):
    labels = dict(zip("abcd", [1, 0, -1, None], strict=True))
    given = [study(0, labels=labels), study(1)]
    labelled, bare = apply_label_policy(given, policy)
    assert list(labelled.labels.values()) == states and bare.labels == {}
    assert given[0].labels == labels and replace(labelled, labels=labels) == given[0]
    assert set(LABEL_POLICIES) == {"keep", "positive-only", "u-ones", "u-zeros", "ignore"}


def test_an_unknown_policy_names_those_there_are():
    with pytest.raises(ValueError, match="'u-one' is none of keep, positive-only"):
        apply_label_policy([], "u-one")
