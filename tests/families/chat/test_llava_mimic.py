"""The chat recipe as a user types it: LLaVA's command line, the same losses under every launcher, kill and resume."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import published_layouts as layouts
import pytest
import torch
from launch import free_port, kill, ranks, together
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.families.chat.published import to_published
from hf_medvlm.families.chat.tiny import make_processor, tiny_reporter, train_chat_tokenizer
from hf_medvlm.sharing.export import export_model

# several launches a test, and the first one that offloads compiles DeepSpeed's operators
pytestmark = pytest.mark.timeout(2400)

# LLaVA's own command line, as the study that this recipe follows gives it; the paths and the model come on top.
LLAVA = """--version v1 --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 --mm_use_im_start_end False
    --mm_use_im_patch_token False --image_aspect_ratio pad --group_by_modality_length True --bf16 True
    --num_train_epochs 3 --per_device_train_batch_size 8 --per_device_eval_batch_size 4
    --gradient_accumulation_steps 2 --evaluation_strategy steps --eval_steps 500 --save_strategy steps
    --save_steps 1000 --save_total_limit 3 --learning_rate 1e-5 --weight_decay 0.01 --warmup_ratio 0.03
    --lr_scheduler_type cosine --logging_steps 10 --tf32 True --model_max_length 2048 --gradient_checkpointing True
    --dataloader_num_workers 4 --lazy_preprocess True --report_to wandb""".split()
SMALL = "--image_size 16 --max_new_tokens 8 --dataloader_num_workers 0 --optim adamw_torch --logging_steps 1".split()
QUIET = (
    "--eval_strategy no --save_strategy no --lr_scheduler_type constant --warmup_steps 0 --learning_rate 1e-3".split()
)


def sample(number: int, split: str, image: bool = True) -> dict:
    side, size = ("left", "right")[number % 2], ("small", "large", "moderate")[number % 3]
    asked = ("<image>\n" if image else "") + "Describe the findings."
    answer = f"There is a {size} {side} pleural effusion. " * (1 + number % 4)
    record = {"id": f"s{number}", "patient_id": f"p{number}", "split": split}
    record["conversations"] = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer.strip()}]
    return record | ({"image": f"{number}.png"} if image else {})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Conversations with images and without: the first batch of one process is all text."""
    folder = tmp_path_factory.mktemp("chat")
    draw = np.random.default_rng(0)
    records = [sample(n, "train", image=n % 5 != 0) for n in range(64)]
    records += [sample(n, ("validate", "test")[n % 2]) for n in range(64, 70)]
    for number in range(70):
        Image.fromarray(draw.integers(0, 255, (20, 24), np.uint8)).save(folder / f"{number}.png")
    (folder / "chat.json").write_text(json.dumps(records))
    return folder


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def deepspeed(*words: str, cwd: Path) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
    command += ["--master_port", str(free_port()), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment(), start_new_session=True, **pipes)


def finished(process: subprocess.Popen) -> str:
    try:
        output, _ = process.communicate(timeout=1200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output[-6000:]
    return output


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def recipe(root):
    """The recipe's `main`, in this process."""
    main = runpy.run_path(str(root / "recipes" / "llava_mimic.py"))["main"]
    return lambda *words: main([str(word) for word in words])


def variants(data: Path, out: Path, per_device: int, *more: str) -> list[list[str]]:
    common = ["--data_path", str(data / "chat.json"), *SMALL, *QUIET, "--max_steps", "4"]
    common += ["--per_device_train_batch_size", str(per_device), "--per_device_eval_batch_size", "2", *more]
    lora = ["--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0"]
    return [[*common, "--output_dir", str(out / "full")], [*common, *lora, "--output_dir", str(out / "lora")]]


@pytest.fixture(scope="module")
def alone(data, recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for words in variants(data, out, 8):
        recipe(*words)
    return out


def tiny_checkpoint(folder: Path) -> Path:
    """A model to start from, as the 7B would be."""
    tokenizer = train_chat_tokenizer([sample(n, "train")["conversations"][1]["value"] for n in range(12)])
    torch.manual_seed(0)
    tiny_reporter(tokenizer, image_size=16, patch_size=8).save_pretrained(folder)
    make_processor(tokenizer, 16, 8).save_pretrained(folder)
    return folder


def qlora(data: Path, out: Path, more: list[str]) -> list[list[str]]:
    if importlib.util.find_spec("bitsandbytes") is None:
        return []
    words = ["--model_name_or_path", str(tiny_checkpoint(out / "base")), "--data_path", str(data / "chat.json")]
    words += [*SMALL, *QUIET, "--trains", "projector+lora", "--bits", "4", "--lora_r", "4", "--bf16", "True"]
    words += ["--max_steps", "2", "--gradient_checkpointing", "True", "--output_dir", str(out / "qlora")]
    return [[*words, "--per_device_train_batch_size", "4", *more]]


# The file of the study that this recipe follows, as given.
STUDY = """{"bf16": {"enabled": true}, "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu",
    "pin_memory": true}, "offload_param": {"device": "cpu", "pin_memory": true}, "overlap_comm": true,
    "contiguous_gradients": true, "reduce_bucket_size": 5e7, "stage3_gather_16bit_weights_on_model_save": true},
    "gradient_clipping": 1.0, "train_batch_size": 32, "train_micro_batch_size_per_gpu": 8}"""


PUBLISHED, TOWER = "liuhaotian/llava-v1.5-13b", "openai/clip-vit-large-patch14-336"


def study(data: Path, out: Path, more: list[str]) -> list[list[str]]:
    """The study's own command line, from the folders that its names stand for, out of the Hub's cache."""
    (out / "study.json").write_text(STUDY)
    layouts.in_cache(out / "hub", PUBLISHED, layouts.llava)
    layouts.in_cache(out / "hub", TOWER, layouts.clip_336)
    words = ["--deepspeed", str(out / "study.json"), "--model_name_or_path", PUBLISHED, "--vision_tower", TOWER]
    words += ["--data_path", str(data / "chat.json"), "--image_folder", str(data), *LLAVA]
    words += "--max_steps 2 --logging_steps 1 --max_new_tokens 4 --dataloader_num_workers 0".split()
    words += "--max_grad_norm 1.0 --save_strategy no --eval_strategy no --learning_rate 1e-3".split()
    return [[*words, "--output_dir", str(out / "study")]]


def word_for_word(data: Path, model: Path, output: Path | str) -> list[str]:
    """LLaVA's command line; the last values given win over its own, so that there is a checkpoint to resume."""
    words = ["--model_name_or_path", str(tiny_checkpoint(model)), "--data_path", str(data / "chat.json")]
    words += ["--image_folder", str(data), *LLAVA]
    words += ["--save_steps", "2", "--eval_steps", "2", "--logging_steps", "1", "--max_new_tokens", "4"]
    words += ["--num_train_epochs", "4", "--learning_rate", "1e-3", "--dataloader_num_workers", "0"]
    return [*words, "--output_dir", str(output)]


def uncut(data: Path, out: Path, more: list[str]) -> list[list[str]]:
    return [[*more, *word_for_word(data, out / "model", out / "uncut")]]


OTHERS = {"zero2": qlora, "zero3": uncut, "zero3_offload": study}
"""mode -> what runs in its launch beside the two variants."""


@dataclass
class Launch:
    """What one launch of two processes left."""

    folder: Path
    output: str
    links: list[int]  # how many names the shared-memory files of an earlier run still have
    left_in_memory: bool


@pytest.fixture(scope="module")
def launched(data, root, tmp_path_factory):
    """mode -> its launch. One launch a mode runs all that is asked of the mode: a start of two processes is dear."""
    done: dict[str, Launch] = {}

    def launch(mode: str) -> Launch:
        if mode not in done:
            folder, port = tmp_path_factory.mktemp(mode), free_port()
            more = [] if mode == "ddp" else ["--deepspeed", str(root / "ds_configs" / f"{mode}.json")]
            runs = [*variants(data, folder, 4, *more), *OTHERS.get(mode, lambda *_: [])(data, folder, more)]
            (folder / "runs.json").write_text(json.dumps(runs))
            script = str(root / "tests" / "families" / "chat" / "chat_runs.py")
            # DeepSpeed names its buffers after the port and leaves them; who opens them too early waits for ever
            paths = [Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{port}_{n}") for n in range(2)]
            with open(paths[0], "wb") as first, open(paths[1], "wb") as second:
                hub = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
                output = together(script, folder / "runs.json", folder=folder, port=port, **hub)
                links = [os.fstat(file.fileno()).st_nlink for file in (first, second)]
            done[mode] = Launch(folder, output, links, any(path.exists() for path in paths))
            for path in paths:
                path.unlink(missing_ok=True)
        return done[mode]

    return launch


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "zero2", "zero3", "zero3_offload"])
def test_every_launcher_gives_the_same_losses(mode, alone, launched):
    out = launched(mode).folder
    for name in ("full", "lora"):
        wanted = losses(alone / name)
        assert len(wanted) == 4 and losses(out / name) == pytest.approx(wanted, rel=1e-3)
        assert [path.name for path in (out / name).glob("*.safetensors")] == ["model.safetensors"]
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (out, alone))
        assert set(ours) == set(theirs)
        scores = [json.loads((folder / name / "test_results.json").read_text()) for folder in (out, alone)]
        assert scores[0]["n"] == scores[1]["n"] == 3
        assert scores[0]["metrics"]["loss"] == pytest.approx(scores[1]["metrics"]["loss"], rel=1e-3)
        assert type(AutoModelForImageTextToText.from_pretrained(out / name)) is LlavaForConditionalGeneration


@pytest.mark.slow
def test_what_an_earlier_run_left_in_shared_memory_is_not_waited_for_and_nothing_is_left(launched):
    launch = launched("zero2")
    assert "ZeRO stage 2" in launch.output
    assert launch.links == [0, 0] and not launch.left_in_memory


@pytest.mark.slow
def test_llavas_command_line_word_for_word_killed_and_resumed(data, root, tmp_path, launched):
    """Under ZeRO-3, beside a run of the same words that nobody cut; resumed by the launcher `deepspeed`."""
    wanted = losses(launched("zero3").folder / "uncut")
    assert len(wanted) == 8
    words = [str(root / "recipes" / "llava_mimic.py"), "--deepspeed", str(root / "ds_configs" / "zero3.json")]
    words += word_for_word(data, tmp_path / "model", "cut")
    killed = ranks(*words, folder=tmp_path)
    deadline = time.time() + 1200
    while not (tmp_path / "cut" / "checkpoint-4" / "trainer_state.json").exists() and time.time() < deadline:
        assert all(rank.poll() is None for rank in killed), killed[0].stderr[-3000:] + killed[1].stderr[-3000:]
        time.sleep(0.2)
    kill(killed)
    assert not (tmp_path / "cut" / "run.json").exists()
    output = finished(deepspeed(*words, "--resume_from_checkpoint", cwd=tmp_path))
    assert "wandb is not installed" in output and "--evaluation_strategy is now --eval_strategy" in output
    assert "always so" in output
    assert losses(tmp_path / "cut") == pytest.approx(wanted, rel=1e-3)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "cut")) is LlavaForConditionalGeneration


@pytest.mark.slow
def test_questions_are_scored_beside_the_majority_answer(recipe, shared, tmp_path, capsys):
    data = shared / "data" / "vqa_rad_cxr"
    options = ["--max_steps", "2", "--eval_studies", "30", *SMALL, *QUIET, "--per_device_train_batch_size", "4"]
    recipe("--data_path", data / "qa.csv", "--output_dir", tmp_path, *options, "--verify_images", "False")
    results = json.loads((tmp_path / "test_results.json").read_text())
    for name in ("closed_accuracy", "open_accuracy"):
        assert 0 <= results["metrics"][name] <= 1 and 0 <= results["baselines"]["majority_answer"][name] <= 1
        assert name in capsys.readouterr().out or name in results["protocol"]
    assert results["baselines"]["majority_answer"]["closed_accuracy"] > 0.3


def test_a_dry_run_shows_what_a_run_would_do(recipe, data, tmp_path, capsys):
    recipe("--data_path", data / "chat.json", *SMALL, "--dry_run", "--output_dir", tmp_path / "none")
    assert "64 train, 3 validate, 3 test" in capsys.readouterr().out and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mm_use_im_start_end", "True"], "no tokens around an image"),
        (["--data_path", "absent.json"], "absent.json: cannot be read"),
        (["--image_folder", "."], r"image\(s\) of .*chat.json are not in"),
        (["--model_max_length", "4096"], "the language model takes 2048 tokens"),
        (["--version", "v9"], "no chat template 'v9'"),
    ],
)
def test_bad_input_is_answered_before_the_start(options, message, recipe, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        recipe("--data_path", data / "chat.json", *SMALL, "--output_dir", tmp_path / "x", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mm_projector_type", "linear"], "only mlp2x_gelu"),
        (["--image_aspect_ratio", "anyres"], "'anyres' is none of pad, square"),
        (["--bits", "4"], "trains adapters alone; add --lora_rank"),
        (["--bits", "4", "--lora_rank", "4"], "needs bitsandbytes"),
        (["--deepspeed", "DS"], r"train_batch_size is 32, but 8 a device x 2 accumulated x 1 process\(es\) = 16"),
    ],
)
def test_bad_options_stop_the_run(options, message, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    file = tmp_path / "z.json"
    file.write_text(json.dumps({"train_batch_size": 32, "zero_optimization": {"stage": 3}}))
    options = [str(file) if word == "DS" else word for word in options]
    batch = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]
    with pytest.raises(SystemExit, match=message):
        recipe(*options, *batch, "--output_dir", tmp_path / "x")


@pytest.mark.slow
def test_qlora_under_zero2_writes_a_plain_model(launched):
    pytest.importorskip("bitsandbytes")
    folder = launched("zero2").folder
    out = folder / "qlora"
    assert len(losses(out)) == 2 and (out / "adapter" / "adapter_config.json").exists()
    written = load_file(out / "model.safetensors")
    assert set(written) == set(load_file(folder / "base" / "model.safetensors"))
    assert all(value.is_floating_point() and value.isfinite().all() for value in written.values())
    assert type(AutoModelForImageTextToText.from_pretrained(out)) is LlavaForConditionalGeneration


def test_qlora_under_zero3_is_refused(data, recipe, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("hf_medvlm.families.chat.recipe.is_deepspeed_zero3_enabled", lambda: True)
    words = ["--data_path", data / "chat.json", *SMALL, "--trains", "projector+lora", "--bits", "4"]
    with pytest.raises(ValueError, match="--bits 4: ZeRO-3 cannot shard quantised weights"):
        recipe(*words, "--output_dir", tmp_path / "out")


@pytest.mark.slow
def test_the_studys_own_command_and_offload_file_from_the_published_folders_and_back(launched, tmp_path):
    """A bare tokenizer.model, bf16 shards without a tower, the tower by its Hub id; then the same layout again."""
    folder = launched("zero3_offload").folder
    out, shards = folder / "study", layouts.in_cache(folder / "hub", PUBLISHED, layouts.llava)
    assert len(losses(out)) == 2
    trained = LlavaReporter.from_pretrained(out)
    weights = trained.state_dict()
    before = LlavaReporter.from_published(shards, vision_tower=tower(folder)).state_dict()
    assert weights.keys() == before.keys() and all(value.isfinite().all() for value in weights.values())
    for key, value in weights.items():  # the frozen tower too is in bf16, as the whole model was
        is_as_before = torch.equal(value, before[key].bfloat16().float())
        if value.dim() > 1:  # two steps on a norm of 1 are less than bf16 holds
            assert is_as_before == key.startswith("model.vision_tower."), key
    assert type(AutoModelForImageTextToText.from_pretrained(out)) is LlavaForConditionalGeneration
    exported = export_model(out, tmp_path / "plain", dtype="bfloat16")  # its answers are those of the run, or it stops
    assert type(AutoModelForImageTextToText.from_pretrained(exported.folder)) is LlavaForConditionalGeneration
    published = to_published(trained, words=json.loads((shards / "config.json").read_text())["vocab_size"])
    names = set(json.loads((shards / "pytorch_model.bin.index.json").read_text())["weight_map"])
    assert names <= published.keys() and all("vision_tower" in key for key in published.keys() - names)
    back = shutil.copytree(shards, tmp_path / "back", ignore=shutil.ignore_patterns("*.bin", "*.bin.index.json"))
    torch.save({key: published[key].bfloat16() for key in names}, back / "pytorch_model.bin")
    again = LlavaReporter.from_published(back, vision_tower=tower(folder)).state_dict()
    for key, value in weights.items():
        assert torch.equal(again[key].bfloat16().float(), value[: len(again[key])]), key
    with pytest.raises(ValueError, match="lm_head.weight has .* rows|embed_tokens.weight has .* rows"):
        to_published(trained, words=10**6)


def tower(folder: Path) -> Path:
    return layouts.in_cache(folder / "hub", TOWER, layouts.clip_336)
