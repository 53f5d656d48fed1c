"""Patch information bottlenecks, variants A to H, on a dual encoder."""

from hf_medvlm.families.patch_ib import model, processor  # noqa: F401

RECIPES = {"patch_ib": "train_patch_ib"}
