"""MedKLIP: findings and where they are, learnt from reports."""

from hf_medvlm.families.medklip import model  # noqa: F401

RECIPES = {"medklip": "train_medklip"}
