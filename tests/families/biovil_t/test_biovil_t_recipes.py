"""The BioViL-T recipes as a user types them: every task to its end, on made-up and on real studies; bad input."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from hf_medvlm.families.biovil_t.model import BioViLTModel
from hf_medvlm.figures import draw_all

SMALL = (
    "--synthetic_studies 60 --synthetic_size 64 --image_size 32 --per_device_train_batch_size 8 --max_steps 2".split()
)
QUICK = [*SMALL, "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--max_length", "48"]


@pytest.fixture
def recipe(root, cache, tmp_path, monkeypatch):
    """name -> the recipe's `main`, to be called in this process."""
    monkeypatch.chdir(tmp_path)

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, root / "recipes" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main

    return load


@pytest.mark.parametrize(
    ("task", "headline", "heads"),
    [
        ("progression", "progression_accuracy", ["progression_findings", "findings"]),
        ("findings", "mean_auc", ["findings"]),
        ("alignment", "combined", []),
    ],
)
def test_every_task_runs_to_its_end(recipe, tmp_path, task, headline, heads):
    results = recipe("finetune_biovil_t")([*QUICK, "--task", task, "--output_dir", "out"])
    metrics = results["test"].metrics
    assert metrics["task_score"] == metrics[headline]
    assert {"cnr", "pointing_game", "i2t_recall@5", "zero_shot_auc"} <= set(metrics)
    assert {"random_map", "random_order"} <= set(results["test"].baselines)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [name for name in ("progression_findings", "findings") if config[name]] == heads
    assert not list((tmp_path / "out").glob("*.bin"))
    assert task != "progression" or draw_all(tmp_path / "out")


def test_a_saved_model_is_fine_tuned_further_and_its_features_are_written(recipe, tmp_path, capsys):
    recipe("finetune_biovil_t")([*QUICK, "--eval_strategy", "no", "--task", "alignment", "--output_dir", "first"])
    model = ["--model_name_or_path", "first"]
    quick = [option for option in QUICK if option not in ("--image_size", "32")]
    recipe("finetune_biovil_t")(
        [*quick, *model, "--task", "progression", "--output_dir", "second", "--freeze_text", "true"]
    )
    first, second = (BioViLTModel.from_pretrained(tmp_path / name) for name in ("first", "second"))
    for name, weight in first.text_model.named_parameters():
        assert torch.equal(weight, second.text_model.get_parameter(name)), name
    assert second.progression_head.weight.shape[0] == 3 * len(second.config.progression_findings)
    data = ["--synthetic_studies", "60", "--synthetic_size", "64", "--dataloader_num_workers", "0"]
    recipe("extract_biovil_t")([*data, *model, "--splits", "test", "--features", "image", "--output_dir", "features"])
    assert json.loads((tmp_path / "features" / "index.json").read_text())["studies"] > 0
    assert "studies in" in capsys.readouterr().out


def test_the_image_side_alone_is_refused(recipe, shared, tmp_path):
    import sys

    sys.path.insert(0, str(shared / "golden"))
    from golden_fill import fill_state_dict, load_keys

    keys = load_keys(shared / "golden" / "biovil_t" / "keys_resnet18_multi_image.json")
    torch.save(fill_state_dict(keys), tmp_path / "image.pt")
    with pytest.raises(ValueError, match="holds the image side alone; training needs the CXR-BERT too"):
        recipe("finetune_biovil_t")([*QUICK, "--model_name_or_path", str(tmp_path / "image.pt"), "--output_dir", "out"])


@pytest.mark.slow
def test_real_radiographs_with_real_notes(recipe, shared):
    folder = shared / "data" / "real_cxr"
    data = ["--dataset", str(folder / "metadata.csv"), "--image_folder", str(folder), "--patient_column", "patient_id"]
    data += ["--train_studies", "16", "--eval_studies", "8", "--verify_images", "false"]
    options = [option for option in QUICK if option not in ("--synthetic_studies", "60", "--synthetic_size", "64")]
    results = recipe("finetune_biovil_t")([*options, *data, "--task", "alignment", "--output_dir", "out"])
    assert results["test"].n == 8 and results["test"].metrics["loss"] > 0
    assert "cnr" not in results["test"].metrics
