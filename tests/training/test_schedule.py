"""Staged training: what is frozen does not move, layers learn at rates of their own, and the model hears of the
step.
"""

import pytest
import torch
from families import build
from steps import make_trainer

from hf_medvlm.training.contrastive import ContrastiveArguments, ContrastiveTrainer
from hf_medvlm.training.schedule import BACKBONES, parameter_groups, staged_schedule


def test_each_layer_has_its_own_rate_and_weights_alone_decay(splits):
    model = build("dual_encoder", splits).model
    groups = parameter_groups(model, 1e-3, 0.5, 0.1)
    rate, decay = {}, {}
    for group in groups:
        for parameter in group["params"]:
            rate[parameter], decay[parameter] = group["lr"], group["weight_decay"]
    tower = model.vision_tower
    assert len(rate) == len(list(model.parameters()))
    assert [rate[layer.mlp.fc1.weight] for layer in tower.layers] == pytest.approx([1.25e-4, 2.5e-4, 5e-4, 1e-3])
    assert rate[tower.embeddings.cls_token] == pytest.approx(6.25e-5)
    for parameter in (tower.layernorm.weight, model.vision_projection.weight, model.logit_scale):
        assert rate[parameter] == pytest.approx(1e-3)
    assert rate[model.text_tower.embeddings.word_embeddings.weight] == pytest.approx(1e-3)
    assert decay[tower.layers[0].mlp.fc1.weight] == 0.1
    assert decay[tower.layers[0].mlp.fc1.bias] == decay[tower.layernorm.weight] == decay[model.logit_scale] == 0.0


def test_the_two_phases():
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3, "backbone": True},
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3, "backbone": False},
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = staged_schedule(optimizer, frozen_steps=3, frozen_rate=1e-2, warmup_steps=1, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates[:3] == [[0.0, pytest.approx(1e-2)]] * 3
    assert rates[3] == pytest.approx([5e-4, 5e-4]) and rates[4] == pytest.approx([1e-3, 1e-3])
    assert rates[5][0] == rates[5][1] and rates[9][0] < rates[6][0] < rates[5][0] < 1e-3


def test_the_backbone_stays_to_the_bit_while_it_is_frozen(splits, tmp_path):
    family = build("patch_ib", splits)
    before = {name: p.detach().clone() for name, p in family.model.named_parameters()}
    args = ContrastiveArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        frozen_epochs=1.0,
        lr_scheduler_type="cosine",
        layer_decay=0.85,
        weight_decay=0.1,
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = make_trainer(family, splits, tmp_path).train_dataset  # eight studies: an epoch is two steps
    trainer = ContrastiveTrainer(
        model=family.model, args=args, data_collator=family.collator(False), train_dataset=rows
    )
    moved = []

    def look(*_):
        moved.append({name for name, p in family.model.named_parameters() if not torch.equal(p, before[name])})

    trainer.optimizer = trainer.create_optimizer()
    trainer.optimizer.register_step_post_hook(look)
    trainer.train()
    assert not any(name.startswith(BACKBONES) for name in moved[1]) and "vision_projection.weight" in moved[1]
    assert any(name.startswith("vision_tower.") for name in moved[2])
    assert family.model.step == 2
