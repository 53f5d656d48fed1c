"""The score that chooses the best checkpoint: found to be undefined before training, and never a traceback after."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from families import build

from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.evaluation.base import Scores
from hf_medvlm.evaluation.retrieval import RetrievalEvaluation
from hf_medvlm.evaluation.text import TextEvaluation
from hf_medvlm.families.biovil_t.evaluation import BioViLTEvaluation
from hf_medvlm.families.chat.evaluation import ChatEvaluation
from hf_medvlm.families.medklip.collator import FindingsCollator
from hf_medvlm.families.medklip.evaluation import MedKlipEvaluation
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.checks import OK, WARNING, Checks
from hf_medvlm.training.preflight_scores import check_classes, check_headline

COLLATOR = SimpleNamespace(target=lambda study: study.text())


def study(number: int, text: str = "Normal.", **more) -> Study:
    return Study(f"s{number}", f"p{number}", "validate", (StudyImage("x.png"),), report=text, **more)


def test_findings_f1_needs_a_text_that_names_a_finding():
    evaluation = TextEvaluation(COLLATOR, None, [])
    answers = [study(n, word) for n, word in enumerate(("Yes.", "The lungs.", "2"))]
    reason = evaluation.undefined("findings_f1_micro", answers)
    assert reason == "none of its 3 texts names a finding that is present"
    assert evaluation.undefined("findings_f1_micro", [*answers, study(3, "Left effusion.")]) is None
    assert evaluation.undefined("cider", answers) is None


def test_the_accuracy_of_a_kind_of_question_needs_such_questions():
    evaluation = ChatEvaluation(COLLATOR, None, [])
    closed = [study(0, "Yes.", answer_type="CLOSED")]
    assert evaluation.undefined("closed_accuracy", closed) is None
    assert "answer_type is OPEN" in evaluation.undefined("open_accuracy", closed)
    assert "names a finding" in evaluation.undefined("findings_f1_macro", closed)


def test_a_mean_over_entities_needs_one_of_both_kinds():
    entities = ("effusion", "edema")
    evaluation = MedKlipEvaluation(FindingsCollator(None, ".", entities))
    without = [study(n, "There is no pleural effusion.") for n in range(3)]
    assert "no entity is present in some of its 3 studies" in evaluation.undefined("mean_auc", without)
    both = [*without, study(3, "Small left effusion.")]
    assert evaluation.undefined("mean_auc", both) is None
    assert evaluation.class_counts(both) == {"effusion": (1, 3), "edema": (0, 0)}


def test_tasks_of_a_temporal_model_need_their_labels():
    collator = SimpleNamespace(progression_findings=("Edema",), findings=("Edema",), priors={"s1": study(0)})
    task = BioViLTEvaluation(collator, None, task="progression")
    changed = [study(n, progression={"Edema": "stable"}) for n in (1, 2)]
    assert task.undefined("task_score", changed) is None
    assert "has a prior image and a progression" in task.undefined("task_score", changed[1:])
    task = BioViLTEvaluation(collator, None, task="findings")
    labelled = [study(n, labels={"Edema": n}) for n in (0, 1)]
    assert task.undefined("task_score", labelled) is None
    assert "labelled with and others without" in task.undefined("task_score", labelled[:1])
    assert BioViLTEvaluation(collator, None).undefined("task_score", labelled[:1]) is None  # retrieval is always there


@pytest.fixture(scope="module")
def trainer(splits, tmp_path_factory):
    made = build("blip", splits)
    training = MedVLMArguments(output_dir=str(tmp_path_factory.mktemp("out")), use_cpu=True, report_to="none")
    return made.trainer_class(
        model=made.model,
        args=training,
        data_collator=made.collator(True),
        evaluation=made.evaluation,
        train_dataset=StudyRows(splits.train),
        eval_dataset=StudyRows(splits.validate),
        processing_class=made.evaluation.tokenizer,
    )


@pytest.fixture
def asked(trainer):
    """The trainer, asked to choose by the F1 of findings; as it was again afterwards."""
    trainer.args.metric_for_best_model, trainer.args.greater_is_better = "findings_f1_micro", True
    trainer.args.load_best_model_at_end = True
    trainer.state.log_history, trainer.state.best_metric = [], None
    return trainer


def split(splits, validate) -> Splits:
    return Splits({"train": splits.train, "validate": validate, "test": []}, splits.image_folder, "x")


def test_the_preflight_finds_it_and_another_score_takes_its_place(asked, splits):
    checks = Checks()
    answers = [replace(s, findings="Yes", impression="", report="") for s in splits.validate]
    check_headline(checks, asked, split(splits, answers))
    ((state, what, text),) = checks.lines
    assert (state, what) == (WARNING, "best by") and "names a finding that is present" in text
    assert text.endswith("the best checkpoint is chosen by loss instead")
    assert (asked.args.metric_for_best_model, asked.args.greater_is_better) == ("loss", False)
    check_headline(checks, asked, split(splits, answers))
    assert checks.lines[1] == (OK, "best by", "loss, the smaller the better")


def evaluated(trainer, monkeypatch, **metrics):
    scores = Scores(metrics=metrics, n=1)
    monkeypatch.setattr(trainer, "scores", lambda rows: scores)
    return trainer.evaluate()


def test_an_evaluation_without_the_score_ends_nothing(asked, monkeypatch, caplog):
    metrics = evaluated(asked, monkeypatch, loss=2.0, findings_f1_micro=float("nan"))
    assert asked._determine_best_metric(metrics, None) and asked.state.best_metric == 2.0
    assert (
        "findings_f1_micro is undefined on the validation split; the best checkpoint is chosen by loss" in caplog.text
    )
    assert asked.args.metric_for_best_model == "loss"
    assert not asked._determine_best_metric(evaluated(asked, monkeypatch, loss=3.0), None)


def test_a_score_that_was_there_and_is_gone_counts_as_no_better(asked, monkeypatch):
    assert asked._determine_best_metric(evaluated(asked, monkeypatch, findings_f1_micro=0.5), None)
    metrics = evaluated(asked, monkeypatch, loss=1.0, findings_f1_micro=float("nan"))
    assert not asked._determine_best_metric(metrics, None)
    assert asked.args.metric_for_best_model == "findings_f1_micro" and asked.state.best_metric == 0.5


def test_where_nothing_can_take_its_place_the_last_weights_are_kept(asked, monkeypatch):
    metrics = evaluated(asked, monkeypatch, findings_f1_micro=float("nan"))
    assert not asked._determine_best_metric(metrics, None) and asked.args.load_best_model_at_end is False


def test_few_of_a_class_are_named_with_their_numbers():
    labels = [{"Edema": int(n < 2), "Fracture": 0, "Pneumonia": int(n % 2)} for n in range(20)]
    studies = [study(n, labels=of_study) for n, of_study in enumerate(labels)]
    evaluation = RetrievalEvaluation(None, None)
    for validate, expected in ((studies, "Edema 2 with and 18 without"), (studies[2:4], "Pneumonia 1 with and 1 with")):
        checks = Checks()
        data = Splits({"train": [], "validate": validate, "test": []}, ".", "own.csv")
        check_classes(checks, SimpleNamespace(evaluation=evaluation), data)
        ((state, what, text),) = checks.lines
        assert (state, what) == (WARNING, "findings") and expected in text and "Fracture" not in text
    checks = Checks()
    data = Splits({"train": [], "validate": studies[:1], "test": []}, ".", "own.csv")
    check_classes(checks, SimpleNamespace(evaluation=evaluation), data)
    assert (
        "scores by finding are left empty; label them; prepare_data.py --labels text reads labels" in checks.lines[0][2]
    )
