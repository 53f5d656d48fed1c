"""ROUGE-1, 2, L and Lsum of single texts as the package rouge-score defines them, and COCO's ROUGE-L.

rouge-score's tokenizer is used as it is. Its quadratic table of the longest common subsequence is replaced by bit
vectors (Hyyro 2004, "Bit-parallel LCS-length computation revisited"), from which the same subsequence is read back.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from rouge_score.tokenize import tokenize

from hf_medvlm.metrics.tokens import CACHE, split_sentences

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BETA = 1.2  # weight of recall in COCO's ROUGE-L
Tokens = tuple[str, ...]
_OTHER_WORDS = re.compile(r"[^\W_]+")


@lru_cache(maxsize=CACHE)
def tokens_rouge(text: str) -> Tokens:
    """rouge-score's default tokens: lower case, runs of a-z and 0-9, no stemming.

    In texts with other letters the runs are of letters and digits of any script, where rouge-score would cut a word at
    each accent.
    """
    if not text.isascii():
        return tuple(_OTHER_WORDS.findall(unicodedata.normalize("NFC", text).lower()))
    return tuple(tokenize(text, None))


def _columns(tokens: Tokens) -> dict[str, int]:
    """Where each token stands, as a bit vector."""
    where: dict[str, int] = {}
    for j, token in enumerate(tokens):
        where[token] = where.get(token, 0) | 1 << j
    return where


def _table(rows: Tokens, where: dict[str, int], width: int) -> list[int]:
    """The table of longest common subsequences, one bit vector a row.

    Bit j of entry i is 0 where the length grows from column j to j + 1 in row i, so that the length for the first i
    rows and j columns is the number of zeros among the lowest j bits of entry i.
    """
    full = (1 << width) - 1
    table, vector = [full], full
    for token in rows:
        matches = vector & where.get(token, 0)
        vector = ((vector + matches) | (vector - matches)) & full
        table.append(vector)
    return table


def lcs_length(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence."""
    return len(second) - _table(first, _columns(second), len(second))[-1].bit_count()


@lru_cache(maxsize=CACHE)
def lcs_positions(reference: Tokens, candidate: Tokens) -> frozenset[int]:
    """Positions in `reference` of the longest common subsequence that rouge-score's backtracking finds."""
    where = _columns(candidate)
    kept = [i for i, token in enumerate(reference) if token in where]  # it walks straight through the other rows
    table = _table(tuple(reference[i] for i in kept), where, len(candidate))
    i, j, positions = len(kept), len(candidate), []
    while i and j:
        if reference[kept[i - 1]] == candidate[j - 1]:
            i, j = i - 1, j - 1
            positions.append(kept[i])
            continue
        prefix = (1 << j) - 1
        grows_here = not table[i] >> (j - 1) & 1
        grew_down = (table[i] & prefix).bit_count() < (table[i - 1] & prefix).bit_count()
        if not grows_here and grew_down:  # rouge-score: table[i][j - 1] > table[i - 1][j]
            j -= 1
        else:
            i -= 1
    return frozenset(positions)


def _f_measure(hits: int, candidate: int, reference: int) -> float:
    return 2 * hits / (candidate + reference) if hits else 0.0


def _overlap(candidate: Tokens, reference: Tokens, n: int) -> float:
    first, second = (Counter(zip(*(t[i:] for i in range(n)), strict=False)) for t in (candidate, reference))
    return _f_measure((first & second).total(), first.total(), second.total())


def _summary(candidate: Sequence[Tokens], reference: Sequence[Tokens]) -> float:
    """ROUGE-Lsum: hits of each reference sentence's union with all candidate sentences, no token counted twice."""
    left_c, left_r = (Counter(token for sentence in side for token in sentence) for side in (candidate, reference))
    n, m, hits = left_c.total(), left_r.total(), 0
    for sentence in reference:
        union = sorted(frozenset().union(*(lcs_positions(sentence, other) for other in candidate)))
        for token in (sentence[i] for i in union):
            if left_c[token] > 0 and left_r[token] > 0:
                left_c[token] -= 1
                left_r[token] -= 1
                hits += 1
    return _f_measure(hits, n, m)


@lru_cache(maxsize=CACHE)
def rouge(candidate: str, reference: str) -> tuple[float, float, float, float]:
    """F-measures rouge1, rouge2, rougeL, rougeLsum of one pair; Lsum on split sentences. An empty text scores 0."""
    c, r = tokens_rouge(candidate), tokens_rouge(reference)
    sentences = [[tokens_rouge(s) for s in split_sentences(text)] for text in (candidate, reference)]
    longest = _f_measure(lcs_length(r, c), len(c), len(r))
    return _overlap(c, r, 1), _overlap(c, r, 2), longest, _summary(*sentences)


def coco_rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of pycocoevalcap's `rouge.py`: best precision and best recall over the references, beta 1.2."""
    if not candidate or not any(references):
        return 0.0
    lengths = [(lcs_length(tuple(r), tuple(candidate)), len(r)) for r in references if r]
    precision = max(hits for hits, _ in lengths) / len(candidate)
    recall = max(hits / length for hits, length in lengths)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
