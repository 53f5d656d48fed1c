"""`Predictor`: a trained model that can be asked about radiographs. Each family has a subclass, in its `inference.py`.

It runs the family's own collator and evaluation, with the settings of the run, so that what it says of an image is what
the evaluation said of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study
from hf_medvlm.errors import library_errors
from hf_medvlm.evaluation.base import Evaluation
from hf_medvlm.evaluation.maps import over_image
from hf_medvlm.inference.pictures import Picture, as_studies, open_picture

ABILITIES = {
    "report": "report(images)",
    "embed": "embed(images)",
    "embed_texts": "embed_texts(texts)",
    "findings": "findings(images)",
    "progression": "progression(images, previous)",
    "ground": "ground(image, phrase)",
    "ask": "ask(image, question)",
}
Outputs = dict[str, np.ndarray]
T = TypeVar("T")


class Predictor:
    """A model, how its family reads and tells, and where both came from.

    Args:
        model: in evaluation mode, on its device.
        evaluation: of the family, without training studies.
        folder: the run or checkpoint; named in messages.
        autocast: the half precision that the model was evaluated in, or None.
        batch_size: of the calls below.

    Every method takes one image or a list, and gives one answer or a list. An image is a path (PNG, JPEG, DICOM), a PIL
    image, or an array (H, W). What a family cannot do raises `ValueError` with what it can.
    """

    family = "model"  # "a captioner", for messages
    abilities: frozenset[str] = frozenset()
    takes_previous = False
    map_meaning = ""  # what the numbers of `ground` are

    def __init__(
        self,
        model: Any,
        evaluation: Evaluation,
        folder: str | Path,
        autocast: torch.dtype | None = None,
        batch_size: int = 8,
    ) -> None:
        self.model, self.evaluation, self.folder = model.eval(), evaluation, Path(folder)
        self.weights = self.folder  # the folder on this machine, where `folder` is a Hub id
        self.autocast, self.batch_size = autocast, batch_size
        self._lock = threading.RLock()  # collators hold the images of one call; two threads take turns

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def require(self, ability: str) -> None:
        """Raise `ValueError` unless the family can do this; the message says what it can."""
        if ability not in self.abilities:
            can = ", ".join(f".{call}" for name, call in ABILITIES.items() if name in self.abilities)
            raise ValueError(
                f"{self.folder} holds {self.family}; it has {can or 'nothing to ask'}, no .{ABILITIES[ability]}"
            )

    # -- what a caller asks --------------------------------------------------------------------------------------------

    @overload
    def report(self, images: Picture, previous: Picture | None = None) -> str: ...
    @overload
    def report(self, images: Sequence[Picture], previous: Sequence[Picture | None] | None = None) -> list[str]: ...
    def report(self, images: Any, previous: Any = None) -> Any:
        """The report that the model writes of each image, as its run's `generate` settings have it."""
        self.require("report")
        return self._each(images, previous, lambda described: described["prediction"])

    @overload
    def findings(self, images: Picture, previous: Picture | None = None) -> dict[str, float]: ...
    @overload
    def findings(
        self, images: Sequence[Picture], previous: Sequence[Picture | None] | None = None
    ) -> list[dict[str, float]]: ...
    def findings(self, images: Any, previous: Any = None) -> Any:
        """Finding -> probability of being present, for each image; `thresholds` says what counts as present."""
        self.require("findings")
        return self._each(images, previous, lambda described: described["probabilities"])

    @property
    def thresholds(self) -> dict[str, float]:
        """Finding -> the probability above which the run's own evaluation called it present; empty for 0.5."""
        return {}

    @overload
    def progression(self, images: Picture, previous: Picture) -> dict[str, str]: ...
    @overload
    def progression(self, images: Sequence[Picture], previous: Sequence[Picture]) -> list[dict[str, str]]: ...
    def progression(self, images: Any, previous: Any) -> Any:
        """Finding -> improving, stable or worsening since the previous image."""
        self.require("progression")
        return self._each(images, previous, lambda described: described["progression_prediction"])

    def embed(self, images: Picture | Sequence[Picture], previous: Any = None) -> np.ndarray:
        """Normalised embeddings, (D,) of one image or (N, D) of a list, float32."""
        self.require("embed")
        pictures, priors, many = _as_list(images, previous)
        rows = [outputs["image_embeds"] for outputs in self._outputs(pictures, priors)]
        features = np.stack(rows) if rows else np.zeros((0, 0), np.float32)
        return features if many else features[0]

    def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """Normalised embeddings, (D,) of one text or (N, D) of a list, float32, in the space of `embed`."""
        self.require("embed_texts")
        given = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(text, str) and text.strip() for text in given):
            raise ValueError("a text to embed is empty, or is no text")
        order = sorted(range(len(given)), key=lambda place: len(given[place]))  # little padding
        by_place: dict[int, np.ndarray] = {}
        with torch.inference_mode(), self._precision():
            for start in range(0, len(order), 64):
                places = order[start : start + 64]
                rows = self._embed_texts([given[place] for place in places]).float().cpu().numpy()
                by_place |= dict(zip(places, rows, strict=True))
        stacked = np.stack([by_place[place] for place in range(len(given))]) if given else np.zeros((0, 0), np.float32)
        return stacked[0] if isinstance(texts, str) else stacked

    @overload
    def ground(self, image: Picture, phrase: str) -> np.ndarray: ...
    @overload
    def ground(self, image: Sequence[Picture], phrase: str | Sequence[str]) -> list[np.ndarray]: ...
    def ground(self, image: Any, phrase: Any) -> Any:
        """Where the phrase is, (H, W) float32 over the whole image; NaN where the model's crop leaves the image out."""
        self.require("ground")
        pictures, _, many = _as_list(image, None)
        phrases = [phrase] * len(pictures) if isinstance(phrase, str) else list(phrase)
        if len(phrases) != len(pictures):
            raise ValueError(f"{len(phrases)} phrases for {len(pictures)} images; give one, or one for each")
        opened = [open_picture(picture) for picture in pictures]
        maps = [
            over_image(grids[text], picture.size, self.image_processor)
            for picture, text, grids in zip(opened, phrases, self._located(opened, phrases), strict=True)
        ]
        return maps if many else maps[0]

    def _located(self, pictures: Sequence[Image.Image], phrases: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
        for start in range(0, len(pictures), self.batch_size):
            block = slice(start, start + self.batch_size)
            studies, priors, named = as_studies(pictures[block])
            with self._lock, torch.inference_mode(), self._precision():
                self.see(named, priors)
                batch = self._to_device(self.collate([Row(study, n) for n, study in enumerate(studies)]))
                yield from self.locate(batch, [[phrase] for phrase in phrases[block]])

    @overload
    def ask(self, image: Picture, question: str) -> str: ...
    @overload
    def ask(self, image: Sequence[Picture], question: str | Sequence[str]) -> list[str]: ...
    def ask(self, image: Any, question: Any) -> Any:
        """The answer to a question about each image."""
        self.require("ask")
        pictures, _, many = _as_list(image, None)
        questions = [question] * len(pictures) if isinstance(question, str) else list(question)
        if len(questions) != len(pictures) or not all(isinstance(q, str) and q.strip() for q in questions):
            raise ValueError(f"{len(questions)} questions for {len(pictures)} images; give one text, or one for each")
        answers = [self.tell(outputs)["prediction"] for outputs in self._outputs(pictures, None, questions)]
        return answers if many else answers[0]

    @contextmanager
    def library_errors(self) -> Iterator[None]:
        """What a library raises on the values of this checkpoint's configuration becomes a sentence that names it."""
        try:
            with library_errors(f"{self.folder}: its model or processor cannot be used", "compare its files"):
                yield
        except ValueError as error:
            if str(self.folder) in str(error):
                raise
            raise ValueError(f"{error} (asked of {self.folder})") from error

    # -- what the commands ask -----------------------------------------------------------------------------------------

    def see(self, image_folder: str | Path | Mapping[str, Image.Image], priors: Iterable[Study] = ()) -> None:
        """Say where the images of the following calls lie, and which studies came before them."""
        self.collator.image_folder = image_folder

    def collate(self, rows: list[Row], question: str = "") -> dict[str, Any]:
        """The batch of studies without their texts."""
        with self.library_errors():
            return self.evaluation.collate_images(rows)

    def predict(self, batch: dict[str, Any]) -> list[Outputs]:
        """What the model makes of each study of a batch."""
        with torch.inference_mode(), self._precision(), self.library_errors():
            outputs = self.evaluation.predict_images(self.model, self._to_device(batch))
        arrays = {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in outputs.items()
        }
        return [{name: array[row] for name, array in arrays.items()} for row in range(len(next(iter(arrays.values()))))]

    def tell(self, outputs: Outputs) -> dict[str, Any]:
        """One study's outputs in words and numbers: what `predictions.jsonl` says of it."""
        return self.evaluation.describe(outputs)

    def find(
        self, batch: dict[str, Any], phrases: Sequence[Sequence[str]], texts: Sequence[str] = ()
    ) -> list[dict[str, Tensor]]:
        """`locate`, of a batch as `collate` gave it; `texts` are the reports in which the phrases stand, if any do."""
        with torch.inference_mode(), self._precision():
            if texts:
                return self.locate_written(self._to_device(batch), phrases, texts)
            return self.locate(self._to_device(batch), phrases)

    def locate_written(
        self, batch: dict[str, Any], phrases: Sequence[Sequence[str]], texts: Sequence[str]
    ) -> list[dict[str, Tensor]]:
        """As `locate`, for phrases out of what was written of each study; by default the text changes nothing."""
        return self.locate(batch, phrases)

    def length(self, study: Study) -> int:
        """What decides how much a study must be padded beside others; equal for families that read one image."""
        return 0

    def locate(self, batch: dict[str, Any], phrases: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
        """phrase -> its map (h, w) over what the model sees, on the CPU, for each study of a batch on the device."""
        raise TypeError(f"{type(self).__name__} locates nothing")

    def shown_phrases(self, described: Mapping[str, Any], most: int) -> list[str]:
        """Of what `tell` gave, the phrases whose maps are worth showing, the likeliest first."""
        likely, present = described.get("probabilities") or {}, described.get("findings_prediction") or {}
        names = [name for name, state in present.items() if state == 1 and name != "No Finding"]
        return sorted(names, key=lambda name: -likely.get(name, 0.0))[:most]

    @property
    def collator(self) -> Any:
        """The evaluation's."""
        return self.evaluation.collator  # type: ignore[attr-defined]

    @property
    def image_processor(self) -> Any:
        """What resizes and crops the images."""
        processor = getattr(self.collator, "processor", self.collator)
        return getattr(processor, "image_processor", processor)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _embed_texts(self, texts: list[str]) -> Tensor:
        """(N, D), normalised."""
        raise TypeError(f"{type(self).__name__} embeds no texts")

    def _each(self, images: Any, previous: Any, answer: Any) -> Any:
        pictures, priors, many = _as_list(images, previous)
        told = self._outputs(pictures, priors)
        with self.library_errors():
            answers = [answer(self.tell(outputs)) for outputs in told]
        return answers if many else answers[0]

    def _outputs(
        self, pictures: list[Picture], previous: list[Picture | None] | None, questions: Sequence[str] = ()
    ) -> list[Outputs]:
        if previous is not None and not self.takes_previous:
            raise ValueError(f"{self.folder} holds {self.family}, which takes no previous image")
        studies, priors, named = as_studies(pictures, previous)
        outputs: list[Outputs] = []
        with self._lock:
            self.see(named, [*studies, *priors])
            for start in range(0, len(studies), self.batch_size):
                block = range(start, min(start + self.batch_size, len(studies)))
                rows = [Row(studies[n], n) for n in block]
                with self.library_errors():
                    outputs += self.predict(self._batch(rows, [*questions[start : block.stop]]))
        return outputs

    def _batch(self, rows: list[Row], questions: list[str]) -> dict[str, Any]:
        return self.collate(rows)

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            dtype = self.model.dtype if value.is_floating_point() else None
            return value.to(self.device, dtype)
        if isinstance(value, Mapping):
            return {name: self._to_device(item) for name, item in value.items()}
        return value

    def _precision(self) -> Any:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)


def _as_list(images: Any, previous: Any) -> tuple[list[Picture], list[Picture | None] | None, bool]:
    """The images as a list, their previous ones likewise, and whether they came as one."""
    many = isinstance(images, (list, tuple))
    if not many:
        return [images], None if previous is None else [previous], False
    return list(images), None if previous is None else list(previous), True
