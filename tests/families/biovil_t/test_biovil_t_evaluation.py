"""BioViL-T's scores from made-up outputs whose right answers are known, and its wiring."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import build

from hf_medvlm.data.study import StudyBox
from hf_medvlm.evaluation.prompts import sentence_pairs
from hf_medvlm.families.biovil_t.collator import PROGRESSIONS, progression_labels
from hf_medvlm.families.biovil_t.evaluation import located_phrases
from hf_medvlm.families.biovil_t.recipe import (
    BioViLTArguments,
    chosen_studies,
    followed_findings,
    is_published,
    labelled_findings,
)
from hf_medvlm.families.biovil_t.sentence_similarity import sentence_similarity
from hf_medvlm.labels import IGNORE_INDEX


@pytest.fixture
def family(splits):
    return build("biovil_t", splits)


@pytest.fixture
def studies(splits):
    return list(splits.test)


def outputs_of(family, studies):
    batch = family.evaluation.collate(studies_as_rows(studies))
    with torch.no_grad():
        outputs = family.evaluation.predict(family.model.eval(), batch)
    return {name: list(value.numpy()) for name, value in outputs.items()}


def studies_as_rows(studies):
    from hf_medvlm.data.rows import as_rows

    return as_rows(studies)


def test_sentences_are_compared_one_pair_at_a_time(family, studies):
    scores = family.evaluation.score(outputs_of(family, studies), studies)
    tokenizer, right = family.evaluation.collator.processor.tokenizer, []
    pairs, same = sentence_pairs(family.evaluation.findings)
    assert 0.2 < np.mean(same) < 0.8
    for pair, alike in zip(pairs, same, strict=True):
        tokens = [tokenizer([text], return_tensors="pt") for text in pair]
        with torch.no_grad():
            one, other = (family.model.get_text_features(t["input_ids"], t["attention_mask"])[0] for t in tokens)
        right.append((torch.cosine_similarity(one, other, dim=0) > 0.5).item() == alike)
    assert scores.metrics["nli_accuracy"] == pytest.approx(np.mean(right), abs=2 / len(pairs))
    assert scores.baselines["all_contradict"]["nli_accuracy"] == pytest.approx(1 - np.mean(same))
    read: list[str] = []
    sentence_similarity(family.model, lambda texts, **options: read.extend(texts) or tokenizer(texts, **options), pairs)
    assert len(read) == len(set(read)) == len({text for pair in pairs for text in pair})  # no sentence twice
    with pytest.raises(ValueError, match="must hold words"):
        sentence_similarity(family.model, tokenizer, [("No effusion.", " ")])


def test_progression_is_scored_over_labelled_findings_with_a_prior(family, studies):
    outputs, findings = outputs_of(family, studies), family.evaluation.collator.progression_findings
    labels = np.array([progression_labels(study, findings) for study in studies])
    assert (labels != IGNORE_INDEX).sum() > 5
    perfect = np.eye(3)[np.clip(labels, 0, None)]
    outputs["progression"], outputs["progression_without_prior"] = list(perfect), list(-perfect)
    scores = family.evaluation.score(outputs, studies)
    assert scores.metrics["progression_accuracy"] == scores.metrics["task_score"] == 1
    assert scores.metrics["progression_n"] == (labels != IGNORE_INDEX).sum()
    assert scores.baselines["without_prior"]["progression_accuracy"] == 0
    learnt = [progression_labels(study, findings) for study in family.evaluation.train_studies]
    right = total = 0
    for column in range(len(findings)):
        seen = [row[column] for row in learnt if row[column] != IGNORE_INDEX]
        commonest = max(range(3), key=lambda state, seen=seen: (seen.count(state), -state))
        asked = [row[column] for row in labels if row[column] != IGNORE_INDEX]
        right, total = right + asked.count(commonest), total + len(asked)
    assert scores.baselines["majority_class"]["progression_accuracy"] == pytest.approx(right / total)
    first = next(p for p in scores.predictions if p["progression_reference"])
    assert first["progression_prediction"] == first["progression_reference"]
    assert set(first["progression_reference"].values()) <= set(PROGRESSIONS)
    confusion = np.array(scores.figures["confusion"]["Progression"]["matrix"])
    assert (confusion == np.diag(np.diag(confusion))).all() and confusion.sum() == total


def test_a_map_on_the_box_scores_above_the_random_one(family, studies):
    outputs = outputs_of(family, studies)
    for study, maps in zip(studies, outputs["similarity"], strict=True):
        assert np.isfinite(maps).all(axis=(1, 2)).sum() == len(located_phrases(study))
        for number, boxes in enumerate(located_phrases(study).values()):
            rows, columns = np.indices(maps[number].shape) * 64 / len(maps[number]) + 32 / len(maps[number])
            inside = [(columns >= x) & (columns <= x + w) & (rows >= y) & (rows <= y + h) for x, y, w, h in boxes]
            maps[number] = np.any(inside, axis=0) + 0.01 * rows / 64
    scores = family.evaluation.score(outputs, studies)
    assert scores.metrics["grounding_n"] == sum(len(located_phrases(study)) for study in studies)
    assert scores.metrics["cnr"] > 0.7 > 0.3 > abs(scores.baselines["random_map"]["cnr"])
    assert scores.metrics["pointing_game"] > scores.baselines["random_map"]["pointing_game"]


def test_only_boxes_of_the_frontal_image_are_asked(studies):
    study = next(study for study in studies if study.boxes)
    first = study.boxes[0]
    twice = replace(study, boxes=(first, replace(first, xywh=(1.0, 2.0, 3.0, 4.0))))
    assert located_phrases(twice) == {first.phrase: [first.xywh, (1.0, 2.0, 3.0, 4.0)]}
    lateral = replace(study.images[0], path="l.png", view="LATERAL")
    aside = replace(study, images=(*study.images, lateral), boxes=(StudyBox(len(study.images), "x", (0, 0, 1, 1)),))
    assert located_phrases(aside) == {}


def test_images_alone_are_scored_without_text(family, studies):
    outputs = outputs_of(family, studies)
    kept = {name: outputs[name] for name in ("progression", "progression_without_prior", "findings", "size")}
    scores = family.evaluation.score(kept, studies)
    assert "cnr" not in scores.metrics and len(scores.predictions) == len(studies)
    assert scores.metrics["task_score"] == scores.metrics["progression_accuracy"]


def test_tasks_choose_their_labels(splits):
    followed, known = followed_findings(splits.train), labelled_findings(splits.train)
    assert followed == sorted(followed) and "Cardiomegaly" in followed
    for name in known:
        assert {0, 1} <= {study.labels.get(name) for study in splits.train}
    changes = BioViLTArguments().changes(splits)
    assert (changes["progression_findings"], changes["findings"]) == (followed, known)
    changes = BioViLTArguments(task="findings", findings="Edema, Fracture").changes(splits)
    assert changes["findings"] == ["Edema", "Fracture"] and "progression_findings" not in changes
    assert "findings" not in BioViLTArguments(task="alignment").changes(splits)
    with pytest.raises(ValueError, match="--task grading: there are progression, findings, alignment"):
        BioViLTArguments(task="grading")
    bare = replace(splits, studies={"train": [replace(study, progression={}, labels={}) for study in splits.train]})
    with pytest.raises(ValueError, match='has a "progression" entry; choose another --task .findings, alignment'):
        BioViLTArguments().changes(bare)
    with pytest.raises(ValueError, match="no training study has labels of presence and of absence"):
        BioViLTArguments(task="findings").changes(bare)


def test_splits_are_chosen_in_their_order(splits):
    assert chosen_studies(splits, "test,train") == [*splits.test, *splits.train]
    with pytest.raises(ValueError, match="--splits dev: there are train, validate, test"):
        chosen_studies(splits, "dev")


def test_published_folders_are_known(tmp_path):
    assert not is_published(tmp_path)
    (tmp_path / "biovil_t_image_model_proj_size_128.pt").touch()
    assert is_published(tmp_path) and is_published(tmp_path / "biovil_t_image_model_proj_size_128.pt")
