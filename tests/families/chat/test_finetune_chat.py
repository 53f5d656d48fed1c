"""recipes/finetune_chat.py under ZeRO-3 in two processes, one of which has texts without an image."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import chat_folders
import numpy as np
import pytest
from launch import together
from PIL import Image
from transformers import AutoModelForImageTextToText

WORDS = "--max_steps 2 --logging_steps 1 --max_new_tokens 4 --dataloader_num_workers 0 --save_strategy no"
WORDS += " --eval_strategy no --learning_rate 1e-3 --lr_scheduler_type constant --augment False --disable_tqdm True"


def sample(number: int, split: str, image: bool) -> dict:
    asked = ("<image>\n" if image else "") + "Describe the findings."
    answer = " ".join(["There is a small left effusion."] * (1 + number % 3))
    talk = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    record = {"id": f"s{number}", "patient_id": f"p{number}", "split": split, "conversations": talk}
    return record | ({"image": f"{number}.png"} if image else {})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every other sample has no image: of two processes one gets nothing but text at each step and each generation."""
    folder = tmp_path_factory.mktemp("talk")
    draw = np.random.default_rng(0)
    records = [sample(n, "train" if n < 4 else "validate" if n < 6 else "test", image=n % 2 == 0) for n in range(10)]
    for number in range(0, 10, 2):
        Image.fromarray(draw.integers(0, 255, (40, 40), np.uint8)).save(folder / f"{number}.png")
    (folder / "talk.json").write_text(json.dumps(records))
    return folder


@pytest.mark.slow
def test_a_process_with_text_alone_keeps_step_under_zero3(data: Path, root: Path, tmp_path: Path) -> None:
    """It once gathered no vision weights while its neighbour waited for them: in training and in generation."""
    model = chat_folders.qwen2_5_vl(tmp_path / "model")
    words = ["--model_name_or_path", str(model), "--data_path", str(data / "talk.json"), *WORDS.split()]
    recipe = root / "recipes" / "finetune_chat.py"
    size = "--per_device_train_batch_size"
    alone = runpy.run_path(str(recipe))["main"]([*words, size, "2", "--output_dir", str(tmp_path / "alone")])
    zero3 = ["--deepspeed", str(root / "ds_configs" / "zero3.json"), size, "1", "--per_device_eval_batch_size", "1"]
    together(recipe, *words, *zero3, "--output_dir", "together", folder=tmp_path)

    def losses(name: str) -> list[float]:
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]

    assert len(losses("alone")) == 2 and losses("together") == pytest.approx(losses("alone"), rel=1e-3)
    results = json.loads((tmp_path / "together" / "test_results.json").read_text())
    assert results["n"] == alone["test"].n == 4
    assert results["metrics"]["loss"] == pytest.approx(alone["test"].metrics["loss"], rel=1e-3)
    rows = (tmp_path / "together" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(row)["study_id"] for row in rows] == [f"s{n}" for n in range(6, 10)]
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "together")).__name__.startswith("Qwen2_5_VL")
