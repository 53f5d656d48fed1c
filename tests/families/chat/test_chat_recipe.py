"""The parts of the chat recipe: learning rates, samplers, adapters, answers' accuracy, LLaVA's options, VQA-RAD."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from PIL import Image

from hf_medvlm.data.conversations import from_llava, turns_of
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.sources.vqa_rad import as_multi_turn, read_vqa_rad
from hf_medvlm.families.chat.arguments import ChatModelArguments, ChatTrainingArguments, modernise_llava
from hf_medvlm.families.chat.collator import ChatCollator
from hf_medvlm.families.chat.evaluation import ChatEvaluation, answer_accuracy, normalise_answer
from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.families.chat.recipe import ChatTrainer
from hf_medvlm.families.chat.tiny import make_processor, tiny_reporter, train_chat_tokenizer
from hf_medvlm.training.lora import quantise, write_merged
from hf_medvlm.training.objective import TokenObjective
from hf_medvlm.training.parts import prepare_parts

HEADER = "image,patient_id,split,question,answer,answer_type\n"


def talk(number: int, image: bool = True) -> dict:
    asked = ("<image>\n" if image else "") + "What is seen?"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "Effusion. " * (1 + number % 5)}]
    return {"id": str(number), "conversations": turns} | ({"image": f"{number}.png"} if image else {})


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("images")
    for number in range(12):
        Image.linear_gradient("L").resize((16, 16 + number)).save(folder / f"{number}.png")
    tokenizer = train_chat_tokenizer(["What is seen? Effusion. ASSISTANT: USER:"], vocab_size=330)
    processor = make_processor(tokenizer, 16, 8)
    studies = [from_llava(talk(number, image=number % 3 > 0)) for number in range(12)]
    return SimpleNamespace(collator=ChatCollator(processor, folder), tokenizer=tokenizer, studies=studies)


def trainer(parts: SimpleNamespace, folder: Path, model=None, **options) -> ChatTrainer:
    torch.manual_seed(0)
    arguments = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "per_device_train_batch_size": 2}
    return ChatTrainer(
        model=model or tiny_reporter(parts.tokenizer, 16, 8),
        args=ChatTrainingArguments(output_dir=str(folder), disable_tqdm=True, **(arguments | options)),
        objective=TokenObjective(),
        data_collator=parts.collator,
        train_dataset=StudyRows(parts.studies),
    )


def test_projector_and_tower_learn_at_their_own_rates(parts, tmp_path):
    made = trainer(parts, tmp_path, learning_rate=1e-3, connector_lr=2e-5, vision_lr=3e-6, weight_decay=0.1)
    optimizer = made.create_optimizer()
    names = {id(parameter): name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    rates, seen = {"multi_modal_projector": 2e-5, "vision_tower": 3e-6}, []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["lr"] == next((rate for part, rate in rates.items() if part in name), 1e-3)
            assert group["weight_decay"] == (0.0 if "norm" in name or name.endswith("bias") else 0.1)
    assert sorted(seen) == sorted(names.values())


def test_batches_are_grouped_by_modality_or_by_length(parts, tmp_path):
    grouped = trainer(parts, tmp_path, group_by_modality_length=True)._get_train_sampler()
    order = list(grouped)
    kinds = [{bool(parts.studies[index].images) for index in order[start : start + 2]} for start in range(0, 8, 2)]
    assert all(len(kind) == 1 for kind in kinds) and sorted(order) == list(range(12))
    by_length = trainer(parts, tmp_path, train_sampling_strategy="group_by_length")._get_train_sampler()
    assert sorted(by_length) == list(range(12))


LORA = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}


def adapted_reporter(base: LlavaReporter, checkpointing: bool = False, **options) -> PeftModel:
    return prepare_parts(base, ChatModelArguments(**(LORA | options)), checkpointing)


def seeded_base(parts: SimpleNamespace) -> LlavaReporter:
    torch.manual_seed(0)
    return tiny_reporter(parts.tokenizer, 16, 8)


def test_adapters_train_save_merge_and_agree(parts, tmp_path):
    adapted = adapted_reporter(seeded_base(parts))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or "multi_modal_projector" in name for name in trained)
    assert any("language_model" in name for name in trained) and not any("vision_tower" in name for name in trained)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    made = trainer(parts, tmp_path, adapted, learning_rate=1e-2)
    made.train()
    moved = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= trained and any("lora_B" in name for name in moved)
    assert any("multi_modal_projector" in name for name in moved)
    made.save_model()
    batch = parts.collator(parts.studies[:3])
    with torch.no_grad():
        wanted = adapted.eval()(**batch).logits
        reloaded = PeftModel.from_pretrained(seeded_base(parts), tmp_path).eval()
        torch.testing.assert_close(reloaded(**batch).logits, wanted, rtol=1e-4, atol=1e-4)
    write_merged(made, tmp_path)
    plain = LlavaReporter.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, wanted, rtol=1e-3, atol=1e-3)


def test_the_projector_takes_small_steps_beside_a_base_in_bfloat16(parts, tmp_path):
    """AdamW's step of 2e-5 is less than half a unit in the last place of most weights in bfloat16."""
    adapted = adapted_reporter(seeded_base(parts).bfloat16(), True, lora_rank=128)
    weight = adapted.get_parameter(
        "base_model.model.model.multi_modal_projector.modules_to_save.default.linear_1.weight"
    )
    before = weight.detach().clone()
    trainer(parts, tmp_path, adapted, learning_rate=2e-5, bf16=True, gradient_checkpointing=True).train()
    assert weight.dtype == torch.float32 and (weight != before).float().mean() > 0.99
    assert adapted.get_input_embeddings().weight.dtype == torch.bfloat16


NF4 = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
NF4 += (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The obvious way: NF4 in blocks of 64 with their largest magnitude (QLoRA, table of its appendix E), or int8."""
    if bits == 8:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    codes = torch.tensor(NF4)
    return (codes[(blocks / scale).unsqueeze(-1).sub(codes).abs().argmin(-1)] * scale).reshape(weight.shape)


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_train_on_quantised_weights_and_merge_with_those(bits, parts, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = seeded_base(parts)
    whole = {name: value.clone() for name, value in base.state_dict().items()}
    quantise(base, base.model.language_model, bits, torch.device("cpu"))
    adapted = adapted_reporter(base)
    made = trainer(parts, tmp_path, adapted, learning_rate=1e-2)
    made.train()
    made.save_model()
    batch = parts.collator(parts.studies[:3])
    with torch.no_grad():
        wanted = adapted.eval()(**batch).logits
    write_merged(made, tmp_path)
    plain = LlavaReporter.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        difference = (plain(**batch).logits - wanted).abs().max()
    assert difference < 0.05 * wanted.abs().max()  # bitsandbytes rounds activations too
    name = "model.language_model.layers.0.mlp.up_proj"
    layer = adapted.get_submodule(f"base_model.model.{name}")
    merged = plain.get_parameter(f"{name}.weight") - layer.get_delta_weight("default")
    torch.testing.assert_close(merged, rounded(whole[f"{name}.weight"], bits), rtol=0, atol=5e-3)
    assert (merged - whole[f"{name}.weight"]).abs().max() > 1e-4


def test_answers_are_compared_without_case_and_articles():
    assert normalise_answer("The LEFT lung.") == "left lung"
    accuracy = answer_accuracy(["Yes.", "no", "left"], ["yes", "yes", "the left"], ["CLOSED", "CLOSED", "OPEN"])
    assert accuracy == {"closed_accuracy": 0.5, "open_accuracy": 1.0}
    assert math.isnan(answer_accuracy(["a"], ["a"], ["CLOSED"])["open_accuracy"])


def vqa_file(folder: Path, *rows: str) -> Path:
    path = folder / "qa.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_vqa_rad_is_read_and_turned_into_many_turns(tmp_path):
    rows = ["a.png,p1,dev,Clear?,yes,CLOSED", "a.png,p1,dev,Which side?,left,OPEN", "b.png,p2,heldout,Clear?,no,CLOSED"]
    studies = read_vqa_rad(vqa_file(tmp_path, *rows))
    assert [study.split for study in studies] == [None, None, "test"]
    assert [study.answer_type for study in studies] == ["CLOSED", "OPEN", "CLOSED"]
    first, second = as_multi_turn(studies)
    texts = [turn["value"] for turn in turns_of(first)]
    assert texts == ["<image>\nClear?", "yes", "Which side?", "left"] and len(turns_of(second)) == 2
    evaluation = ChatEvaluation(None, None, (), TokenObjective(), train_studies=studies)
    assert evaluation.majority_answers() == {"CLOSED": "yes", "OPEN": "left"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "a.png,p,dev,,yes,CLOSED\n", "qa.csv:2: a question, an answer and CLOSED or OPEN"),
        (HEADER + "a.png,p,dev,Clear?,yes,MAYBE\n", "qa.csv:2"),
        ("image,question\na,b\n", "no column 'answer'"),
        ("", "no column 'image'"),
    ],
)
def test_broken_questions_are_named(text, message, tmp_path):
    (tmp_path / "qa.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_vqa_rad(tmp_path / "qa.csv")


def test_llavas_options_are_translated():
    words = "--tune_mm_mlp_adapter True --lazy_preprocess True --mm_use_im_start_end False --bf16 True".split()
    assert modernise_llava(words) == ["--train", "connector", "--bf16", "True"]
    lora = "--train connector,language --lora_rank 8 --lora_alpha 256".split()
    assert modernise_llava(["--lora_enable", "--lora_r", "8"]) == lora
    assert modernise_llava(["--lora_r=8", "--lora_enable", "True"]) == lora
    assert modernise_llava(["--lora_enable=False", "--lora_r=8", "--bits", "16"]) == ["--bits", "16"]
    with pytest.raises(ValueError, match="leave the option out"):
        modernise_llava(["--mm_use_im_patch_token", "True"])
