"""Names of scores in words, for people: pages show them beside the names that results files have."""

from __future__ import annotations

import re

WORDS = {
    "sacrebleu": "SacreBLEU",
    "bleu2_rexrank": "BLEU-2 (ReXrank)",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "cut_off_rate": "Share of reports cut off",
    "distinct_predictions": "Share of different reports",
    "sentence_bleu4": "BLEU-4 of one study",
    "mean_recall": "Mean recall",
    "combined": "Combined: recall and AUC",
    "gallery_size": "Studies searched in",
    "pointing_game": "Pointing game",
    "held_out_pointing_game": "Pointing game, untrained findings",
    "held_out_auc": "AUC, untrained findings",
    "cnr": "Contrast-to-noise ratio",
    "miou": "Mean IoU",
    "grounding_n": "Phrases located",
    "task_score": "Score of the task",
    "nli_accuracy": "Sentence pairs: accuracy",
    "nli_auc": "Sentence pairs: AUC",
    "gflops": "GFLOPs an image",
    "peak_memory_mb": "Peak memory (MB)",
    "radcliq": "RadCliQ",
    "radgraph_f1": "RadGraph F1",
    "ratescore": "RaTEScore",
    "bertscore": "BERTScore",
    "audit_change_without_prior": "Change told without a prior image",
    "change_without_prior": "Change told without a prior image",
    "train_seconds": "training took",
    "evaluate_seconds": "evaluation took",
    "hf_medvlm": "hf_medvlm",
}
ACRONYMS = {"auc": "AUC", "ap": "AP", "f1": "F1", "mrr": "mean reciprocal rank", "iou": "IoU", "n": "number"}
WAYS = {"i2t": "Image to text", "t2i": "Text to image"}
_RULES = (
    (re.compile(r"(bleu|rouge)(\d)"), lambda m: f"{m[1].upper()}-{m[2]}"),
    (re.compile(r"(i2t|t2i)_recall@(\d+)"), lambda m: f"{WAYS[m[1]]}: recall at {m[2]}"),
    (re.compile(r"(i2t|t2i)_(\w+)"), lambda m: f"{WAYS[m[1]]}: {_plain(m[2])}"),
    (re.compile(r"findings_f1_(micro|macro)"), lambda m: f"Findings F1 ({m[1]})"),
    (re.compile(r"zero_shot_(\w+)"), lambda m: f"Zero-shot {_plain(m[1])}"),
    (re.compile(r"mean_(auc|ap|f1)"), lambda m: f"Mean {_plain(m[1])}"),
    (re.compile(r"(progression|closed|open)_(\w+)"), lambda m: f"{m[1].title()} {_plain(m[2])}"),
    (re.compile(r"probe_(\w+)"), lambda m: f"Linear probe: {_plain(m[1])}"),
    (re.compile(r"audit_(\w+)"), lambda m: f"Findings {_plain(m[1])}"),
)


def in_words(name: str) -> str:
    """`i2t_recall@5` is "Image to text: recall at 5"; a name that nobody has put into words loses its underscores."""
    if name in WORDS:
        return WORDS[name]
    if "/" in name:
        kind, _, finding = name.partition("/")
        return f"{in_words(kind)}: {finding}"
    for pattern, made in _RULES:
        if match := pattern.fullmatch(name):
            return made(match)
    return _plain(name)


def _plain(name: str) -> str:
    return " ".join(ACRONYMS.get(word, word) for word in name.split("_"))
