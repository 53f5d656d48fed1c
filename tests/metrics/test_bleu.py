"""BLEU's counts against the obvious computation, and against sacreBLEU itself."""

import math
import random
import re
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from hf_medvlm.metrics.bleu import bleu_counts, coco_bleu, corpus_bleu, sacre_bleu, sentence_bleu
from hf_medvlm.metrics.tokens import clean_r2gen, tokens_13a

WORDS = "the heart is normal ,".split()  # few, so that every order has matches


def random_corpus(seed, studies=40):
    """Candidates and one to three references each, some of them empty."""
    rng = random.Random(seed)
    text = lambda: rng.choices(WORDS, k=rng.choice([0, 1, 3, 8, 20]))  # noqa: E731
    return [text() for _ in range(studies)], [[text() for _ in range(rng.randint(1, 3))] for _ in range(studies)]


def slow_bleu(candidates, references, order, closest=False):
    """Papineni et al. 2002, written out."""
    matches, total = [0] * order, [0] * order
    length = reference_length = 0
    for candidate, texts in zip(candidates, references, strict=True):
        length += len(candidate)
        key = (lambda n: (abs(n - len(candidate)), n)) if closest else (lambda n: n)  # noqa: B023
        reference_length += min((len(text) for text in texts), key=key)
        for n in range(1, order + 1):
            grams = lambda words: Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))  # noqa: E731, B023
            total[n - 1] += sum(grams(candidate).values())
            for gram, count in grams(candidate).items():
                matches[n - 1] += min(count, max(grams(text)[gram] for text in texts))
    if min(matches) == 0:
        return 0.0
    precision = math.exp(sum(math.log(m / t) for m, t in zip(matches, total, strict=True)) / order)
    return precision * min(1.0, math.exp(1 - reference_length / length))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_corpus_bleu_is_the_textbook_one(seed, order):
    candidates, references = random_corpus(seed)
    counts = sum(bleu_counts(c, r) for c, r in zip(candidates, references, strict=True))[None]
    assert corpus_bleu(counts, order)[0] == pytest.approx(slow_bleu(candidates, references, order), abs=1e-12)
    # its tiny constants keep it off zero
    assert coco_bleu(counts, order)[0] == pytest.approx(slow_bleu(candidates, references, order, True), abs=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_sacre_bleu_is_sacrebleu_with_two_references(seed):
    candidates, references = random_corpus(seed)
    candidates = [" ".join(c) for c in candidates]
    references = [[" ".join(r[0]), " ".join(r[-1])] for r in references]
    rows = [bleu_counts(tokens_13a(c), [tokens_13a(t) for t in r]) for c, r in zip(candidates, references, strict=True)]
    expected = sacrebleu.corpus_bleu(candidates, list(map(list, zip(*references, strict=True))))
    assert sacre_bleu(np.sum(rows, axis=0)[None])[0] == pytest.approx(expected.score / 100, abs=1e-9)


def test_no_length_divides_by_zero():
    empty = bleu_counts([], [[]])[None]
    for value in (corpus_bleu(empty, 4), coco_bleu(empty, 4), sacre_bleu(empty), sentence_bleu(empty)):
        assert np.isfinite(value).all() and value[0] < 1e-6 or value is not None and value[0] <= 1
    assert corpus_bleu(bleu_counts([], [["a"]])[None], 1)[0] == 0
    assert sentence_bleu(bleu_counts(list("abcd"), [list("abcd")])[None])[0] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(300))
def test_13a_tokens_are_those_of_sacrebleu(seed):
    rng = random.Random(seed)
    pieces = ["a", "B", "5", "3", ".", ",", "-", "/", "&quot;", "&", "<skipped>", "'", " ", " ", "\n", "\t", "é", "("]
    text = "".join(rng.choices(pieces, k=rng.randint(0, 25)))
    assert tokens_13a(text) == Tokenizer13a()(text).split()


def r2gen_original(report):
    """`clean_report_mimic_cxr` of zhjohnchan/R2Gen, step by step."""
    for old, new in [("\n", " ")] + [("__", "_")] * 7 + [("  ", " ")] * 6 + [("..", ".")] * 8 + [("1. ", "")]:
        report = report.replace(old, new)
    for number in "2345":
        report = report.replace(f". {number}. ", ". ")
    for number in "2345":
        report = report.replace(f" {number}. ", ". ")
    sentences = []
    for part in report.strip().lower().split(". "):
        for mark in ('"', "/", "\\", "'"):
            part = part.replace(mark, "")
        sentences.append(re.sub(r"[.,?;*!%^&_+():-\[\]{}]", "", part.strip().lower()))
    return " . ".join(sentences) + " ."


@pytest.mark.parametrize(
    "report",
    [
        "Heart size is normal. No effusion.",
        "1. Stable cardiomegaly.  2. No effusion/edema...  3. A 3.5 cm [mass]: (new) -- see ___ \n report?",
        "",
        "T = 12:30; 'quoted' \"twice\"",
    ],
)
def test_r2gen_cleaning(report):
    assert clean_r2gen(report).split() == r2gen_original(report).split()
