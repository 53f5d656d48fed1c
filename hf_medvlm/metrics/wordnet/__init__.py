"""WordNet 3.0's synonyms, packaged: what METEOR asks of it and nothing else (no glosses, relations or senses' order).

`wordnet-3.0.txt.gz` holds one line a synset and one line an irregular form; its licence stands beside it.
`python -m hf_medvlm.metrics.wordnet <folder>` builds it from the files of Debian's `wordnet-base`.
"""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from functools import cache, lru_cache
from importlib.resources import files

DATA = "wordnet-3.0.txt.gz"

# Endings that WordNet's `morphy` (its manual page morphy(7WN)) takes off, by part of speech; the adverb has none.
SUFFIXES = {
    "n": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    "v": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "a": "er: est: er:e est:e",
    "r": "",
}
RULES = {pos: [tuple(rule.split(":")) for rule in rules.split()] for pos, rules in SUFFIXES.items()}


class Lemma:
    """Stand-in for nltk's `Lemma`, of which METEOR asks the name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


class Synset:
    """Stand-in for nltk's `Synset`, of which METEOR asks the lemmas."""

    def __init__(self, lemmas: list[Lemma]) -> None:
        self._lemmas = lemmas

    def lemmas(self) -> list[Lemma]:
        return self._lemmas


class WordNet:
    """Takes the place of `nltk.corpus.wordnet` in `nltk.translate.meteor_score`; the scores are the same."""

    def __init__(self, lines: list[str]) -> None:
        self._synsets: dict[str, dict[str, list[list[str]]]] = {pos: defaultdict(list) for pos in RULES}
        self._exceptions: dict[str, dict[str, list[str]]] = {pos: {} for pos in RULES}
        for line in lines:
            kind, *names = line.split()
            if kind in RULES:
                for key in {name.lower() for name in names}:
                    self._synsets[kind][key].append(names)
            else:  # "n! feet foot"
                self._exceptions[kind[0]][names[0]] = names[1:]

    def base_forms(self, word: str, pos: str) -> list[str]:
        """The forms of `word` that WordNet knows as `pos`: itself, its irregular or else its regular base forms."""
        known, irregular = self._synsets[pos], self._exceptions[pos].get(word)
        regular = [word[: -len(old)] + new for old, new in RULES[pos] if word.endswith(old)]
        return [form for form in dict.fromkeys([word, *(regular if irregular is None else irregular)]) if form in known]

    def words(self) -> frozenset[str]:
        """Every word that stands in a name, alone or in one of several words, lower-cased; letters alone."""
        names = (name for synsets in self._synsets.values() for name in synsets)
        return frozenset(word for name in names for word in re.findall("[a-z]+", name))

    @lru_cache(maxsize=2**16)  # noqa: B019  the one instance lives as long as the process
    def synsets(self, word: str) -> list[Synset]:
        """The synonyms of `word` in one synset (METEOR takes the union of all), without those of several words."""
        word = word.lower()
        names = {
            name
            for pos in RULES
            for form in self.base_forms(word, pos)
            for synset in self._synsets[pos][form]
            for name in synset
            if "_" not in name
        }
        return [Synset([Lemma(name) for name in sorted(names)])]


@cache
def load() -> WordNet:
    """The packaged WordNet 3.0, read at the first call (about half a second)."""
    lines = gzip.decompress(files(__name__).joinpath(DATA).read_bytes()).decode("utf-8").splitlines()
    return WordNet(lines[1:])  # the first says whose it is
