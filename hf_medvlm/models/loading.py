"""Loading a folder or Hub id: the one place where a checkpoint's files are found, checked and read.

Every `from_pretrained` of the project goes through here, so that all of it is strict (each key in its place), safe
(code that a checkpoint brings is never run) and clear (one line names the file, the key and the way out).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    RobertaTokenizer,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_medvlm.models.clear_errors import clear_errors, first_line
from hf_medvlm.models.convert.checkpoint import (
    PICKLED,
    check_finite,
    check_weight_file,
    count_tensors,
    read_json,
    refusal,
)
from hf_medvlm.models.pixel_numbers import check_pixels
from hf_medvlm.models.side_files import check_side_files

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=PreTrainedModel)

# Buffers that old versions of transformers saved and present ones compute.
OBSOLETE_KEYS = ("*position_ids", "*rotary_emb.inv_freq")
# What is fetched of a Hub repository: no code, and no weights for other frameworks.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
# File -> the plain tokenizer that reads it, the most complete file first.
PLAIN_TOKENIZERS: tuple[tuple[str, type[PreTrainedTokenizerBase]], ...] = (
    ("tokenizer.json", PreTrainedTokenizerFast),
    ("vocab.txt", BertTokenizer),
    ("tokenizer.model", LlamaTokenizer),
    ("merges.txt", RobertaTokenizer),
)
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")


# ------------------------------------------------------------------------------------------- finding


def find_folder(name: str | Path, weights: bool = True) -> Path:
    """A checkpoint's folder: the folder itself, or that of a Hub id, from the cache or fetched; its JSON files checked.

    Args:
        weights: without them only the small files (config, tokenizer, preprocessing) are fetched.

    Raises:
        ValueError: no such folder, a Hub id that can neither be fetched nor is in the cache, or a value in a JSON file
            beside the weights that its name cannot have.
    """
    folder = _folder_of(name, weights)
    check_side_files(folder)
    return folder


def _folder_of(name: str | Path, weights: bool) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{name}: {refusal(folder) or 'this is a file; give the folder that it lies in'}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    ignored = ["pytorch_model*.bin"] if weights and _has_safetensors(str(name)) else None
    try:
        wanted = [*SMALL_FILES, *(WEIGHT_FILES if weights else ())]
        return Path(snapshot_download(str(name), allow_patterns=wanted, ignore_patterns=ignored))
    except HFValidationError as error:
        raise ValueError(f"{name}: there is no such folder, and it is no Hub id (owner/name) either") from error
    except Exception as error:  # no connection, no rights, no such repository: huggingface_hub has a class for each
        raise ValueError(
            f"{name} is no folder here, and cannot be read from the Hub or its cache ({first_line(error)}). Offline: "
            f"copy the files into a folder and name that, or fetch them beforehand with `hf download {name}`"
        ) from error


def _has_safetensors(name: str) -> bool:
    """Whether a Hub repository has weights in safetensors, so that its pickles need not be fetched."""
    from huggingface_hub import HfApi

    try:
        return any(file.endswith(".safetensors") for file in HfApi().list_repo_files(name))
    except Exception:  # offline: what is in the cache is taken as it is
        return False


# ------------------------------------------------------------------------------------------- configs


def read_config(folder: str | Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder.

    Raises:
        ValueError: there is none (the message says what is there), or it is no JSON object.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        names = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else ["no folder"]
        for file in (folder / name for name in names if folder.is_dir()):
            if reason := file.suffix in (".safetensors", ".tar", *PICKLED) and refusal(file):
                raise ValueError(f"{file}: {reason}")
        hint = (
            "an adapter: merge it first" if (folder / "adapter_config.json").exists() else ", ".join(names) or "empty"
        )
        raise ValueError(f"{folder} has no config.json ({hint}); give the folder that save_pretrained wrote")
    record = read_json(folder / "config.json")
    if not isinstance(record, dict):
        raise ValueError(f"{folder / 'config.json'}: a config is a JSON object, found a {type(record).__name__}")
    return record


def model_type_of(path: str | Path) -> str:
    """The `model_type` that the config.json of a folder or Hub id names, empty where it names none.

    Raises:
        ValueError: no config.json there; the message says what is.
    """
    return str(read_config(find_folder(path, weights=False)).get("model_type", ""))


def load_config(path: str | Path) -> PreTrainedConfig:
    """The config of a checkpoint, of any class that transformers or we have.

    Raises:
        ValueError: there is none, it is of an unknown kind, or its values cannot be.
    """
    folder = find_folder(path, weights=False)
    record = read_config(folder)
    if not isinstance(record.get("model_type"), str):
        raise ValueError(f'{folder / "config.json"}: "model_type" is not there, so that the model\'s class is unknown')
    with clear_errors(folder, "config.json"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def check_family(path: str | Path, model_class: type[PreTrainedModel], published_types: tuple[str, ...] = ()) -> None:
    """Raise `ValueError` unless `path` holds a checkpoint of `model_class` or of a published type it is built on."""
    model_type = model_type_of(path)
    config_class = model_class.config_class
    wanted = dict.fromkeys((config_class.model_type if config_class else None, *published_types))
    if model_type not in wanted:
        raise ValueError(
            f"{path} holds a {model_type!r:.100} checkpoint; {model_class.__name__} takes "
            f"{' or '.join(map(repr, wanted))}"
        )


# ------------------------------------------------------------------------------------------- weights


def weight_files(folder: str | Path) -> list[Path]:
    """The weight files of a folder, each checked to be whole: safetensors where there are any, else `.bin`.

    Raises:
        ValueError: there are none, one that the index names is missing, or one is cut short or something else.
    """
    folder = Path(folder)
    for ending, names in (("safetensors", "model*.safetensors"), ("bin", "pytorch_model*.bin")):
        files = set(folder.glob(names))
        for index in folder.glob(f"*.{ending}.index.json"):
            shards = (read_json(index) or {}).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise ValueError(f'{index}: "weight_map" must say which file holds each key; fetch the file again')
            files |= {folder / str(shard) for shard in shards.values()}
        if files:
            for file in sorted(files):
                check_weight_file(file)
            return sorted(files)
    raise ValueError(f"{folder}: no weights in it (model.safetensors, pytorch_model.bin, or shards of them)")


def _check_depth(folder: Path, record: Any, tensors: int) -> None:
    """Refuse a config of more layers than the weights have tensors: building it could take for ever."""
    if not isinstance(record, dict):
        return
    for key, value in record.items():
        if key in LAYER_COUNTS and isinstance(value, int) and value > tensors:
            raise ValueError(
                f'{folder / "config.json"}: "{key}" is {value!r:.50}, but the weights hold {tensors} tensors'
            )
        _check_depth(folder, value, tensors)


SMALL = 200 * 2**20
"""Bytes of weights, below which a config of the usual size would build a model that is far too large for them."""


LARGE = 20_000_000
"""Parameters, up to which a model takes no memory to speak of; what does not fit is found key by key."""


def check_size(model_class: Any, folder: Path, config: PreTrainedConfig, size: int) -> None:
    """Refuse small weights with a config of a large model, such as one that has lost a part and takes its defaults.

    Args:
        size: bytes of the weights.
    """
    if size > SMALL or is_deepspeed_zero3_enabled():
        return
    build = model_class.from_config if hasattr(model_class, "from_config") else model_class._from_config
    with clear_errors(folder, "config.json"), torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build(config).parameters())
    if parameters > max(LARGE, 8 * size):
        raise ValueError(
            f"{folder / 'config.json'}: it describes a model of {parameters:,} parameters, but the weights have "
            f"{size:,} bytes. Take config.json and weights of one and the same model"
        )


def load_strictly(
    model_class: type[Model],
    path: str | Path,
    *,
    ignorable: Iterable[str] = (),
    leftover: Iterable[str] = (),
    **options: Any,
) -> Model:
    """`from_pretrained` that takes no missing, unexpected, misshapen or undefined (NaN) weight.

    Args:
        model_class: the class, or an Auto class.
        ignorable: shell patterns of keys that may be missing or left over, beside the buffers of old versions.
        leftover: those of keys that the file may hold in vain, such as the heads of a pretraining.
        options: of `from_pretrained`, or of the model's config. The weights are float32 unless `dtype` says otherwise.

    Raises:
        ValueError: with the file and the keys that do not fit.
    """
    folder = find_folder(path)
    record, files = read_config(folder), weight_files(folder)
    _check_depth(folder, record, sum(map(count_tensors, files)))
    name, config = getattr(model_class, "__name__", str(model_class)), options.get("config")
    if config is None:
        config_class = getattr(model_class, "config_class", None)
        with clear_errors(folder, "config.json"):
            kept = {key: value for key, value in record.items() if key != "model_type"}
            config = config_class.from_dict(kept) if config_class is not None else load_config(folder)
            changes = {key: value for key, value in options.items() if key != "dtype" and hasattr(config, key)}
            if changes and config_class is not None:  # `from_pretrained` would keep some for itself, such as `variant`
                config = config_class.from_dict(kept | changes)
                options = {key: value for key, value in options.items() if key not in changes} | {"config": config}
    check_size(model_class, folder, config, sum(file.stat().st_size for file in files))
    with clear_errors(folder, f"weights, read as {name},"):
        loaded: Any = model_class.from_pretrained(
            folder,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            **({"dtype": torch.float32} | options),
        )
    model, info = loaded
    allowed = (*OBSOLETE_KEYS, *ignorable)
    problems = {
        kind: sorted(name for key in info[f"{kind}_keys"] if not _matches(name := _name_of(key), patterns))
        for kind, patterns in (("missing", allowed), ("unexpected", (*allowed, *leftover)), ("mismatched", allowed))
    }
    # a misshapen key counts as missing too
    misshapen = {key.partition(" ")[0] for key in problems["mismatched"]}
    problems["missing"] = [key for key in problems["missing"] if key not in misshapen]
    shown = [
        f"{len(keys)} {kind}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for kind, keys in problems.items()
        if keys
    ]
    names = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
    if shown:
        raise ValueError(
            f"the weights in {folder} ({names}) do not fit {type(model).__name__}: {'; '.join(shown)}. Take "
            "config.json and weights of one and the same model"
        )
    check_finite(model.named_parameters(), f"{folder} ({names})")
    # Under ZeRO-3 transformers keeps those that were not used too, and would save names that no other program knows.
    conversions = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [conversion for conversion in conversions if conversion.was_used()]
    return model


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _name_of(key: Any) -> str:
    """A key of the loading report; a misshapen one comes with its two shapes."""
    return f"{key[0]} {tuple(key[1])} for {tuple(key[2])}" if isinstance(key, tuple) else str(key)


# ------------------------------------------------------------------------------------------- words and pixels


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint. Where its files name a class of their own, the plain class that reads those files.

    Raises:
        ValueError: no tokenizer there, or one that cannot be read.
    """
    folder = find_folder(path, weights=False)
    record = folder / "tokenizer_config.json"
    settings = read_json(record) if record.is_file() else {}
    names = [name for name, _ in PLAIN_TOKENIZERS if (folder / name).is_file()]
    known_files = [*names, *(file.name for file in (*folder.glob("*.model"), *folder.glob("vocab.json")))]
    if not known_files:
        raise ValueError(
            f"{folder}: no tokenizer lies in it (tokenizer.json, vocab.txt or tokenizer.model); copy the files of the "
            "published model there"
        )
    with clear_errors(folder, f"tokenizer ({', '.join(dict.fromkeys(known_files))})"):
        plain = _plain_tokenizer(folder, settings)
        if plain is None:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        logger.warning(
            "%s names a tokenizer of its own (%s), whose code is not run; %s reads %s in its place",
            record,
            settings.get("tokenizer_class") or "auto_map",
            plain.__name__,
            names[0],
        )
        return plain.from_pretrained(folder, trust_remote_code=False)


def _plain_tokenizer(folder: Path, settings: dict[str, Any]) -> type[PreTrainedTokenizerBase] | None:
    """The plain class to read a tokenizer with that names a class that transformers does not have; else None."""
    declared = settings.get("tokenizer_class")
    names = () if not isinstance(declared, str) else (declared, declared.removesuffix("Fast"), f"{declared}Fast")
    is_known = declared is None or any(tokenizer_class_from_name(name) is not None for name in names)
    if "auto_map" not in settings and is_known:
        return None
    if "auto_map" in settings and declared is not None and is_known:
        return next(known for name in names if (known := tokenizer_class_from_name(name)) is not None)
    for name, tokenizer_class in PLAIN_TOKENIZERS:
        if (folder / name).is_file():
            has_special = (
                any(key.endswith("_token") for key in settings) or (folder / "special_tokens_map.json").is_file()
            )
            if tokenizer_class is PreTrainedTokenizerFast and not has_special and (folder / "vocab.txt").is_file():
                continue  # a file without special tokens: BERT's are known
            return tokenizer_class
    return None


def has_image_processor(path: str | Path) -> bool:
    """Whether a checkpoint says how its pixels are prepared."""
    folder = find_folder(path, weights=False)
    return any(
        (folder / name).is_file() and "image_mean" in (folder / name).read_text(encoding="utf-8", errors="replace")
        for name in IMAGE_FILES
    )


def load_image_processor(path: str | Path, image_size: int | None = None) -> BaseImageProcessor:
    """The image processor of a checkpoint on the PIL backend, whatever is installed; `image_size` makes it square.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    folder = find_folder(path, weights=False)
    with clear_errors(folder, "image processor"):
        try:
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        except ImportError:  # an architecture that transformers reads with torchvision alone (DINOv3)
            processor = _on_pillow(folder)
    check_pixels(processor, folder)
    if image_size is not None:
        processor.size = {"height": image_size, "width": image_size}
        if getattr(processor, "do_center_crop", False):
            processor.do_center_crop = False  # a radiograph's margins belong to it
    return processor


def _on_pillow(folder: Path) -> BaseImageProcessor:
    """The numbers of a folder's image processor, on Pillow."""
    file = next(folder / name for name in IMAGE_FILES if (folder / name).is_file())
    record = read_json(file)
    record = record.get("image_processor", record)
    names = ("size", "resample", "image_mean", "image_std", "do_resize", "do_rescale", "rescale_factor", "do_normalize")
    kept = {name: record[name] for name in names if record.get(name) is not None}
    logger.warning("%s: %s needs torchvision; its numbers are used on Pillow", file, record.get("image_processor_type"))
    return ViTImageProcessorPil(**kept)


def load_processor(path: str | Path, processor_class: type[ProcessorMixin] | Any = AutoProcessor) -> Any:
    """The processor of a checkpoint (pixels and words), its image side on the PIL backend.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    folder = find_folder(path, weights=False)
    with clear_errors(folder, "processor"):
        processor = processor_class.from_pretrained(folder, backend="pil", trust_remote_code=False)
    check_pixels(getattr(processor, "image_processor", processor), folder)
    return processor
