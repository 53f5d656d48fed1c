"""A model over many studies: batched, in several processes, resumable, each study once, the broken ones named.

The studies are cut into parts, each written whole or not at all; a run that was killed goes on with the parts that are
missing. When all are there, the main process puts them together, in the order of the studies.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.numpy import load_file, save
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_medvlm import __version__
from hf_medvlm.data.files import atomic_open, check_folder, load_json, write_json
from hf_medvlm.data.locks import taken
from hf_medvlm.data.rows import Row
from hf_medvlm.data.sources.base import Rejected
from hf_medvlm.errors import library_errors
from hf_medvlm.evaluation.base import without_nan
from hf_medvlm.evaluation.maps import thumbnail_map
from hf_medvlm.inference.pictures import FolderPictures
from hf_medvlm.inference.prediction_files import PREDICTIONS, REJECTION, lines, read_lines, write_table
from hf_medvlm.inference.predictor import Outputs, Predictor
from hf_medvlm.inference.studies import NewStudies

PARTS, SETTINGS, RUN = "parts", "settings.json", "run.json"
REJECTED = "rejected.jsonl"
EMBEDDINGS, EMBEDDING_IDS = "embeddings.safetensors", "embeddings_ids.json"
MOST_PARTS, LARGEST_PART = 32, 512
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
ANEW = "a file of --out was changed; start again with --overwrite"


@dataclass(frozen=True)
class PredictOptions:
    """What is written of each study.

    Args:
        batch_size: studies at a time; the answers do not depend on it.
        question: put to a chat model, instead of the prompts that it was trained with.
        maps: heat maps of so many of the findings that are predicted, the likeliest; 0 for none.
        workers: processes that read images beside the model; 0 reads them between the batches.
        embeddings_only: of each study no more than its embedding, id and images: an index.
    """

    batch_size: int = 16
    question: str = ""
    maps: int = 3
    workers: int = 1
    embeddings_only: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.maps < 0 or self.workers < 0:
            raise ValueError("--batch_size is 1 or more, --maps and --workers are 0 or more")


@dataclass(frozen=True)
class Predicted:
    """How many studies were told about, and which were not."""

    folder: Path
    told: int
    rejected: Sequence[Rejected]

    def summary(self) -> str:
        """One line, or two where something was left out."""
        line = f"{self.told} {'study' if self.told == 1 else 'studies'}, in {self.folder}"
        if self.rejected:
            line += (
                f"\n{len(self.rejected)} left out; {self.folder / REJECTED} names them; the first: {self.rejected[0]}"
            )
        return line


def processes() -> PartialState:
    """The processes of a launcher, gloo's where there is no accelerator."""
    return PartialState(cpu=not torch.accelerator.is_available())


def predict_studies(
    predictor: Predictor,
    new: NewStudies,
    folder: str | Path,
    options: PredictOptions | None = None,
    overwrite: bool = False,
) -> Predicted:
    """Write what the model says of each study into `folder`, or what is missing there.

    `predictions.jsonl` (a study a line), `predictions.csv`, `embeddings.safetensors` where the family has them,
    `rejected.jsonl` where a study could not be read, and `run.json`, from which pages are drawn.

    Args:
        overwrite: predictions of another model, or other studies, that lie in the folder are removed first.

    Raises:
        ValueError: the folder holds predictions of another model, studies or options; another process writes to it; no
            study could be read; a question for a model that answers none.
    """
    options, folder, state = options or PredictOptions(), Path(folder), processes()
    if options.question:
        predictor.require("ask")
    settings = _settings(predictor, new, options)
    with ExitStack() as held:
        with state.main_process_first():
            check_folder(folder, "--out")
            if state.is_main_process:
                held.enter_context(taken(folder, "; wait until it has ended, or name another --out"))
            settings = _claim(folder, settings, overwrite)
        if not (folder / RUN).is_file():
            parts = _parts(len(new.studies), settings["part"])
            mine = parts[state.process_index :: state.num_processes]
            missing = [part for part in mine if not _part_file(folder, part).exists()]
            _write_parts(predictor, new, folder, missing, options)
        state.wait_for_everyone()
        if state.is_main_process and not (folder / RUN).is_file():
            _join(predictor, new, folder, settings, options)
        state.wait_for_everyone()
    rejected = [
        Rejected(line["file"], line.get("line"), line.get("study_id"), line["reason"], line.get("detail") or "")
        for line in read_lines(folder / REJECTED, REJECTION)
    ]
    count = sum(1 for _ in lines(folder / PREDICTIONS))
    if not count:
        first = next((entry for entry in rejected if entry.study_id), None)
        raise ValueError(f"none of {len(new.studies)} studies can be read; the first: {first}")
    return Predicted(folder, count, rejected)


# -- the parts ---------------------------------------------------------------------------------------------------------


def _parts(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _part_file(folder: Path, part: range) -> Path:
    return folder / PARTS / f"{part.start:09d}.jsonl"


def _write_parts(
    predictor: Predictor, new: NewStudies, folder: Path, missing: list[range], options: PredictOptions
) -> None:
    """Run the model over the studies of the missing parts, and write each part when its last study is done."""
    pictures = FolderPictures(new.image_folder)
    predictor.see(pictures, new.studies)
    batches = []
    for part in missing:
        order = sorted(part, key=lambda n: predictor.length(new.studies[n]))  # little padding
        batches += [order[i : i + options.batch_size] for i in range(0, len(order), options.batch_size)]
    rows: Any = [Row(study, number) for number, study in enumerate(new.studies)]
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=_Reader(predictor, pictures, options.question),
        # elsewhere a worker would be sent the model
        num_workers=options.workers if platform.system() == "Linux" else 0,
    )
    waiting: dict[int, tuple[dict[str, Any], np.ndarray | None]] = {}
    pending = list(missing)
    hidden = not PartialState().is_main_process
    bar = tqdm(total=sum(map(len, missing)), desc="Predicting", unit="study", disable=True if hidden else None)
    for rows, batch, sizes, broken in loader:
        if rows:
            for row, line, embedding in _tell(predictor, rows, batch, sizes, options):
                waiting[row.index] = line, embedding
        for number, reason in broken.items():
            waiting[number] = {"rejected": reason}, None
        bar.update(len(rows) + len(broken))
        while pending and all(number in waiting for number in pending[0]):
            part = pending.pop(0)
            _write_part(folder, part, [waiting.pop(number) for number in part])
    bar.close()


def _write_part(folder: Path, part: range, written: list[tuple[dict[str, Any], np.ndarray | None]]) -> None:
    embeddings = [embedding for _, embedding in written if embedding is not None]
    path = _part_file(folder, part)
    if embeddings:
        with atomic_open(path.with_suffix(".safetensors"), "wb") as handle:
            handle.write(save({"image_embeds": np.stack(embeddings)}))
    with atomic_open(path) as handle:  # last: a part is there when this is
        handle.writelines(json.dumps(without_nan(line), ensure_ascii=False) + "\n" for line, _ in written)


class _Reader:
    """Rows -> (the rows that can be read, their batch, their picture sizes, number -> why another cannot be read)."""

    def __init__(self, predictor: Predictor, pictures: FolderPictures, question: str) -> None:
        self.predictor, self.pictures, self.question = predictor, pictures, question

    def __call__(self, rows: list[Row]) -> tuple[list[Row], dict[str, Any] | None, list[Any], dict[int, str]]:
        good, batch, broken = rows, None, {}
        try:
            batch = self._batch(rows)
        except ValueError:  # find out which
            good = []
            for row in rows:
                try:
                    self._batch([row])
                    good.append(row)
                except ValueError as error:
                    broken[row.index] = str(error).replace(f"{self.pictures.folder}/", "")
            batch = self._batch(good) if good else None
        sizes = [self.pictures.sizes[row.study.frontal.path] if row.study.frontal else None for row in good]
        self.pictures.sizes.clear()
        return good, batch, sizes, broken

    def _batch(self, rows: list[Row]) -> dict[str, Any]:
        return self.predictor.collate(rows, self.question)


def _tell(
    predictor: Predictor, rows: list[Row], batch: dict[str, Any], sizes: list[Any], options: PredictOptions
) -> Iterator[tuple[Row, dict[str, Any], np.ndarray | None]]:
    """(row, its line of predictions.jsonl, its embedding or None) of each row of a batch."""
    outputs: list[Outputs] = predictor.predict(batch)
    descriptions = [predictor.tell(output) for output in outputs]
    shown: list[dict[str, Any]] = [{} for _ in rows]
    if options.maps and "ground" in predictor.abilities:
        phrases = [predictor.shown_phrases(described, options.maps) for described in descriptions]
        texts = [described["prediction"] for described in descriptions] if "report" in predictor.abilities else []
        shown = [
            {text: thumbnail_map(grid, size, predictor.image_processor) for text, grid in grids.items()}
            for grids, size in zip(predictor.find(batch, phrases, texts), sizes, strict=True)
        ]
    for row, output, described, maps in zip(rows, outputs, descriptions, shown, strict=True):
        study = row.study
        line = {
            "study_id": study.study_id,
            "patient_id": study.patient_id,
            "images": [{"path": image.path, "view": image.view} for image in study.images],
            "map_image": study.images.index(study.frontal) if study.frontal else 0,
        }
        if options.embeddings_only:
            described = {}
        asked = {"question": options.question} if options.question else {}
        yield row, line | asked | described | ({"maps": maps} if maps else {}), output.get("image_embeds")


# -- together ----------------------------------------------------------------------------------------------------------


def _join(
    predictor: Predictor, new: NewStudies, folder: Path, settings: Mapping[str, Any], options: PredictOptions
) -> None:
    """All parts as the files that a user reads; the parts are removed."""
    parts = _parts(len(new.studies), settings["part"])
    rejected, ids, tensors = list(new.rejected), [], []
    with atomic_open(folder / PREDICTIONS) as handle:
        for part in parts:
            path = _part_file(folder, part)
            written = list(read_lines(path))
            if len(written) != len(part):
                raise ValueError(f"{path}: {len(written)} lines for {len(part)} studies; {ANEW}")
            for number, line in zip(part, written, strict=True):
                if "rejected" in line:
                    study = new.studies[number]
                    image = study.frontal.path if study.frontal else new.name
                    rejected.append(Rejected(image, None, study.study_id, "image cannot be read", line["rejected"]))
                else:
                    ids.append(line["study_id"])
                    handle.write(json.dumps(line, ensure_ascii=False) + "\n")
            if (path := path.with_suffix(".safetensors")).is_file():
                tensors.append(_embeddings(path, sum("rejected" not in line for line in written)))
    for name in (EMBEDDINGS, EMBEDDING_IDS, REJECTED):
        (folder / name).unlink(missing_ok=True)
    if tensors:
        with atomic_open(folder / EMBEDDINGS, "wb") as binary:
            binary.write(save({"image_embeds": _together(tensors, folder)}, {"study_ids": EMBEDDING_IDS}))
        write_json(folder / EMBEDDING_IDS, ids)
    if rejected:
        with atomic_open(folder / REJECTED) as handle:
            handle.writelines(json.dumps(vars(entry), ensure_ascii=False) + "\n" for entry in rejected)
    write_table(folder)
    if ids:
        write_json(folder / RUN, _describe(predictor, new, settings, options, len(ids), len(rejected)))
        shutil.rmtree(folder / PARTS)


def _together(tensors: list[np.ndarray], folder: Path) -> np.ndarray:
    widths = {rows.shape[1] for rows in tensors}
    if len(widths) > 1:
        raise ValueError(f"{folder / PARTS}: embeddings of {' and '.join(map(str, sorted(widths)))} numbers; {ANEW}")
    return np.concatenate(tensors)


def _embeddings(path: Path, count: int) -> np.ndarray:
    """The embeddings of a part (count, D)."""
    with library_errors(f"{path}: cannot be read", ANEW):
        rows = load_file(path).get("image_embeds")
    if rows is None or rows.ndim != 2 or len(rows) != count or not np.isfinite(rows).all():
        raise ValueError(f"{path}: {count} rows of numbers must be in it; {ANEW}")
    return rows


def _describe(
    predictor: Predictor,
    new: NewStudies,
    settings: Mapping[str, Any],
    options: PredictOptions,
    count: int,
    rejected: int,
) -> dict[str, Any]:
    return {
        "recipe": "predict",
        "hf_medvlm": __version__,
        "model": str(predictor.folder),
        "model_class": type(predictor.model).__name__,
        "model_hash": settings["model"],
        "dataset": new.name,
        "image_folder": str(new.image_folder.resolve()),
        "studies": count,
        "rejected": {"left out": rejected} if rejected else {},
        "thresholds": without_nan(predictor.thresholds),
        "options": asdict(options),
    }


# -- whose predictions these are ---------------------------------------------------------------------------------------


def model_hash(folder: str | Path) -> str:
    """SHA-256 of a folder's weights: equal hashes mean that embeddings may be compared.

    Raises:
        ValueError: there are no weights in it.
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() else sorted({path for name in WEIGHTS for path in folder.glob(name)})
    if not files:
        raise ValueError(f"{folder}: no weights in it ({', '.join(WEIGHTS)})")
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _settings(predictor: Predictor, new: NewStudies, options: PredictOptions) -> dict[str, Any]:
    """All that the answers depend on, and the size of a part."""
    studies = hashlib.sha256()
    for study in new.studies:
        images = [image.path for image in study.images]
        identity = [study.study_id, images, study.prior_study_id, study.indication, new.image_folder.as_posix()]
        studies.update(json.dumps(identity).encode())
    return {
        "model": model_hash(predictor.weights),
        "the model's settings": predictor.evaluation.settings(),
        "dtype": str(predictor.model.dtype),
        "autocast": str(predictor.autocast),
        "studies": studies.hexdigest(),
        "question": options.question,
        "maps": options.maps,
        "embeddings only": options.embeddings_only,
        "part": max(1, min(LARGEST_PART, -(-len(new.studies) // MOST_PARTS))),
    }


def _claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Mark the folder as ours, or go on with what was begun there."""
    path, plain = folder / SETTINGS, json.loads(json.dumps(without_nan(settings)))
    main = PartialState().is_main_process
    if path.is_file():
        begun = load_json(path, dict)
        other = [name for name in plain if begun.get(name) != plain[name]]
        if not other:
            return begun
        if main and not overwrite:
            raise ValueError(
                f"{folder} holds predictions that were made with another value of {', '.join(other)}; "
                "name another --out, or add --overwrite"
            )
        if main:
            shutil.rmtree(folder / PARTS, ignore_errors=True)
            (folder / RUN).unlink(missing_ok=True)
    elif main and (folder / RUN).is_file() and not overwrite:
        raise ValueError(f"--out {folder} holds a run ({RUN}); name another folder")
    if main:
        (folder / RUN).unlink(missing_ok=True)
        write_json(path, plain)
    return plain
