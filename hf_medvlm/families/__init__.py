"""The families. Importing this package registers every config, model and processor with the Auto classes."""

from __future__ import annotations

import sys

from hf_medvlm.families import biovil_t, captioners, chat, dual_encoder, medklip, patch_ib  # noqa: F401


def recipes() -> dict[str, str]:
    """`model_type` -> the recipe that trains and scores such a model, from the `RECIPES` of each family.

    Where two families name a model type, the one with fewer of them has it: chat models are most of transformers'.
    """
    folders = [module for name, module in sys.modules.items() if name.rpartition(".")[0] == __name__]
    tables = [module.RECIPES for module in folders if hasattr(module, "RECIPES")]
    return {name: recipe for table in sorted(tables, key=len, reverse=True) for name, recipe in table.items()}
