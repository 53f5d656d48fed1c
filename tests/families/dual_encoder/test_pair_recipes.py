"""The dual-encoder recipes as a user runs them, and every settings file that ships with them."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from hf_medvlm.families.dual_encoder.model import DualEncoderModel
from hf_medvlm.families.patch_ib.model import PatchIBConfig, PatchIBModel
from hf_medvlm.families.patch_ib.recipe import PatchArguments
from hf_medvlm.figures import draw_all
from hf_medvlm.training.arguments import DataArguments, parse
from hf_medvlm.training.contrastive import ContrastiveArguments

RECIPES = Path(__file__).parents[3] / "recipes"
QUICK = "--synthetic_studies 60 --synthetic_size 64 --max_steps 3 --per_device_train_batch_size 8 --image_size 32"


def recipe(name: str):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_bottleneck_is_trained_on_the_dual_encoder_that_was_trained_before(cache, tmp_path):
    first, second = tmp_path / "encoder", tmp_path / "bottleneck"
    scores = recipe("train_dual_encoder").main([*QUICK.split(), "--probe_studies", "30", "--output_dir", str(first)])
    assert scores["test"].metrics["gallery_size"] == scores["test"].n
    quick = QUICK.replace("--image_size 32", f"--model_name_or_path {first} --contrastive_batch_size 16").split()
    scores = recipe("train_patch_ib").main([*quick, "--variant", "E", "--output_dir", str(second)])
    assert scores["test"].metrics["patches_used"] == 0.5
    for folder, model_class in ((first, DualEncoderModel), (second, PatchIBModel)):
        assert type(model_class.from_pretrained(folder)) is model_class
        results = json.loads((folder / "test_results.json").read_text())
        assert {"i2t_recall@5", "zero_shot_auc", "probe_auc", "combined"} <= results["metrics"].keys()
        assert results["metrics"].keys() <= results["protocol"].keys() & results["facts"].keys()
        assert (folder / "report.html").is_file()
    assert draw_all(second)
    assert "maps" in json.loads((second / "predictions.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("patch_ib/*.yaml")), ids=lambda path: path.stem)
def test_every_variants_settings_are_those_published_for_a_vit_of_twelve_blocks(path, tmp_path):
    groups = {"data": DataArguments, "model": PatchArguments, "training": ContrastiveArguments}
    args = parse("train_patch_ib.py", ["--config", str(path), "--output_dir", str(tmp_path / "run")], **groups)
    config = PatchIBConfig(**args.model.model_options())
    assert config.variant == path.stem
    assert args.training.layer_decay == 0.85 and args.training.frozen_epochs == 3
    assert args.training.gradient_accumulation_steps == 2
    if path.stem == "G":
        assert list(config.drop_layers) == [4, 9] and round(round(196 * config.keep[0]) * config.keep[1]) == 98
    written = yaml.safe_load(path.read_text())
    assert written["depth"] == config.vision_config.num_hidden_layers == 12
