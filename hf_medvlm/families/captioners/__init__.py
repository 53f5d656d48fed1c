"""BLIP and GIT: captioners that write a report from one radiograph."""

from hf_medvlm.families.captioners import model  # noqa: F401

RECIPES = {"blip": "finetune_blip", "git": "finetune_git"}
