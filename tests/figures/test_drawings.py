"""The PNG figures: which are drawn from what, that they hold something, and the awkward inputs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from made_run import make_run, write, write_lines
from PIL import Image

from hf_medvlm.figures import DRAWINGS, draw_all
from hf_medvlm.figures.bars import findings_table
from hf_medvlm.figures.confusion import confusion_matrices
from hf_medvlm.figures.results import load_run
from hf_medvlm.figures.roc import roc_curves
from hf_medvlm.figures.style import PALETTE, line_styles, plain
from hf_medvlm.metrics.facts import Fact


def test_every_figure_is_drawn_and_is_not_blank(tmp_path):
    folder = make_run(tmp_path / "out", studies=4)
    written = draw_all(folder)
    assert {p.name for p in written} == set(DRAWINGS) - {"curves.png"}  # this run has no curves of its own
    for path in written:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert path.parent == folder / "figures" and pixels.std() > 5 and min(pixels.shape) > 200


def test_a_figure_whose_data_is_gone_goes_too(tmp_path):
    folder = make_run(tmp_path / "out", studies=2)
    draw_all(folder)
    (folder / "test_results.json").unlink()
    (folder / "eval_results.json").unlink()
    draw_all(folder)
    left = {path.name for path in (folder / "figures").iterdir()}
    assert "loss_curve.png" in left and "roc_curve.png" not in left


def test_named_curves_and_a_matrix_of_several_classes(tmp_path):
    curve = {"x": [0, 0.5, 1], "y": {"insertion": [0.1, 0.5, 0.9], "deletion": [0.9, 0.3, 0.1]}}
    figures = {
        "curves": {
            "Deletion and insertion": curve | {"x_label": "share of patches", "y_label": "similarity (fraction)"}
        },
        "confusion": {"labels": ["improving", "stable", "worsening"], "matrix": [[5, 1, 0], [2, 9, 1], [0, 0, 0]]},
    }
    facts = {"progression_accuracy": {"group": "Change over time", "better": "higher", "unit": "fraction"}}
    write(
        tmp_path / "test_results.json", {"metrics": {"progression_accuracy": 0.7}, "facts": facts, "figures": figures}
    )
    names = {path.name for path in draw_all(tmp_path)}
    assert names == {"curves.png", "confusion_matrix.png", "scores.png"}


def test_a_table_of_counts_is_a_matrix_with_the_reference_in_rows(tmp_path):
    write(tmp_path / "test_results.json", {"figures": {"confusion": {"Edema": {"tp": 1, "fp": 2, "fn": 3, "tn": 4}}}})
    assert confusion_matrices(load_run(tmp_path))["Edema"]["matrix"] == [[4, 2], [3, 1]]


def test_rates_may_be_named_in_full_and_the_area_stand_in_the_table(tmp_path):
    curve = {"false_positive_rate": [0, 1], "true_positive_rate": [0, 1]}
    empty = {"false_positive_rate": [], "true_positive_rate": []}
    figures = {"roc": {"Edema": curve, "Fracture": empty}, "per_finding": {"Edema": {"auc": 0.7}}}
    write(tmp_path / "test_results.json", {"figures": figures})
    assert roc_curves(load_run(tmp_path)) == {"Edema": {"fpr": [0, 1], "tpr": [0, 1], "auc": 0.7}}


def test_a_step_of_the_history_that_is_no_number_is_refused_with_its_place(tmp_path):
    for step in ([], "4", True):
        write(tmp_path / "trainer_state.json", {"log_history": [{"step": 1, "loss": 2.0}, {"step": step}]})
        with pytest.raises(ValueError, match=r"trainer_state.json: 'log_history'\[1\] 'step' must be a number"):
            load_run(tmp_path)


def test_what_is_known_of_a_score_is_what_the_evaluation_stated_and_nothing_else(tmp_path):
    stated = {"mean_recall": {"group": "Retrieval", "better": "higher", "unit": "fraction"}, "odd": {"better": 5}}
    results = {"metrics": {"mean_recall": 0.4, "odd": 1, "mean_auc": 0.8}, "facts": stated}
    write(tmp_path / "test_results.json", results | {"protocol": {"mean_recall": "full gallery", "findings": "labels"}})
    run = load_run(tmp_path)
    assert run.fact("mean_recall") == Fact("Retrieval", "full gallery")
    assert run.fact("mean_auc") == run.fact("odd") == Fact("Other", "", "neither", "")
    assert run.groups() == ["Retrieval", "Other"] and run.in_unit_range("mean_recall") and not run.in_unit_range("odd")


def test_scores_of_single_findings_join_the_table(tmp_path):
    results = {
        "metrics": {"auc/Edema": 0.8, "f1/Edema": 0.5},
        "figures": {"per_finding": {"Edema": {"auc": 0.9, "n": 4}}},
    }
    write(tmp_path / "test_results.json", results)
    assert findings_table(load_run(tmp_path)) == {"Edema": {"auc": 0.9, "n": 4, "f1": 0.5}}


def test_names_that_matplotlib_would_read_as_mathematics_or_that_never_end(tmp_path):
    names = ["$\\frac{1}{", "a" * 500, "50 % _under_ ^score^", "größe 中文", "two\nlines"]
    per_finding = {name: {"auc": 0.6, "n": 1} for name in names}
    roc = {name: {"fpr": [0, 1], "tpr": [0, 1], "auc": None} for name in names}
    write(tmp_path / "test_results.json", {"figures": {"per_finding": per_finding, "roc": roc}})
    for path in draw_all(tmp_path):
        assert max(Image.open(path).size) < 3000
    assert plain("two\nlines $x$") == r"two lines \$x\$" and len(plain("a" * 500)) == 60


def test_an_image_that_cannot_be_read_is_passed_over(tmp_path):
    folder = make_run(tmp_path / "out", studies=2)
    (tmp_path / "images" / "p0.png").write_bytes(b"")
    assert folder / "figures" / "heat_maps.png" in draw_all(folder)
    lines = [{"study_id": "a", "images": ["p0.png"], "maps": {"Edema": [[0.1, 0.2]]}}]
    write_lines(folder / "predictions.jsonl", lines)
    assert folder / "figures" / "heat_maps.png" not in draw_all(folder)


def test_no_two_lines_look_the_same():
    looks = [tuple(look.values()) for look in line_styles(4 * len(PALETTE))]
    assert len(set(looks)) == len(looks)


def test_matplotlib_is_not_imported_until_something_is_drawn():
    code = "import hf_medvlm.figures, sys; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
