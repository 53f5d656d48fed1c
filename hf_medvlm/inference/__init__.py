"""A trained model on new radiographs: `load` gives an object that can be asked; the commands are built on it."""

from hf_medvlm.inference.loading import load
from hf_medvlm.inference.predictor import Predictor

__all__ = ["Predictor", "load"]
