"""Any chat model as transformers has it: parts, loss, packing, text alone, LoRA, generation, published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_folders import FAMILIES
from launch import call
from test_messages import ANSWERS, QUESTION, picture, turns
from transformers import AutoConfig, AutoModelForImageTextToText

from hf_medvlm.families.chat import load_processor
from hf_medvlm.families.chat.attention import stock_word_attention
from hf_medvlm.families.chat.messages import encode_batch, encode_with_prompts
from hf_medvlm.families.chat.packed_rows import PACKABLE, ROTARY, check_packable, pack_rows
from hf_medvlm.families.chat.stock import ChatObjective, load_stock
from hf_medvlm.families.chat.turns import as_messages
from hf_medvlm.training.lora import quantise
from hf_medvlm.training.objective import TokenObjective
from hf_medvlm.training.parts import PARTS, add_part_lora, parts_of, set_trainable

TEXT_ONLY = [as_messages(turns((QUESTION, ANSWERS[0]), (QUESTION, ANSWERS[1])))]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any, Any]:
    """Name, folder, processor and model."""
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    return request.param, folder, load_processor(folder), load_stock(folder, torch.float32)


def samples(name: str) -> tuple[list[Any], list[Any]]:
    one = as_messages(turns((f"<image>\n{QUESTION}", ANSWERS[1])))
    if name == "mllama":  # one number of images in all rows
        return [one, one], [[picture(90, 50, 0)], [picture(40, 40, 1)]]
    two = as_messages(turns((f"<image>\n<image>\n{QUESTION}", ANSWERS[0])))
    return [one, two, *TEXT_ONLY], [[picture(90, 50, 0)], [picture(40, 40, 1), picture(30, 60, 2)], []]


def test_the_loss_is_that_of_the_whole_vocabulary_and_reaches_every_part(family: Any) -> None:
    name, _, processor, model = family
    parts = parts_of(model)
    set_trainable(model, parts, PARTS)
    batch = encode_batch(*samples(name), processor)
    result, whole = ChatObjective()(model, batch), TokenObjective()(model, batch)
    assert result.outputs.logits.shape[1] < batch["labels"].shape[1]
    assert result.loss.item() == pytest.approx(whole.loss.item(), rel=1e-5)
    torch.testing.assert_close(result.per_study["nll"], whole.per_study["nll"], rtol=1e-5, atol=1e-4)
    stock = model(**batch).loss
    assert result.loss.item() == pytest.approx(stock.item(), rel=1e-5)
    model.zero_grad()
    result.loss.backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without
    assert {parts.part_of(key) for key, _ in model.named_parameters()} == set(PARTS)


def test_where_it_looked_is_told_where_one_image_is_one_grid(family: Any) -> None:
    name, _, processor, model = family
    told = "qwen2_5_vl qwen3_vl qwen3_5 gemma3 llava deepseek_vl".split()
    messages = [as_messages(turns((f"<image>\n{QUESTION}", ANSWERS[1])))]
    ids = torch.tensor(processor.tokenizer(ANSWERS[1], add_special_tokens=False)["input_ids"])
    _, prompts = encode_with_prompts(messages, [[picture(90, 50, 0)]], processor)
    if name not in told:
        with pytest.raises(ValueError, match="one image that is read as one grid"):
            stock_word_attention(model, prompts, 0, ids)
        return
    _, others = encode_with_prompts(messages, [[picture(90, 50, 3)]], processor)
    before = model.config._attn_implementation
    with torch.no_grad():
        whole, first = (stock_word_attention(model.eval(), prompts, 0, part) for part in (ids, ids[:3]))
        other = stock_word_attention(model, others, 0, ids)
    assert whole.shape == (len(ids), round(whole.shape[1] ** 0.5) ** 2) and (whole >= 0).all()
    assert torch.allclose(whole[:3], first, atol=1e-5)  # what is written later changes nothing
    assert not torch.allclose(whole, other, atol=1e-7) and model.config._attn_implementation == before


def test_a_batch_without_images_keeps_vision_and_connector_at_work(family: Any) -> None:
    name, _, processor, model = family
    if name == "mllama":
        pytest.skip("rows of Mllama hold equally many images")
    set_trainable(model, parts_of(model), PARTS)
    plain = ChatObjective()(model, encode_batch(TEXT_ONLY, [[]], processor))
    idle = ChatObjective()(model, encode_batch(TEXT_ONLY, [[]], processor, idle=True))
    assert idle.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    model.zero_grad()
    idle.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_packed_samples_have_the_loss_that_they_have_alone(family: Any) -> None:
    name, _, processor, model = family
    kind = model.config.model_type
    if kind not in PACKABLE:
        with pytest.raises(ValueError, match=kind):
            check_packable(kind)
        return
    conversations, images = samples(name)
    alone = [
        ChatObjective()(model, encode_batch([c], [i], processor)).per_study["nll"].item()
        for c, i in zip(conversations, images, strict=True)
    ]
    packed = pack_rows(
        encode_batch(conversations, images, processor), model.model.get_rope_index if kind in ROTARY else None
    )
    assert packed["input_ids"].shape[0] == 1 and "attention_mask" not in packed
    assert ChatObjective()(model, packed).per_study["nll"].item() == pytest.approx(sum(alone), rel=1e-5)


def test_generation_does_not_depend_on_the_batch(family: Any) -> None:
    name, _, processor, model = family
    conversations, images = samples(name)
    model.eval()
    options = {"max_new_tokens": 6, "do_sample": False}

    def write(chosen: list[int]) -> list[list[int]]:
        _, prompts = encode_with_prompts([conversations[i] for i in chosen], [images[i] for i in chosen], processor)
        ids = model.generate(**prompts, **options)[:, prompts["input_ids"].shape[1] :].tolist()
        stops = model.generation_config.eos_token_id
        ends = [next((n + 1 for n, token in enumerate(row) if token in stops), len(row)) for row in ids]
        return [row[:end] for row, end in zip(ids, ends, strict=True)]

    together = write(list(range(len(conversations))))
    assert together == [write([number])[0] for number in range(len(conversations))]


def test_lora_is_on_the_decoder_alone_and_merges(family: Any, tmp_path: Path) -> None:
    name, folder, processor, _ = family
    model = load_stock(folder, torch.float32)
    parts = parts_of(model)
    set_trainable(model, parts, ("connector", "language"))
    adapted = add_part_lora(model, parts, 4, 8, 0.0, ("connector", "language"))
    adapters = [key.removeprefix("base_model.model.") for key, _ in adapted.named_parameters() if ".lora_" in key]
    assert adapters and all(key.startswith(f"{parts.decoder}.") for key in adapters)
    trained = {parts.part_of(key) for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {"connector", "language"}
    batch = encode_batch(*samples(name), processor)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ChatObjective()(adapted, batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        before = ChatObjective()(adapted, batch).outputs.logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(ChatObjective()(merged, batch).outputs.logits, before, rtol=1e-3, atol=1e-4)
        merged.save_pretrained(tmp_path)
        again = load_stock(tmp_path, torch.float32)
        torch.testing.assert_close(ChatObjective()(again, batch).outputs.logits, before, rtol=1e-3, atol=1e-4)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == json.loads((folder / "config.json").read_text())["architectures"]


SIZES = {  # of the published config.json files
    "medgemma-4b": 4_300_079_472,
    "qwen3-vl-8b": 8_767_123_696,
}


def published_config(name: str) -> Any:
    if name == "medgemma-4b":
        text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8}
        text |= {"num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "sliding_window": 1024}
        vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        vision |= {"image_size": 896, "patch_size": 14, "vision_use_head": False}
        return AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=256)
    text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
    text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    vision = {"out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]}
    return AutoConfig.for_model("qwen3_vl", text_config=text, vision_config=vision)


@pytest.mark.parametrize("name", SIZES)
def test_plans_find_the_parts_of_models_of_published_size(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(published_config(name), dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
    parts = parts_of(model)
    set_trainable(model, parts, ("connector", "language"))
    adapted = add_part_lora(model, parts, 16, 16, 0.05, ("connector", "language"))
    counts = dict.fromkeys(PARTS, 0)
    for key, parameter in adapted.named_parameters():
        counts[parts.part_of(key)] += parameter.numel() * parameter.requires_grad
    assert counts["vision"] == 0 < counts["connector"] and counts["language"] < 0.02 * SIZES[name]


FRESH = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True, dtype=torch.float32)
assert not info["missing_keys"] and not info["unexpected_keys"], info
processor = AutoProcessor.from_pretrained(sys.argv[1])
assert "hf_medvlm" not in sys.modules
text = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "Clear?"}]}])
ids = processor(text=[text], return_tensors="pt").input_ids
with torch.no_grad():
    print(repr(model(input_ids=ids).logits.double().sum().item()))
"""


@pytest.mark.slow
def test_a_saved_model_opens_in_a_python_without_this_package(tmp_path: Path) -> None:
    folder = FAMILIES["idefics3"](tmp_path / "made")
    model, processor = load_stock(folder, torch.float32).eval(), load_processor(folder)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    ended = call("-c", FRESH, tmp_path / "saved", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "Clear?"}]}])
    with torch.no_grad():
        expected = model(input_ids=processor(text=[text], return_tensors="pt").input_ids).logits.double().sum().item()
    assert float(ended.stdout.split()[-1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_narrow_layers_run_quantised_in_training_and_in_evaluation(bits: int, tmp_path: Path) -> None:
    """48 wide: bitsandbytes' form for CPUs with AVX-512 BF16 takes multiples of 32 and 64 alone."""
    pytest.importorskip("bitsandbytes")
    folder = FAMILIES["qwen2_5_vl"](tmp_path)
    model, processor = load_stock(folder, torch.float32), load_processor(folder)
    parts = parts_of(model)
    quantise(model, model.get_submodule(parts.decoder), bits, torch.device("cpu"))
    set_trainable(model, parts, ("connector", "language"))
    adapted = add_part_lora(model, parts, 4, 8, 0.0, ("connector", "language"))
    batch = encode_batch(*samples("qwen2_5_vl"), processor)
    trained = ChatObjective()(adapted.train(), batch).loss
    trained.backward()
    assert all(p.grad is not None for key, p in adapted.named_parameters() if "lora_B" in key)
    with torch.no_grad():
        scored = ChatObjective()(adapted.eval(), batch).loss
    assert scored.item() == pytest.approx(trained.item(), rel=0.02)
