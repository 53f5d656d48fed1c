"""LlavaReporter: merging as LLaVA's, batches without images, what trains, generation, packing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaConfig

from hf_medvlm.collators.packing import pack, pad
from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.families.chat.tiny import IMAGE_TOKEN, make_processor, tiny_reporter, train_chat_tokenizer
from hf_medvlm.labels import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from hf_medvlm.training.objective import TokenObjective

GOLDEN = Path(__file__).parents[2] / "golden" / "llava_preprocess"


@pytest.fixture(scope="module")
def tokenizer():
    return train_chat_tokenizer(["the heart is normal. USER: ASSISTANT:"], vocab_size=320)


@pytest.fixture
def model(tokenizer) -> LlavaReporter:
    torch.manual_seed(0)
    return tiny_reporter(tokenizer, image_size=16, patch_size=8)


def sample(model: LlavaReporter, *parts: int | None) -> dict[str, list[int]]:
    """Token ids, None for an image; everything but the images is supervised."""
    ids = []
    for part in parts:
        ids += [model.config.image_token_id] * model.image_tokens if part is None else [part]
    labels = [IGNORE_INDEX if token == model.config.image_token_id else token for token in ids]
    return {"input_ids": ids, "labels": labels}


def nll_of(model: LlavaReporter, batch: dict, **more: torch.Tensor) -> torch.Tensor:
    """(B,), the summed loss of each row."""
    return TokenObjective()(model, batch | more).per_study["nll"]


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("side", ["right", "left"])
def test_image_features_are_merged_as_llava_does(side):
    golden = load_file(GOLDEN / "merge.safetensors")
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 700, "hidden_size": 4, "num_attention_heads": 1}
        | {"intermediate_size": 4, "num_hidden_layers": 1},
        vision_config={"model_type": "clip_vision_model", "hidden_size": 4, "num_attention_heads": 1}
        | {"intermediate_size": 4, "num_hidden_layers": 2, "image_size": 4, "patch_size": 2},
        image_token_index=700,
    )
    model = LlavaReporter(config).eval()
    model.get_input_embeddings().weight.data = golden["embed_tokens"]
    features = SimpleNamespace(pooler_output=list(golden["image_features"]))
    model.model.get_image_features = lambda *_, **__: features
    samples, limit = [], golden[f"{side}.merged_embeds"].shape[1]
    for row in range(len(golden["input_ids"])):
        ids, labels = [], []
        kept = golden["attention_mask"][row].bool()
        pairs = zip(golden["input_ids"][row][kept].tolist(), golden["labels"][row][kept].tolist(), strict=True)
        for token, label in pairs:
            times = golden["image_features"].shape[1] if token == IMAGE_TOKEN_INDEX else 1
            ids, labels = ids + [token] * times, labels + [label] * times
        samples.append({"input_ids": ids[:limit], "labels": labels[:limit]})
    batch = pad(samples, 0, left=side == "left")
    mask = golden[f"{side}.merged_attention_mask"].bool()
    assert torch.equal(batch["attention_mask"].bool(), mask)
    assert torch.equal(batch["labels"], golden[f"{side}.merged_labels"])
    with torch.no_grad():
        embeds = model.embed(batch["input_ids"], torch.zeros(4, 3, 4, 4))
    assert torch.equal(embeds[mask], golden[f"{side}.merged_embeds"][mask])


@pytest.mark.parametrize("mode", ["pad", "square"])
@pytest.mark.parametrize("shape", ["landscape", "portrait", "square"])
def test_pixels_are_those_of_llavas_preprocessing(mode, shape, tokenizer):
    golden = load_file(GOLDEN / "image.safetensors")
    processor = make_processor(tokenizer, 56, 14, image_aspect_ratio=mode).image_processor
    pixels = processor(Image.fromarray(golden[f"{shape}.input"].numpy()), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, golden[f"{shape}.{mode}.pixel_values"], rtol=0, atol=1e-6)


def test_a_batch_without_images_still_reaches_the_projector_in_training(model):
    batch = pad([sample(model, 1, 7, 8, 2)], 0)
    model.train()(**batch).loss.backward()
    projector = dict(model.model.multi_modal_projector.named_parameters())
    assert all(p.grad is not None and not p.grad.any() for p in projector.values())
    with torch.no_grad():
        training, evaluation = model(**batch).loss, model.eval()(**batch).loss
    assert torch.equal(training, evaluation)


def test_several_images_none_and_one_in_one_batch(model):
    model.eval()
    rows = [sample(model, 1, None, 5, None, 6, 2), sample(model, 1, 7, 2), sample(model, 1, None, 8, 2)]
    pixels = images(3)
    with torch.no_grad():
        whole = model(**pad(rows, 0), pixel_values=pixels)
        together = nll_of(model, pad(rows, 0), pixel_values=pixels)
        alone = [
            nll_of(model, pad(rows[:1], 0), pixel_values=pixels[:2]),
            nll_of(model, pad(rows[1:2], 0)),
            nll_of(model, pad(rows[2:], 0), pixel_values=pixels[2:]),
        ]
        packed = model(**pack(rows), pixel_values=pixels)
        swapped = nll_of(model, pad(rows, 0), pixel_values=pixels[[1, 0, 2]])
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.loss, whole.loss, rtol=1e-5, atol=1e-5)
    assert (swapped[0] - together[0]).abs() > 1e-4 and torch.equal(swapped[1:], together[1:])


def test_packed_neighbours_are_not_seen(model):
    model.eval()
    first, second, other = sample(model, 1, 5, 6, 7, 2), sample(model, 1, 9, 8, 2), sample(model, 1, 11, 12, 13, 2)
    with torch.no_grad():
        one, two = (model(**pack([neighbour, second])).logits[0, 5:] for neighbour in (first, other))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert pack([first, second])["labels"][0, 5] == IGNORE_INDEX


def test_a_black_image_may_stand_for_a_text_as_in_llava(model):
    model.eval()
    batch = pad([sample(model, 1, None, 5, 2), sample(model, 1, 7, 2)], 0)
    with torch.no_grad():
        spare, needed = (nll_of(model, batch, pixel_values=images(2)[:count]) for count in (2, 1))
        assert torch.equal(spare, needed)
    with pytest.raises(ValueError, match=r"4 image tokens in the text, but 3 image\(s\) of 4"):
        model(**batch, pixel_values=images(3))
    with pytest.raises(ValueError, match=r"4 image tokens in the text, but 0 image\(s\)"):
        model(**batch)


def test_the_loss_is_divided_by_the_tokens_of_the_global_batch(model):
    batch = pad([sample(model, 1, 7, 8, 2), sample(model, 1, 9, 2)], 0)
    objective = TokenObjective()
    counts = objective.count(batch)
    assert counts["tokens"] == 5
    with torch.no_grad():
        whole = objective(model, batch).loss
        rows = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(2)]
        parts = [objective(model, row, counts).loss for row in rows]
        stock = [model(**row, num_items_in_batch=counts["tokens"]).loss for row in rows]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(sum(stock), whole)
    torch.testing.assert_close(model(**batch).loss, whole)


def test_generation_continues_left_padded_prompts_of_any_kind(model, tokenizer):
    model.eval()
    prompts = [sample(model, 1, None, 5, 6, None, 7), sample(model, 1, 5), sample(model, 1, None, 9)]
    batch = pad(prompts, tokenizer.pad_token_id, left=True)
    del batch["labels"]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    written = model.generate(**batch, pixel_values=images(3), **options)[:, batch["input_ids"].shape[1] :]
    places = [slice(0, 2), slice(0, 0), slice(2, 3)]
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        alone = {"input_ids": torch.tensor([prompt["input_ids"]]), "pixel_values": images(3)[place]}
        alone["attention_mask"] = torch.ones_like(alone["input_ids"])
        wanted = model.generate(**alone, **options)[0, len(prompt["input_ids"]) :]
        assert torch.equal(written[row, : len(wanted)], wanted)


def test_the_tiny_tokenizer_is_llama_like(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<unk>", "<s>", "</s>", IMAGE_TOKEN)] == [0, 1, 2, 3]
    text = "The heart is  normal — né\n😀."
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer(text).input_ids[0] == 1
    with pytest.raises(ValueError, match="every text is empty"):
        train_chat_tokenizer([" "])


def test_the_processor_survives_saving(tokenizer, tmp_path):
    from transformers import AutoProcessor

    processor = make_processor(tokenizer, 16, 8)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20))
    wanted = processor.image_processor(picture.convert("RGB"), return_tensors="pt").pixel_values
    pixels = loaded.image_processor(picture.convert("RGB"), return_tensors="pt").pixel_values
    assert torch.equal(pixels, wanted) and loaded.image_token_id == processor.image_token_id
