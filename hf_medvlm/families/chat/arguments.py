"""Options of `recipes/llava_mimic.py`, and LLaVA's own command line mapped to them.

LLaVA's names (`llava/train/train.py` @ c121f043) are kept where the option is the same; the others are translated by
`modernise_llava`, with one warning. Knows no model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_medvlm.data.conversations import PROMPTS, VIEWS
from hf_medvlm.data.fields import ALL_TEXT
from hf_medvlm.families.chat.templates import TEMPLATES
from hf_medvlm.training import arguments
from hf_medvlm.training.arguments import SECTIONS_HELP, DataArguments, MedVLMArguments, option
from hf_medvlm.training.clinical import ClinicalArguments
from hf_medvlm.training.legacy import say
from hf_medvlm.training.parts import TRAIN_HELP, PartArguments

ASPECT_RATIOS = ("pad", "square")

DEFAULTS = {"metric_for_best_model": "findings_f1_micro", "greater_is_better": True}

TINY = arguments.TINY | {
    "sections": "findings",
    "prompts": PROMPTS[0],
    "train": "all",
    "max_steps": 800,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 100,
    "learning_rate": 3e-3,
    "adam_beta2": 0.98,
    "max_new_tokens": 96,
}


@dataclass
class ChatModelArguments(PartArguments, ClinicalArguments):
    """The chat model, and how it writes."""

    model_name_or_path: str | None = option(
        None, "LLaVA (ours, llava-hf or original) or a language model; by default a tiny model with random weights"
    )
    version: str = option("v1", f"chat template: {', '.join(TEMPLATES)}")
    vision_tower: str | None = option(None, "CLIP folder or Hub id, to assemble a model around a language model")
    mm_projector_type: str = option("mlp2x_gelu", "LLaVA-1.5's projector, the only one")
    mm_vision_select_layer: int = option(-2, "which of the tower's hidden states the projector reads")
    pretrain_mm_mlp_adapter: str | None = option(None, "projector of stage 1: an mm_projector.bin")
    image_size: int = option(224, "tiny model: side of its images")
    train: str = option("connector,language", TRAIN_HELP)
    bits: int = option(16, "4 or 8: train adapters on a quantised language model (QLoRA, needs bitsandbytes)")
    max_new_tokens: int = option(256, "where generation stops if the model does not end by itself")
    num_beams: int = option(1, "beams of the search for a text; 1 is greedy search")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mm_projector_type != "mlp2x_gelu":
            raise ValueError(f"--mm_projector_type {self.mm_projector_type}: only mlp2x_gelu, LLaVA-1.5's, is there")
        if self.bits not in (4, 8, 16):
            raise ValueError(f"--bits {self.bits}: choose 4, 8 or 16")
        if self.bits < 16 and not self.lora_rank:
            raise ValueError(f"--bits {self.bits} trains adapters alone; add --lora_rank")
        if self.bits < 16 and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"--bits {self.bits} needs bitsandbytes: pip install bitsandbytes, or leave --bits out")


@dataclass
class ConversationDataArguments(DataArguments):
    """Which conversations: a file of them, or studies that are turned into conversations."""

    data_path: str | None = option(
        None, "conversations in place of --dataset: LLaVA's or ShareGPT's .json(l), VQA-RAD's, SLAKE's, or a .csv"
    )
    sections: str = option(ALL_TEXT, SECTIONS_HELP)
    prompts: str = option("|".join(PROMPTS), "studies: questions, separated by |; one is chosen for each study")
    indication: bool = option(False, "studies: put the indication into the prompt")
    views: str = option("frontal", f"studies: {' or '.join(VIEWS)} images")
    prior: bool = option(False, "studies: add the frontal image of the previous study")


@dataclass
class ChatDataArguments(ConversationDataArguments):
    """What LLaVA's image processor needs to know beside."""

    image_aspect_ratio: str = option("pad", "pad: to a square in the mean colour; square: crop the middle")

    def __post_init__(self) -> None:
        if self.image_aspect_ratio not in ASPECT_RATIOS:
            raise ValueError(
                f"--image_aspect_ratio {self.image_aspect_ratio!r:.100} is none of {', '.join(ASPECT_RATIOS)}"
            )


@dataclass
class ChatTrainingArguments(MedVLMArguments):
    """`MedVLMArguments` with what is particular to conversations."""

    model_max_length: int = option(2048, "tokens of a conversation at most, images included; text is cut, images never")
    group_by_modality_length: bool = option(
        False, "LLaVA's order: steps with images or without, even work for all processes"
    )
    packing: bool = option(False, "the conversations of a batch in one row without padding")

    def __post_init__(self) -> None:
        trackers = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        if "wandb" in trackers and importlib.util.find_spec("wandb") is None:
            say("--report_to wandb: wandb is not installed (pip install wandb); this run is logged in its folder only")
            trackers.remove("wandb")
            self.report_to = trackers or "none"
        super().__post_init__()


def modernise_llava(argv: Sequence[str]) -> list[str]:
    """LLaVA's command line in our names: one warning says what became of the options that have another name here.

    Raises:
        ValueError: an option that asks for what LLaVA-1.5 does not have (`--mm_use_im_start_end True`).
    """
    words, remarks, pending = [], [], list(argv)
    adapters = {"lora_r": LORA_R, "lora_alpha": LORA_ALPHA}  # of --lora_enable
    enabled: bool | None = None
    while pending:
        word = pending.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in (*TRANSLATED, *adapters, "lora_enable"):
            words.append(word)
            continue
        if not equals:
            value = pending.pop(0) if pending and not pending[0].startswith("--") else "True"
        is_true = value.lower() in ("true", "1", "yes")
        if name == "lora_enable":
            enabled = is_true
        elif name in adapters:
            adapters[name] = value
            words += [f"--{name}", value]
        elif is_true:
            wanted, translation, remark = TRANSLATED[name]
            if not wanted:
                raise ValueError(f"--{name} {value}: {remark}")
            words += translation
            remarks.append(f"--{name} ({remark})")
    if enabled is not None:
        words = _without(words, adapters)
    if enabled:
        rank, alpha = adapters.values()
        words += ["--train", "connector,language", "--lora_rank", rank, "--lora_alpha", alpha]
        remarks.append(f"--lora_enable (--train connector,language --lora_rank {rank} --lora_alpha {alpha})")
    if remarks:
        say("LLaVA's options by their names here: " + ", ".join(remarks))
    return words


def _without(words: list[str], names: Iterable[str]) -> list[str]:
    """The words without the options in `names` and their values."""
    left, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word.removeprefix("--") in names:
            skip = True
        else:
            left.append(word)
    return left


LORA_R, LORA_ALPHA = "128", "256"  # of LLaVA's scripts/v1_5/finetune_lora.sh
# name -> (may it be True, words in its place, remark)
TRANSLATED: dict[str, tuple[bool, list[str], str]] = {
    "tune_mm_mlp_adapter": (True, ["--train", "connector"], "--train connector"),
    "lazy_preprocess": (True, [], "always so"),
    "is_multimodal": (True, [], "seen from the data"),
    "mm_use_im_start_end": (False, [], "LLaVA-1.5 puts no tokens around an image; leave the option out"),
    "mm_use_im_patch_token": (False, [], "LLaVA-1.5 has no patch token; leave the option out"),
    "freeze_mm_mlp_adapter": (False, [], "the projector always trains; leave the option out"),
}
