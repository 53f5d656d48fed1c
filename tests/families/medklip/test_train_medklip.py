"""train_medklip.py as users run it: a short run leaves everything, and its model goes on from where it was saved."""

import json
import runpy

import pytest

from hf_medvlm.figures import draw_all

SHORT = ["--synthetic_studies", "60", "--synthetic_size", "64", "--image_size", "32", "--max_steps", "4"]
SHORT += ["--per_device_train_batch_size", "4", "--disable_tqdm", "True", "--report_to", "none"]


@pytest.fixture(scope="module")
def recipe(root):
    return runpy.run_path(str(root / "recipes" / "train_medklip.py"))["main"]


@pytest.mark.slow
def test_a_run_leaves_scores_figures_and_a_model_that_goes_on(recipe, cache, tmp_path):
    first = recipe([*SHORT, "--output_dir", str(tmp_path / "first")])
    assert set(first) == {"eval", "test"}
    results = json.loads((tmp_path / "first" / "test_results.json").read_text())
    assert {"mean_auc", "mean_f1", "pointing_game", "held_out_auc"} <= set(results["metrics"])
    assert "consolidation" not in json.loads((tmp_path / "first" / "config.json").read_text())["entities"]
    figures = {path.name for path in draw_all(tmp_path / "first")}
    assert {"auc_per_entity.png", "roc_curve.png", "heat_maps.png"} <= figures
    options = ["--model_name_or_path", str(tmp_path / "first"), "--output_dir", str(tmp_path / "second")]
    second = recipe([*SHORT, *options, "--unmentioned", "absent", "--learning_rate", "0.0"])
    again, before = second["test"].metrics, first["test"].metrics
    assert again["mean_auc"] == pytest.approx(before["mean_auc"], abs=1e-6)


def test_a_dry_run_trains_nothing_and_bad_options_are_named(recipe, cache, tmp_path):
    assert recipe([*SHORT, "--output_dir", str(tmp_path / "dry"), "--dry_run"]) == {}
    assert not (tmp_path / "dry" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="unmentioned must be one of"):
        recipe([*SHORT, "--output_dir", str(tmp_path / "x"), "--unmentioned", "zero", "--entities", "effusion"])
