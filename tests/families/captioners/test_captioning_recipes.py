"""The captioning recipes as a user types them: what a run leaves, what bad input is answered with, kill and resume."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launch import call, start, together
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BlipForConditionalGeneration, GitForCausalLM

from hf_medvlm.families.captioners.model import BlipCaptioner, GitCaptioner
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.training.checkpoints import last_checkpoint
from hf_medvlm.training.run import run as run_recipe
from hf_medvlm.training.universal import has_universal_form

SMALL = "--synthetic_studies 60 --synthetic_size 64 --image_size 32 --per_device_train_batch_size 8".split()
QUICK = [*SMALL, "--max_steps", "4", "--max_length", "16", "--dataloader_num_workers", "0"]


@pytest.fixture
def recipe(root, tmp_path, monkeypatch, capsys):
    """Runs a recipe's `main` in this process, as its `if __name__ == "__main__"` does; gives exit code and output."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *options: str) -> tuple[int, str, str]:
        main = runpy.run_path(str(root / "recipes" / f"{name}.py"))["main"]
        try:
            run_recipe(lambda: main(list(options)))
            code = 0
        except SystemExit as stopped:
            code = 1
            if isinstance(stopped.code, str):
                print(stopped.code, file=sys.stderr)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def write_table(folder: Path, rows: list[str], images: int = 12) -> Path:
    (folder / "d").mkdir(exist_ok=True)
    for number in range(images):
        Image.linear_gradient("L").resize((40, 40 + number)).save(folder / "d" / f"{number}.png")
    table = folder / "x.csv"
    table.write_text("image,patient_id,findings\n" + "\n".join(rows) + "\n")
    return table


ROWS = [f"{number}.png,p{number},Heart size is normal in patient {number}." for number in range(12)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blip", "git"])
def test_one_command_leaves_a_whole_run(name, whole_run):
    folder = whole_run(name)
    left = {path.name for path in folder.iterdir()}
    assert left >= {"model.safetensors", "config.json", "processor_config.json", "eval_results.json", "run.json"}
    assert left >= {"test_results.json", "predictions.jsonl", "figures", "report.html", "README.md"}
    assert not list(folder.rglob("training_args.bin"))
    results = json.loads((folder / "test_results.json").read_text())
    for metric in ("bleu4", "sacrebleu", "rougeL", "meteor", "cider", "findings_f1_micro"):
        assert metric in results["metrics"] and results["protocol"][metric]
        assert all(metric in values for values in results["baselines"].values())
    assert set(results["baselines"]) == {"constant_normal", "most_frequent", "shuffled"}
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == results["n"]
    printed = (folder.parents[2] / "stdout.txt").read_text()
    assert "constant_normal" in printed and "bleu4" in printed


CAPTIONERS = {"blip": BlipCaptioner, "git": GitCaptioner}


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPTIONERS)
def test_our_class_writes_the_runs_reports_with_a_prompt_and_without(name, whole_run, tmp_path):
    """And it loads the folder as our first versions wrote it: another model type, and what was frozen in it."""
    folder = whole_run(name)
    old = tmp_path / "old"
    shutil.copytree(folder, old, ignore=shutil.ignore_patterns("checkpoint-*", "figures"))
    config = json.loads((old / "config.json").read_text())
    config |= {"model_type": f"medvlm_{name}", "architectures": ["Captioner"], "freeze_vision": True}
    (old / "config.json").write_text(json.dumps(config))
    processor = AutoProcessor.from_pretrained(folder)
    row = json.loads((folder / "predictions.jsonl").read_text().splitlines()[0])
    images = Path(json.loads((folder / "run.json").read_text())["image_folder"])
    inputs = processor(images=Image.open(images / row["images"][0]).convert("RGB"), text="", return_tensors="pt")
    before = inputs["input_ids"].clone()
    for place in (folder, old):
        model = CAPTIONERS[name].from_pretrained(place)
        assert model.config.model_type == name and not hasattr(model.config, "freeze_vision")
        first = torch.tensor([[model.first_token(model.config)]])
        written = [model.generate(**inputs), model.generate(inputs["pixel_values"])]
        written.append(model.generate(inputs["pixel_values"], first, max_new_tokens=24))
        assert {processor.decode(ids[0], skip_special_tokens=True).strip() for ids in written} == {row["prediction"]}
    assert torch.equal(inputs["input_ids"], before)


@pytest.mark.parametrize("name", CAPTIONERS)
def test_a_checkpoint_fine_tuned_at_another_size_opens_in_plain_transformers(name, tmp_path):
    """Its positions are interpolated once: the logits are those of interpolating them at every step."""
    tokenizer = train_tokenizer(["heart size is normal"])
    model = CAPTIONERS[name].tiny(tokenizer, 32).eval()
    ids, pixels = torch.tensor([[2, 7, 9, 8]]), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(pixel_values=pixels, input_ids=ids).logits
        model.resize_images(64)
        model.save_pretrained(tmp_path)
        plain = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        both = [m(pixel_values=pixels, input_ids=ids).logits for m in (model, plain)]
        for logits in both:
            torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no multiple of the model's patches"):
        model.resize_images(70)


def test_dry_run_says_what_it_would_do_and_trains_nothing(recipe, cache, tmp_path):
    code, out, err = recipe("finetune_blip", *QUICK, "--dry_run")
    assert code == 0, err
    assert "4 steps of 8 studies" in out and "BlipCaptioner" in out
    assert not list(tmp_path.glob("runs/*/*"))


# such an epsilon keeps rounding errors of vanishing gradients small
CURVE = [*QUICK, *"--logging_steps 1 --learning_rate 1e-3 --adam_epsilon 1e-4 --shuffle_buffer 16".split()]
CURVE += ["--eval_strategy", "no", "--output_dir"]


@pytest.fixture(scope="module")
def alone(root, cache, tmp_path_factory) -> Path:
    """A run in one process, which those in two are held against."""
    folder = tmp_path_factory.mktemp("curve") / "alone"
    runpy.run_path(str(root / "recipes" / "finetune_blip.py"))["main"]([*CURVE, str(folder)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "zero3"])
def test_two_processes_follow_the_curve_of_one(alone, mode, root, tmp_path):
    """One process, two under `torchrun`, FSDP2 or ZeRO-3: the same losses and scores, and one safetensors file each.

    Under `torchrun` the pictures come from a cache and through workers, in one process from the files and without.
    """
    half = [root / "recipes" / "finetune_blip.py", *CURVE, "together", "--per_device_train_batch_size", "4"]
    if mode != "zero3":
        launch = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", "2"]
        more = ["--image_cache", "pictures", "--dataloader_num_workers", "2"]
        if mode == "fsdp2":
            config = root / "ds_configs" / "fsdp2.yaml"
            launch = [launch[0].with_name("accelerate"), "launch", "--config_file", config, "--main_process_port", "0"]
            more = ["--dataloader_num_workers", "0"]
        words = [*launch, *half, *more]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert mode == "fsdp2" or "60 pictures 32x32-bicubic, 60 new" in done.stdout
        whole = tmp_path / "together" / "checkpoint-4" / "pytorch_model_fsdp.bin"
        assert whole.is_file() == (mode == "fsdp2")
    else:
        together(*half, "--save_steps", "2", "--deepspeed", "zero3", folder=tmp_path)
        check_one_process_goes_on(half[0], tmp_path)
    curves = []
    for folder in (alone, tmp_path / "together"):
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        curves.append([entry["loss"] for entry in history if "loss" in entry])
    assert len(curves[0]) == 4 and curves[1] == pytest.approx(curves[0], abs=1e-3)
    assert [path.name for path in (tmp_path / "together").glob("*.safetensors")] == ["model.safetensors"]
    ours, theirs = (json.loads((f / "test_results.json").read_text()) for f in (tmp_path / "together", alone))
    assert ours["n"] == theirs["n"]
    assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], abs=1e-3)
    assert ours["metrics"]["rouge1"] == pytest.approx(theirs["metrics"]["rouge1"], abs=0.02)


def check_one_process_goes_on(recipe: Path, folder: Path) -> None:
    """From a ZeRO-3 checkpoint of two, once DeepSpeed has put its shards together, to the weights of the two."""
    (folder / "apart").mkdir()
    checkpoint = (folder / "together" / "checkpoint-2").rename(folder / "apart" / "checkpoint-2")
    words = [*CURVE, "apart", "--deepspeed", "zero3", "--resume_from_checkpoint", "apart/checkpoint-2"]
    refused = start(recipe, *words, folder=folder, DS_ACCELERATOR="cpu")
    refused.wait()
    assert refused.returncode == 1 and "shards of 2 ZeRO processes, and this run has 1" in refused.stderr
    command = shlex.split(refused.stderr.strip().splitlines()[-1])
    converted = call(*command[1:], folder=folder, DS_ACCELERATOR="cpu")
    assert converted.returncode == 0 and has_universal_form(checkpoint), converted.stderr[-3000:]
    alone = call(recipe, *words, folder=folder, DS_ACCELERATOR="cpu")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert "goes on in 1 from its universal form" in alone.stdout
    before, after = (load_file(folder / name / "model.safetensors") for name in ("together", "apart"))
    assert all(torch.allclose(before[key], value, rtol=0, atol=1e-5) for key, value in after.items())


@pytest.mark.slow
def test_kill_9_and_resume_end_on_the_same_weights(root, cache, tmp_path):
    """To the bit; the killed run reads prepared pictures and goes on with workers, the other reads the files."""
    options = [*SMALL, "--max_steps", "30", "--max_length", "8", "--save_steps", "5", "--eval_strategy", "no"]
    options += ["--dataloader_num_workers", "0", "--learning_rate", "1e-3", "--shuffle_buffer", "16"]
    recipe = root / "recipes" / "finetune_blip.py"
    whole = call(recipe, *options, "--output_dir", "whole", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = start(recipe, *options, "--output_dir", "killed", "--image_cache", "pictures", folder=tmp_path)
    while last_checkpoint(tmp_path / "killed") is None:
        assert killed.poll() is None, killed.stderr
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "run.json").exists()
    options += ["--output_dir", "killed", "--image_cache", "pictures", "--dataloader_num_workers", "2"]
    resumed = call(recipe, *options, "--resume_from_checkpoint", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_lora_leaves_a_plain_model_and_the_adapter_beside_it(recipe, cache, tmp_path):
    code, _, err = recipe("finetune_blip", *QUICK, "--lora_rank", "4", "--output_dir", "o")
    assert code == 0, err
    assert (tmp_path / "o" / "adapter" / "adapter_model.safetensors").exists()
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "o")) is BlipForConditionalGeneration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image_folder", "nowhere"), "image folder nowhere does not exist"),
        (("--image_folder", "d", "--text_columns", "findngs"), "findngs.*findings"),
        (("--image_folder", "d", "--image_column", "picture"), "picture"),
        (("--image_folder", "d", "--prompt", "a very long prompt " * 30), "leaves no room for a report"),
        (("--image_folder", "d", "--max_length", "400"), "lower --max_length"),
        (("--image_folder", "d", "--model_name_or_path", "nowhere"), "nowhere"),
        (("--image_folder", "d", "--resume_from_checkpoint", "nowhere"), "there is no such folder"),
        (("--image_folder", "d", "--output_dir", "."), "--overwrite_output_dir"),
    ],
)
def test_bad_input_ends_in_one_line(recipe, options, message, tmp_path):
    table = write_table(tmp_path, ROWS)
    (tmp_path / "run.json").write_text("{}")
    code, _, err = recipe("finetune_blip", "--dataset", str(table), "--max_steps", "1", *options)
    assert code == 1
    assert "Traceback" not in err and re.search(message, err), err


def test_broken_images_are_named_and_left_out_and_all_broken_is_an_error(recipe, tmp_path):
    table = write_table(tmp_path, ROWS)
    (tmp_path / "d" / "3.png").write_bytes(b"no image")
    (tmp_path / "d" / "4.png").unlink()
    options = ["--dataset", str(table), "--image_folder", "d", "--image_size", "32", "--max_steps", "1"]
    code, _, err = recipe("finetune_blip", *options, "--output_dir", "o")
    assert code == 0, err
    rejected = [json.loads(line) for line in (tmp_path / "o" / "rejected.jsonl").read_text().splitlines()]
    broken = {Path(entry["file"]).name for entry in rejected if entry["reason"] == "image cannot be read"}
    assert broken == {"3.png", "4.png"}
    assert [entry["study_id"] for entry in rejected] == ["3", "4"]  # each once
    for path in (tmp_path / "d").iterdir():
        path.write_bytes(b"")
    code, _, err = recipe("finetune_blip", *options, "--output_dir", "p")
    assert code == 1 and "none of 12 images" in err


def test_an_empty_text_column_is_an_error(recipe, tmp_path):
    table = write_table(tmp_path, [f"{number}.png,p{number}," for number in range(12)])
    code, _, err = recipe("finetune_blip", "--dataset", str(table), "--image_folder", "d")
    assert code == 1 and "findings" in err


@pytest.mark.parametrize(("stock", "name"), [(BlipForConditionalGeneration, "blip"), (GitForCausalLM, "git")])
def test_a_published_checkpoint_trains_and_another_family_is_refused(recipe, stock, name, cache, tmp_path):
    ours = {"blip": BlipCaptioner, "git": GitCaptioner}[name]
    tokenizer = train_tokenizer(["heart size is normal"])
    small = ours.tiny(tokenizer, 32)
    plain = stock(stock.config_class.from_dict(small.config.to_dict()))
    plain.load_state_dict(small.state_dict())
    plain.save_pretrained(tmp_path / "published")
    ours.tiny_processor(tokenizer, 32).save_pretrained(tmp_path / "published")
    named = ["--model_name_or_path", "published", *QUICK, "--output_dir"]
    code, _, err = recipe(f"finetune_{name}", *named, "o")
    assert code == 0, err
    code, _, err = recipe("finetune_git" if name == "blip" else "finetune_blip", *named, "p")
    assert code == 1 and "holds a" in err
