"""Loading a folder or Hub id: the right family, every key in its place, the same pixels whatever is installed."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

Model = TypeVar("Model", bound=PreTrainedModel)

# Buffers that old versions of transformers saved and present ones compute.
OBSOLETE_KEYS = ("*position_ids", "*rotary_emb.inv_freq")


def model_type_of(path: str | Path) -> str:
    """The `model_type` that the config.json of a folder or Hub id names.

    Raises:
        ValueError: no config.json there; the message says what is.
    """
    folder = Path(path)
    if folder.exists() and not (folder / "config.json").exists():
        names = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else ["a file"]
        hint = (
            "an adapter: merge it first" if (folder / "adapter_config.json").exists() else ", ".join(names) or "empty"
        )
        raise ValueError(f"{path} has no config.json ({hint}); give the folder that save_pretrained wrote")
    try:
        return PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    except OSError as error:
        raise ValueError(f"{path} is no folder here and cannot be read from the Hub: {error}") from error


def check_family(path: str | Path, model_class: type[PreTrainedModel], published_types: tuple[str, ...] = ()) -> None:
    """Raise `ValueError` unless `path` holds a checkpoint of `model_class` or of a published type it is built on."""
    found_type, wanted = model_type_of(path), (model_class.config_class.model_type, *published_types)
    if found_type not in wanted:
        raise ValueError(
            f"{path} holds a {found_type!r} checkpoint; {model_class.__name__} takes {' or '.join(map(repr, wanted))}"
        )


def load_strictly(model_class: type[Model], path: str | Path, **options: Any) -> Model:
    """`from_pretrained` that takes no missing, unexpected or misshapen key.

    Raises:
        ValueError: with the keys that do not fit.
    """
    model, info = model_class.from_pretrained(path, output_loading_info=True, **options)
    problems = {
        kind: [key for key in map(str, info[f"{kind}_keys"]) if not any(fnmatch.fnmatch(key, o) for o in OBSOLETE_KEYS)]
        for kind in ("missing", "unexpected", "mismatched")
    }
    shown = [f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in problems.items() if keys]
    if shown:
        raise ValueError(f"the weights in {path} do not fit {model_class.__name__}: {'; '.join(shown)}")
    return model


def load_image_processor(path: str | Path, image_size: int | None = None) -> BaseImageProcessor:
    """The image processor of a checkpoint on the PIL backend, whatever is installed; `image_size` makes it square."""
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    if image_size is not None:
        processor.size = {"height": image_size, "width": image_size}
        if getattr(processor, "do_center_crop", False):
            processor.do_center_crop = False  # a radiograph's margins belong to it
    return processor


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint."""
    return AutoTokenizer.from_pretrained(path)
