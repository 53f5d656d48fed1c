"""`load` over every family: what it says of images without a text is what the evaluation said of them (point 15)."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image
from saved_families import save_family, without_texts
from steps import make_trainer

from hf_medvlm.data.rows import Row, StudyRows
from hf_medvlm.inference import load
from hf_medvlm.inference.predictor import ABILITIES

EVERY = pytest.mark.parametrize("name", sorted(FAMILIES))
CAN = {
    "blip": {"report", "ground"},
    "git": {"report", "ground"},
    "dual_encoder": {"embed", "embed_texts", "findings"},
    "patch_ib": {"embed", "embed_texts", "findings", "ground"},
    "llava": {"report", "ask", "ground"},
    "qwen2_5_vl": {"report", "ask"},
    "smolvlm": {"report", "ask"},
    "biovil_t": {"embed", "embed_texts", "findings", "ground", "progression"},
    "medklip": {"findings", "ground"},
}
SAID = ("prediction", "zero_shot", "findings_prediction", "scores", "progression_prediction")


@pytest.fixture(scope="module")
def saved(splits, tmp_path_factory):
    """name -> (folder, what the evaluation wrote of seven test studies)."""
    done: dict[str, tuple[Path, list[dict]]] = {}

    def of(name: str) -> tuple[Path, list[dict]]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            family = save_family(name, splits, folder)
            trainer = make_trainer(family, splits, folder / "trainer")
            done[name] = folder, trainer.scores(StudyRows(splits.test[:7])).predictions
        return done[name]

    return of


@pytest.fixture
def picture(splits) -> Path:
    return splits.image_folder / splits.test[0].frontal.path


@EVERY
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_images_without_text_get_what_the_evaluation_wrote(name, batch, saved, splits):
    folder, written = saved(name)
    predictor = load(folder)
    known = [study for studies in splits.studies.values() for study in studies]
    predictor.see(splits.image_folder, without_texts(known))
    rows = [Row(study, number) for number, study in enumerate(without_texts(splits.test[:7]))]
    told = []
    for start in range(0, len(rows), batch):
        told += map(predictor.tell, predictor.predict(predictor.collate(rows[start : start + batch])))
    for answer, wanted in zip(told, written, strict=True):
        compared = [
            key for key in SAID if key in answer and key in wanted and not (key == "scores" and name != "medklip")
        ]
        assert compared
        for key in compared:
            if isinstance(wanted[key], str):
                assert answer[key] == wanted[key]
            elif key == "progression_prediction":
                assert {n: answer[key][n] for n in wanted[key]} == wanted[key]
            else:
                assert answer[key] == pytest.approx(wanted[key], abs=2e-5)


@EVERY
def test_it_does_what_its_family_can_and_says_so_otherwise(name, saved, picture):
    folder, _ = saved(name)
    predictor = load(folder)
    assert set(predictor.abilities) == CAN.get(name, predictor.abilities)
    calls = {
        "report": lambda: predictor.report(picture),
        "embed": lambda: predictor.embed(picture),
        "embed_texts": lambda: predictor.embed_texts("No effusion."),
        "findings": lambda: predictor.findings(picture),
        "progression": lambda: predictor.progression(picture, picture),
        "ground": lambda: predictor.ground(picture, "effusion"),
        "ask": lambda: predictor.ask(picture, "Is there an effusion?"),
    }
    assert set(calls) == set(ABILITIES)
    for ability, call in calls.items():
        if ability in predictor.abilities:
            assert call() is not None
        else:
            with pytest.raises(ValueError, match=rf"holds {predictor.family}.*\.{ability}"):
                call()


@EVERY
def test_paths_pictures_arrays_and_lists_say_the_same(name, saved, picture):
    predictor = load(saved(name)[0])
    kind = next((kind for kind in ("report", "findings") if kind in predictor.abilities), None)
    if kind is None:
        pytest.skip(f"{name} writes no report and tells no findings")
    ask = getattr(predictor, kind)
    image = Image.open(picture)
    forms = [picture, str(picture), image, np.asarray(image), np.asarray(image.convert("RGB"))]
    wanted = ask(picture)
    for answer in [ask(form) for form in forms] + ask(forms):
        assert answer == (wanted if kind == "report" else pytest.approx(wanted, abs=1e-6))
    assert ask([]) == []


@pytest.mark.parametrize("name", ["patch_ib", "biovil_t", "medklip", "git"])
def test_a_map_covers_the_whole_image(name, saved, picture):
    predictor = load(saved(name)[0])
    wide = Image.open(picture).resize((150, 90))
    one = predictor.ground(wide, "left pleural effusion")
    assert one.shape == (90, 150) and one.dtype == np.float32 and np.isfinite(one).any()
    cropped = name not in ("medklip", "git")  # which squeeze the whole image
    assert np.isnan(one[:, :20]).all() == cropped and not np.isnan(one[:, 60:90]).any()
    several = predictor.ground([wide, picture], ["left pleural effusion", "cardiomegaly"])
    np.testing.assert_allclose(several[0], one, atol=1e-5)
    assert several[1].shape == (64, 64)


def test_medklip_keeps_thresholds_and_untrained_entities(splits, tmp_path):
    from families import build

    from hf_medvlm.families.medklip.descriptions import describe, hashed_embeddings

    family = build("medklip", splits)
    evaluation = family.evaluation
    evaluation.collator.entities = (*evaluation.collator.entities, "edema")
    evaluation.held_out_embeddings = hashed_embeddings([describe("edema")])
    evaluation.thresholds = np.array([0.1, 0.2, np.nan, 0.4, 0.5])
    family.model.save_pretrained(tmp_path)
    evaluation.collator.image_processor.save_pretrained(tmp_path)
    evaluation.write_settings(tmp_path)
    predictor = load(tmp_path)
    assert predictor.thresholds == pytest.approx(
        dict(zip(evaluation.collator.entities, evaluation.thresholds.tolist(), strict=True)), nan_ok=True
    )
    picture = splits.image_folder / splits.test[0].frontal.path
    assert list(predictor.findings(picture)) == list(evaluation.collator.entities)
    rows = [Row(splits.test[0])]
    wanted = evaluation.predict(family.model.eval(), evaluation.collate(rows))
    assert list(predictor.findings(picture).values()) == pytest.approx(wanted["probability"][0].tolist())
    held_out = predictor.ground(picture, "edema")
    with torch.no_grad():
        expected = wanted["maps"][0, 4]
    assert (
        np.unravel_index(held_out.argmax(), held_out.shape)[0] // 16 == int(expected.argmax()) // expected.shape[1] // 2
    )


def test_the_previous_image_counts_where_the_model_takes_one(saved, splits, picture):
    predictor = load(saved("biovil_t")[0])
    other = splits.image_folder / splits.test[3].frontal.path
    without, same, changed = (predictor.embed(picture, previous) for previous in (None, picture, other))
    assert not np.allclose(without, same) and not np.allclose(same, changed)
    assert set(predictor.progression(picture, other)) == set(predictor.model.config.progression_findings)
    mixed = predictor.embed([picture, picture], [None, other])
    np.testing.assert_allclose(mixed, [without, changed], atol=1e-5)
    with pytest.raises(ValueError, match="takes no previous image"):
        load(saved("blip")[0]).report(picture, picture)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_questions_go_into_the_prompt(name, saved, picture):
    predictor = load(saved(name)[0])
    questions = ["Is there an effusion?", "Is the heart enlarged?"]
    assert predictor.ask([picture, picture], questions) == [predictor.ask(picture, q) for q in questions]
    with pytest.raises(ValueError, match="questions for 1 images"):
        predictor.ask(picture, [])
    with pytest.raises(ValueError, match="questions for 1 images"):
        predictor.ask(picture, " ")


def test_texts_are_embedded_whatever_their_neighbours(saved):
    predictor = load(saved("dual_encoder")[0])
    texts = ["No effusion.", "There is a small left pleural effusion and the heart is enlarged.", "Clear lungs."]
    rows = predictor.embed_texts(texts)
    np.testing.assert_allclose(rows, [predictor.embed_texts(text) for text in texts], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="empty"):
        predictor.embed_texts([""])


def test_a_dual_encoder_with_a_local_loss_grounds(splits, tmp_path, picture):
    from families import build

    family = build("dual_encoder", splits)
    family.model.config.local_loss = "gloria"
    family.model.save_pretrained(tmp_path)
    family.evaluation.collator.processor.save_pretrained(tmp_path)
    predictor = load(tmp_path)
    heat = predictor.ground(picture, "pleural effusion")
    tokens = family.evaluation.collator.tokenize(["pleural effusion"])
    batch = family.evaluation.collator.images([Row(splits.test[0])])
    with torch.no_grad():
        rows, _ = family.model.eval().represent(batch["pixel_values"], **tokens)
    patches, words = (torch.nn.functional.normalize(rows[k][0], dim=-1) for k in ("patch_embeds", "token_embeds"))
    slow = (patches @ words[1:-1].T).mean(-1)  # the special tokens at both ends are no words
    assert heat[::16, ::16].shape == (4, 4) and np.isfinite(heat).all()
    assert heat.max() <= slow.max() + 1e-5 and heat.min() >= slow.min() - 1e-5
    assert heat.mean() == pytest.approx(slow.mean().item(), abs=1e-3)


def test_a_phrase_that_a_medklip_never_learned_is_named(saved, picture, caplog):
    predictor = load(saved("medklip")[0])
    predictor.ground(picture, "pleural effusion")
    assert "names no finding" not in caplog.text
    predictor.ground(picture, "unicorn")
    assert "'unicorn' names no finding" in caplog.text


def test_device_and_dtype(saved, picture):
    predictor = load(saved("dual_encoder")[0], device="cpu", dtype="bfloat16")
    assert predictor.model.dtype == torch.bfloat16 and predictor.device.type == "cpu"
    assert predictor.embed(picture) @ load(saved("dual_encoder")[0]).embed(picture) > 0.99
    with pytest.raises(ValueError, match="float33"):
        load(saved("dual_encoder")[0], dtype="float33")


def test_two_threads_do_not_mix_their_images(saved, splits):
    predictor = load(saved("dual_encoder")[0])
    paths = [splits.image_folder / study.frontal.path for study in splits.test[:2]]
    wanted = [predictor.embed(path) for path in paths]
    answers: list[list[np.ndarray]] = [[], []]

    def work(number: int) -> None:
        answers[number] = [predictor.embed(paths[number]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for number in range(2):
        np.testing.assert_allclose(answers[number], [wanted[number]] * 10, atol=1e-5)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such run"):
        load("runs/finetune_blip/77")
    with pytest.raises(ValueError, match="no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' model, which no family here knows"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("picture", "error"),
    [
        (np.zeros((2, 4, 5), np.uint8), "pass several as a list"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.full((4, 4), 2.0), "must lie in"),
        (np.full((4, 4), np.nan), "must lie in"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_bad_pictures_are_named(picture, error, saved):
    with pytest.raises(ValueError, match=error):
        load(saved("blip")[0]).report(picture)


def test_deep_pixels_are_read_as_from_a_file(saved, tmp_path):
    deep = (np.arange(64 * 64).reshape(64, 64) % 4096).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    predictor = load(saved("dual_encoder")[0])
    rows = predictor.embed([tmp_path / "deep.png", deep, Image.open(tmp_path / "deep.png")])
    np.testing.assert_allclose(rows[1:], [rows[0]] * 2, atol=1e-6)


@pytest.mark.parametrize("name", ["biovil_t", "medklip"])
def test_a_run_without_boxes_shows_maps_of_what_it_named(name, splits, tmp_path):
    from dataclasses import replace

    from families import build

    family = build(name, splits)
    bare = [replace(study, boxes=()) for study in splits.test[:7]]
    predictions = make_trainer(family, splits, tmp_path).scores(StudyRows(bare)).predictions
    named = [p for p in predictions if any(p.get("findings_reference", {}).get(n) == 1 for n in p["maps"])]
    assert named, "what a report states has a map, box or not"
    for prediction in predictions:
        plain = {name for name in prediction["maps"] if not name.endswith("Grad-CAM")}
        for finding in plain:
            state = (prediction.get("findings_prediction") or {}).get(finding)
            margin = (prediction.get("zero_shot") or {}).get(finding, -1)
            likely = state == 1 or margin > 0 or finding in family.evaluation.collator.__dict__.get("findings", ())
            assert likely or prediction["findings_reference"][finding] == 1
            assert np.isfinite(np.array(prediction["maps"][finding], dtype=float)).any()
