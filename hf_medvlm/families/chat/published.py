"""LLaVA-1.5 checkpoints of haotian-liu/LLaVA <-> `LlavaReporter`'s state dict; and `llava-hf` folders.

Original names: `model.{embed_tokens,layers,norm}` and `lm_head` (the language model), `model.mm_projector.{0,2}`,
`model.vision_tower.vision_tower.vision_model.*` (CLIP, in the checkpoint or in a folder of its own).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
)
from transformers.initialization import no_init_weights

from hf_medvlm.models.convert.checkpoint import load_weights, read_json, read_state_dict
from hf_medvlm.models.loading import (
    check_size,
    clear_errors,
    find_folder,
    has_image_processor,
    load_config,
    load_strictly,
    read_config,
    weight_files,
)
from hf_medvlm.models.towers import load_tower, tokens_before

Llava = TypeVar("Llava", bound=LlavaForConditionalGeneration)

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
OTHER_PROJECTORS = ("TAC", "tac")  # Libra's temporal alignment connector
LANGUAGE_MODELS = {"llava": LlamaConfig, "llava_llama": LlamaConfig, "llava_mistral": MistralConfig}
IGNORABLE = ("*.rotary_emb.inv_freq", "*.position_ids")
VISION = "model.vision_tower.vision_tower.vision_model."
# (original, ours), the more particular first
RENAMED = (
    (VISION, "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)


def load_published(
    cls: type[Llava],
    folder: Path,
    config: PreTrainedConfig | None = None,
    vision_tower: str | Path | None = None,
    dtype: torch.dtype | None = None,
    shapes_only: bool = False,
) -> Llava:
    """`LlavaReporter.from_published`.

    Args:
        vision_tower: CLIP folder, in place of the one named in the checkpoint's `mm_vision_tower`.
        dtype: of the weights; by default float32, which training in mixed precision wants.
        shapes_only: build it on the meta device: sizes and names, which are held against the index of the shards, but
            no weights. A checkpoint that brings its tower without a description is read all the same.
    """
    record, config_class = read_config(folder), _config_class(cls)
    dtype = dtype or torch.float32
    if "vision_config" in record and "mm_vision_tower" not in record and "mm_projector_type" not in record:
        settings = {key: value for key, value in record.items() if key not in ("model_type", "architectures", "dtype")}
        with clear_errors(folder, "config.json"):
            config = config or config_class.from_dict(settings)
        if shapes_only:
            with torch.device("meta"):
                return cls._from_config(config, dtype=dtype)
        return load_strictly(cls, folder, config=config, dtype=dtype)
    if shapes_only and (tower := find_vision_tower(folder, record, vision_tower, fetch=True)) is not None:
        with torch.device("meta"):
            model = cls._from_config(config or original_config(config_class, record, {}, tower), dtype=dtype)
        _check_index(model, folder)
        return model
    weights = read_weights(folder)
    has_tower = any(key.startswith(VISION) for key in weights)
    tower = find_vision_tower(folder, record, vision_tower, fetch=not has_tower)
    if not has_tower:
        weights |= read_vision_tower(tower, folder)
    config = config or original_config(config_class, record, weights, tower)
    check_size(cls, folder, config, sum(value.nbytes for value in weights.values()))
    with no_init_weights():
        model = cls._from_config(config, dtype=dtype)
    load_weights(model, {rename(key): value for key, value in weights.items()}, ignorable=IGNORABLE, what=str(folder))
    return model.eval()


def _check_index(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Raise `ValueError` where the index of the shards names other keys than the model has beside its tower."""
    for index in folder.glob("*.index.json"):
        listed = {rename(key) for key in (read_json(index) or {}).get("weight_map", {})}
        wanted = set(model.state_dict())
        missing = sorted(k for k in wanted - listed if not k.startswith(("model.vision_tower.", "model.multi_modal_")))
        more = sorted(key for key in listed - wanted if not any(fnmatchcase(key, pattern) for pattern in IGNORABLE))
        if missing or more:
            raise ValueError(
                f"{index}: does not fit {folder / 'config.json'}: {len(missing)} missing ({', '.join(missing[:5])}), "
                f"{len(more)} unexpected ({', '.join(more[:5])})"
            )


def _config_class(cls: type[LlavaForConditionalGeneration]) -> Any:
    return cls.config_class


def original_config(
    config_class: Any, record: dict[str, Any], weights: dict[str, Tensor], tower: Path | None
) -> PreTrainedConfig:
    """Our config of an original `config.json`. The image token gets the first id that the vocabulary has no row for.

    Raises:
        ValueError: another language model or projector than LLaVA-1.5's.
    """
    kind = record.get("model_type")
    if record.get("mm_projector_type") in OTHER_PROJECTORS or str(kind).startswith("libra"):
        raise ValueError(
            f"model_type {kind!r:.100} with mm_projector_type {record.get('mm_projector_type')!r:.100} is "
            f"Libra, whose connector "
            "over two radiographs is a module of its own; here there is LLaVA-1.5's mlp2x_gelu alone. Two radiographs "
            "go into any chat model of finetune_chat.py with --prior"
        )
    if kind not in LANGUAGE_MODELS:
        raise ValueError(
            f"model_type {kind!r:.100} is no LLaVA that can be loaded; those are {', '.join(LANGUAGE_MODELS)}"
        )
    projector = record.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise ValueError(f"mm_projector_type {projector!r:.100} is not supported; LLaVA-1.5 has mlp2x_gelu")
    if record.get("mm_use_im_start_end"):
        raise ValueError("mm_use_im_start_end is not supported; LLaVA-1.5 puts no tokens around an image")
    settings = record.get("text_config") or {k: v for k, v in record.items() if not k.startswith("mm_")}
    ours = ("model_type", "architectures", "vision_config", "auto_map", "torch_dtype", "dtype", "transformers_version")
    text = LANGUAGE_MODELS[kind](**{key: value for key, value in settings.items() if key not in ours})
    vision = record.get("vision_config")
    return config_class(
        text_config=text,
        vision_config=CLIPVisionConfig(**vision) if vision else vision_config(tower, weights),
        image_token_index=text.vocab_size,
        vision_feature_layer=record.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy={"patch": "default", "cls_patch": "full"}[
            record.get("mm_vision_select_feature", "patch")
        ],
        tie_word_embeddings=text.tie_word_embeddings,
    )


def vision_config(tower: Path | None, weights: dict[str, Tensor]) -> PreTrainedConfig:
    """The tower's config from its folder; without one, from the shapes of its weights (heads of 64, as CLIP's).

    Raises:
        ValueError: a tower whose features are no row of patches at every layer.
    """
    if tower is not None:
        config = load_config(tower)
        config = getattr(config, "vision_config", config)
        if config.model_type not in TOWERS:
            raise ValueError(
                f"--vision_tower {tower}: a {config.model_type}; LLaVA reads the patches of one layer, so take one of "
                f"{', '.join(TOWERS)}"
            )
        return config
    tensors = {key.removeprefix(VISION): value for key, value in weights.items() if key.startswith(VISION)}
    patch, positions = tensors["embeddings.patch_embedding.weight"], tensors["embeddings.position_embedding.weight"]
    return CLIPVisionConfig(
        hidden_size=patch.shape[0],
        patch_size=patch.shape[-1],
        image_size=round((len(positions) - 1) ** 0.5) * patch.shape[-1],
        intermediate_size=len(tensors["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("encoder.layers.")),
        num_attention_heads=max(patch.shape[0] // 64, 1),
    )


def find_vision_tower(
    folder: Path, record: dict[str, Any], named: str | Path | None = None, fetch: bool = False
) -> Path | None:
    """The tower's folder: the one named, else the checkpoint's `mm_vision_tower`, there or beside the checkpoint.

    Args:
        fetch: look for it on the Hub, or in its cache, where there is no such folder; the published LLaVA-1.5 names
            `openai/clip-vit-large-patch14-336`.

    Raises:
        ValueError: the folder named holds no model, or the Hub id cannot be read.
    """
    if named is not None:
        if not (Path(named) / "config.json").is_file():
            raise ValueError(f"--vision_tower {named}: no folder with a config.json is there")
        return Path(named)
    name = record.get("mm_vision_tower") or record.get("vision_tower") or ""
    places = [Path(name), folder / name, folder.parent / name, folder.parent / Path(name).name] if name else []
    here = next((place for place in places if place != folder and (place / "config.json").is_file()), None)
    if here is not None or not fetch or not name:
        return here
    if "biomedclip" in name.lower():  # LLaVA-Rad
        raise ValueError(
            f"{folder}: its vision tower {name} is published in open_clip's layout, which LLaVA's config does not "
            "describe. Write it as a ViT once, DualEncoderModel.from_published(FOLDER).vision_tower.save_pretrained("
            "NEW), and name it with --vision_tower NEW (docs/encoders.md)"
        )
    try:
        return find_folder(name)
    except ValueError as error:
        raise ValueError(
            f"{folder} holds no vision tower; its config.json names {name}, which is neither a folder here or beside "
            f"it nor in the Hub's cache. Fetch it (`hf download {name}`), or name a folder with --vision_tower"
        ) from error


def pixels_folder(folder: Path, vision_tower: Path | None) -> Path | None:
    """Where it stands how the pixels of a checkpoint are prepared: in its folder, or in its vision tower's."""
    record = read_config(folder)
    places = [folder, vision_tower, find_vision_tower(folder, record, fetch="mm_vision_tower" in record)]
    return next((place for place in places if place is not None and has_image_processor(place)), None)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, in safetensors or `.bin` shards, and of a `mm_projector.bin` beside them.

    Raises:
        ValueError: no weight files.
    """
    weights: dict[str, Tensor] = {}
    for file in [*weight_files(folder), *folder.glob("mm_projector.bin")]:
        weights |= read_state_dict(file)
    return weights


def read_vision_tower(tower: Path | None, folder: Path) -> dict[str, Tensor]:
    """A vision tower's weights, of CLIP under the original LLaVA's names, of others under ours.

    Raises:
        ValueError: there is no tower to read.
    """
    if tower is None:
        raise ValueError(
            f"{folder} holds no vision tower, and the one its config.json names is not a folder here; "
            "name it with --vision_tower"
        )
    config = vision_config(tower, {})
    if config.model_type == "clip_vision_model":
        tensors = {key: value for key, value in read_weights(tower).items() if key.startswith("vision_model.")}
        if tensors:
            return {VISION + key.removeprefix("vision_model."): value for key, value in tensors.items()}
    with _unsharded():
        weights = {f"model.vision_tower.{key}": v for key, v in load_tower(tower, "vision").state_dict().items()}
    if config.model_type == "vit":  # has a pooler behind the layers, which LLaVA does not read
        width = config.hidden_size
        weights["model.vision_tower.pooler.dense.weight"] = torch.zeros(width, width)
        weights["model.vision_tower.pooler.dense.bias"] = torch.zeros(width)
    return weights


@contextmanager
def _unsharded() -> Iterator[None]:
    """Inside, a model is loaded whole under ZeRO-3 too."""
    module = transformers.integrations.deepspeed
    before, module._hf_deepspeed_config_weak_ref = module._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        module._hf_deepspeed_config_weak_ref = before


def rename(key: str) -> str:
    """Our name of an original one; a name that LLaVA does not have comes back as it is, and is refused on loading."""
    if key.startswith("model.vision_tower.") and not key.startswith(VISION):
        return key
    return next((ours + key.removeprefix(theirs) for theirs, ours in RENAMED if key.startswith(theirs)), key)


def to_published(model: LlavaForConditionalGeneration, words: int | None = None) -> dict[str, Tensor]:
    """The state dict under the original names, the vision tower with it.

    Args:
        words: `vocab_size` of the original config.json, which knows no image token. Rows of the vocabulary behind it,
            which training has added for that token, are left out; by default all are kept.

    Raises:
        ValueError: the model has fewer words.
    """
    back = [(ours, theirs) for theirs, ours in RENAMED]
    published = {
        next(theirs + key.removeprefix(ours) for ours, theirs in back if key.startswith(ours)): value
        for key, value in model.state_dict().items()
    }
    if words is not None:
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            if len(published[key]) < words:
                raise ValueError(f"{key} has {len(published[key])} rows, and {words} are asked for")
            published[key] = published[key][:words].clone()
    return published


def is_llava(folder: Path) -> bool:
    """Whether a folder holds a LLaVA of any layout, and not a bare language model."""
    record = read_config(folder)
    return "vision_config" in record or "mm_vision_tower" in record or "mm_projector_type" in record


def assemble(
    cls: type[Llava],
    language_model: Path,
    vision_tower: Path,
    vision_feature_layer: int = -2,
    dtype: torch.dtype = torch.float32,
) -> Llava:
    """A new LLaVA around a language model (Vicuna, Mistral, ...) and a CLIP tower; the projector is random.

    Raises:
        ValueError: weights that do not fit, or a folder that holds none.
    """
    text, vision = load_config(language_model), vision_config(vision_tower, {})
    config = _config_class(cls)(
        text_config=text,
        vision_config=vision,
        vision_feature_select_strategy="default" if tokens_before(vision) == 1 else "full",
        image_token_index=text.vocab_size,
        vision_feature_layer=vision_feature_layer,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    with no_init_weights():
        model = cls._from_config(config, dtype=dtype)
    weights = read_weights(language_model) | read_vision_tower(vision_tower, vision_tower)
    named = {rename(key): value for key, value in weights.items()} | _new_projector(config)
    tied = ["lm_head.weight"] * text.tie_word_embeddings
    load_weights(model, named, ignorable=(*IGNORABLE, *tied), what=f"{language_model} with {vision_tower}")
    return model.eval()


def _new_projector(config: PreTrainedConfig) -> dict[str, Tensor]:
    """Random weights for the projector: the same for one seed, whether or not ZeRO-3 shards the model."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    width, weights = config.text_config.hidden_size, {}
    for name, inputs in (("linear_1", config.vision_config.hidden_size), ("linear_2", width)):
        drawn = torch.randn(width, inputs, generator=generator) * config.text_config.initializer_range
        weights[f"model.multi_modal_projector.{name}.weight"] = drawn
        weights[f"model.multi_modal_projector.{name}.bias"] = torch.zeros(width)
    return weights


def load_projector(model: LlavaForConditionalGeneration, path: str | Path) -> None:
    """Load the projector of LLaVA's stage 1, a `mm_projector.bin`, strictly.

    Raises:
        ValueError: no such file, or other keys than a projector's.
    """
    weights = {
        rename(key if key.startswith("model.") else f"model.{key}"): v for key, v in read_state_dict(path).items()
    }
    prefix = "model.multi_modal_projector."
    projector = {key.removeprefix(prefix): value for key, value in weights.items()}
    load_weights(model.model.multi_modal_projector, projector, what=str(path))
