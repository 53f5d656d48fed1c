"""A run's model as others want it: a plain folder with the adapter merged, or the encoders as ONNX. Checked, not hoped.

What is written is opened again and asked the same as before: the largest difference is told, and one that is too large
is an error.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_medvlm.data.disk import naming_what_is_written
from hf_medvlm.data.files import check_place, write_json
from hf_medvlm.data.locks import LOCK, taken
from hf_medvlm.data.rows import Row
from hf_medvlm.errors import clipped, library_errors
from hf_medvlm.evaluation.base import SETTINGS
from hf_medvlm.inference import Predictor, load
from hf_medvlm.inference.loading import (
    ADAPTER,
    find_folder,
    load_merged,
    load_plain,
    read_settings,
    register_families,
)
from hf_medvlm.inference.pictures import as_studies

BESIDE = (
    SETTINGS,
    "README.md",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)
"""Files of a run that the model is of no use without; texts, predictions and pictures are none of them."""
# (as transformers names it, as llava-hf's checkpoints and the engines that serve them do)
LLAVA_NAMES = (("vision_tower.", "vision_tower.vision_model."),)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Of logits and embeddings, relative to the largest of them."""
ONNX_TOLERANCE = 1e-4


@dataclass
class Exported:
    """What was written, and how far it is from what it was made of."""

    folder: Path
    differences: dict[str, float]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{name}: the largest difference is {value:.2g}" for name, value in self.differences.items()]
        return "\n".join([*lines, *self.notes, str(self.folder)])


# -- a plain folder ----------------------------------------------------------------------------------------------------


def export_model(
    run: str | Path,
    to: str | Path,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    base: str | None = None,
) -> Exported:
    """Write a folder that plain transformers and serving engines open.

    Args:
        run: a run, a checkpoint, or a folder that holds a LoRA adapter alone, which is merged.
        dtype: of the weights; their own by default.
        max_shard_size: of one file of weights.
        base: the model that the adapter was trained on, where the adapter does not say or it lies elsewhere now.

    Raises:
        ValueError: nothing to export, `to` is in use, an unknown dtype, or answers that differ.
    """
    register_families()
    folder, target = find_folder(run), _new_folder(to)
    model = load_merged(folder, base) if (folder / ADAPTER).is_file() and not _is_whole(folder) else load_plain(folder)
    if dtype is not None:
        model = model.to(_float_type(dtype))
    with _whole_or_absent(target):
        with library_errors(f"--max_shard_size {clipped(max_shard_size)}", "write a size such as 5GB or 500MB"):
            model.save_pretrained(target, max_shard_size=max_shard_size)
        for pattern in BESIDE:
            for path in folder.glob(pattern):
                if path.is_file() and not (target / path.name).exists():
                    shutil.copy(path, target / path.name)
        if read_settings(folder) and not (target / SETTINGS).exists():
            write_json(target / SETTINGS, read_settings(folder))
        if model.config.model_type == "llava":
            _rename(target, LLAVA_NAMES)
    predictor = load(target, "cpu", model.dtype)
    with _asked_of(folder):
        batch = probe(predictor)
        wanted = answers(predictor, model.eval(), batch)
        exported = answers(predictor, load_plain(target).eval(), batch)
    return Exported(target, {"answers": _check(exported, wanted, TOLERANCE[model.dtype])}, [_opens_with(model)])


@contextmanager
def _asked_of(folder: Path) -> Iterator[None]:
    """What a model or its processor refuses is said with its folder."""
    try:
        with library_errors(f"{folder}: the model cannot answer", "compare its files with those of the run"):
            yield
    except ValueError as error:
        raise error if str(folder) in str(error) else ValueError(f"{error} (asked of {folder})") from error


@contextmanager
def _whole_or_absent(target: Path) -> Iterator[None]:
    """Where the disk takes no more, the folder that was begun is emptied, and one sentence says so.

    Raises:
        ValueError: another process writes to the folder, or has written to it meanwhile.
        OSError: with the folder, the reason and the way out.
    """
    with taken(target, "; name another --to"):
        if any(path.name != LOCK for path in target.iterdir()):
            raise ValueError(f"{target} is in use; name a new folder")
        try:
            with naming_what_is_written(target, "; nothing is left there. Free some space, or name a roomier --to"):
                yield
        except (OSError, ValueError):
            shutil.rmtree(target, ignore_errors=True)
            raise


def _is_whole(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors"))


def _rename(folder: Path, names: tuple[tuple[str, str], ...]) -> None:
    """Rewrite the tensors' names in a folder, one file at a time."""

    def new(name: str) -> str:
        for old, wanted in names:
            if name.startswith(old) and not name.startswith(wanted):
                return wanted + name.removeprefix(old)
        return name

    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file({new(name): tensor for name, tensor in load_file(path).items()}, path, metadata)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        record = json.loads(index.read_text(encoding="utf-8"))
        record["weight_map"] = {new(name): file for name, file in record["weight_map"].items()}
        write_json(index, record)


def _opens_with(model: Any) -> str:
    ours = type(model).__module__.startswith("hf_medvlm")
    if ours:
        return f"{type(model).__name__} opens with AutoModel once hf_medvlm.families is imported"
    return f"{type(model).__name__} opens with plain transformers; docs/serve.md says how to serve it"


def without_gguf() -> str:
    """Why no GGUF is written, and what is missing on this machine."""
    try:
        package = f"version {importlib.metadata.version('gguf')} is installed here, and is not enough"
    except importlib.metadata.PackageNotFoundError:
        package = "not installed here, and not enough if it were"
    return (
        "GGUF is written by llama.cpp's own converters, which no Python package carries: the `gguf` package "
        f"({package}) writes tensors and knows no model. What the converters read is a plain folder, which `hf-medvlm "
        "export RUN --to DIR` writes; docs/serve.md has the commands. Missing here: llama.cpp's checkout, its "
        "convert_hf_to_gguf.py and, for LLaVA-1.5's eyes, its tools/mtmd/legacy-models"
    )


# -- ONNX --------------------------------------------------------------------------------------------------------------


def export_onnx(run: str | Path, to: str | Path) -> Exported:
    """Write a model's encoders as ONNX, float32, any batch size, beside its processor's files.

    `image_encoder.onnx`: pixel_values (B, 3, H, W) -> image_embeds (B, D), normalised; of MedKLIP `probability` (B, E)
    and `location_maps` (B, E, P). `text_encoder.onnx`: input_ids, attention_mask (B, T) -> text_embeds (B, D).

    Raises:
        ValueError: a model that writes, `to` is in use, or onnxruntime's numbers differ by more than 1e-4.
        ImportError: the extra is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"--format onnx needs {error.name}: pip install 'hf_medvlm[onnx]'") from error
    predictor = load(run, "cpu", "float32")
    if not predictor.abilities & {"embed", "findings"}:
        raise ValueError(
            f"{run} holds {predictor.family}; --format onnx exports encoders. Export it as it is, without --format, "
            "and serve it as docs/serve.md says"
        )
    target = _new_folder(to)
    with _asked_of(find_folder(run)):
        batch = probe(predictor)
    differences: dict[str, float] = {}
    pixels = torch.cat([batch["pixel_values"]] * 2)
    with _whole_or_absent(target):
        if "embed" in predictor.abilities:
            differences |= _write_onnx(_Image(predictor.model), {"pixel_values": pixels}, ["image_embeds"], target)
        else:
            outputs = ["probability", "location_maps"]
            differences |= _write_onnx(_Finder(predictor.model), {"pixel_values": pixels}, outputs, target)
        if "embed_texts" in predictor.abilities:
            tokens = predictor.collator.tokenize(["Small left pleural effusion.", "The heart is normal in size."])
            differences |= _write_onnx(_Text(predictor.model), tokens, ["text_embeds"], target)
        predictor_files = find_folder(run)
        for pattern in ("config.json", *BESIDE):
            for path in filter(Path.is_file, predictor_files.glob(pattern)):
                shutil.copy(path, target / path.name)
    return Exported(target, differences, [f"onnxruntime {onnxruntime.__version__}"])


class _Image(nn.Module):
    file = "image_encoder.onnx"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = self.model.get_image_features(pixel_values)
        features = features if isinstance(features, Tensor) else features.projected_global_embedding
        return nn.functional.normalize(features.float(), dim=-1)


class _Text(nn.Module):
    file = "text_encoder.onnx"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return nn.functional.normalize(self.model.get_text_features(input_ids, attention_mask).float(), dim=-1)


class _Finder(nn.Module):
    file = "image_encoder.onnx"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values=pixel_values)
        return output.logits.float().softmax(-1)[..., 1], output.location_maps


def _write_onnx(module: Any, inputs: dict[str, Tensor], outputs: list[str], folder: Path) -> dict[str, float]:
    """Write one graph, and compare onnxruntime with torch on these inputs and on the first row alone."""
    import warnings

    import onnxruntime

    path, module = folder / module.file, module.eval()
    batch, tokens = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("tokens", min=2, max=512)
    shapes = {name: {0: batch, **({1: tokens} if value.dim() == 2 else {})} for name, value in inputs.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of constants that it folds
        torch.onnx.export(
            module,
            (),
            str(path),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = dict.fromkeys(outputs, 0.0)
    for rows in (slice(None), slice(1)):
        part = {name: value[rows] for name, value in inputs.items()}
        with torch.no_grad():
            wanted = module(**part)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        exported = session.run(outputs, {name: value.numpy() for name, value in part.items()})
        for name, ours, theirs in zip(outputs, wanted, exported, strict=True):
            differences[name] = max(differences[name], float(np.abs(ours.numpy() - theirs).max()))
    for name, difference in differences.items():
        if not difference <= ONNX_TOLERANCE:
            raise ValueError(f"{path}: onnxruntime's {name} differs by {difference:.2g}, more than {ONNX_TOLERANCE}")
    return differences


# -- what is asked -----------------------------------------------------------------------------------------------------


def probe(predictor: Predictor) -> dict[str, Any]:
    """A batch of one made-up radiograph, as the family's own collator makes it."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:256, 0:224]
    grey = 120 + 60 * np.sin(rows / 40) * np.cos(columns / 30) + rng.normal(0, 8, (256, 224))
    studies, priors, pictures = as_studies([Image.fromarray(grey.clip(0, 255).astype(np.uint8))])
    predictor.see(pictures, priors)
    return predictor.collate([Row(studies[0])])


@torch.no_grad()
def answers(predictor: Predictor, model: Any, batch: dict[str, Any]) -> Tensor:
    """What `model` makes of the batch: logits of a prompt, embeddings, or probabilities, in float32."""
    predictor.model = model
    if "prompts" in batch:
        inputs = predictor._to_device(batch["prompts"])
        return model(**inputs).logits[:, -inputs["input_ids"].shape[1] :].float()
    outputs = predictor.predict(batch)[0]
    return torch.from_numpy(np.asarray(outputs["image_embeds" if "image_embeds" in outputs else "probability"]))


def _check(exported: Tensor, wanted: Tensor, tolerance: float) -> float:
    difference = (exported - wanted).abs().max().item()
    if not difference <= tolerance * max(1.0, wanted.abs().max().item()):
        raise ValueError(f"what was written answers otherwise: the largest difference is {difference:.2g}")
    return difference


def _new_folder(to: str | Path) -> Path:
    check_place(to, "--to")
    folder = Path(to)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--to {to} is in use; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _float_type(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if dtype not in TOLERANCE:
        raise ValueError(f"--dtype {name}: there are float32, bfloat16 and float16")
    return dtype
