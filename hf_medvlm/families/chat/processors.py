"""`load_processor`: any chat model's processor on the PIL backend, and what a run has to know of it.

transformers' own `AutoProcessor` needs torchvision for many families: Qwen-VL, SmolVLM, LLaVA-OneVision and InternVL
have a compulsory video processor, and the file of Pixtral's processor imports torchvision. Here the video part stays
unbuilt, its settings are kept as they are and written back, so that `AutoProcessor` opens what is saved.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, ProcessorMixin
from transformers.models.auto.auto_factory import model_type_to_module_name
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import MODALITY_TO_AUTOPROCESSOR_MAPPING

from hf_medvlm.models.convert.checkpoint import read_json
from hf_medvlm.models.loading import clear_errors, find_folder, load_image_processor, load_tokenizer
from hf_medvlm.models.pixel_numbers import check_pixels

VIDEO = "video_processor"
CLASS_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
DIRECTIVES = ("-d", "-m", "-I", "-H", *"aAbBcdfHIjmMpSuUVwWxXyYzZG")
LOADED = datetime.now().replace(microsecond=0)  # the date of processors that say none

PALIGEMMA = (
    "PaliGemma has no chat template: it takes a prefix and a suffix, with attention both ways over the prefix. "
    "Choose a chat model (MedGemma, Qwen-VL, SmolVLM, ...)"
)


class _OnPil(ProcessorMixin):
    """What every loaded processor class inherits, between the family's class and `ProcessorMixin`.

    Attributes:
        video_settings: the folder's video settings, untouched, or None.
        template_date: what templates that write a date take for today.
        stop_token_ids: the stop ids of the folder's generation config.
    """

    video_settings: dict[str, Any] | None = None
    template_date: datetime = LOADED
    stop_token_ids: tuple[int, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop(VIDEO, None)
        super().__init__(*args, **kwargs)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in cls.parts_of_family() if name != VIDEO]

    @classmethod
    def parts_of_family(cls) -> list[str]:
        """The parts of the family's own class, the video part among them."""
        return super().get_attributes()

    def to_dict(self) -> dict[str, Any]:
        described = super().to_dict()
        if self.video_settings is not None:
            described[VIDEO] = self.video_settings
        if writes_date(self.chat_template):
            described["template_date"] = self.template_date.isoformat()
        return described

    def _process_videos(self, videos: Any, **kwargs: Any) -> Any:
        raise ValueError("this processor reads images and text only; videos need torchvision and AutoProcessor")


def load_processor(folder: str | Path) -> ProcessorMixin:
    """The processor of a chat model, images on Pillow whatever is installed.

    Args:
        folder: a folder that `save_pretrained` wrote, or a Hub id.

    Returns:
        An instance of a subclass of the family's own class, of the same name. Its video part is not built; the video
        settings of the folder are kept and saved again.

    Raises:
        ValueError: no processor of a chat model there, or one that cannot run without torchvision; the message says
            which.
    """
    folder = find_folder(folder, weights=False)
    name = _class_name(folder)
    if name == "PaliGemmaProcessor":
        raise ValueError(f"{folder}: {PALIGEMMA}")
    try:
        own_class = processor_class(name)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    parts: dict[str, Any] = {}
    with clear_errors(folder, "processor"):
        described, _ = own_class.get_processor_dict(folder, trust_remote_code=False)
    for part in own_class.get_attributes():
        if part == "tokenizer":
            parts[part] = _tokenizer(name, folder)
        elif part == "image_processor":
            parts[part] = _image_processor(name, folder)
        elif part in MODALITY_TO_AUTOPROCESSOR_MAPPING:
            auto = MODALITY_TO_AUTOPROCESSOR_MAPPING[part]
            with clear_errors(folder, part):
                parts[part] = auto.from_pretrained(folder, trust_remote_code=False)
        else:
            raise ValueError(f"{folder}: {name} has a part {part!r:.100} that is neither image processor nor tokenizer")
    date = described.pop("template_date", None)
    video = _video_settings(folder, described) if VIDEO in own_class.parts_of_family() else None
    with clear_errors(folder, "processor"):
        loaded = own_class.from_args_and_dict([], described, **parts)
    if loaded.chat_template is None:
        loaded.chat_template = loaded.tokenizer.chat_template
    if loaded.tokenizer.pad_token is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    loaded.video_settings = video
    check_pixels(getattr(loaded, "image_processor", None), folder)
    with clear_errors(folder, "template_date"):
        loaded.template_date = datetime.fromisoformat(date) if date else datetime.now().replace(microsecond=0)
    loaded.stop_token_ids = _stop_ids_of_folder(folder) or _ids(loaded.tokenizer.eos_token_id)
    return loaded


def stop_ids(processor: ProcessorMixin, config: GenerationConfig | None = None) -> tuple[int, ...]:
    """The ids that end an answer, for generation, truncation, masks and the preflight alike.

    They are those of the model's generation config. Without it, those of the folder that the processor came from, or
    the tokenizer's end token.
    """
    if config is not None and config.eos_token_id is not None:
        return _ids(config.eos_token_id)
    kept = getattr(processor, "stop_token_ids", ())
    return tuple(kept) or _ids(processor.tokenizer.eos_token_id)


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def writes_date(template: Any) -> bool:
    """Whether a chat template writes the date of today."""
    return "strftime_now" in str(template or "")


def with_frozen_date(template: str, processor: ProcessorMixin) -> str:
    """The template with `strftime_now` writing the processor's date, not today's: one date for a whole run.

    transformers hands no function to a template, so the function becomes a macro that replaces each directive.
    """
    if not writes_date(template):
        return template
    date = getattr(processor, "template_date", LOADED)
    filters = "".join(f" | replace('%{sign}', '{date.strftime(f'%{sign}')}')" for sign in DIRECTIVES)
    newline = "\n" if template.startswith("\n") else ""  # jinja takes one away after a block
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}{newline}{template}"


# ------------------------------------------------------------------------------------------- files of a folder


def _read(folder: Path, name: str) -> dict[str, Any]:
    content = read_json(folder / name) if (folder / name).is_file() else {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{folder / name} holds a {type(content).__name__}, not settings")
    return dict(content)


def _class_name(folder: Path) -> str:
    for file in CLASS_FILES:
        if name := _read(folder, file).get("processor_class"):
            return str(name)
    model_type = _read(folder, "config.json").get("model_type")
    name = PROCESSOR_MAPPING_NAMES.get(str(model_type))
    if name is None:
        what = f"its model_type {model_type!r} has none" if model_type else "it has no config.json"
        raise ValueError(f"{folder} names no processor class, and {what}; give the folder of a chat model")
    return name


def _video_settings(folder: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Where transformers looks for them, in its order; without any, `AutoVideoProcessor` takes the family's own."""
    files = ("video_preprocessor_config.json", "preprocessor_config.json")
    candidates = (described.get(VIDEO), *(_read(folder, file) for file in files))
    return next((dict(settings) for settings in candidates if settings), {})


def _stop_ids_of_folder(folder: Path) -> tuple[int, ...]:
    config = _read(folder, "config.json")
    for settings in (_read(folder, "generation_config.json"), config, config.get("text_config") or {}):
        if ids := _ids(settings.get("eos_token_id")):
            return ids
    return ()


def _tokenizer(name: str, folder: Path) -> Any:
    if "Pixtral" not in name:
        return load_tokenizer(folder)
    from transformers import TokenizersBackend  # as ProcessorMixin: the folders of Pixtral name a class that misreads

    with clear_errors(folder, "tokenizer"):
        return TokenizersBackend.from_pretrained(folder, trust_remote_code=False)


def _image_processor(name: str, folder: Path) -> Any:
    alone = f"{folder}: {name} reads images with torchvision only; transformers has no PIL version of it"
    try:
        loaded = load_image_processor(folder)
    except (ValueError, ImportError) as error:
        raise ValueError(alone) if "torchvision" in str(error) else error from error
    if not any(base.__name__ == "PilBackend" for base in type(loaded).__mro__):
        raise ValueError(alone)
    return loaded


# ------------------------------------------------------------------------------------------- classes


@lru_cache(maxsize=64)
def processor_class(name: str) -> type[_OnPil]:
    """The subclass, of the same name, of transformers' processor class `name`.

    Raises:
        ValueError: there is no such class, or its file cannot be imported without torchvision.
    """
    for model_type, named in PROCESSOR_MAPPING_NAMES.items():
        module = model_type_to_module_name(model_type)
        if named == name and _defines(module, name):
            try:
                upstream = getattr(_import(module), name)
            except ImportError as error:
                raise ValueError(f"{name} cannot be loaded without torchvision: {error}") from error
            return _subclass(upstream)
    raise ValueError(f"this transformers has no processor class {name!r:.100}")


def _defines(module: str, name: str) -> bool:
    folder = Path(importlib.import_module("transformers.models").__path__[0]) / module
    return (folder / f"processing_{module}.py").is_file() and f"class {name}(" in (
        folder / f"processing_{module}.py"
    ).read_text(encoding="utf-8")


@cache
def _subclass(upstream: type[ProcessorMixin]) -> type[_OnPil]:
    body: dict[str, Any] = {"__module__": upstream.__module__, "__doc__": upstream.__doc__}
    if VIDEO in upstream.get_attributes() and "apply_chat_template" in vars(upstream):
        body["apply_chat_template"] = ProcessorMixin.apply_chat_template  # SmolVLM's own asks the video part
    return type(upstream.__name__, (upstream, _OnPil), body)


def _import(module: str) -> Any:
    with _pil_in_place_of_torchvision(module):
        return importlib.import_module(f"transformers.models.{module}.processing_{module}")


@contextmanager
def _pil_in_place_of_torchvision(module: str) -> Iterator[None]:
    """While `processing_<module>` is imported without torchvision, its image functions come from the PIL file."""
    wanted = f"transformers.models.{module}.image_processing_{module}"
    twin = f"transformers.models.{module}.image_processing_pil_{module}"
    stand_in = importlib.util.find_spec("torchvision") is None and importlib.util.find_spec(twin) is not None
    if stand_in and wanted not in sys.modules:
        sys.modules[wanted] = importlib.import_module(twin)
    else:
        stand_in = False
    try:
        yield
    finally:
        if stand_in:
            del sys.modules[wanted]
