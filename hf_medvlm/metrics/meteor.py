"""METEOR of single texts: nltk's own score, on the packaged WordNet, its stems and synonyms remembered."""

from __future__ import annotations

from functools import lru_cache

from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score

from hf_medvlm.metrics import wordnet
from hf_medvlm.metrics.tokens import CACHE, tokens_treebank


class _RememberingStemmer:
    """nltk's Porter stemmer; it takes most of METEOR's time, and reports have few words."""

    stem = staticmethod(lru_cache(maxsize=CACHE)(PorterStemmer().stem))


@lru_cache(maxsize=CACHE)
def meteor(candidate: str, reference: str) -> float:
    """nltk's METEOR (alpha 0.9, beta 3, gamma 0.5) of one pair; 0 where no word matches or a text is empty.

    Not on one scale with Java METEOR 1.5.
    """
    return single_meteor_score(
        tokens_treebank(reference), tokens_treebank(candidate), stemmer=_RememberingStemmer, wordnet=wordnet.load()
    )
