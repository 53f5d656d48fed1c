"""What is made of a trained model and read again: indexes, predictions, reports to score, checkpoints to go on from."""

from __future__ import annotations

import io
import json
import math
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from fuzzing import models, mutate
from fuzzing.pool import Made, Reader
from fuzzing.tables import TEXT


@cache
def _predictor(name: str) -> Any:
    import hf_medvlm

    return hf_medvlm.load(models._seed(name), device="cpu")


@cache
def _pictures() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-pictures-"))
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (40, 32), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def _found() -> Any:
    from hf_medvlm.inference.studies import find_studies

    return find_studies(_pictures())


@cache
def _index() -> Path:
    """A finished index of a dual encoder."""
    from hf_medvlm.inference.predict import PredictOptions, predict_studies

    folder = Path(tempfile.mkdtemp(prefix="fuzz-index-")) / "index"
    predict_studies(_predictor("dual_encoder"), _found(), folder, PredictOptions(maps=0, workers=0))
    return folder


@cache
def _begun() -> Path:
    """The same, killed before its parts were put together."""
    from hf_medvlm.inference import predict

    folder = Path(tempfile.mkdtemp(prefix="fuzz-begun-")) / "index"
    join, predict._join = predict._join, lambda *given: None
    try:
        predict.predict_studies(_predictor("dual_encoder"), _found(), folder, predict.PredictOptions(maps=0, workers=0))
    except ValueError:
        pass  # no lines yet
    predict._join = join
    return folder


def _damage(path: Path, rng: Random) -> str:
    """One file of a folder, damaged as its kind can be."""
    if rng.random() < 0.06:
        return mutate.special(path, rng)
    if path.suffix == ".safetensors":
        way = rng.random()
        if way < 0.5:
            return models._weights(path, rng)
        content, what = mutate.bytes_of(path.read_bytes(), rng)
    elif path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        content, what = mutate.json_text(records, rng, lines=True)
    else:
        content, what = mutate.json_text(json.loads(path.read_text()), rng)
    path.write_bytes(content)
    return what


# ---------------------------------------------------------------- an index, predictions that go on


def make_index(rng: Random, folder: Path) -> Made:
    place = folder / "index"
    begun = rng.random() < 0.4
    shutil.copytree(_begun() if begun else _index(), place)
    files = [path for path in place.rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors")]
    path = rng.choice(sorted(files))
    what = _damage(path, rng)
    return Made((place, begun), f"{'begun' if begun else 'index'}, {path.name}: {what}", [path.name, str(place)])


def read_index(made: Made) -> Any:
    place, begun = made.target
    predictor = _predictor("dual_encoder")
    if begun:
        from hf_medvlm.inference.predict import PredictOptions, predict_studies

        return predict_studies(predictor, _found(), place, PredictOptions(maps=0, workers=0)).told
    from hf_medvlm.inference.search import Index, write_search_page

    index = Index(place)
    index.check_model(predictor)
    hits = index.hits(index.nearest(predictor.embed_texts(["left effusion"]), 3)[0])
    write_search_page(index, "left effusion", hits, place / "search.html")
    return hits


def justify_index(made: Made, result: Any) -> str | None:
    if made.target[1]:
        return "as many studies as there are" if result == 3 else None
    sound = all(math.isfinite(hit.score) and isinstance(hit.study_id, str) for hit in result)
    return "scores are finite, studies have names" if sound and result else None


# ---------------------------------------------------------------- reports to score


def make_reports(rng: Random, folder: Path) -> Made:
    kind = rng.choice(["json", "rexrank.json", "jsonl", "csv", "run"])
    rows = [{"study_id": f"s{n}", "patient_id": f"p{n}", "reference": TEXT, "prediction": "Clear."} for n in range(3)]
    path = folder / f"reports.{kind.rpartition('.')[2]}"
    if kind == "csv":
        content, what = mutate.table_text([list(rows[0]), *(list(row.values()) for row in rows)], rng)
    elif kind == "rexrank.json":
        record = {"report": f"Findings: {TEXT}", "image_path": ["./a.png"], "context": "Indication: Cough."}
        texts = {"findings": TEXT, "impression": "", "model_prediction": "Clear."}
        content, what = mutate.json_text({row["study_id"]: record | texts for row in rows}, rng)
    elif kind == "run":
        path = folder / "run"
        path.mkdir()
        (path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (path / "run.json").write_text(json.dumps({"image_folder": str(folder), "recipe": "finetune_blip"}))
        file = path / rng.choice(["predictions.jsonl", "run.json"])
        return Made(path, f"run, {file.name}: {_damage(file, rng)}", [file.name, str(path)])
    else:
        content, what = mutate.json_text(rows, rng, lines=kind == "jsonl")
    path.write_bytes(content)
    return Made(path, f"{kind}: {what}", [path.name])


def read_reports(made: Made) -> Any:
    from hf_medvlm.data.report_texts import PREDICTION, REFERENCE, pair_reports
    from hf_medvlm.data.report_texts import read_reports as read
    from hf_medvlm.evaluation.leaderboard import rexrank_records

    sides = [read(made.target, side, None) for side in (REFERENCE, PREDICTION)]
    pairs = pair_reports(*sides)
    lines = zip(pairs.studies, pairs.references, pairs.predictions, strict=True)
    rexrank_records(sides[1].records, [{"study_id": s.study_id, "reference": r, "prediction": p} for s, r, p in lines])
    return pairs


def justify_reports(made: Made, result: Any) -> str | None:
    texts = [*result.references, *result.predictions]
    sound = all(isinstance(text, str) for text in texts) and all(study.study_id for study in result.studies)
    return "every study has an id and two texts" if sound and result.studies else None


# ---------------------------------------------------------------- a checkpoint to go on from, a Rexrank file to fill


def make_resume(rng: Random, folder: Path) -> Made:
    from hf_medvlm.training.checkpoints import write_manifest

    for step in (2, 4):
        place = folder / f"checkpoint-{step}"
        place.mkdir()
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (place / name).write_bytes(bytes(64))
        history = [{"step": 1, "loss": 2.0, "epoch": 0.1}, {"step": 2, "eval_loss": 1.0, "epoch": 0.2}]
        state = {"global_step": step, "max_steps": 6, "num_train_epochs": 1, "epoch": 0.3, "best_metric": None}
        state |= {"best_model_checkpoint": None, "log_history": history, "stateful_callbacks": {}}
        (place / "trainer_state.json").write_text(json.dumps(state))
        write_manifest(place, step, 1, None)
    path = place / rng.choice(["manifest.json", "trainer_state.json"])
    what = _damage(path, rng)
    if path.name == "trainer_state.json" and path.is_file() and rng.random() < 0.7:
        write_manifest(place, step, 1, None)  # edited, and not merely cut
    return Made(folder, f"{path.name}: {what}", [str(folder), "checkpoint-"])


def read_resume(made: Made) -> Any:
    from transformers import TrainerState

    from hf_medvlm.training.checkpoints import checkpoint_to_resume

    training = SimpleNamespace(
        resume_from_checkpoint=True, output_dir=str(made.target), process_index=0, world_size=1, deepspeed=None
    )
    chosen = checkpoint_to_resume(training)  # type: ignore[arg-type]
    return TrainerState.load_from_json(str(Path(chosen) / "trainer_state.json"))


def justify_resume(made: Made, result: Any) -> str | None:
    return "steps are whole numbers" if type(result.global_step) is int and type(result.max_steps) is int else None


def make_rexrank(rng: Random, folder: Path) -> Made:
    path = folder / "rexrank.json"
    record = {"image_path": ["0.png", "1.png"], "key_image_path": "0.png", "frontal_lateral": ["Frontal", "Lateral"]}
    mimic = {"dicom_id": ["a"], "img_root_dir": "files", "context": "Indication: Cough."}
    content, what = mutate.json_text({"s1": record | {"context": "Indication: Cough."}, "s2": mimic}, rng)
    path.write_bytes(content)
    return Made(path, what, [path.name])


def read_rexrank(made: Made) -> Any:
    from hf_medvlm.inference.studies import read_rexrank as read

    return read(made.target)[0].studies


def justify_rexrank(made: Made, result: Any) -> str | None:
    from fuzzing.tables import studies_are_sound

    return "studies are sound" if studies_are_sound(result) and all(study.images for study in result) else None


# ---------------------------------------------------------------- the demo's uploads


def make_upload(rng: Random, folder: Path) -> Made:
    if rng.random() < 0.5:
        picture = io.BytesIO()
        kind = rng.choice(["PNG", "JPEG", "BMP", "TIFF"])
        Image.open(_pictures() / "0.png").save(picture, kind)
        content, what = mutate.bytes_of(picture.getvalue(), rng)
        return Made(("look", content), f"{kind}: {what}")
    call = rng.choice(["ask", "ground"])
    content, what = mutate.json_text({"id": "x", "question": "Is it clear?", "phrase": "effusion"}, rng)
    return Made((call, content), f"{call}: {what}")


def read_upload(made: Made) -> Any:
    from hf_medvlm.inference.demo import Demo, _Handler

    demo, (call, content) = Demo(_predictor("medklip")), made.target
    return demo.look(content) if call == "look" else _Handler._json(getattr(demo, call))(content)


def justify_upload(made: Made, result: Any) -> str | None:
    json.dumps(result, allow_nan=False)
    return "a picture is a picture" if made.target[0] == "look" and result["width"] > 0 else None


READERS = [
    Reader("index", make_index, read_index, justify_index),
    Reader("reports to score", make_reports, read_reports, justify_reports),
    Reader("checkpoint to go on from", make_resume, read_resume, justify_resume),
    Reader("ReXrank file", make_rexrank, read_rexrank, justify_rexrank),
    Reader("uploads", make_upload, read_upload, justify_upload),
]


def prepare() -> None:
    """Make the seeds before the workers are forked."""
    _index(), _begun(), _predictor("medklip")
