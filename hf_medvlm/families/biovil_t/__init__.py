"""BioViL and BioViL-T: temporal image encoder, CXR-BERT, phrase grounding."""

from hf_medvlm.families.biovil_t import cxr_bert, model, processor  # noqa: F401

RECIPES = {"biovil_t": "finetune_biovil_t"}
