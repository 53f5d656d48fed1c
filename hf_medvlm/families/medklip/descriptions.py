"""What the entities of a MedKLIP look like, in words, and words -> embeddings. Knows no image and no model of ours.

The descriptions are the project's own. They name what is seen (white, black, line, round, fluid), where it lies and
what it does to its surroundings, in the same words wherever the same is meant: a description that was never trained on
finds its way by the words that it shares with others.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hf_medvlm.labels import MEDKLIP_POSITIONS, POSITION_PROMPT
from hf_medvlm.models.loading import load_tokenizer
from hf_medvlm.models.towers import load_tower

DESCRIPTIONS: Mapping[str, str] = {
    "normal": "Normal: nothing abnormal is seen, and size and shape are as expected.",
    "clear": "Clear: the lung is evenly dark, without white opacity or fluid.",
    "sharp": "Sharp: the border or angle is a crisp line, not blunted by fluid.",
    "sharply": "Sharply: the border is drawn as a crisp line.",
    "unremarkable": "Unremarkable: nothing abnormal is seen here.",
    "intact": "Intact: the bones are whole, without fracture.",
    "stable": "Stable: unchanged from the prior study.",
    "free": "Free: air or fluid that lies outside its place, under the diaphragm.",
    "effusion": "Pleural effusion: white fluid in the pleural space at the base, blunting of the costophrenic angle.",
    "opacity": "Opacity: a hazy white or grey area within the lung, less dark than the lung around it.",
    "pneumothorax": "Pneumothorax: black air in the pleural space without lung markings, a thin white pleural line.",
    "edema": "Pulmonary edema: fluid in both lungs, hazy white opacity around the hila, thickened markings.",
    "atelectasis": "Atelectasis: collapse of lung with volume loss, a white band or plate of opacity at the base.",
    "tube": "Tube: a support device, a thin straight white line through the trachea, the chest or the stomach.",
    "consolidation": "Consolidation: an opacity, a dense white area within the lung, filled by infection.",
    "process": "Process: something abnormal at work in the lung or the heart.",
    "abnormality": "Abnormality: anything abnormal in the lung, the heart or the bones.",
    "enlarge": "Enlarged: greater than normal, as an enlarged heart that is wide in the chest.",
    "tip": "Tip: the end of a tube, line or catheter.",
    "low": "Low: lung volumes smaller than normal, the diaphragm raised.",
    "eumonia": "Pneumonia: infection of the lung, a white opacity or consolidation within the lung.",
    "line": "Line: a support device, a thin white line through a vein towards the heart.",
    "congestion": "Congestion: widened vessels and hazy markings around the hila from a failing heart.",
    "catheter": "Catheter: a support device, a thin white line whose tip lies near the heart.",
    "cardiomegaly": "Cardiomegaly: an enlarged heart, wide in the chest.",
    "fracture": "Fracture: a broken bone, a dark gap or a step in a rib or the clavicle.",
    "air": "Air: black, without lung markings, where none belongs.",
    "tortuous": "Tortuous: the aorta is unfolded and winds.",
    "lead": "Lead: a support device, a thin white wire that runs to the heart.",
    "disease": "Disease: something abnormal of the lung, the heart or the pleura.",
    "calcification": "Calcification: a small, very dense white spot or rim of calcium.",
    "prominence": "Prominence: a border, vessel or hilum that stands out, wider than normal.",
    "device": "Device: a support device, a white tube, line or wire that was put into the chest.",
    "engorgement": "Engorgement: vessels around the hila that are wide and full.",
    "picc": "PICC: a support device, a thin white line from the arm through a vein towards the heart.",
    "clip": "Clip: a small, very dense white piece of metal left by surgery.",
    "elevation": "Elevation: one side of the diaphragm stands higher than normal.",
    "expand": "Expanded: the lung is full of air, evenly dark.",
    "nodule": "Nodule: a small round white opacity within the lung, a lesion.",
    "wire": "Wire: a support device, thin white loops or lines of metal in the middle of the chest.",
    "fluid": "Fluid: white, at the base or in the pleural space, with a curved upper border.",
    "degenerative": "Degenerative: worn bones of the spine with dense spurs.",
    "pacemaker": "Pacemaker: a support device, a white box of metal with a lead that runs to the heart.",
    "thicken": "Thickening: a white line or band along the pleura or the fissure, wider than normal.",
    "marking": "Markings: lines of vessels and tissue through the lung.",
    "scar": "Scar: thin white lines or bands left in the lung by an old disease.",
    "hyperinflate": "Hyperinflation: lungs too large and too dark, a flat diaphragm.",
    "blunt": "Blunting: the costophrenic angle is filled with white fluid at the base and no longer sharp.",
    "loss": "Loss: volume loss of a lung, which is smaller and whiter, the diaphragm raised.",
    "widen": "Widened: the mediastinum is wider than normal.",
    "collapse": "Collapse: a lung or lobe without air, white and smaller, with volume loss.",
    "density": "Density: a white area within the lung, denser than the lung around it.",
    "emphysema": "Emphysema: lung destroyed and full of black air, lungs too large, a flat diaphragm.",
    "aerate": "Aerated: the lung is full of air, evenly dark.",
    "mass": "Mass: a large round white opacity within the lung, a lesion.",
    "crowd": "Crowding: vessels and markings pressed together where lung volumes are low.",
    "infiltrate": "Infiltrate: a hazy white opacity within the lung, from infection or fluid.",
    "obscure": "Obscured: a border of the heart or the diaphragm that is hidden by white opacity or fluid.",
    "deformity": "Deformity: a bone that is bent or out of shape from an old fracture.",
    "hernia": "Hernia: the stomach with air in it pushed up through the diaphragm, behind the heart.",
    "drainage": "Drainage: a support device, a white tube in the pleural space that drains fluid or air.",
    "distention": "Distention: stomach or vessels widened, full of air or blood.",
    "shift": "Shift: the mediastinum or the trachea pushed or drawn to one side.",
    "stent": "Stent: a support device, a short white tube of mesh.",
    "pressure": "Pressure: vessels wide from raised pressure in the veins of the lung.",
    "lesion": "Lesion: a round white opacity within the lung, a nodule or mass.",
    "finding": "Finding: anything that is seen and abnormal.",
    "borderline": "Borderline: at the upper limit of normal, as of the size of the heart.",
    "hardware": "Hardware: a support device, plates, screws or wires of dense white metal.",
    "dilation": "Dilation: a vessel, the aorta or the bowel wider than normal.",
    "chf": "Heart failure: an enlarged heart with pulmonary edema, hazy hila and pleural fluid.",
    "redistribution": "Redistribution: vessels of the upper lung as wide as those at the base, from raised pressure.",
    "aspiration": "Aspiration: white opacity at the base of the lung from something that was inhaled.",
    "tail_abnorm_obs": "Another abnormal finding that is seldom seen.",
    "excluded_obs": "An observation that is not about the picture.",
}
"""Entity of `labels.MEDKLIP_ENTITIES` -> what it looks like."""

_STOP = frozenset(
    "a an and any are around as at belongs by for from has in into is it its near nor not of on or out than that the "
    "their this through to too under up was where which whose with within without".split()
)
_HASHES = 8  # numbers of an embedding that a feature touches


def describe(entity: str) -> str:
    """The description of a known entity; a name that is not known is its own description."""
    return DESCRIPTIONS.get(entity, entity.replace("_", " "))


def position_prompts(positions: Sequence[str] = MEDKLIP_POSITIONS) -> list[str]:
    """MedKLIP's sentence for each position, underscores kept."""
    return [POSITION_PROMPT + position for position in positions]


def hashed_embeddings(texts: Sequence[str], size: int = 768) -> Tensor:
    """Embeddings (N, size), numbers of unit variance, from the words alone: no training, no download, any text.

    Two texts are alike as far as they share words (and, less, parts of words: "fracture", "fractures"). Words that say
    nothing of a picture are left out. Feature hashing, Weinberger et al. 2009 (arXiv 0902.2206), with eight signed
    places a feature.

    Raises:
        ValueError: a text without a word.
    """
    rows = np.zeros((len(texts), size))
    for row, text in zip(rows, texts, strict=True):
        words = [word for word in re.findall(r"[a-z]+", text.lower().replace("_", " ")) if word not in _STOP]
        if not words:
            raise ValueError(f"{text!r:.100} holds no word that describes anything; write what is to be looked for")
        for word in dict.fromkeys(words):
            padded = f"<{word}>"
            parts = [padded[start : start + 4] for start in range(len(padded) - 3)]
            _add(row, f"word {word}", 1.0)
            for part in parts:
                _add(row, f"part {part}", 0.5 / len(parts) ** 0.5)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True) * size**0.5).float()


def _add(row: np.ndarray, feature: str, weight: float) -> None:
    """Add a feature's signed places, which follow from its name alone."""
    for number in range(_HASHES):
        code = zlib.crc32(f"{number} {feature}".encode())
        row[(code >> 1) % len(row)] += weight if code & 1 else -weight


@torch.no_grad()
def bert_embeddings(texts: Sequence[str], model_name_or_path: str, max_length: int = 128, batch: int = 32) -> Tensor:
    """[CLS] states (N, hidden) of a frozen BERT, for MedKLIP's checkpoint `emilyalsentzer/Bio_ClinicalBERT`.

    Args:
        model_name_or_path: a Hub id or folder.
        max_length: tokens; longer texts are cut. MedKLIP trains with 128.

    Raises:
        ValueError: there is no text, or no such model.
    """
    if not texts:
        raise ValueError("there is no text to embed; give at least one description")
    tokenizer, model = load_tokenizer(model_name_or_path), load_tower(model_name_or_path, "text").eval()
    states = []
    for start in range(0, len(texts), batch):
        tokens = tokenizer(
            list(texts[start : start + batch]),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        states.append(model(**tokens).last_hidden_state[:, 0])
    return torch.cat(states)


def text_embeddings(texts: Sequence[str], text_encoder: str | None, size: int = 768) -> Tensor:
    """`bert_embeddings` of the text encoder, or `hashed_embeddings` where there is none."""
    return hashed_embeddings(texts, size) if text_encoder is None else bert_embeddings(texts, text_encoder)
