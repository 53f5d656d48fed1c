"""What the dual encoders are scored by: prompts, probe, blocks of the loss, patches against boxes."""

import numpy as np
import pytest
import torch
from families import build
from steps import make_trainer

from hf_medvlm.collators.pairs import pair_id
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.evaluation.probe import probe_scores
from hf_medvlm.evaluation.prompts import prompts_for
from hf_medvlm.families.dual_encoder.processor import OpenClipImageProcessor
from hf_medvlm.families.patch_ib.evaluation import PatchEvaluation, mask_scores, patches_inside, perturbation_curves
from hf_medvlm.labels import CHEXPERT_14


def test_every_finding_has_sentences_for_and_against():
    for finding in (*CHEXPERT_14, "hernia"):
        present, absent = prompts_for(finding)
        assert len(present) > 1 and len(absent) > 1 and not set(present) & set(absent)
        assert all(text[0].isupper() and text.endswith(".") for text in (*present, *absent))


def test_the_probe_learns_what_is_linear_and_skips_what_has_one_class():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 8))
    labels = np.stack([(features[:, 0] > 0).astype(float), np.ones(200)], axis=1)
    labels[:20, 0] = np.nan
    scores = probe_scores(features[:150], labels[:150], features[150:])
    assert np.mean((scores[:, 0] > 0) == (features[150:, 0] > 0)) > 0.9
    assert not scores[:, 1].any()


@pytest.fixture(scope="module")
def scored(splits, tmp_path_factory):
    family = build("patch_ib", splits)
    family.evaluation = PatchEvaluation(
        family.collator(False), family.model, probe_rows=StudyRows(splits.train[:20]), perturbation_steps=2
    )
    trainer = make_trainer(family, splits, tmp_path_factory.mktemp("run"))
    return family, trainer, trainer.scores(StudyRows(splits.test))


def test_all_that_was_promised_is_scored(scored, splits):
    _, _, scores = scored
    names = {f"{way}_{name}" for way in ("i2t", "t2i") for name in ("recall@1", "recall@5", "recall@10", "mrr")}
    names |= {
        "i2t_median_rank",
        "gallery_size",
        "unique_texts",
        "ceiling_recall@1",
        "probe_auc",
        "probe_ap",
        "combined",
    }
    names |= {"zero_shot_auc", "zero_shot_f1", "loss", "temperature", "gflops", "patches_used", "mask_precision"}
    names |= {"mask_recall", "mask_iou", "pointing_game", "box_share", "deletion_auc", "insertion_auc"}
    assert names <= scores.metrics.keys()
    assert scores.baselines["random_order"].keys() >= {"i2t_recall@5", "t2i_mrr"}
    assert len(scores.predictions) == scores.n == len(splits.test)
    auc, recall = scores.metrics["probe_auc"], scores.metrics["mean_recall"]
    assert scores.metrics["combined"] == pytest.approx(70 * recall + 30 * auc)
    drops = [0.75, 0.67]
    kept = round(round(16 * drops[0]) * drops[1])
    assert scores.metrics["patches_used"] == pytest.approx(kept / 16)


def test_the_evaluation_loss_is_that_of_blocks_in_the_order_of_the_split(scored, splits):
    family, _, scores = scored
    batch = family.collator(False)(list(splits.test))
    with torch.no_grad():
        output = family.model.eval()(**{n: batch[n] for n in ("pixel_values", "input_ids", "attention_mask")})
        rows = output.representations | {"pair_ids": torch.tensor([pair_id(s.text()) for s in splits.test])}
        assert scores.metrics["loss"] == pytest.approx(family.model.contrast(rows).item(), rel=1e-4)


def test_zero_shot_is_the_margin_of_the_sentences(scored, splits):
    family, _, scores = scored
    study, collator = splits.test[0], family.collator(False)
    with torch.no_grad():
        image = torch.nn.functional.normalize(
            family.model.eval().get_image_features(collator([study])["pixel_values"]), dim=-1
        )
        sides = []
        for sentences in prompts_for("Edema"):
            features = [family.model.get_text_features(**collator.tokenize([text])) for text in sentences]
            sides.append(torch.nn.functional.normalize(torch.stack(features).mean(0), dim=-1))
        margin = (image @ (sides[0] - sides[1]).T * family.model.scale).item()
    assert scores.predictions[0]["zero_shot"]["Edema"] == pytest.approx(margin, abs=1e-4)


def test_boxes_fall_on_the_grid_after_resize_and_crop():
    processor = OpenClipImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    # 128 x 64 pixels become 64 x 32, of which columns 16 to 48 stay: stored columns 32 to 96
    inside = patches_inside([(32, 0, 16, 64)], (128, 64), processor, (4, 4))
    assert inside.tolist() == [[True, False, False, False]] * 4
    assert not patches_inside([(0, 0, 30, 64)], (128, 64), processor, (4, 4)).any()


def test_mask_scores_by_hand():
    kept = np.array([[True, True], [False, False]])
    inside = np.array([[True, False], [True, False]])
    salience = np.array([[0.5, 0.9], [0.9, 0.1]])
    assert mask_scores(kept, salience, inside) == {
        "mask_precision": 0.5,
        "mask_recall": 0.5,
        "mask_iou": pytest.approx(1 / 3),
        "pointing_game": 0.5,
        "box_share": 0.5,
    }


def test_deletion_ends_where_insertion_starts(splits):
    family = build("dual_encoder", splits)
    model, batch = family.model.eval(), family.collator(False)(list(splits.test[:3]))
    text = torch.nn.functional.normalize(torch.randn(3, 64), dim=-1)
    salience = torch.rand(3, 4, 4)
    deletion, insertion = perturbation_curves(model, batch["pixel_values"], text, salience, 2)
    assert deletion.shape == insertion.shape == (3, 3)
    torch.testing.assert_close(deletion[:, 0], insertion[:, -1])
    torch.testing.assert_close(deletion[:, -1], insertion[:, 0])
