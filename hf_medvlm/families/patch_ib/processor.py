"""The dual encoder's processor, registered for the bottleneck's config too."""

from __future__ import annotations

from transformers import AutoProcessor, VisionTextDualEncoderProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_medvlm.families.dual_encoder.processor import OpenClipImageProcessor
from hf_medvlm.families.patch_ib.config import PatchIBConfig

AutoImageProcessor.register(PatchIBConfig, image_processor_classes={"pil": OpenClipImageProcessor})
AutoProcessor.register(PatchIBConfig, VisionTextDualEncoderProcessor)
