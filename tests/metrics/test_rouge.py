"""Bit-parallel ROUGE against rouge-score's own tables, and COCO's ROUGE-L against its formula."""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer, _lcs_table, lcs_ind

from hf_medvlm.metrics.rouge import ROUGE_NAMES, coco_rouge_l, lcs_length, lcs_positions, rouge
from hf_medvlm.metrics.tokens import split_sentences

WORDS = "heart lungs clear no effusion left right normal size is".split()


def random_tokens(rng):
    return tuple(rng.choices(WORDS[: rng.randint(1, len(WORDS))], k=rng.randint(0, 15)))


@pytest.mark.parametrize("seed", range(200))
def test_subsequence_is_the_one_of_rouge_score(seed):
    rng = random.Random(seed)
    reference, candidate = random_tokens(rng), random_tokens(rng)
    assert lcs_length(reference, candidate) == _lcs_table(reference, candidate)[-1][-1]
    assert sorted(lcs_positions(reference, candidate)) == sorted(lcs_ind(reference, candidate))


@pytest.mark.parametrize("seed", range(50))
def test_scores_are_those_of_rouge_score(seed):
    rng = random.Random(seed)
    candidate, reference = (
        " ".join(f"{' '.join(random_tokens(rng))}." for _ in range(rng.randint(0, 5))) for _ in range(2)
    )
    lines = ["\n".join(split_sentences(text)) for text in (reference, candidate)]
    expected = RougeScorer(ROUGE_NAMES).score(*lines)
    assert rouge(candidate, reference) == pytest.approx([expected[name].fmeasure for name in ROUGE_NAMES], abs=1e-12)


def test_sentences_keep_abbreviations_and_numbers_whole():
    text = "A 3.5 cm mass, discussed with Dr. X at 5 p.m. today. Clear lungs! Old?\nNew line"
    assert split_sentences(text) == [
        "A 3.5 cm mass, discussed with Dr. X at 5 p.m. today.",
        "Clear lungs!",
        "Old?",
        "New line",
    ]
    assert split_sentences(" \n ") == []


def test_coco_rouge_l_takes_the_best_precision_and_the_best_recall():
    # precision 2/3 from the first reference, recall 2/2 from the second
    score = coco_rouge_l("a b c".split(), ["a b d e".split(), "a b".split()])
    assert score == pytest.approx((1 + 1.44) * (2 / 3) * 1 / (1 + 1.44 * 2 / 3))
    assert coco_rouge_l([], [["a"]]) == coco_rouge_l(["a"], [[]]) == coco_rouge_l(["a"], [["b"]]) == 0


def test_words_with_accents_stay_whole():
    assert rouge("neumotórax izquierdo", "neumotórax derecho")[0] == 0.5  # rouge-score sees neumot, rax
    assert rouge("e\u0301panchement", "\u00e9panchement")[0] == 1  # one letter, written in two ways
    assert rouge("心影不大", "心影不大")[0] == 1
