"""Parts of every family: one vocabulary for what trains, LoRA on the towers, learning rates of parts."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, Family, build
from steps import make_trainer

from hf_medvlm.families.captioners.model import BlipCaptioner, GitCaptioner
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.training.lora import whole_copy, write_merged
from hf_medvlm.training.parts import PARTS, PartArguments, parts_of, prepare_parts, set_trainable, split_by_rate


@pytest.fixture(scope="module")
def built(splits) -> dict[str, Family]:
    return {name: build(name, splits) for name in FAMILIES}


def with_parts(name: str, built: dict[str, Family]) -> Family:
    """A copy of the family; skipped where its recipe has no `--train`."""
    if not built[name].parts:
        pytest.skip(f"the recipe of {name} names no parts")
    return copy.deepcopy(built[name])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_parameter_is_of_one_part_and_frozen_ones_stay_so_in_training(name, built, splits):
    family = with_parts(name, built)
    model, parts = family.model, parts_of(family.model)
    counts = {part: sum(parts.part_of(key) == part for key, _ in model.named_parameters()) for part in PARTS}
    assert tuple(part for part in PARTS if counts[part]) == family.parts, counts
    before = {key for key, p in model.named_parameters() if p.requires_grad}
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = [part for part in ("connector", "language") if counts[part]]
    set_trainable(model, parts, chosen)
    model.train().load_state_dict(weights)
    assert not any(module.training for tower in parts.vision for module in model.get_submodule(tower).modules())
    assert {key for key, p in model.named_parameters() if p.requires_grad} <= {
        key for key in before if parts.part_of(key) in chosen
    }
    trainer = make_trainer(family, splits, splits.image_folder.parent / "none", learning_rate=1e-3)
    trainer.train()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, weights[key])}
    assert moved and all(parts.part_of(key) in chosen for key in moved)
    set_trainable(model, parts, PARTS)
    assert {key for key, p in model.named_parameters() if p.requires_grad} == before
    assert not any("train" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"smolvlm", "qwen2_5_vl"}))
def test_adapters_on_the_towers_train_and_merge_into_the_plain_model(name, built, splits, tmp_path):
    family = with_parts(name, built)
    plain, parts = type(family.model), parts_of(family.model)
    before = {key: value.clone() for key, value in family.model.state_dict().items()}
    family.model = prepare_parts(family.model, PartArguments(lora_rank=2, lora_dropout=0.0))
    adapters = [key for key, _ in family.model.named_parameters() if ".lora_" in key]
    assert adapters and {parts.part_of(key) for key in adapters} <= {"vision", "language"}
    trained = {key for key, p in family.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in key or parts.part_of(key) == "connector" for key in trained)
    trainer = make_trainer(family, splits, tmp_path, learning_rate=1e-2, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path))
    for buffer in family.model.buffers():
        if buffer.is_floating_point():
            buffer += 1e-3
    copied = whole_copy(family.model, trainer.args).state_dict()  # as under ZeRO-3
    assert copied.keys() == family.model.state_dict().keys()
    assert all(torch.equal(copied[key], value) for key, value in family.model.state_dict().items())
    write_merged(trainer, tmp_path, tolerance=1e-3)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    merged = plain.from_pretrained(tmp_path)
    changed = {key for key, value in merged.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and {parts.part_of(key) for key in changed} >= {parts.part_of(key) for key in adapters}


@pytest.mark.parametrize("model_class", [BlipCaptioner, GitCaptioner])
def test_stock_classes_say_where_their_parts_are(model_class):
    """Not only through our subclasses: GIT holds the image encoder inside its decoder."""
    model = model_class.tiny(train_tokenizer(["heart size"]), 32)
    stock = model_class.upstream_class()(model.config)
    ours, theirs = parts_of(model), parts_of(stock)
    assert ours == theirs
    language = [key for key, _ in stock.named_parameters() if theirs.part_of(key) == "language"]
    assert any("word_embeddings" in key for key in language) and not any("image_encoder" in key for key in language)


def test_parts_have_learning_rates_of_their_own(built):
    model = built["dual_encoder"].model
    parts = parts_of(model)
    decayed = {"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": 0.1}
    optimizer = torch.optim.AdamW([decayed], lr=1e-3)
    split_by_rate(optimizer, model, {"vision": 1e-5, "connector": None})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(decayed["params"])
    assert all(rate == (1e-5 if parts.part_of(name) == "vision" else 1e-3) for name, rate in rates.items())


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, PARTS),
        ({"train": "connector"}, ("connector",)),
        ({"freeze_vision": True}, ("connector", "language")),
        ({"train": "vision,language", "freeze_language": True}, ("vision",)),
    ],
)
def test_the_options_name_parts(options, trained):
    assert PartArguments(**options).trained_parts() == trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "projector"}, "name one or more of vision, connector, language"),
        ({"train": "vision", "freeze_vision": True}, "nothing to train"),
        ({"lora_rank": -1}, "a rank is 1 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PartArguments(**options)
