"""Which language a report is written in, as far as its commonest words tell. Findings are read in English only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

ENGLISH = "English"
# Words that reports of a language are full of, each in one language of this table.
_WORDS = {
    ENGLISH: "the is are no of and with there right left "
    "heart lungs lung clear normal effusion seen small mild without",
    "Spanish": "el los las sin del con se no y "
    "derrame pulmonar cardíaca silueta observa derecho izquierdo hallazgos hay neumotórax",
    "Portuguese": "o os as sem da do das dos com "
    "não e derrame pulmonar pleural coração direita esquerda achados pulmões",
    "French": "le la les des du de sans pas et avec au pleurale épanchement droit gauche poumons coeur cœur une est",
    "Italian": "il lo gli dei della del di senza non "
    "e con versamento polmonare destra sinistra cuore nei nella aspetti",
    "German": "der die das kein keine und mit des im "
    "ist nicht links rechts herz lunge erguss unauffällig beidseits ein",
    "Dutch": "de het een geen en met van niet links rechts hart longen pleuravocht beeld thorax zonder",
    "Polish": "bez w i z nie płyn płuc serca prawej lewej zmian sylwetka stronie jest opłucnej",
    "Turkish": "ve bir yok sağ sol akciğer kalp izlenmedi normaldir plevral mevcut değildir",
    "Vietnamese": "không có phổi tim màng bên phải trái và bình thường tràn dịch hình",
}
_LANGUAGES: dict[str, list[str]] = {}
for _language, _words in _WORDS.items():
    for _word in _words.split():
        _LANGUAGES.setdefault(_word, []).append(_language)
_SCRIPTS = {
    "Chinese or Japanese": re.compile(r"[\u3040-\u30ff\u3400-\u9fff]"),
    "Korean": re.compile(r"[\uac00-\ud7af]"),
    "Russian or another language in Cyrillic letters": re.compile(r"[\u0400-\u04ff]"),
    "Arabic or Persian": re.compile(r"[\u0600-\u06ff]"),
    "Greek": re.compile(r"[\u0370-\u03ff]{3}"),
    "Hebrew": re.compile(r"[\u0590-\u05ff]"),
    "Hindi": re.compile(r"[\u0900-\u097f]"),
    "Thai": re.compile(r"[\u0e00-\u0e7f]"),
}
_WORD = re.compile(r"[^\W\d_]+")


def other_language(text: str) -> str | None:
    """The language of a text that is not English, or None where it is, or where too little is written to tell."""
    if not text.isascii():
        letters = len(_WORD.findall(text))
        for language, script in _SCRIPTS.items():
            if len(script.findall(text)) * 3 >= max(letters, 3):
                return language
    counts = Counter(language for word in _WORD.findall(text.lower()) for language in _LANGUAGES.get(word, ()))
    if not counts:
        return None
    language, most = counts.most_common(1)[0]
    return language if most >= 2 and most > counts[ENGLISH] else None


def not_english(texts: Iterable[str]) -> str:
    """One sentence where some of these texts are in another language, else ""."""
    total, languages = 0, Counter[str]()
    for text in texts:
        total += 1
        if language := other_language(text):
            languages[language] += 1
    if not languages:
        return ""
    named = ", ".join(f"{count} in {language}" for language, count in languages.most_common())
    return f"findings are read in English, and of {total} texts {named}: there nothing, or too little, is read"
