"""What a tokenizer may learn of reports: a tiny model's is trained on the spot, and goes wherever the model goes.

A tokenizer is a list of words. Trained on private reports it would list the names and numbers that stand in them, and
a push of the model would send that list. So of reports that are not open it learns public words alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from hf_medvlm.data.counting import count_values
from hf_medvlm.data.licences import all_open
from hf_medvlm.data.study import Study
from hf_medvlm.metrics.english import english_words, is_english

MANY_PATIENTS = 5
"""In the reports of so many patients a word must stand, to be learnt as a whole."""
ENOUGH = 8000
ALL_WORDS = "all words of reports whose licence is open"
PUBLIC_WORDS = f"words of English that stand in the reports of {MANY_PATIENTS} patients or more, and no number"
_WORD = re.compile(r"\w+")


def learnable(studies: Sequence[Study], texts_of: Callable[[Study], Iterable[str]]) -> list[str]:
    """The texts that a tokenizer may be trained on.

    Where the licence of every study is open they come as they are. Else each word that is not public is spelled, letter
    by letter with a blank between, so that the tokenizer knows all letters and cannot know the word. Public is a word
    without a digit that English has (WordNet 3.0, or one of the terms that findings are known by) and that stands in
    the reports of `MANY_PATIENTS` patients or more.

    Of more than `ENOUGH` studies some are taken, evenly: a tiny model's vocabulary has 2,000 words.

    Args:
        texts_of: the texts of a study.
    """
    step = -(-len(studies) // ENOUGH) if studies else 1
    texts = [(study.patient_id, text) for study in studies[::step] for text in texts_of(study)]
    if trained_words(studies) == ALL_WORDS:
        return [text for _, text in texts]
    patients: dict[str, set[str]] = defaultdict(set)
    for patient, text in texts:
        for word in _WORD.findall(text.lower()):
            patients[word].add(patient)
    english = english_words()
    public = {word for word, known in patients.items() if len(known) >= MANY_PATIENTS and is_english(word, english)}

    def shown(match: re.Match[str]) -> str:
        return match[0] if match[0].lower() in public else " ".join(match[0])

    return [_WORD.sub(shown, text) for _, text in texts]


def trained_words(studies: Sequence[Study]) -> str:
    """In words, what `learnable` lets a tokenizer learn of these studies: `ALL_WORDS` or `PUBLIC_WORDS`."""
    return ALL_WORDS if all_open(count_values([studies], "licence")) else PUBLIC_WORDS
