"""A Qwen2.5-VL of about a million random weights, with a byte-level tokenizer trained on the spot: no download."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from hf_medvlm.families.chat.processors import processor_class

END, PAD, IMAGE = "<|im_end|>", "<|endoftext|>", "<|image_pad|>"
SPECIAL = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", IMAGE, "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's template without its system text, which a tiny model need not read."""
PATCH = 12


def train_byte_tokenizer(texts: Iterable[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's control tokens; the same texts give the same tokenizer.

    Raises:
        ValueError: there is no text to train on.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("cannot train a tokenizer: every text is empty")
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r" ?\w+|[^\w\s]|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def tiny_qwen_processor(tokenizer: PreTrainedTokenizerFast, image_size: int = 96) -> ProcessorMixin:
    """Qwen2.5-VL's processor for images of about `image_size` pixels a side."""
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (image_size // 2) ** 2, "longest_edge": image_size**2},
    )
    made: Any = processor_class("Qwen2_5_VLProcessor")(image_processor, tokenizer, chat_template=TEMPLATE)
    made.video_settings = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": PATCH}
    return made


def tiny_qwen(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """A model of about a million random weights for the given tokenizer."""
    ids: Any = tokenizer.convert_tokens_to_ids
    width = 128
    text = {
        "hidden_size": width,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        # with 0.02 so narrow a model learns the language and never looks at the image
        "initializer_range": width**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "eos_token_id": ids(END),
        "pad_token_id": ids(PAD),
        "bos_token_id": None,
    }
    vision = {
        "depth": 3,
        "hidden_size": width,
        "intermediate_size": 320,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": width,
        "window_size": 1024,  # all of a small image: every block sees the whole
        "fullatt_block_indexes": [0, 1, 2],
        "initializer_range": width**-0.5,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids(IMAGE),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=ids(END), pad_token_id=ids(PAD))
    return model
