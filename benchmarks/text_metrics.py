"""Time of the text metrics against `evaluate`'s own method: `python benchmarks/text_metrics.py`, both in one run.

`evaluate`'s scripts have to be downloaded, so their method is written out here as they have it (its `metrics/bleu`,
`sacrebleu`, `rouge` and `meteor`): every pair tokenised afresh, rouge-score with its bootstrap aggregator (whence the
small difference in ROUGE), nltk's METEOR with its own stemmer. WordNet and the sentence splitter, which `evaluate`
downloads, are ours on both sides; that flatters theirs. Our sacrebleu takes over bleu's counts. Prints seconds, their
ratio and the difference of the scores.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Callable

import sacrebleu
from nltk.tokenize import word_tokenize
from nltk.translate import meteor_score
from rouge_score import rouge_scorer, scoring
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from hf_medvlm import metrics
from hf_medvlm.metrics import wordnet
from hf_medvlm.metrics.tokens import split_sentences

Texts = list[str]


def evaluate_bleu(predictions: Texts, references: Texts, order: int = 4) -> float:
    """tensorflow/nmt's `compute_bleu`, as `evaluate` carries it."""
    tokenize = Tokenizer13a()
    matches, possible, length, reference_length = [0] * order, [0] * order, 0, 0
    for prediction, reference in zip(predictions, references, strict=True):
        ours, theirs = tokenize(prediction).split(), tokenize(reference).split()
        length, reference_length = length + len(ours), reference_length + len(theirs)
        counts = []
        for tokens in (ours, theirs):
            grams: Counter[tuple[str, ...]] = Counter()
            for n in range(1, order + 1):
                for start in range(len(tokens) - n + 1):
                    grams[tuple(tokens[start : start + n])] += 1
            counts.append(grams)
        for gram, count in (counts[0] & counts[1]).items():
            matches[len(gram) - 1] += count
        for n in range(order):
            possible[n] += max(len(ours) - n, 0)
    precision = math.exp(sum(math.log(m / p) for m, p in zip(matches, possible, strict=True)) / order)
    return precision * min(1.0, math.exp(1 - reference_length / length))


def evaluate_rouge(predictions: Texts, references: Texts) -> float:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    aggregator = scoring.BootstrapAggregator()
    for prediction, reference in zip(predictions, references, strict=True):
        aggregator.add_scores(scorer.score(reference, prediction))
    return aggregator.aggregate()["rougeL"].mid.fmeasure


def evaluate_meteor(predictions: Texts, references: Texts) -> float:
    scores = [
        meteor_score.single_meteor_score(
            *(
                [token for line in split_sentences(text) for token in word_tokenize(line, preserve_line=True)]
                for text in (reference, prediction)
            ),
            wordnet=wordnet.load(),
        )
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(scores) / len(scores)


def evaluate_sacrebleu(predictions: Texts, references: Texts) -> float:
    return sacrebleu.corpus_bleu(predictions, [references]).score / 100


METHODS: dict[str, tuple[str, Callable[[Texts, Texts], float]]] = {
    "bleu": ("bleu4", evaluate_bleu),
    "sacrebleu": ("sacrebleu", evaluate_sacrebleu),
    "rouge": ("rougeL", evaluate_rouge),
    "meteor": ("meteor", evaluate_meteor),
}


def made_up_report(rng: random.Random) -> str:
    """Six to nine sentences in the manner of a findings section, few of them the same word for word."""
    degree, side = "small mild moderate large minimal".split(), "left right bilateral".split()
    zone = ["lower lobe", "upper lobe", "mid lung", "base", "apex"]
    thing = "effusion opacity consolidation atelectasis nodule infiltrate pneumothorax scarring edema".split()
    sentences = [
        f"There is a {rng.choice(degree)} {rng.choice(side)} {rng.choice(thing)} at the {rng.choice(zone)}.",
        f"No focal {rng.choice(thing)} or {rng.choice(thing)} is seen.",
        f"The {rng.choice(side)} {rng.choice(zone)} shows {rng.choice(degree)} {rng.choice(thing)}, "
        f"{rng.choice(['unchanged', 'increased', 'decreased', 'new'])} since the prior study.",
        f"Heart size is {rng.choice(['normal', 'enlarged', 'borderline', 'at the upper limit of normal'])}.",
        "The cardiomediastinal silhouette is within normal limits.",
        f"{rng.choice(['Osseous', 'Bony'])} structures are {rng.choice(['intact', 'unremarkable'])}.",
        f"A {rng.randint(2, 30)} mm {rng.choice(['mass', 'nodule', 'lesion'])} projects over the {rng.choice(zone)}.",
        "Lungs are clear." if rng.random() < 0.5 else f"Lungs show {rng.choice(degree)} {rng.choice(thing)}.",
        f"Support {rng.choice(['lines', 'tubes', 'devices'])} end in {rng.choice(['standard', 'unchanged'])} position.",
    ]
    return " ".join(rng.sample(sentences, k=rng.randint(6, 9)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3000)
    rng = random.Random(0)
    pairs = parser.parse_args().pairs
    predictions, references = ([made_up_report(rng) for _ in range(pairs)] for _ in range(2))
    wordnet.load()  # half a second, once a process, on neither side's account
    print(f"{pairs} pairs, {sum(map(len, map(str.split, references))) / pairs:.0f} words a report")
    print(f"{'metric':<10} {'evaluate s':>11} {'ours s':>8} {'ratio':>7} {'difference':>11}")
    total = [0.0, 0.0]
    for name, (key, method) in METHODS.items():
        metric = metrics.load(name)
        start = time.perf_counter()
        score = metric.compute(predictions=predictions, references=references)[key]
        ours = time.perf_counter() - start
        start = time.perf_counter()
        expected = method(predictions, references)
        theirs = time.perf_counter() - start
        total = [total[0] + theirs, total[1] + ours]
        print(f"{name:<10} {theirs:>11.2f} {ours:>8.2f} {theirs / ours:>6.1f}x {abs(score - expected):>11.1e}")
    print(f"{'all':<10} {total[0]:>11.2f} {total[1]:>8.2f} {total[0] / total[1]:>6.1f}x")
    start = time.perf_counter()
    metrics.load("cider").compute(predictions=predictions, references=references)
    print(f"{'cider':<10} {'-':>11} {time.perf_counter() - start:>8.2f}")


if __name__ == "__main__":
    main()
