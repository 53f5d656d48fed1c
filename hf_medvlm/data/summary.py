"""The table that opens a paper: what is in a set of studies, by split and by finding, as JSON, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Any
from zlib import crc32

from hf_medvlm.data.files import plain_cell
from hf_medvlm.data.study import Study
from hf_medvlm.labels import SPLITS, Finding

STATES = {Finding.PRESENT: "present", Finding.ABSENT: "absent", Finding.UNCERTAIN: "uncertain"}
CUTOFFS = (1, 5, 10)


@dataclass
class Tally:
    """What is counted of some studies; one tally can be added to another. Texts are not kept.

    `words` has the number of words of each text, `texts` how often each text is there. Its length, number of words and
    checksum stand for it: of MIMIC-CXR's 228,000 texts, fewer than 0.1 pairs are then taken for equal that are not.
    """

    patients: set[str] = field(default_factory=set)
    views: Counter[str] = field(default_factory=Counter)
    findings: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    texts: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    characters: int = 0
    with_prior: int = 0

    @classmethod
    def of(cls, studies: Sequence[Study]) -> Tally:
        texts = [study.text() for study in studies]
        plain = [" ".join(text.split()) if "  " in text or "\n" in text else text for text in texts]
        return cls(
            patients={study.patient_id for study in studies},
            views=Counter([image.view or "unknown" for study in studies for image in study.images]),
            findings=Counter(chain.from_iterable(study.labels.items() for study in studies)),
            texts=Counter([(len(text), text.count(" "), crc32(text.lower().encode())) for text in plain]),
            words=[text.count(" ") + bool(text) for text in plain],
            characters=sum(map(len, texts)),
            with_prior=sum(study.prior_study_id is not None for study in studies),
        )

    def add(self, other: Tally) -> None:
        self.patients |= other.patients
        self.views.update(other.views)
        self.findings.update(other.findings)
        self.texts.update(other.texts)
        self.words += other.words
        self.characters += other.characters
        self.with_prior += other.with_prior

    def numbers(self) -> dict[str, float]:
        """The rows of the table by split."""
        words, count = sorted(self.words), len(self.words)
        return {
            "studies": count,
            "patients": len(self.patients),
            "images": self.views.total(),
            **{f"images_{view}": self.views[view] for view in sorted(self.views)},
            "with_prior": self.with_prior,
            "unique_texts": len(self.texts),
            "duplicates": sum(times for times in self.texts.values() if times > 1),
            "words_mean": round(sum(words) / max(count, 1), 1),
            "words_median": median(words) if words else 0,
            "words_95": words[math.ceil(0.95 * count) - 1] if words else 0,
            "words_max": words[-1] if words else 0,
            "characters_mean": round(self.characters / max(count, 1), 1),
            **{
                f"ceiling_recall@{k}": round(sum(min(k, times) for times in self.texts.values()) / max(count, 1), 4)
                for k in CUTOFFS
            },
        }


def tally(studies: Iterable[Study]) -> dict[str, Tally]:
    """Split -> what is counted of its studies."""
    groups: dict[str, list[Study]] = {}
    for study in studies:
        groups.setdefault(study.split or "none", []).append(study)
    return {split: Tally.of(group) for split, group in groups.items()}


def summarise(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Counts by split (and under `all`), and by finding, split and state.

    `words_*` and `characters_mean` measure `Study.text()`. `unique_texts` counts texts that differ in more than case
    and white space; `duplicates` is how many studies share their text with another one. `ceiling_recall@k` is the most
    that text retrieval can reach in the whole split where only a study's own row counts as right, although equal texts
    cannot be told apart: of m equal ones a perfect model has k of m chances, so the sum over texts of min(k, m) / N.
    """
    tallies = {split: Tally() for split in SPLITS} | dict(tallies)
    every = Tally()
    for each in tallies.values():
        every.add(each)
    splits = {split: each.numbers() for split, each in (*tallies.items(), ("all", every))}
    findings: dict[str, dict[str, dict[str, int]]] = {}
    for name in sorted({name for each in tallies.values() for name, _ in each.findings}):
        findings[name] = {}
        for split, each in tallies.items():
            stated = {word: each.findings[name, state] for state, word in STATES.items()}
            # A study that does not name the finding at all does not mention it either.
            findings[name][split] = stated | {"not_mentioned": len(each.words) - sum(stated.values())}
    return {"splits": splits, "findings": findings}


def to_csv(summary: Mapping[str, Any]) -> str:
    """One number a line: table, row, column, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value"])
    rows: list[tuple[Any, ...]] = []
    for split, values in summary["splits"].items():
        rows += [("splits", name, split, value) for name, value in values.items()]
    for name, by_split in summary["findings"].items():
        for split, states in by_split.items():
            rows += [("findings", name, f"{split} {state}", count) for state, count in states.items()]
    rows += [("left_out", reason, "", count) for reason, count in summary.get("left_out", {}).items()]
    writer.writerows([plain_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def to_markdown(summary: Mapping[str, Any]) -> str:
    """By split; by finding (present / absent / uncertain, share present); what was left out; how it was made."""
    splits = summary["splits"]
    rows = dict.fromkeys(name for values in splits.values() for name in values)
    parts = [_table(["", *splits], [[name, *(values.get(name, 0) for values in splits.values())] for name in rows])]
    if summary["findings"]:
        lines = []
        for name, by_split in summary["findings"].items():
            cells = []
            for split, states in by_split.items():
                share = states["present"] / max(splits[split]["studies"], 1)
                cells.append(f"{states['present']} / {states['absent']} / {states['uncertain']} ({share:.1%})")
            lines.append([name, *cells])
        heads = [f"{split}: present / absent / uncertain" for split in next(iter(summary["findings"].values()))]
        parts.append(_table(["finding", *heads], lines))
    if summary.get("left_out"):
        parts.append(_table(["left out", "entries"], list(summary["left_out"].items())))
    if summary.get("settings"):
        parts.append(_table(["setting", "value"], list(summary["settings"].items())))
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
