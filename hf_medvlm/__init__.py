"""Fine-tune medical vision-language models on chest radiographs and their reports, on the Hugging Face Trainer.

The names of `__all__` are imported when they are first asked for: `import hf_medvlm` alone brings neither torch nor
transformers. `import hf_medvlm.families` registers every family with the Auto classes.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_medvlm.data.study import Study
    from hf_medvlm.families.biovil_t.model import BioViLTModel
    from hf_medvlm.families.captioners.model import BlipCaptioner, GitCaptioner
    from hf_medvlm.families.chat.model import LlavaReporter
    from hf_medvlm.families.dual_encoder.model import DualEncoderModel
    from hf_medvlm.families.medklip.model import MedKlipModel
    from hf_medvlm.families.patch_ib.model import PatchIBModel
    from hf_medvlm.inference.loading import load
    from hf_medvlm.training.trainer import MedVLMTrainer

__version__ = "0.1.0"
__all__ = [
    "BioViLTModel",
    "BlipCaptioner",
    "DualEncoderModel",
    "GitCaptioner",
    "LlavaReporter",
    "MedKlipModel",
    "MedVLMTrainer",
    "PatchIBModel",
    "Study",
    "__version__",
    "load",
]

_SAYS_NOTHING = {  # logger of another library -> how a warning begins that is no news on a machine without a GPU
    "DeepSpeed": "Setting accelerator to CPU",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


class _Without(logging.Filter):
    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.start)


for _name, _start in _SAYS_NOTHING.items():
    logging.getLogger(_name).addFilter(_Without(_start))

_MODULES = {  # public name -> the module that defines it
    "BioViLTModel": "families.biovil_t.model",
    "BlipCaptioner": "families.captioners.model",
    "DualEncoderModel": "families.dual_encoder.model",
    "GitCaptioner": "families.captioners.model",
    "LlavaReporter": "families.chat.model",
    "MedKlipModel": "families.medklip.model",
    "MedVLMTrainer": "training.trainer",
    "PatchIBModel": "families.patch_ib.model",
    "Study": "data.study",
    "load": "inference.loading",
}


def __getattr__(name: str) -> object:
    """Import a public name on its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
