"""Somebody's own small data: no toy settings unasked, no validation split, a test set of another hospital."""

import importlib
import json

import pytest
from make_corpora import write_image

blip = importlib.import_module("finetune_blip")
extract = importlib.import_module("extract_biovil_t")
SMALL = (
    "--image_size 32 --max_steps 2 --max_length 24 --per_device_train_batch_size 4 --dataloader_num_workers 0".split()
)


def table(folder, splits, name="t.csv"):
    lines = ["image,patient_id,split,findings,impression"]
    for n, split in enumerate(splits):
        write_image(folder / f"{n}.png", n, size=40)
        lines.append(f"{n}.png,p{n},{split},The heart is normal in case {n}.,Impression {n}.")
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a table with train and test and no validation split."""
    folder = tmp_path_factory.mktemp("own")
    path = table(folder, ["train"] * 9 + ["test"] * 3)
    (folder / "3.png").write_bytes(b"no picture")
    out = folder / "run"
    results = blip.main(["--dataset", path, "--output_dir", str(out), *SMALL])
    return folder, out, results


def test_without_a_validation_split_training_goes_to_its_end(trained):
    _, out, results = trained
    assert list(results) == ["test"] and results["test"].n == 3
    assert (out / "model.safetensors").exists() and json.loads((out / "run.json").read_text())["steps"] == 2
    reference = json.loads((out / "predictions.jsonl").read_text().splitlines()[0])["reference"]
    assert reference.endswith("Impression 9.")  # the impression is part of the text: no toy setting took it away


def test_what_was_left_out_is_named_in_the_runs_folder(trained):
    folder, out, _ = trained
    (entry,) = (json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines())
    assert entry["file"] == str(folder / "3.png") and entry["reason"] == "image cannot be read"


@pytest.mark.parametrize("family", ["captioners", "dual_encoder", "medklip", "biovil_t", "patch_ib", "chat"])
def test_no_recipe_takes_a_toys_pixels_for_somebodys_own_studies(family):
    """Without a checkpoint and without --image_size a model for own data sees 224 pixels; 96 are synthetic."""
    from pathlib import Path
    from types import SimpleNamespace

    from hf_medvlm.data.load import Splits
    from hf_medvlm.data.study import Study, StudyImage

    study = Study("s", "p", "train", (StudyImage("0.png"),), findings="The heart is large. No effusion.")
    splits = Splits({"train": [study], "validate": [], "test": []}, Path("."), "own.csv")
    recipe = importlib.import_module(f"hf_medvlm.families.{family}.recipe")
    if family == "captioners":
        args = SimpleNamespace(model=recipe.CaptioningArguments(), training=None)
        _, processor = recipe.load_captioner(recipe.BlipCaptioner, args, splits)
    elif family == "dual_encoder":
        _, processor = recipe.load_dual_encoder(recipe.DualEncoderModel, recipe.PairArguments(), splits)
    elif family == "medklip":
        _, processor = recipe.load_medklip(recipe.MedKlipArguments(entities="effusion"), splits)
    elif family == "biovil_t":
        _, processor = recipe.load_biovil_t(recipe.BioViLTModelArguments(), splits)
    elif family == "patch_ib":
        options = recipe.PatchArguments(variant="E")
        assert options.model_options()["keep"] != options.model_options(synthetic=False)["keep"]  # the published share
        return
    else:
        from hf_medvlm.families.chat.message_arguments import MessageModelArguments

        arguments = importlib.import_module("hf_medvlm.families.chat.arguments")
        assert MessageModelArguments().image_size == arguments.ChatModelArguments().image_size == 224
        return
    sizes = str(getattr(processor, "image_processor", processor).to_dict())
    assert "224" in sizes and "96" not in sizes


def test_the_preflight_says_first_that_the_model_is_a_toy(tmp_path, capsys):
    path = table(tmp_path, ["train"] * 6 + ["val"] * 2 + ["test"] * 2)
    blip.main(["--dataset", path, "--dry_run", "True", "--output_dir", str(tmp_path / "o"), "--max_steps", "900"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert "random model" in lines[0] and "random weights" in lines[0]
    text = "\n".join(lines)
    assert "(4, 3, 224, 224)" in text and "the validate split has 2 studies" in text and "lower --max_steps" in text


def test_all_of_another_hospitals_studies_are_scored(trained, tmp_path, monkeypatch):
    _, out, _ = trained
    path = table(tmp_path, ["test"] * 5, "elsewhere.csv")
    monkeypatch.chdir(tmp_path)
    scored = ["--model_name_or_path", str(out), "--evaluate_only", "True", "--max_length", "24"]
    results = blip.main([*scored, "--dataset", path, "--output_dir", str(tmp_path / "e1")])
    assert results["test"].n == 5
    unmarked = (tmp_path / "elsewhere.csv").read_text().replace(",split,", ",part,")
    (tmp_path / "unmarked.csv").write_text(unmarked)
    results = blip.main([*scored, "--dataset", str(tmp_path / "unmarked.csv"), "--output_dir", str(tmp_path / "e2")])
    assert results["test"].n == 5


def test_features_of_random_weights_are_named_and_a_dry_run_writes_none(tmp_path, capsys):
    path = table(tmp_path, ["train"] * 4)
    out = tmp_path / "features"
    extract.main(["--dataset", path, "--dry_run", "True", "--output_dir", str(out), "--image_size", "32"])
    printed = capsys.readouterr().out
    assert "a tiny model with random weights" in printed and "4 studies of t.csv would be written" in printed
    assert not list(out.rglob("*.safetensors"))
