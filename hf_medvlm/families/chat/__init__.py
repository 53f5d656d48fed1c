"""Chat models that read radiographs and answer in conversations."""

from hf_medvlm.families.chat import model  # noqa: F401
