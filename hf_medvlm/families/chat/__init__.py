"""Chat models that read radiographs and answer in conversations."""

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from hf_medvlm.families.chat import model  # noqa: F401
from hf_medvlm.families.chat.messages import encode_messages
from hf_medvlm.families.chat.processors import load_processor
from hf_medvlm.families.chat.templates import encode_conversation

__all__ = ["encode_conversation", "encode_messages", "load_processor"]

RECIPES = dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "finetune_chat") | {"llava": "llava_mimic"}
