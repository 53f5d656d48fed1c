"""Dual encoders: one tower for images, one for reports, one joint space."""

from hf_medvlm.families.dual_encoder import model, processor  # noqa: F401

RECIPES = dict.fromkeys(("dual_encoder", "clip", "siglip", "siglip2"), "train_dual_encoder")
