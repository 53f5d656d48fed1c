"""Output folders as section 6 of the design has them, made up from a seed: what the figure and report tests read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from hf_medvlm.language.findings import label_report
from hf_medvlm.metrics.audit import audit

SENTENCES = {
    "Pleural Effusion": ("There is a small left pleural effusion.", "No pleural effusion."),
    "Cardiomegaly": ("The heart is enlarged.", "The heart size is normal."),
    "Pneumothorax": ("There is a right apical pneumothorax.", "No pneumothorax."),
    "Edema": ("There is mild pulmonary edema.", "No pulmonary edema."),
}
HISTORY = [
    {"step": s, "epoch": s / 50, "loss": 4 * math.exp(-s / 60) + 0.4, "learning_rate": 5e-4 * (1 - s / 200)}
    | {"loss/tokens": 3.6 * math.exp(-s / 60) + 0.4, "grad_norm": 1 + 1 / s}
    for s in range(5, 201, 5)
] + [
    {"step": s, "eval_loss": 4 * math.exp(-s / 60) + 0.6, "eval_bleu4": s / 600, "eval_cider": s / 80}
    | {"eval_findings_f1_micro": s / 300, "eval_runtime": 3.0}
    for s in range(50, 201, 50)
]


GROUPS = {
    "Text": ("bleu4", "rougeL", "meteor", "cider"),
    "Findings in the text": ("findings_f1_micro",),
    "Findings": ("mean_auc", "auc/Edema", "auc/Fracture"),
}


def make_run(folder: Path, studies: int = 12, *, pixels: int = 96, seed: int = 0, maps: bool = True) -> Path:
    """A finished run of a captioner with findings, maps and boxes; its images lie in `folder`/../images."""
    rng = np.random.default_rng(seed)
    images = folder.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    for number in range(min(studies, 40)):  # many studies share pictures: reading is not what is tested
        Image.fromarray(_picture(rng, pixels)).save(images / f"p{number}.png")
    predictions = [_study(rng, number, studies, pixels, maps) for number in range(studies)]
    write_lines(folder / "predictions.jsonl", predictions)
    write(folder / "test_results.json", results(predictions))
    write(folder / "eval_results.json", results(predictions))
    write(folder / "trainer_state.json", {"log_history": HISTORY})
    write(folder / "run.json", run_info(images))
    save_file({"weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    return folder


def run_info(images: Path) -> dict[str, Any]:
    return {
        "recipe": "finetune_blip",
        "model_class": "BlipCaptioner",
        "parameters": 912_384,
        "trainable_parameters": 800_000,
        "dataset": "synthetic",
        "sources": ["synthetic"],
        "licences": ["CC0-1.0"],
        "image_folder": str(images),
        "split_sizes": {"train": 160, "validate": 20, "test": 20},
        "patients": 88,
        "seed": 0,
        "command": "finetune_blip.py --max_steps 200",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }


def results(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    fractions = {"bleu4": 0.31, "rougeL": 0.52, "meteor": 0.44, "findings_f1_micro": 0.71}
    steps = np.linspace(0, 1, 21)
    return {
        "metrics": fractions | {"cider": 1.7, "mean_auc": 0.83, "auc/Edema": 0.83, "auc/Fracture": math.nan},
        "baselines": {
            "constant_normal": {"bleu4": 0.12, "rougeL": 0.33, "meteor": 0.28, "findings_f1_micro": 0.0, "cider": 0.4},
            "shuffled": {"bleu4": 0.10, "rougeL": 0.54, "meteor": 0.21, "findings_f1_micro": 0.14, "cider": 0.2},
        },
        "intervals": {name: [value - 0.04, value + 0.04] for name, value in fractions.items()},
        "protocol": {"bleu4": "13a tokens, cased, corpus level", "findings_f1_micro": "rules, 14 findings"},
        "facts": {
            name: {"group": group, "better": "higher", "unit": "0 to 10" if name == "cider" else "fraction"}
            for group, names in GROUPS.items()
            for name in names
        },
        "n": len(predictions),
        "figures": {
            "roc": {
                name: {"fpr": steps.tolist(), "tpr": (steps**power).tolist(), "auc": 1 / (1 + power)}
                for name, power in (("Edema", 0.2), ("Pleural Effusion", 0.4), ("Cardiomegaly", 0.7))
            }
            | {"Fracture": {"fpr": [], "tpr": [], "auc": math.nan}},
            "confusion": {name: {"tp": 8, "fp": 3, "fn": 2, "tn": 21} for name in ("Edema", "Cardiomegaly")},
            "per_finding": {
                name: {"f1": 0.4 + i / 10, "auc": 0.7 + i / 20, "ap": 0.5 + i / 20, "n": 5 * i + 3}
                for i, name in enumerate(SENTENCES)
            }
            | {"Fracture": {"f1": math.nan, "auc": math.nan, "ap": math.nan, "n": 0}},
            "audit": audit(*([one[side] for one in predictions] for side in ("prediction", "reference"))).per_finding,
        },
    }


def _study(rng: np.random.Generator, number: int, studies: int, pixels: int, maps: bool) -> dict[str, Any]:
    says = {name: rng.choice(["present", "absent", "silent"]) for name in SENTENCES}
    guess = {name: says[name] if rng.random() < 0.7 else rng.choice(["present", "absent", "silent"]) for name in says}
    reference, prediction = (
        " ".join(SENTENCES[n][how == "absent"] for n, how in side.items() if how != "silent") for side in (says, guess)
    )
    x, y = rng.uniform(0.1, 0.5, 2) * pixels
    grid = np.hypot(*np.mgrid[-1:1:12j, -1:1:12j])
    return {
        "study_id": f"s{number:04d}",
        "patient_id": f"p{number // 2:04d}",
        "images": [{"path": f"p{number % min(studies, 40)}.png", "view": "PA" if number % 3 else "AP"}],
        "reference": reference,
        "prediction": prediction,
        "scores": {"bleu4": float(rng.random()), "rougeL": float(rng.random())},
        "findings_reference": label_report(reference),
        "findings_prediction": label_report(prediction),
        "audit": [error.to_dict() for error in audit([prediction], [reference], resamples=0).errors[0]],
        "boxes": [{"image": 0, "phrase": "left effusion", "xywh": [x, y, pixels * 0.3, pixels * 0.25]}],
        "maps": {name: np.exp(-(grid**2) * (i + 1)).tolist() for i, name in enumerate(("Edema", "Cardiomegaly"))}
        if maps
        else {},
    }


def _picture(rng: np.random.Generator, pixels: int) -> np.ndarray:
    """Two dark lungs on a bright ground, with noise."""
    y, x = np.mgrid[-1 : 1 : pixels * 1j, -1 : 1 : pixels * 1j]
    lungs = sum(np.exp(-(((x - side) / 0.3) ** 2 + (y / 0.6) ** 2) * 2) for side in (-0.45, 0.45))
    return np.clip(190 - 150 * lungs + rng.normal(0, 6, (pixels, pixels)), 0, 255).astype(np.uint8)


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
