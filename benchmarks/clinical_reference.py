"""Golden values of the clinical metrics: RadEval's own code on made-up weights, written to tests/golden/clinical/.

    python benchmarks/clinical_reference.py            # needs PyPI; a few minutes

The reference package goes into a folder of its own, without its dependencies; folder paths take the place of its Hub
ids. The weights are those of tests/clinical_weights.py, which the tests make again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

from tests.clinical_weights import PREDICTIONS, REFERENCES, make_chexbert, make_roberta

OUT = Path(__file__).parents[1] / "tests" / "golden" / "clinical" / "values.json"
REFERENCE = "radeval==2.2.1"


def install(folder: Path) -> None:
    """The reference and the little that it imports here, without what they ask for in turn."""
    packages = [REFERENCE, "appdirs", "six"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *packages]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))
    package = types.ModuleType("radeval")  # its own __init__ imports every metric
    package.__path__ = [str(folder / "radeval")]
    metrics = types.ModuleType("radeval.metrics")
    metrics.__path__ = [str(folder / "radeval" / "metrics")]
    sys.modules |= {"radeval": package, "radeval.metrics": metrics}


def chexbert_values(weights: Path) -> dict:
    """F1 report, labels and embeddings of the reference's evaluator on our folder."""
    import numpy as np
    import torch
    from radeval.metrics._chexbert_base import BaseBertLabeler
    from radeval.metrics.f1chexbert.f1chexbert import F1CheXbert
    from transformers import AutoTokenizer, BertConfig, BertModel

    raw = torch.load(weights / "chexbert.pth", map_location="cpu", weights_only=True)["model_state_dict"]
    labeller = BaseBertLabeler(
        device="cpu",
        backbone=BertModel(BertConfig.from_pretrained(weights)),
        num_4way_heads=13,
        state_dict={key.replace("module.", ""): value for key, value in raw.items()},
    ).eval()
    scorer = F1CheXbert.__new__(F1CheXbert)
    torch.nn.Module.__init__(scorer)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    scorer._init_evaluator(model=labeller, tokenizer=tokenizer, device="cpu", batch_size=64)
    # `forward` ends in this report; before it stands a helper that present SciPy and scikit-learn no longer run
    from sklearn.metrics import classification_report

    sides = [np.array(scorer.get_labels(side)) for side in (REFERENCES, PREDICTIONS)]
    names, five = scorer.TARGET_NAMES, scorer.top5_idx
    report = classification_report(*sides, target_names=names, output_dict=True, zero_division=0)
    cut = [side[:, five] for side in sides]
    report5 = classification_report(*cut, target_names=scorer.TOP5, output_dict=True, zero_division=0)
    first, second = (torch.tensor(np.array(scorer.get_embeddings(side))) for side in (PREDICTIONS, REFERENCES))
    return {
        "chexbert_f1_micro_14": report["micro avg"]["f1-score"],
        "chexbert_f1_macro_14": report["macro avg"]["f1-score"],
        "chexbert_f1_micro_5": report5["micro avg"]["f1-score"],
        "chexbert_f1_macro_5": report5["macro avg"]["f1-score"],
        "per_finding": {name: report[name]["f1-score"] for name in names},
        "sembscore_per_study": torch.nn.functional.cosine_similarity(first, second).tolist(),
    }


def bertscore_values(weights: Path) -> dict:
    """F1 of each pair, without and with IDF, by the reference's scorer on our folder."""
    from radeval.metrics.bertscore._vendor import BERTScorer

    folder = str(weights)
    values = {}
    for name, idf in (("bertscore", False), ("bertscore_idf", True)):
        baseline = weights / "rescale_baseline.tsv"
        scorer = BERTScorer(
            model_type=folder, num_layers=5, rescale_with_baseline=True, idf=idf, lang="en", device="cpu",
            idf_sents=REFERENCES if idf else None, baseline_path=str(baseline), nthreads=1,
        )  # fmt: skip
        values[f"{name}_per_study"] = scorer.score(cands=PREDICTIONS, refs=REFERENCES)[2].tolist()
    return values


def radcliq_values() -> list[float]:
    """The reference's scaler and weights on columns of our own."""
    import numpy as np

    fake = {f"radeval.metrics.{name}": types.ModuleType(name) for name in ("radgraph", "f1chexbert", "bleu")}
    fake["radeval.metrics.bleu.bleu"] = types.ModuleType("bleu")
    for module, name in (("radgraph", "RadGraph"), ("f1chexbert", "F1CheXbert"), ("bleu.bleu", "Bleu")):
        setattr(fake[f"radeval.metrics.{module}"], name, lambda *args, **options: None)
    sys.modules |= fake
    from radeval.metrics.RadCliQv1.radcliq import CompositeMetric

    composite = CompositeMetric()
    composite._compute_sub_metrics = lambda refs, hyps: {
        "radgraph": np.array([0.1, 0.5, 1.0]),
        "bertscore": np.array([0.2, 0.6, 0.9]),
        "semb_score": np.array([0.3, 0.7, 0.8]),
        "bleu_score": np.array([0.0, 0.4, 1.0]),
    }
    reciprocal, each = composite.predict(["a"] * 3, ["b"] * 3)
    return [float(reciprocal), *map(float, each)]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        install(folder / "reference")
        chexbert, roberta = make_chexbert(folder / "chexbert"), make_roberta(folder / "distilroberta-base")
        rows = "".join(f"{layer},0.2,0.2,0.25\n" for layer in range(7))
        (roberta / "rescale_baseline.tsv").write_text(f"LAYER,P,R,F\n{rows}")
        values = {"reference": REFERENCE, "transformers": importlib.metadata.version("transformers")}
        values |= chexbert_values(chexbert) | bertscore_values(roberta) | {"radcliq": radcliq_values()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {OUT.relative_to(Path.cwd()) if OUT.is_relative_to(Path.cwd()) else OUT.name}")


if __name__ == "__main__":
    main()
