"""The audit asks whether an earlier study was shown; chat models say so in their question."""

from __future__ import annotations

from hf_medvlm.data.conversations import ChatOptions, with_conversation
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.families.chat.evaluation import ChatEvaluation


def study(name: str, text: str, prior: str | None = None) -> Study:
    return Study(
        study_id=name,
        patient_id="p",
        images=(StudyImage(f"{name}.png", "PA"),),
        findings=text,
        split="test",
        prior_study_id=prior,
    )


def test_a_change_is_an_error_only_where_no_earlier_study_was_shown() -> None:
    earlier, later = study("1", "No effusion."), study("2", "Small left effusion, new.", "1")
    evaluation = ChatEvaluation(None, tokenizer=None, train_reports=["No effusion."])  # type: ignore[arg-type]
    for shown, rate in ((True, 0.0), (False, 0.5)):
        options = ChatOptions(prior=shown)
        asked = [with_conversation(earlier, options), with_conversation(later, options, earlier)]
        assert [evaluation.saw_prior(one) for one in asked] == [False, shown]
        texts = [one.text() for one in asked]
        scores = evaluation.score_reports(texts, texts, asked)
        assert scores.metrics["audit_change_without_prior"] == rate
        assert scores.facts["audit_omitted"].better == "lower" and scores.metrics["audit_omitted"] == 0
        assert "audit_omitted" in scores.baselines["constant_normal"] and "audit" in scores.figures
        kinds = [error["kind"] for error in scores.predictions[1]["audit"]]
        assert kinds == ([] if shown else ["change_without_prior"])
