"""The families. Importing this package registers every config, model and processor with the Auto classes."""

from hf_medvlm.families import biovil_t, captioners, chat, dual_encoder, medklip, patch_ib  # noqa: F401
