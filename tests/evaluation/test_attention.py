"""Where a model looked for what it wrote: the attention of a phrase's words, in the report that holds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import build

from hf_medvlm.data.rows import StudyRows
from hf_medvlm.evaluation.attention import phrase_maps, written_findings
from hf_medvlm.evaluation.base import moved
from hf_medvlm.families.captioners.attention import word_attention as of_captioners
from hf_medvlm.families.chat.attention import stock_word_attention as of_any
from hf_medvlm.families.chat.attention import word_attention as of_llava

REPORT = "There is a small left pleural effusion. No pneumothorax. The heart is enlarged."


def test_findings_that_are_written_are_those_that_are_there():
    assert written_findings(REPORT + " The heart is enlarged.") == [
        "There is a small left pleural effusion.",
        "The heart is enlarged.",
    ]
    assert written_findings("The lungs are clear.") == []


@pytest.fixture(scope="module", params=["blip", "git", "llava"])
def family(request, splits):
    built = build(request.param, splits)
    rows = [StudyRows(splits.validate)[i] for i in range(2)]
    prompts = built.evaluation.collate_images(rows)["prompts"]
    look = of_llava if request.param == "llava" else of_captioners
    with torch.no_grad():
        yield built.model.eval(), built.evaluation.tokenizer, prompts, look


def test_each_word_is_looked_for_at_the_place_that_writes_it(family):
    """What comes after a word changes nothing of where it was looked for, and rows of a batch do not mix."""
    model, tokenizer, prompts, look = family
    ids = torch.tensor(tokenizer(REPORT, add_special_tokens=False)["input_ids"])
    whole = look(model, prompts, 1, ids)
    assert whole.shape[0] == len(ids) and (whole >= 0).all() and whole.shape[1] == round(whole.shape[1] ** 0.5) ** 2
    assert torch.allclose(look(model, prompts, 1, ids[:4]), whole[:4], atol=1e-5)
    changed = ids.clone()
    changed[-1] = ids[0]  # the last word is not among what it was written from
    assert torch.allclose(look(model, prompts, 1, changed)[-1], whole[-1], atol=1e-5)
    alone = {name: value[1:] for name, value in prompts.items()}
    assert torch.allclose(look(model, alone, 0, ids), whole, atol=1e-5)
    assert not torch.allclose(look(model, prompts, 0, ids), whole, atol=1e-7)  # another image


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (30, 30)])
def test_margins_that_made_the_image_a_square_are_cut_off(size):
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    from hf_medvlm.evaluation.maps import over_image

    processor = LlavaImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_pad=True)
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[-size[1] // 4 :, : size[0] // 4] = 255  # at the bottom left
    seen = torch.from_numpy(processor(picture, do_normalize=False, return_tensors="np")["pixel_values"][0, 0])
    whole = over_image(seen, size, processor)
    assert whole.shape == (size[1], size[0]) and np.isfinite(whole).all()
    down, across = np.unravel_index(whole.argmax(), whole.shape)
    assert down >= 0.7 * size[1] and across <= 0.3 * size[0]


def test_a_phrase_s_map_is_the_mean_over_its_words(family):
    model, tokenizer, prompts, look = family
    phrase = "The heart is enlarged."
    maps = phrase_maps(look, model, tokenizer, prompts, 0, REPORT, [phrase, "pleural effusion", "Fracture of a rib."])
    encoded = tokenizer(REPORT, add_special_tokens=False)["input_ids"]
    before = tokenizer(REPORT[: REPORT.index(phrase)].strip(), add_special_tokens=False)["input_ids"]
    words = look(model, prompts, 0, torch.tensor(encoded))[len(before) :].mean(0)
    assert torch.allclose(maps[phrase].flatten(), words / words.sum(), atol=1e-5)
    for grid in maps.values():
        assert grid.sum() == pytest.approx(1, abs=1e-4) and grid.shape[0] == grid.shape[1]
    pieces = torch.tensor(tokenizer("Fracture of a rib.", add_special_tokens=False)["input_ids"])
    by_itself = look(model, prompts, 0, pieces).mean(0)
    assert torch.allclose(maps["Fracture of a rib."].flatten(), by_itself / by_itself.sum(), atol=1e-5)


@pytest.mark.parametrize("name", ["blip", "llava", "qwen2_5_vl", "smolvlm"])
def test_the_page_of_a_model_that_writes_gets_maps_of_what_was_written(name, splits, monkeypatch):
    from hf_medvlm.evaluation.text import SHOWN_FINDINGS, TextEvaluation

    built = build(name, splits)
    evaluation, model = built.evaluation, built.model.eval()
    evaluation.look = {"blip": of_captioners, "llava": of_llava}.get(name, of_any)
    monkeypatch.setattr(TextEvaluation, "text_of", lambda self, ids: REPORT)
    rows = [StudyRows(splits.validate)[i] for i in range(3)]
    with torch.no_grad():
        batch = moved(evaluation.collate(rows), torch.device("cpu"))
        batch["shown"][2] = False
        outputs = {name: list(value.numpy()) for name, value in evaluation.predict(model, batch).items()}
    if name == "smolvlm":  # it reads an image in tiles
        scores = evaluation.score(outputs, [row.study for row in rows])
        assert "maps" not in scores.predictions[0] and "tiles" in scores.figures["without_maps"]
        return
    assert outputs["maps"][0].shape[0] == SHOWN_FINDINGS
    scores = evaluation.score(outputs, [row.study for row in rows])
    assert list(scores.predictions[0]["maps"]) == written_findings(REPORT)
    assert "maps" not in scores.predictions[2]  # beyond those that are shown
    grid = torch.tensor(next(iter(scores.predictions[0]["maps"].values())))
    assert grid.ndim == 2 and torch.isfinite(grid).all() and grid.min() < grid.max()
