"""Any chat model's conversations: ids, labels, prompts; golden cases; what is refused, and how it is said."""

from __future__ import annotations

import importlib.util
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_folders import FAMILIES, GEMMA, INST, QWEN
from PIL import Image
from transformers import AutoModelForImageTextToText

from hf_medvlm.families.chat import encode_messages, load_processor
from hf_medvlm.families.chat.messages import encode_batch, encode_with_prompts
from hf_medvlm.families.chat.processors import stop_ids
from hf_medvlm.families.chat.turns import as_messages
from hf_medvlm.labels import IGNORE_INDEX

GOLDEN_TEMPLATES = {"gemma3": GEMMA, "llava_next": INST, "qwen2_5_vl": QWEN}
QUESTION, ANSWERS = "Is there an opacity?", ("No.", "The lungs are clear.\nHeart size is normal.")
STRIPPED = ("gemma3", "deepseek_vl")


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [
        turn for ask, answer in pairs for turn in ({"from": "human", "value": ask}, {"from": "gpt", "value": answer})
    ]


def runs(labels: torch.Tensor) -> list[list[int]]:
    """The supervised ids, one list a run."""
    result: list[list[int]] = [[]]
    for label in labels.tolist():
        if label != IGNORE_INDEX:
            result[-1].append(label)
        elif result[-1]:
            result.append([])
    return [run for run in result if run]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("chat")
    return {name: make(root / name) for name, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: load_processor(folder) for name, folder in folders.items()}


@pytest.fixture
def qwen(folders: dict[str, Path]) -> Any:
    return load_processor(folders["qwen2_5_vl"])


@pytest.mark.parametrize("name", GOLDEN_TEMPLATES)
def test_golden_ids_labels_prompts_loss_and_gradient(name: str, shared: Path) -> None:
    folder = shared / "golden" / "chat_models" / name
    processor = load_processor(folder)
    processor.chat_template = GOLDEN_TEMPLATES[name]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    cases = json.loads((folder / "cases.json").read_text())

    def conversation(case: dict[str, Any]) -> list[dict[str, str]]:
        pairs = [tuple(pair) for pair in case["turns"]]
        return turns(("<image>\n" * len(case["images"]) + pairs[0][0], pairs[0][1]), *pairs[1:])

    def pictures(case: dict[str, Any]) -> list[Image.Image]:
        return [picture(*image) for image in case["images"]]

    batch_case = cases.pop("_batch")
    for case in cases.values():
        batch = encode_messages(conversation(case), pictures(case), processor)
        assert batch["input_ids"].tolist() == [case["input_ids"]]
        assert batch["labels"].tolist() == [case["labels"]]
        assert {key: list(value.shape) for key, value in batch.items() if key != "labels"} == case["shapes"]
        _, prompts = encode_with_prompts([as_messages(conversation(case))], [pictures(case)], processor)
        assert prompts["input_ids"].tolist() == [case["prompt_ids"]]
        with torch.no_grad():
            assert model(**batch).loss.item() == pytest.approx(case["loss"], rel=1e-5)
    chosen = [cases[key] for key in batch_case["cases"]]
    loss = model(
        **encode_batch([as_messages(conversation(c)) for c in chosen], [pictures(c) for c in chosen], processor)
    ).loss
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
    assert loss.item() == pytest.approx(batch_case["loss"], rel=1e-5)
    assert norm.item() == pytest.approx(batch_case["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_the_processors_own_and_the_answers_alone_are_supervised(name: str, loaded: dict[str, Any]) -> None:
    processor = loaded[name]
    images = [picture(90, 50, 0), picture(40, 70, 1)]
    conversation = turns((f"<image>\n<image>\n{QUESTION}", ANSWERS[0]), ("Describe the findings.", ANSWERS[1]))
    batch = encode_messages(conversation, images, processor)
    messages = as_messages(conversation)
    blocks = [block for message in messages for block in message["content"] if block["type"] == "image"]
    for block, image in zip(blocks, images, strict=True):
        block["image"] = image
    theirs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    added = batch["input_ids"].shape[1] - theirs["input_ids"].shape[1]
    assert added == (1 if name in ("llava", "deepseek_vl") else 0)
    assert torch.equal(batch["input_ids"][:, : theirs["input_ids"].shape[1]], theirs["input_ids"])
    supervised = runs(batch["labels"][0])
    assert [processor.tokenizer.decode(run, skip_special_tokens=True).strip() for run in supervised] == list(ANSWERS)
    stops = stop_ids(processor)
    assert supervised[-1][-1] in stops
    assert name == "llava" or all(run[-1] in stops for run in supervised)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_holds_what_each_sample_has_alone_and_prompts_end_where_answers_begin(
    name: str, loaded: dict[str, Any]
) -> None:
    processor = loaded[name]
    one = (turns((f"<image>\n{QUESTION}", ANSWERS[1])), [picture(90, 50, 0)])
    two = (turns((f"<image>\n<image>\n{QUESTION}", ANSWERS[0])), [picture(40, 40, 1), picture(30, 60, 2)])
    none = (turns((QUESTION, ANSWERS[0]), (QUESTION, ANSWERS[1])), [])
    samples = [one, one] if name == "mllama" else [one, two, none]
    batch, prompts = encode_with_prompts([as_messages(c) for c, _ in samples], [list(i) for _, i in samples], processor)
    for row, (conversation, images) in enumerate(samples):
        alone = encode_messages(conversation, images, processor)
        length = int(alone["attention_mask"].sum())
        assert torch.equal(batch["input_ids"][row, :length], alone["input_ids"][0])
        assert torch.equal(batch["labels"][row, :length], alone["labels"][0])
        asked = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
        last = runs(alone["labels"][0])[-1]
        assert torch.equal(asked, alone["input_ids"][0, : len(asked)])
        assert alone["labels"][0, len(asked) : len(asked) + len(last)].tolist() == last
        assert prompts["attention_mask"][row, -1] == 1
    assert all(prompts[key] is batch[key] for key in prompts if "pixel" in key)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_processor_loads_again_and_keeps_its_video_settings(
    name: str, folders: dict[str, Path], loaded: dict[str, Any], tmp_path: Path
) -> None:
    loaded[name].save_pretrained(tmp_path)
    before = json.loads((folders[name] / "processor_config.json").read_text())
    after = json.loads((tmp_path / "processor_config.json").read_text())
    assert after.get("video_processor") == before.get("video_processor")
    assert after["processor_class"] == before["processor_class"]
    again = load_processor(tmp_path)
    conversation, image = turns((f"<image>\n{QUESTION}", ANSWERS[0])), picture(90, 50, 0)
    first, second = (encode_messages(conversation, [image], p) for p in (loaded[name], again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_video_settings_of_the_hubs_older_layout_are_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["qwen2_5_vl"].iterdir():
        if "processor_config" not in file.name and file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folders["qwen2_5_vl"] / "processor_config.json").read_text())
    image = settings["image_processor"] | {"processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(settings["video_processor"]))
    load_processor(tmp_path).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert saved["video_processor"] == settings["video_processor"]
    assert saved["image_processor"]["patch_size"] == 14


def test_a_date_in_a_template_is_that_of_the_run_and_rides_in_its_folder(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    processor = load_processor(folders["mistral3"])
    processor.template_date = datetime(2024, 2, 29, 8, 0)
    batch = encode_messages(turns((QUESTION, ANSWERS[0])), [], processor)
    assert "Today is 2024-02-29." in processor.tokenizer.decode(batch["input_ids"][0])
    processor.save_pretrained(tmp_path)
    again = encode_messages(turns((QUESTION, ANSWERS[0])), [], load_processor(tmp_path))
    assert torch.equal(again["input_ids"], batch["input_ids"])


def test_both_forms_of_turns_and_system_texts_are_taken(qwen: Any) -> None:
    image = picture(90, 50, 0)
    theirs = [{"role": "system", "content": "You are a radiologist."}]
    theirs += [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    theirs += [{"role": "assistant", "content": "No."}]
    ours = [{"from": "system", "value": "You are a radiologist."}, *turns((f"<image>\n{QUESTION}", "No."))]
    first, second = (encode_messages(conversation, [image], qwen) for conversation in (theirs, ours))
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert "You are a radiologist." in qwen.tokenizer.decode(first["input_ids"][0])


def test_an_image_stands_where_its_mark_does(qwen: Any) -> None:
    blocks = as_messages(turns(("Compare <image>\nwith <image> now.", "Same.")))[0]["content"]
    assert [block.get("text", "IMAGE") for block in blocks] == ["Compare ", "IMAGE", "with ", "IMAGE", " now."]


SIMPLE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_of_a_text_model_gets_plain_text(qwen: Any) -> None:
    qwen.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] + ': ' + m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    batch = encode_messages(turns((f"<image>\n{QUESTION}", "No.")), [picture(90, 50, 0)], qwen)
    assert qwen.tokenizer.decode(runs(batch["labels"][0])[0]) == "No.<|im_end|>"
    assert (batch["input_ids"] == qwen.image_token_id).sum() > 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (SIMPLE.replace("{{ c['text'] }}", "{% if m['role'] == 'user' %}{{ c['text'] }}{% endif %}"), "answer of turn"),
        (SIMPLE.replace("{{ c['text'] }}", "{{ c['text'] | upper }}"), "drops or changes"),
        (SIMPLE.replace("{{ c['text'] }}", "{{ c['text'] if m['role'] != 'user' }}"), "user's text of turn 0"),
        (SIMPLE.replace("<|vision_start|><|image_pad|><|vision_end|>", ""), "0 image"),
        (SIMPLE.replace("{% for m in messages %}", "{% for m in messages[-2:] %}"), "turn"),
        (SIMPLE.replace("{{ m['role'] }}: ", "{{ m['role'] }} {{ messages | length }}: "), "turn"),
        (SIMPLE.replace("assistant: {% endif %}", "assistant: <think>{% endif %}"), "generation"),
        (SIMPLE.replace("{{ c['text'] }}", "{{ c['text'] + nothing }}"), "refuses"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused_with_the_place(qwen: Any, template: str, message: str) -> None:
    qwen.chat_template = template
    conversation = turns((f"<image>\n{QUESTION}", "No."), ("Describe the findings.", "The lungs are clear."))
    with pytest.raises(ValueError, match=message):
        encode_messages(conversation, [picture(90, 50, 0)], qwen)


@pytest.mark.parametrize(
    ("conversation", "images", "message"),
    [
        (turns((QUESTION, "No."))[:1], 0, "roles out of order"),
        (turns((QUESTION, "No."))[1:], 0, "roles out of order"),
        ([{"from": "tool", "value": "x"}], 0, "turn 0 has the role 'tool'"),
        (turns((f"<image>\n{QUESTION}", "No.")), 2, "1 time"),
        (turns((QUESTION, "No.")), 1, "0 time"),
        (turns((QUESTION, "See <image>.")), 1, "turn 1"),
        (turns((QUESTION, "")), 0, "nothing is supervised"),
        (turns((f"{QUESTION}<|im_end|>", "No.")), 0, "turn 0: the text holds '<|im_end|>'"),
        ([{"role": "user", "content": [{"type": "audio"}]}], 0, "turn 0"),
        ([{"role": "user", "content": None}], 0, "turn 0"),
        (["text"], 0, "turn 0"),
    ],
)
def test_a_conversation_that_cannot_be_encoded_is_refused(
    qwen: Any, conversation: Any, images: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        encode_messages(conversation, [picture(40, 40, 0)] * images, qwen)


def test_max_length_cuts_text_at_its_end_and_never_an_image(qwen: Any) -> None:
    conversation, image = turns((f"<image>\n{QUESTION}", ANSWERS[1])), [picture(90, 50, 0)]
    whole = encode_messages(conversation, image, qwen)
    length = whole["input_ids"].shape[1]
    cut = encode_messages(conversation, image, qwen, max_length=length - 4)
    for key in ("input_ids", "labels", "attention_mask", "mm_token_type_ids"):
        assert torch.equal(cut[key], whole[key][:, : length - 4])
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])
    last = int((whole["input_ids"][0] == qwen.image_token_id).nonzero()[-1])
    with pytest.raises(ValueError, match="an image is never cut"):
        encode_messages(conversation, image, qwen, max_length=last)
    with pytest.raises(ValueError, match="nothing is supervised"):
        encode_messages(conversation, image, qwen, max_length=last + 3)


def test_rows_of_mllama_hold_equally_many_images(loaded: dict[str, Any]) -> None:
    one, two = turns((f"<image>\n{QUESTION}", "No.")), turns((f"<image>\n<image>\n{QUESTION}", "No."))
    images = [[picture(40, 40, 0)], [picture(40, 40, 0), picture(40, 40, 1)]]
    with pytest.raises(ValueError, match="equally many images"):
        encode_batch([as_messages(one), as_messages(two)], images, loaded["mllama"])


def test_folders_without_a_chat_processor_are_refused_by_name(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="names no processor class"):
        load_processor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
    with pytest.raises(ValueError, match="PaliGemma has no chat template"):
        load_processor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert'"):
        load_processor(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="with torchvision they may load")
@pytest.mark.parametrize("name", ["Lfm2Vl", "PerceptionLM", "Cohere2Vision"])
def test_a_family_without_a_pil_processor_is_one_line(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["llava"] / file, tmp_path)
    record = {"image_processor_type": f"{name}ImageProcessor", "processor_class": f"{name}Processor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{name}Processor reads images with torchvision only") as refused:
        load_processor(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_processor_without_a_template_is_refused(qwen: Any) -> None:
    qwen.chat_template = qwen.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_messages(turns((QUESTION, "No.")), [], qwen)
