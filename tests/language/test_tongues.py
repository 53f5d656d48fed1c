"""Reports in other languages are recognised, and English ones are not taken for them."""

from __future__ import annotations

import pytest

from hf_medvlm.language.tongues import not_english, other_language
from hf_medvlm.metrics.findings_text import findings_f1
from hf_medvlm.metrics.text import score_texts

SPANISH = "Silueta cardíaca de tamaño normal. No se observa derrame pleural ni neumotórax."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (SPANISH, "Spanish"),
        ("Pas d'épanchement pleural. La silhouette cardiaque est de taille normale.", "French"),
        ("Kein Pleuraerguss. Herz normal groß, keine Infiltrate.", "German"),
        ("Sem derrame pleural. Coração de tamanho normal.", "Portuguese"),
        ("Non versamento pleurico. Cuore nei limiti.", "Italian"),
        ("Geen pleuravocht, hart niet vergroot.", "Dutch"),
        ("心影不大，肺野清晰。", "Chinese or Japanese"),
        ("폐야는 깨끗하다.", "Korean"),
        ("No pleural effusion. The heart is normal.", None),
        ("No effusion", None),
        ("Lungs clear. Discussed with Dr. Müller at 5°.", None),
        ("Cardiomegaly", None),
        ("", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert other_language(text) == language


def test_it_is_said_and_the_text_metrics_run() -> None:
    texts = [SPANISH, "No effusion. The lungs are clear."]
    sentence = "findings are read in English, and of 2 texts 1 in Spanish: there nothing, or too little, is read"
    assert not_english(texts) == sentence and not_english(texts[1:]) == ""
    assert all(sentence in how for how in findings_f1(texts, texts).protocol.values())
    scores = score_texts(texts, texts, resamples=0).metrics
    assert scores["bleu4"] == scores["rougeL"] == 1
