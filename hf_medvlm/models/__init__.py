"""The families. Importing this package registers every config and model with the Auto classes."""

from hf_medvlm.models import (  # noqa: F401
    biovil_t,
    biovil_t_processor,
    captioners,
    cxr_bert,
    dual_encoder,
    dual_encoder_processor,
    llava,
    medklip,
    patch_ib,
)
