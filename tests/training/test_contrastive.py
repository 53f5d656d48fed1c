"""One contrastive loss over the global batch: GradCache, processes and duplicates against the loss of one plain
batch.
"""

from pathlib import Path

import pytest
import torch
from families import build
from launch import together
from steps import make_trainer
from torch import nn

from hf_medvlm.training.contrastive import ContrastiveArguments, ContrastiveTrainer, pad_to, stack_rows


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["dual_encoder", "patch_ib"])
@pytest.mark.parametrize("sizes", [(4, 4), (1, 5, 2)])
def test_cached_micro_batches_give_the_gradient_of_one_batch(name, sizes, splits, tmp_path):
    """Dropout too: both passes of a micro-batch must draw the same numbers."""
    family = build(name, splits)
    trainer = make_trainer(family, splits, tmp_path)
    model, collator = trainer.model.train(), family.collator(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    studies = list(splits.train[: sum(sizes)])
    whole = collator(studies)
    whole["pair_ids"][-1] = whole["pair_ids"][0]  # a report that stands in two micro-batches
    loss = model(**whole).loss
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    parts, start = [], 0
    for size in sizes:
        part = collator(studies[start : start + size])  # padded to its own longest text
        parts.append(part | {"pair_ids": whole["pair_ids"][start : start + size]})
        start += size
    trainer.get_batch_samples(iter(parts), len(parts), torch.device("cpu"))
    logged = 0.0
    for part in parts:
        share = trainer.compute_loss(model, part) / len(parts)
        share.backward()
        logged += share.item()
    assert logged == pytest.approx(loss.item(), rel=1e-5)
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-6, msg=key)


def test_both_passes_draw_the_same_dropout(splits, tmp_path):
    family = build("dual_encoder", splits)
    trainer = make_trainer(family, splits, tmp_path)
    trainer.model.train()
    drawn = []
    trainer.model.text_projection.register_forward_pre_hook(
        lambda _, inputs: (torch.nn.functional.dropout(inputs[0], 0.5, training=True),)
    )
    trainer.model.text_projection.register_forward_hook(lambda _, inputs, output: drawn.append(output.detach().clone()))
    parts = [family.collator(False)(splits.train[i : i + 3]) for i in (0, 3)]
    trainer.get_batch_samples(iter(parts), 2, torch.device("cpu"))
    for part in parts:
        trainer.compute_loss(trainer.model, part)
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


SCRIPT = """
import sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hf_medvlm.losses import duplicate_targets, gather_with_grad, info_nce
from hf_medvlm.training.run import leave_processes

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
images, texts, weight = torch.randn(7, 5), torch.randn(7, 5), torch.randn(5, 5)
ids = torch.tensor([0, 1, 2, 0, 3, 1, 4])  # duplicates within and across the processes


def step(rows, gather):
    w = weight.clone().requires_grad_()
    i, t = F.normalize(images[rows] @ w, dim=-1), F.normalize(texts[rows] @ w, dim=-1)
    i, t, own = (gather_with_grad(x) if gather else x for x in (i, t, ids[rows]))
    loss = info_nce(i, t, 5.0, targets=duplicate_targets(own))
    loss.backward()
    return loss.detach(), w.grad


loss, grad = step(slice(0, 5) if rank == 0 else slice(5, 7), gather=True)  # five rows and two
dist.all_reduce(grad)
expected = step(slice(None), gather=False)
torch.testing.assert_close(loss, expected[0])
torch.testing.assert_close(grad / 2, expected[1])  # DistributedDataParallel takes the mean
wide = gather_with_grad(torch.ones(2, 3 + rank))
assert wide.shape == (4, 4) and wide[0].tolist() == [1, 1, 1, 0] and wide[3].tolist() == [1, 1, 1, 1]
print("same", flush=True)
leave_processes()
"""


def test_two_processes_with_uneven_batches_and_duplicates_give_the_gradient_of_one(tmp_path: Path):
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    assert together(script).count("same") == 2


def test_padding_and_stacking_rows():
    parts = [{"x": torch.ones(2, 1), "s": torch.tensor(3.0)}, {"x": torch.ones(1, 3), "s": torch.tensor(3.0)}]
    stacked = stack_rows(parts)
    assert stacked["x"].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1]] and stacked["s"] == 3.0
    assert pad_to(torch.ones(1, 1, 2), [2, 2]).tolist() == [[[1, 1], [0, 0]]]


def test_the_contrastive_batch_sets_the_accumulation(tmp_path):
    options = {"output_dir": str(tmp_path), "per_device_train_batch_size": 16}
    assert ContrastiveArguments(contrastive_batch_size=1024, **options).gradient_accumulation_steps == 64
    with pytest.raises(ValueError, match="no multiple of the 16 pairs .* the nearest are 32 and 48"):
        ContrastiveArguments(contrastive_batch_size=40, **options)
    with pytest.raises(ValueError, match="--layer_decay lies above 0"):
        ContrastiveArguments(layer_decay=0.0, **options)
    with pytest.raises(ValueError, match="--lr_scheduler_type cosine"):
        ContrastiveArguments(frozen_epochs=1.0, **options)


def test_a_batch_of_one_and_equal_texts_are_refused_before_training(splits, tmp_path):
    family = build("dual_encoder", splits)
    with pytest.raises(ValueError, match="a contrastive loss needs at least two pairs"):
        make_trainer(family, splits, tmp_path, per_device_train_batch_size=1)
    collator = family.collator(False)
    collator.text = lambda study: "No acute process."
    with pytest.raises(ValueError, match="all 8 texts are the same"):
        ContrastiveTrainer(
            model=family.model,
            args=ContrastiveArguments(output_dir=str(tmp_path), eval_strategy="no"),
            data_collator=collator,
            train_dataset=make_trainer(family, splits, tmp_path).train_dataset,
        )
