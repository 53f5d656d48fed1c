"""Report text -> sentences and tokens, by the protocols that the text metrics name. Knows no score."""

from __future__ import annotations

import re
from functools import lru_cache

from nltk.tokenize import word_tokenize
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

CLEANINGS = (None, "coco", "r2gen")
CACHE = 2**16  # distinct sentences or reports remembered; reports repeat theirs

# No end of sentence: after an initial or "p.m.", and after the abbreviations that reports use.
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\b[a-z]\.)(?<!\b(?:dr|mr|ms|vs|st|cf)\.)(?<!\bmrs\.)\s+|\s*\n\s*", re.IGNORECASE
)


def split_sentences(text: str) -> list[str]:
    """Sentences of a report: cut after `.`, `!` or `?` and at line ends; "3.5 cm" and "Dr. X" stay whole."""
    return [part for part in _SENTENCE_END.split(text) if part.strip()]


_thirteen_a = Tokenizer13a()


@lru_cache(maxsize=CACHE)
def _word_13a(word: str) -> tuple[str, ...]:
    return tuple(_thirteen_a(word).split())


def tokens_13a(text: str) -> list[str]:
    """mteval-v13a as in sacreBLEU and in `evaluate`'s bleu; cased.

    Word by word, remembered: of its rules, only those that join over line ends look beyond white space.
    """
    joined = text.replace("<skipped>", "").replace("-\n", "")
    return [token for word in joined.split() for token in _word_13a(word)]


@lru_cache(maxsize=CACHE)
def _treebank(sentence: str) -> tuple[str, ...]:
    return tuple(word_tokenize(sentence, preserve_line=True))


def tokens_treebank(text: str) -> list[str]:
    """nltk's `word_tokenize`, with `split_sentences` in the place of punkt, whose data would have to be downloaded."""
    return [token for sentence in split_sentences(text) for token in _treebank(sentence)]


def clean_coco(text: str) -> str:
    """Lower case; all but letters, digits and spaces becomes a space."""
    return " ".join(re.sub(r"[^\w ]|_", " ", text.lower()).split())


def clean_r2gen(text: str) -> str:
    """R2Gen's `clean_report_mimic_cxr` (zhjohnchan/R2Gen, `modules/tokenizers.py`): lower case, enumeration and most
    punctuation gone, " . " between sentences. Without line breaks and `__` its `clean_report_iu_xray` is the same.
    """
    text = re.sub(r"\.{2,}", ".", re.sub(" {2,}", " ", re.sub("_{2,}", "_", text.replace("\n", " "))))
    text = text.replace("1. ", "")
    for pattern in (". {}. ", " {}. "):
        for number in range(2, 6):
            text = text.replace(pattern.format(number), ". ")
    # ":-\[" is a range in the original, probably by mistake; it takes ; < = > ? @ and [ too.
    sentences = [
        re.sub(r"[.,?;*!%^&_+():-\[\]{}\"/\\']", "", part).strip() for part in text.strip().lower().split(". ")
    ]
    return " . ".join(sentences) + " ."


def clean(text: str, cleaning: str | None) -> str:
    """`text` after the cleaning named by one of `CLEANINGS`; None leaves it alone.

    Raises:
        ValueError: there is no such cleaning.
    """
    if cleaning not in CLEANINGS:
        raise ValueError(f"there is no cleaning {cleaning!r:.100}; there are {', '.join(map(repr, CLEANINGS))}")
    if cleaning is None:
        return text
    return clean_coco(text) if cleaning == "coco" else clean_r2gen(text)
