"""Does contrast with sentences teach an image encoder more than pixels hold? 590 real radiographs, 5 folds by patient.

    python benchmarks/nih64.py FOLDER [--steps 150] [--seed 0] [--text_encoder MINILM_FOLDER]

FOLDER holds `studies.csv` (image, patient, view, age, sex, labels) and `images/`. Labels are put into sentences, and
`train_dual_encoder.py`'s model, collator and loss learn from the patients of four folds; the fifth's are never seen.
A logistic regression is fitted on the floor, 60 principal components of the pixels, and on the encoder's features:
those pooled, 60 principal components of its patches on a grid of 4 x 4, and both. Printed: the AUC of each finding,
mean of the folds.

Measured with 150 steps, seeds 0 and 1, random towers:
    cardiomegaly: floor .723; pooled .672, .674; patches .728, .734; both .701, .724
    effusion:     floor .676; pooled .732, .706; patches .676, .678; both .712, .698
    after 2 steps: cardiomegaly pooled .631, patches .687; effusion pooled .701, patches .663
    MiniLM for the text, 40 steps: cardiomegaly pooled .596, patches .664; effusion pooled .671, patches .666
No single kind of feature beats the floor by more than the folds differ (.1 and more). The patches lie above it on both
findings, effusion by less than .003, cardiomegaly by .005 and .011; pooled features beat it on effusion alone, for a
mean over the image forgets how large the heart is. Much of it is there before training: 472 radiographs a fold teach
little. The kinds of features were chosen on the very folds that are scored, so that none of this shows a gain.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import BertConfig, ResNetConfig, set_seed

from hf_medvlm.collators.pairs import PairCollator
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.families.dual_encoder.model import DualEncoderConfig, DualEncoderModel
from hf_medvlm.families.dual_encoder.processor import build_processor, fit_tokenizer
from hf_medvlm.models.encoding import encode_image
from hf_medvlm.models.loading import load_tokenizer
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.models.towers import load_tower

FINDINGS = ("Cardiomegaly", "Effusion")
SENTENCES = {  # label -> (without it, with it)
    "Cardiomegaly": ("The heart is not enlarged.", "The heart is enlarged."),
    "Effusion": ("There is no pleural effusion.", "There is a pleural effusion."),
    "Infiltration": ("There is no infiltrate.", "There is an infiltrate."),
    "Atelectasis": ("There is no atelectasis.", "There is atelectasis."),
    "Edema": ("There is no edema.", "There is pulmonary edema."),
    "No Finding": ("The radiograph is abnormal.", "The radiograph is normal."),
}


def sentence(row: dict[str, str]) -> str:
    """A made-up report of one radiograph, from its labels, view, age and sex: one sentence for each."""
    labels = row["labels"].split("|")
    stated = [pair[name in labels] for name, pair in SENTENCES.items()]
    person = {"M": "A man", "F": "A woman"}.get(row["sex"], "A person")
    age = "younger than fifty" if float(row["age"]) < 50 else "fifty or older"
    return " ".join([*stated, f"The view is {row['view']}.", f"{person}.", f"The patient is {age}."])


def components(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """60 principal components of the rows `train`, of all rows."""
    return PCA(60, random_state=0).fit(values[train]).transform(values)


def probe(train: np.ndarray, truth: np.ndarray, test: np.ndarray, strength: float) -> np.ndarray:
    """Log odds of the test rows, from a balanced logistic regression on the training rows."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=2000))
    return model.fit(train, truth).decision_function(test)


def encoder(texts: list[str], text_encoder: str | None, size: int) -> tuple[DualEncoderModel, Any]:
    """A small ResNet with random weights, beside a small BERT or a pretrained text tower, and their processor."""
    options = {"projection_size": 64, "text_pooling": "mean", "temperature": 0.2}
    vision = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic")
    if text_encoder:
        tower = load_tower(text_encoder, "text")
        model = DualEncoderModel(DualEncoderConfig(vision_config=vision, text_config=tower.config, **options))
        model.text_tower = tower
        return model, build_processor(fit_tokenizer(load_tokenizer(text_encoder), model.config), size)
    tokenizer = train_tokenizer(texts, 400)
    text = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = DualEncoderModel(DualEncoderConfig(vision_config=vision, text_config=text, **options))
    return model, build_processor(tokenizer, size)


def features(model: DualEncoderModel, collator: PairCollator, studies: list[Study]) -> tuple[np.ndarray, np.ndarray]:
    """(N, H) pooled features of the image tower, in front of the projection; and (N, 16 H), its patches on 4 x 4."""
    pooled, maps = [], []
    with torch.no_grad():
        for start in range(0, len(studies), 64):
            rows = [Row(study, start + n, 0) for n, study in enumerate(studies[start : start + 64])]
            seen = encode_image(model.eval().vision_tower, **collator.images(rows))
            grid = seen.patches.mT.unflatten(2, seen.grid)  # (B, H, rows, columns)
            pooled.append(seen.pooled.numpy())
            maps.append(torch.nn.functional.adaptive_avg_pool2d(grid, 4).flatten(1).numpy())
    return np.concatenate(pooled), np.concatenate(maps)


def learn(studies: list[Study], collator: PairCollator, model: DualEncoderModel, args: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, total_steps=args.steps, pct_start=0.1)
    rng = np.random.default_rng(args.seed)
    for step in range(args.steps):
        chosen = rng.choice(len(studies), min(args.batch, len(studies)), replace=False)
        loss = model.train()(**collator([Row(studies[n], int(n), step) for n in chosen])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strength", type=float, default=0.01, help="C of the logistic regression on features")
    parser.add_argument("--sentence_share", type=float, default=0.9, help="share of the texts cut to one sentence")
    parser.add_argument("--no_augmentation", action="store_true")
    parser.add_argument("--text_encoder", help="folder of a pretrained text tower, such as MiniLM's")
    args = parser.parse_args()
    with (args.folder / "studies.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    studies = [
        Study(row["image"], row["patient"], images=[StudyImage(row["image"], row["view"])], report=sentence(row))
        for row in rows
    ]
    files = [args.folder / "images" / row["image"] for row in rows]
    pixels = np.stack([np.asarray(Image.open(file), np.float32).ravel() for file in files])
    truth = np.array([[name in row["labels"].split("|") for name in FINDINGS] for row in rows])
    scores: dict[str, list[list[float]]] = {"floor": [], "pooled": [], "patches": [], "both": []}
    folds = GroupKFold(args.folds).split(rows, groups=[row["patient"] for row in rows])
    for number, (train, test) in enumerate(folds):
        set_seed(args.seed + number)
        model, processor = encoder([studies[n].report for n in train], args.text_encoder, args.size)
        plain = PairCollator(processor, args.folder / "images", sections="report", seed=args.seed)
        varied = replace(plain, training=not args.no_augmentation, sentence_share=args.sentence_share)
        learn([studies[n] for n in train], varied, model, args)
        pooled, maps = features(model, plain, studies)
        patches = components(maps, train)
        for name, values, strength in (
            ("floor", components(pixels, train), 1.0),
            ("pooled", pooled, args.strength),
            ("patches", patches, args.strength),
            ("both", np.concatenate([pooled, patches], 1), args.strength),
        ):
            columns = range(len(FINDINGS))
            judged = [probe(values[train], truth[train, column], values[test], strength) for column in columns]
            scores[name].append([roc_auc_score(truth[test, column], judged[column]) for column in columns])
        shown = ", ".join(f"{name} {np.round(fold[-1], 3)}" for name, fold in scores.items())
        print(f"fold {number}: {shown}", flush=True)
    for column, finding in enumerate(FINDINGS):
        means = {name: np.mean([fold[column] for fold in results]) for name, results in scores.items()}
        print(f"{finding}: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))


if __name__ == "__main__":
    main()
