"""The JSON files beside a checkpoint's weights: what each of their values may be, checked before any library reads it.

transformers checks the types of most configs, and takes whatever the other files hold: a wrong value shows much later,
as an error from deep inside or as wrong numbers. Names that are not known here stay as they are, but for numbers that
are none (NaN, Infinity, more than 64 bits).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hf_medvlm.checked import (
    Kind,
    anything,
    between,
    either,
    flag,
    length,
    many,
    named,
    number,
    plain,
    record,
    words,
)
from hf_medvlm.models.convert.checkpoint import read_json

LARGEST = 2**31 - 1
WHERE_INFINITE = ("time_step_limit",)
"""Names of settings that published configs give as Infinity (state-space models)."""

size = between(1, LARGEST, whole=True)
some = between(0, LARGEST, whole=True)
token_id = between(-1, LARGEST, whole=True)
real = between(-1e30, 1e30)
token_ids = either(many(token_id), token_id)
token = either(record("content", content=words), words)
sizes = either(named(size), many(size), size)
sides = either(named(some), many(some), some)

Rules = tuple[tuple[str, Kind], ...]


def _settings(rules: Rules) -> Kind:
    """An object whose values have the kind of the first pattern that fits their name; objects inside it likewise."""

    def check(value: Any, place: str) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"{place} must be a JSON object, found a {type(value).__name__}")
        for name, part in value.items():
            if name in WHERE_INFINITE:
                continue
            here = f"{place} {name!r:.60}"
            kind = next((kind for pattern, kind in rules if fnmatchcase(name, pattern)), None)
            if kind is not None:
                kind(part, here)
            elif isinstance(part, Mapping):
                check(part, here)
            else:
                plain(part, here)
        return value

    return check


_share = either(flag, many(between(0, 1)), between(0, 1))
CONFIG = _settings(
    (
        ("auto_map", anything),
        # the original LLaVA's image token is -200
        *((name, between(-1000, LARGEST, whole=True)) for name in ("image_token_id", "image_token_index")),
        ("*token_id", token_ids),
        *((name, sizes) for name in ("image_size", "patch_size", "hidden_size", "intermediate_size", "vocab_size")),
        *((name, sizes) for name in ("num_attention_heads", "num_key_value_heads")),
        ("max_position_embeddings", between(1, LARGEST)),
        ("num_hidden_layers", either(named(some), some)),
        *((name, between(0, 1)) for name in ("*_eps", "*_epsilon")),
        ("initializer_range", between(0, 1e3)),
        *((name, _share) for name in ("*dropout", "*dropout_prob", "drop_path*")),
    )
)
GENERATION = _settings(
    (
        ("*token_id", token_ids),
        *((name, length) for name in ("max_new_tokens", "num_beams", "num_return_sequences", "num_beam_groups")),
        *((name, some) for name in ("max_length", "min_length", "min_new_tokens", "*ngram_size")),
        ("top_k", token_id),
        *((name, between(0, 1)) for name in ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")),
        *((name, between(0, 1e30)) for name in ("temperature", "*repetition_penalty", "max_time")),
        *((name, real) for name in ("length_penalty", "diversity_penalty", "guidance_scale", "penalty_alpha")),
        *((name, flag) for name in ("do_sample", "use_cache", "output_*", "return_dict*", "remove_invalid_values")),
        ("early_stopping", either(words, flag)),
        ("stop_strings", either(many(words), words)),
        ("*suppress_tokens", token_ids),
        *((name, many(many(token_id))) for name in ("bad_words_ids", "force_words_ids")),
        *((name, words) for name in ("cache_implementation", "transformers_version")),
    )
)
_ADDED = record("content", content=words, lstrip=flag, rstrip=flag, normalized=flag, single_word=flag, special=flag)
_TOKENS = either(named(token), many(token))
_TEMPLATE = either(many(record("name template", name=words, template=words)), named(words), words)
TOKENIZER = _settings(
    (
        ("auto_map", anything),
        ("model_max_length", between(1, 1e40)),
        ("max_length", some),
        ("stride", some),
        ("*_side", words),
        ("*_token", either(flag, token)),  # "add_bos_token": true
        ("added_tokens_decoder", named(_ADDED)),
        *((name, flag) for name in ("split_special_tokens", "spaces_between_special_tokens")),
        ("*special_tokens", _TOKENS),
        ("model_input_names", many(words)),
        ("chat_template", _TEMPLATE),
        *((name, flag) for name in ("do_*", "add_*_space", "clean_up_*", "strip_accents")),
        *((name, flag) for name in ("legacy", "use_default_system_prompt", "tokenize_chinese_chars")),
        *((name, words) for name in ("*_class", "name_or_path", "backend", "*_file", "padding_strategy")),
    )
)
SPECIAL = _settings((("additional_special_tokens", _TOKENS), ("*", either(token, _TOKENS))))
PIXELS = _settings(
    (
        ("auto_map", anything),
        ("do_*", flag),
        *((name, either(many(real), real)) for name in ("image_mean", "image_std")),
        ("rescale_factor", real),
        ("resample", between(0, 5, whole=True)),
        *((name, sides) for name in ("size", "crop_size", "max_image_size", "pad_size")),
        *((name, sizes) for name in ("patch_size", "*merge_size", "temporal_patch_size")),
        ("*token_id", token_ids),
        ("*_per_token", real),
        ("*_token", either(flag, token)),  # of a few processors, as of tokenizers: "add_eos_token": true
        *((name, some) for name in ("image_seq*", "num_additional_image_tokens", "min_pixels", "max_pixels")),
        *((name, words) for name in ("*_class", "*_type", "*_strategy", "data_format", "*_data_format")),
        ("chat_template", _TEMPLATE),
    )
)
FILES: dict[str, Kind] = {
    "config.json": CONFIG,
    "generation_config.json": GENERATION,
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": SPECIAL,
    "added_tokens.json": named(some),
    "preprocessor_config.json": PIXELS,
    "video_preprocessor_config.json": PIXELS,
    "processor_config.json": PIXELS,
    "chat_template.json": record("chat_template", chat_template=words),
    "adapter_config.json": _settings(
        (
            ("base_model_name_or_path", words),
            ("r", size),
            ("lora_alpha", real),
            ("*dropout", between(0, 1)),
            *((name, either(many(words), words)) for name in ("target_modules", "modules_to_save")),
            *((name, named(number)) for name in ("rank_pattern", "alpha_pattern")),
            *((name, flag) for name in ("use_*", "fan_in_fan_out", "inference_mode")),
        )
    ),
}
INDEX = record("weight_map", weight_map=named(words))


def check_side_files(folder: str | Path) -> None:
    """Check every JSON file beside the weights of a checkpoint that libraries would read.

    Raises:
        ValueError: a pipe or a device in the folder, no JSON, or a value that its name cannot have; the message names
            the file, the name and the value.
    """
    for path in Path(folder).iterdir():
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device may never end
            raise ValueError(f"{path}: cannot be read: it is no plain file")
    for path in sorted(Path(folder).glob("*.json")):
        kind = INDEX if path.name.endswith(".index.json") else FILES.get(path.name)
        if kind is not None:
            kind(read_json(path), f"{path}:")
