"""The shipped plans read as they are written; published models are sent to the recipe that scores them."""

from __future__ import annotations

import json
from pathlib import Path

import evaluate_run
import pytest
import torch
import yaml

from hf_medvlm.families.patch_ib.recipe import PatchArguments
from hf_medvlm.training.arguments import DataArguments, parse
from hf_medvlm.training.contrastive import ContrastiveArguments
from hf_medvlm.training.legacy import modernise

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(("variant", "weights"), [("A", (0.6, 0.4)), ("E", (0.7, 0.3))])
def test_the_studys_own_settings(variant, weights, tmp_path):
    groups = {"data": DataArguments, "model": PatchArguments, "training": ContrastiveArguments}
    plan = RECIPES / "patch_ib" / "study" / f"{variant}.yaml"
    args = parse("train_patch_ib.py", ["--config", str(plan), "--output_dir", str(tmp_path / "run")], **groups)
    training, options = args.training, args.model
    assert (training.num_train_epochs, training.weight_decay, training.warmup_steps) == (40, 0.05, 1000)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (64, 2)
    assert options.temperature == 0.1 and options.weights == weights
    assert yaml.safe_load(plan.read_text())["fp16"] is True
    if variant == "E":
        given = options.model_options()
        assert (given["keep_start"], given["keep"], given["anneal_steps"]) == ([0.75], [0.5], 5000)


def test_the_captioning_plans_are_in_fp16():
    for name in ("finetune_blip", "finetune_git"):
        plan = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        assert plan["fp16"] is True and "bf16" not in plan


def test_the_medklip_studys_names():
    given = "--epochs 3 --batch-size 4 --lr 1e-4 --save out --alpha1 1 --alpha2 0.5".split()
    assert (
        modernise(given)
        == (
            "--num_train_epochs 3 --per_device_train_batch_size 4 --learning_rate 1e-4 --output_dir out "
            "--position_weight 1 --semantic_weight 0.5"
        ).split()
    )


def test_published_models_find_their_recipe(tmp_path):
    def folder(name: str, **files: object) -> str:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            path = tmp_path / name / file.replace("__", ".")
            path.write_text(json.dumps(content)) if path.suffix == ".json" else torch.save(content, path)
        return str(tmp_path / name)

    one = torch.ones(1)
    medklip = {"model": {"module.res_features.0.weight": one}}
    assert evaluate_run.recipe_of("a,b") == "train_dual_encoder"
    for kind, recipe in (("blip", "finetune_blip"), ("git", "finetune_git"), ("siglip", "train_dual_encoder")):
        assert evaluate_run.recipe_of(folder(kind, config__json={"model_type": kind})) == recipe
    assert evaluate_run.recipe_of(folder("open_clip", open_clip_config__json={})) == "train_dual_encoder"
    assert evaluate_run.recipe_of(folder("medklip", checkpoint_final__pth=medklip)) == "train_medklip"
    assert evaluate_run.recipe_of(str(tmp_path / "medklip" / "checkpoint_final.pth")) == "train_medklip"
    images = {"encoder.encoder.conv1.weight": one, "projector.model.0.weight": one}
    text = {"model_type": "cxr-bert"}
    assert evaluate_run.recipe_of(folder("biovil", x_image_model__pt=images, config__json=text)) == "finetune_biovil_t"
    clip = {"visual.class_embedding": one, "visual.proj": one}
    assert evaluate_run.recipe_of(folder("openai", ViT__pt=clip)) == "train_dual_encoder"
    with pytest.raises(ValueError, match="no recipe evaluates it"):
        evaluate_run.recipe_of(folder("other", x__pt={"a": one}))
    with pytest.raises(ValueError, match="no recipe evaluates a 'bert'"):
        evaluate_run.recipe_of(folder("bert", config__json={"model_type": "bert"}))
