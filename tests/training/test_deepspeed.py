"""DeepSpeed files: the arithmetic of batch sizes, and the files we ship."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_medvlm.training import deepspeed
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.deepspeed import check_builds, check_deepspeed, read_deepspeed

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
# The CPU-offload file of the study that this recipe follows.
STUDY = {
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "reduce_bucket_size": 5e7,
    },
    "gradient_clipping": 1.0,
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 8,
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_files_we_ship_fit_any_batch(path):
    check_deepspeed(path, per_device=3, accumulation=5, processes=7)
    settings = read_deepspeed(path)
    assert settings["bf16"]["enabled"] == settings["fp16"]["enabled"] == "auto"
    stage = settings["zero_optimization"]["stage"]
    assert stage == int(path.stem[4])
    assert stage == 2 or settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]


def test_the_studys_own_file_is_two_processes_of_two_steps_of_eight():
    check_deepspeed(STUDY, per_device=8, accumulation=2, processes=2)
    message = (
        r"train_batch_size is 32, but 8 a device x 2 accumulated x 1 process\(es\) = 16; write 16 or \"auto\", "
        r"or start 2 process\(es\), or --gradient_accumulation_steps 4"
    )
    with pytest.raises(ValueError, match=message):
        check_deepspeed(STUDY, per_device=8, accumulation=2, processes=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_micro_batch_size_per_gpu": 4},
            "train_micro_batch_size_per_gpu is 4, but --per_device_train_batch_size is 8",
        ),
        (
            {"gradient_accumulation_steps": 4},
            "gradient_accumulation_steps is 4, but --gradient_accumulation_steps is 2",
        ),
    ],
)
def test_a_file_that_contradicts_the_command_line_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_deepspeed(settings, 8, 2, 1)


def test_batch_sizes_left_open_follow_the_command_line(tmp_path):
    path = tmp_path / "z.json"
    path.write_text(json.dumps({"train_batch_size": 16}))
    settings = read_deepspeed(path)
    assert settings["train_micro_batch_size_per_gpu"] == settings["gradient_accumulation_steps"] == "auto"
    assert read_deepspeed(settings) == settings and read_deepspeed(settings) is not settings


@pytest.mark.parametrize(
    ("text", "message"), [("{'a': 1}", "z.json:1: not JSON at column"), ("[]", "expected one JSON object, found list")]
)
def test_broken_files_are_named(text, message, tmp_path):
    path = tmp_path / "z.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_deepspeed(path)
    with pytest.raises(ValueError, match="No such file"):
        read_deepspeed(tmp_path / "absent.json")


@pytest.mark.parametrize("named", [True, False])
def test_a_build_lock_that_nobody_is_behind_is_named_before_deepspeed_waits_for_it(named, tmp_path, monkeypatch):
    python = f"py{sys.version_info.major}{sys.version_info.minor}_cpu"
    root = tmp_path if named else tmp_path / ".cache" / "torch_extensions" / python
    if named:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    else:
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(deepspeed, "BETWEEN_LOOKS", 0.0)
    check_builds()
    lock = root / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    check_builds()  # a new one: the compiler has not begun yet
    before = time.time() - 3600
    os.utime(lock, (before, before))
    with pytest.raises(ValueError, match=f"build of cpu_adam that began on .*rm {lock}$"):
        check_builds()
    if named:
        with pytest.raises(ValueError, match=f"rm {lock}$"):
            MedVLMArguments(output_dir=str(tmp_path), deepspeed={"zero_optimization": {"stage": 2}})
    builder = subprocess.Popen(["cat"], cwd=lock.parent, stdin=subprocess.PIPE)
    try:
        check_builds()  # however long it takes
    finally:
        builder.communicate()
