"""Options of `recipes/finetune_chat.py`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from hf_medvlm.data.conversations import PROMPTS
from hf_medvlm.training import arguments
from hf_medvlm.training.arguments import MedVLMArguments, option
from hf_medvlm.training.clinical import ClinicalArguments
from hf_medvlm.training.parts import TRAIN_HELP, PartArguments

DEFAULTS = {"metric_for_best_model": "findings_f1_micro", "greater_is_better": True}

TINY = arguments.TINY | {
    "sections": "findings",
    "prompts": PROMPTS[0],
    "train": "vision,connector,language",
    "max_steps": 480,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 100,
    "learning_rate": 3e-3,
    "adam_beta2": 0.98,
    "max_new_tokens": 96,
    "other_images": True,
}


@dataclass
class MessageModelArguments(PartArguments, ClinicalArguments):
    """The chat model, and how it writes."""

    model_name_or_path: str | None = option(
        None, "any chat model that reads images (folder or Hub id); by default a tiny Qwen2.5-VL with random weights"
    )
    train: str = option("connector,language", TRAIN_HELP)
    bits: int = option(16, "4 or 8: train adapters on a quantised language model (QLoRA, needs bitsandbytes)")
    system_prompt: str = option("", "system text of every conversation that has none")
    image_size: int = option(224, "tiny model: side of its images in pixels")
    max_new_tokens: int = option(256, "where generation stops if the model does not end by itself")
    num_beams: int = option(1, "beams of the search for a text; 1 is greedy search")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (4, 8, 16):
            raise ValueError(f"--bits {self.bits}: choose 4, 8 or 16")
        if self.bits < 16 and not self.lora_rank:
            raise ValueError(f"--bits {self.bits} trains adapters alone; add --lora_rank")
        if self.bits < 16 and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"--bits {self.bits} needs bitsandbytes: pip install bitsandbytes, or leave --bits out")


@dataclass
class MessageTrainingArguments(MedVLMArguments):
    """`MedVLMArguments` with what is particular to conversations."""

    model_max_length: int = option(2048, "tokens of a conversation at most, images included; text is cut, images never")
    group_by_modality_length: bool = option(
        False, "order samples so that a step holds samples with images or without, and the processes get even work"
    )
    other_images: bool = option(False, "score the test split once more, each study with the images of another")
    packing: bool = option(False, "the conversations of a training batch in one row without padding")
