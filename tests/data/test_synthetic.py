"""Synthetic studies: the same everywhere, true to their reports, in order in time, and written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import socket
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_medvlm.data.locks import LOCK
from hf_medvlm.data.study import Study, read_jsonl
from hf_medvlm.data.synthetic import studies as synthetic
from hf_medvlm.data.synthetic.chest import Anatomy, Exposure
from hf_medvlm.data.synthetic.patients import patient
from hf_medvlm.data.synthetic.phantoms import frontal, lateral
from hf_medvlm.data.synthetic.reports import GRADED
from hf_medvlm.data.synthetic.signs import DRAW, ZONES, Sign
from hf_medvlm.data.synthetic.studies import make_studies
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.language.findings import label_report

SIZE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "studies"
    make_studies(folder, count=400, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def studies(folder: Path) -> list[Study]:
    return read_jsonl(folder / synthetic.STUDIES)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


# The same everywhere


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        make_studies(tmp_path / name, count=12, seed=seed, size=48)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one["studies.jsonl"] != three["studies.jsonl"]


def phantom(number: int = 0, visit: int = 0, size: int = 224) -> tuple[Study, list[Image.Image]]:
    """One study of seed 0 and its pictures, drawn in this process; nothing is written."""
    return synthetic._examine(patient(0, number), visit, 0, size)


def test_what_seed_0_gives_is_pinned(studies: list[Study]) -> None:
    """Fails on a machine, NumPy or Python that draws other studies, and when `GENERATOR` should have grown."""
    texts = digest(*(f"{s.study_id} {s.study_date} {s.report}\n".encode() for s in studies[:100]))
    boxes = digest(*(str(b.xywh).encode() for s in studies[:100] for b in s.boxes))
    pixels = digest(*(picture.tobytes() for number in range(20) for picture in phantom(number)[1]))
    assert (synthetic.GENERATOR, texts, boxes, pixels) == PINNED


def test_many_processes_draw_what_one_draws(folder: Path, studies: list[Study]) -> None:
    """400 studies are drawn by several processes where there are several cores; `phantom` draws here."""
    for study in studies[::40]:
        number, visit = study.patient_id[1:], study.study_id.split("-")[1]
        alone, pictures = phantom(int(number), int(visit), size=SIZE)
        assert replace(alone, split=study.split) == study
        for image, picture in zip(study.images, pictures, strict=True):
            assert (np.asarray(Image.open(folder / image.path)) == np.asarray(picture)).all()


def test_a_small_set_is_the_beginning_of_a_large_one(tmp_path: Path, studies: list[Study]) -> None:
    small = make_studies(tmp_path / "small", count=21, size=SIZE)
    assert [replace(s, split=None) for s in small] == [replace(s, split=None) for s in studies[:21]]


# Written once, whole or not at all


def test_a_folder_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_studies(tmp_path / "x", count=5, size=32)
    monkeypatch.setattr(synthetic, "_write", None)
    assert make_studies(tmp_path / "x", count=5, size=32) == first
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_stopped_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "write_jsonl", stop)
    with pytest.raises(KeyboardInterrupt):
        make_studies(tmp_path / "x", count=5, size=32)
    assert not list(tmp_path.iterdir())


def test_an_older_generators_studies_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(synthetic, "GENERATOR", 0)
        make_studies(tmp_path / "x", count=5, size=32)
    (tmp_path / "x" / "images" / "stale.png").touch()
    make_studies(tmp_path / "x", count=5, size=32)
    assert json.loads((tmp_path / "x" / "settings.json").read_text())["generator"] == synthetic.GENERATOR
    assert not (tmp_path / "x" / "images" / "stale.png").exists()


def test_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    make_studies(tmp_path / "other", count=3, size=32)
    for name, what in (("mine", "something else"), ("other", "'count': 3")):
        with pytest.raises(ValueError, match=what):
            make_studies(tmp_path / name, count=4, size=32)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


@pytest.mark.parametrize("bad", [{"count": 0}, {"size": 0}])
def test_nothing_to_draw(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        make_studies(tmp_path / "x", **bad)


def test_two_processes_at_once_end_with_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = synthetic._write

    def slower(folder: Path, settings: dict[str, int]) -> None:
        monkeypatch.setattr(synthetic, "_write", whole)
        make_studies(tmp_path / "x", count=5, size=32)  # the other process, which is done before this one
        whole(folder, settings)

    monkeypatch.setattr(synthetic, "_write", slower)
    assert len(make_studies(tmp_path / "x", count=5, size=32)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# Patients, time and files


def test_pictures_are_there_in_the_size_asked_for(folder: Path, studies: list[Study]) -> None:
    for study in studies:
        for image in study.images:
            with Image.open(folder / image.path) as picture:
                assert (picture.size, picture.mode) == ((SIZE, SIZE), "L")
    views = Counter(image.view for study in studies for image in study.images)
    assert set(views) == {"PA", "AP", "LATERAL"} and min(views.values()) > 30
    assert all(study.frontal is study.images[0] for study in studies)


def test_no_patient_in_two_splits(studies: list[Study]) -> None:
    splits = defaultdict(set)
    for study in studies:
        splits[study.patient_id].add(study.split)
    assert all(len(occurring) == 1 for occurring in splits.values())
    shares = Counter(study.split for study in studies)
    assert 0.6 < shares["train"] / len(studies) < 0.8 and shares["validate"] > 15 and shares["test"] > 40


def test_a_prior_is_the_same_patients_study_before(studies: list[Study]) -> None:
    by_id = {study.study_id: study for study in studies}
    with_prior = [study for study in studies if study.prior_study_id]
    for study in with_prior:
        prior = by_id[study.prior_study_id]
        assert prior.patient_id == study.patient_id and prior.study_date < study.study_date
    assert len(with_prior) > 0.4 * len(studies)
    assert max(Counter(study.patient_id for study in studies).values()) == 4


# Text


def test_labels_are_what_the_text_says(studies: list[Study]) -> None:
    for study in studies:
        assert label_report(study.text()) == study.labels, study.text()


def test_findings_are_many_and_none_is_common(studies: list[Study]) -> None:
    present = Counter(name for study in studies for name in CHEXPERT_14 if study.labels[name] == 1)
    assert len([name for name in present if name != "No Finding"]) >= 10
    assert all(0.05 < count / len(studies) < 0.3 for count in present.values()), present
    uncertain = Counter(name for study in studies for name in CHEXPERT_14 if study.labels[name] == -1)
    assert uncertain["Pneumonia"] > 10 and len(uncertain) > 5


def test_normal_reports_repeat_and_others_hardly_do(studies: list[Study]) -> None:
    normal = Counter(s.text() for s in studies if s.labels["No Finding"] and not s.boxes)
    other = Counter(s.text() for s in studies if s.boxes)
    assert normal.most_common(1)[0][1] > 5 and len(normal) >= 5
    assert len(other) > 0.9 * sum(other.values())


def test_reports_are_short_and_in_order(studies: list[Study]) -> None:
    words = [len(study.text().split()) for study in studies]
    assert 25 <= np.median(words) <= 45 and max(words) < 100
    for study in studies:
        comparison = "Prior chest radiograph." if study.prior_study_id else "None."
        sections = ("INDICATION", study.indication), ("COMPARISON", comparison)
        sections += ("FINDINGS", study.findings), ("IMPRESSION", study.impression)
        assert study.report == "\n\n".join(f"{name}: {text}" for name, text in sections)
        heart, lungs, pleura = (
            study.findings.lower().find(word) for word in ("heart", "lungs are clear", "pneumothorax")
        )
        assert lungs < 0 or heart < lungs and (pleura < 0 or lungs < pleura)


def test_progression_is_what_the_text_says(studies: list[Study]) -> None:
    by_id = {study.study_id: study for study in studies}
    wording = {"worsening": ("new", "increased", "larger", "worse"), "stable": ("unchanged",)}
    wording["improving"] = ("resolved", "decreased", "smaller", "better")
    seen = Counter()
    for study in studies:
        progression = study.progression
        assert bool(study.prior_study_id) or not progression
        words = [word for way in progression.values() for word in wording[way]]
        assert not progression or any(word in study.findings.lower() for word in words)
        for name, way in progression.items():
            before = by_id[study.prior_study_id].labels[name] in (1, -1)
            now = study.labels[name] in (1, -1)
            assert name in GRADED and (before or now)
            assert way == ("worsening" if not before else "improving" if not now else way)
            seen[way] += 1
    assert min(seen.values()) > 0.25 * sum(seen.values()), seen


# Boxes and pictures


def test_boxes_name_a_finding_in_the_words_of_the_report_and_lie_in_the_picture(studies: list[Study]) -> None:
    for study in studies:
        for box in study.boxes:
            x, y, w, h = box.xywh
            assert x + w <= SIZE and y + h <= SIZE
            assert study.labels[box.finding] in (1, -1)
            assert box.phrase.lower() in study.findings.lower()
        labelled = {name for name in CHEXPERT_14 if study.labels[name] in (1, -1)} - {"Pneumonia", "No Finding"}
        assert labelled == {box.finding for box in study.boxes}


def test_boxes_lie_on_the_side_that_the_report_names(studies: list[Study]) -> None:
    """The patient faces us: his left is at the right of the picture."""
    sided = [box for study in studies for box in study.boxes if box.finding not in ("Support Devices", "Cardiomegaly")]
    checked = Counter()
    for box in sided:
        centre = (box.xywh[0] + box.xywh[2] / 2) / SIZE
        for side, right_half in (("left", True), ("right", False)):
            if f"{side} " in box.phrase:
                checked[side] += 1
                assert (centre > 0.5) == right_half, box
    assert min(checked.values()) > 50


def drawn(signs: list[Sign], seed: int = 5, size: int = SIZE) -> tuple[np.ndarray, list]:
    rng = random.Random(seed)
    anatomy, exposure = Anatomy.random(rng), replace(Exposure.random(rng, "PA"), noise=0.0)
    pixels, boxes = frontal(anatomy, exposure, signs, size)
    return pixels.astype(float), boxes


def one_of_each() -> list[Sign]:
    signs = []
    for finding in DRAW:
        sided = finding in ("Pneumothorax", "Pleural Effusion", "Atelectasis", "Fracture")
        zoned = finding in ("Consolidation", "Lung Opacity", "Lung Lesion")
        kind = {"Fracture": "rib", "Support Devices": "pacemaker"}.get(finding, "")
        side = "left" if sided or zoned or finding == "Support Devices" else ""
        signs += [Sign(finding, 2, side, zone, kind) for zone in (ZONES if zoned else ("",))]
    return signs


@pytest.mark.parametrize("sign", one_of_each(), ids=lambda sign: f"{sign.finding} {sign.zone}")
def test_a_box_holds_what_is_drawn(sign: Sign) -> None:
    """Against the same chest without the sign: the change is dense in the box and faint elsewhere."""
    without, _ = drawn([])
    pixels, boxes = drawn([sign])
    inside = np.zeros(pixels.shape, bool)
    for _, (x, y, w, h) in boxes:
        inside[y : y + h, x : x + w] = True
    change = np.abs(pixels - without)
    assert change[inside].mean() > 8 * change[~inside].mean()
    assert change[inside].mean() > 8
    assert inside.mean() < 0.35


@pytest.mark.parametrize(
    "sign", [s for s in one_of_each() if s.finding in GRADED], ids=lambda s: f"{s.finding} {s.zone}"
)
def test_the_stronger_the_report_the_more_is_drawn(sign: Sign) -> None:
    without, _ = drawn([])
    changes = [np.abs(drawn([replace(sign, level=level)])[0] - without).sum() for level in (0.5, 1, 2, 3)]
    assert all(more > 1.15 * less for less, more in zip(changes, changes[1:], strict=False)), changes


def test_the_heart_lies_on_the_left() -> None:
    for seed in range(10):
        pixels, _ = drawn([], seed)
        lower = pixels[int(0.6 * SIZE) : int(0.7 * SIZE)]
        middle = SIZE // 2
        assert lower[:, middle + 8 : middle + 16].mean() > lower[:, middle - 16 : middle - 8].mean() + 20


def test_a_lateral_shows_fluid_and_a_large_heart() -> None:
    rng = random.Random(0)
    anatomy, exposure = Anatomy.random(rng), replace(Exposure.random(rng, "LATERAL"), noise=0.0)
    plain = lateral(anatomy, exposure, [], SIZE).astype(float)
    for finding in ("Pleural Effusion", "Cardiomegaly", "Edema"):
        assert (lateral(anatomy, exposure, [Sign(finding, 3)], SIZE) - plain).mean() > 1


def test_a_linear_probe_sees_fluid_air_and_the_heart(folder: Path, studies: list[Study]) -> None:
    """Ridge regression on 24 x 24 pixels, trained on 300 studies: what it can see, a small model can learn."""
    from sklearn.metrics import roc_auc_score

    pixels = [np.asarray(Image.open(folder / study.images[0].path).resize((24, 24))) for study in studies]
    features = np.stack([(p.ravel() - p.mean()) / p.std() for p in pixels])
    train, test = slice(0, 300), slice(300, None)
    weights = np.linalg.solve(features[train].T @ features[train] + 300 * np.eye(24 * 24), features[train].T)
    for name in ("Pleural Effusion", "Pneumothorax", "Cardiomegaly"):
        present = np.array([study.labels[name] == 1 for study in studies], float)
        guess = features[test] @ (weights @ (present[train] - present[train].mean()))
        assert roc_auc_score(present[test], guess) > 0.85, name


PINNED = (4, "bafe2538d0ec7a49", "7b8918347c2fb743", "3a0f00d77be3740a")


def test_what_a_killed_maker_left_goes_and_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    holder = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": 1.0}  # above any number that Linux gives
    for name, host in (("left", holder["host"]), ("elsewhere", "another")):
        (tmp_path / f".s.{name}" / "new").mkdir(parents=True)
        (tmp_path / f".s.{name}" / LOCK).write_text(json.dumps(holder | {"host": host}))
    make_studies(tmp_path / "s", count=2, size=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.elsewhere", "s"]

    def full(*given, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="could not write made-up studies to .*t: No space left.*HF_MEDVLM_CACHE"):
        make_studies(tmp_path / "t", count=2, size=16)
    assert not (tmp_path / "t").exists() and not list(tmp_path.glob(".t.*"))
