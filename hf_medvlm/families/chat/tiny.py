"""A `LlavaReporter` of about a million random weights, with a Llama-like tokenizer trained on the spot: no download."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.models.loading import load_image_processor
from hf_medvlm.models.positions import mae_positions

IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def train_chat_tokenizer(
    texts: Iterable[str], vocab_size: int = 1000, model_max_length: int = 2048
) -> PreTrainedTokenizerFast:
    """A Llama-like BPE tokenizer (`▁` for spaces, bytes for unknown characters), trained on the given texts.

    The ids of <unk>, <s>, </s>, <image> are 0 to 3; as in LLaVA, padding is <unk>. The same texts give the same
    tokenizer.

    Raises:
        ValueError: there is no text to train on.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("cannot train a tokenizer: every text is empty")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split(Regex(r"\n|[.,:;?!]"), "isolated")]
    )
    special = [*SPECIAL_TOKENS.values(), IMAGE_TOKEN]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 256, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    vocabulary = learnt["vocab"] | {f"<0x{byte:02X}>": len(learnt["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer.model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        pad_token="<unk>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def make_processor(
    tokenizer: PreTrainedTokenizerBase,
    image_size: int,
    patch_size: int,
    image_aspect_ratio: str = "pad",
    vision_feature_select_strategy: str = "default",
    pixels: Path | None = None,
    tokens_before: int = 1,
) -> LlavaProcessor:
    """The tower's preprocessing on Pillow, and the tokenizer; `<image>` is added to one that does not have it.

    Args:
        image_aspect_ratio: `pad` to a square in the mean colour, or `square` (crop the middle), as LLaVA's option.
        vision_feature_select_strategy: `default` leaves the tower's class token out, `full` keeps it.
        pixels: folder whose image processor says mean, std and resampling; CLIP's without one.
        tokens_before: class and register tokens in front of the patches.
    """
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    image_processor = LlavaImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        do_pad=image_aspect_ratio == "pad",
    )
    if pixels is not None:
        trained = load_image_processor(pixels)
        for name in ("image_mean", "image_std", "resample", "do_normalize"):
            setattr(image_processor, name, getattr(trained, name, getattr(image_processor, name)))
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy=vision_feature_select_strategy,
        num_additional_image_tokens=tokens_before,
    )


def tiny_reporter(tokenizer: PreTrainedTokenizerBase, image_size: int = 96, patch_size: int = 16) -> LlavaReporter:
    """A model of about a million random weights for the given tokenizer."""
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4}
    text = sizes | {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        # with transformers' 0.02 so narrow a model learns the language and never looks at the image
        "initializer_range": sizes["hidden_size"] ** -0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = sizes | {
        "model_type": "clip_vision_model",
        "num_hidden_layers": 3,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    ids: Any = tokenizer.convert_tokens_to_ids
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
    )
    model = LlavaReporter(config)
    positions = model.model.vision_tower.embeddings.position_embedding.weight[1:]
    positions.data.copy_(mae_positions(image_size // patch_size, positions.shape[-1]))
    return model
