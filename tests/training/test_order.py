"""Training from shards: the order, and the same losses and weights as from files, resumed ones too."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import build
from made_shards import as_shards
from steps import logged_losses, make_trainer

from hf_medvlm.data.load import Splits, load_splits
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.order import BufferedSampler

OPTIONS = {"max_steps": 4, "per_device_train_batch_size": 3, "optim": "adamw_torch", "learning_rate": 1e-3}
OPTIONS |= {"shuffle_buffer": 4}


@pytest.mark.parametrize(("count", "buffer"), [(1, 1000), (10, 1), (103, 20), (1000, 100)])
def test_each_sample_comes_once_an_epoch_and_neighbours_come_together(count: int, buffer: int) -> None:
    sampler = BufferedSampler(count, buffer, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(count)) and len(sampler) == count and list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(count)) and (second != first or count == 1)
    sampler.set_epoch(0)
    assert list(sampler) == first, "an epoch has one order"
    size = max(buffer // 4, 1)
    runs = [{place // size for place in second[at : at + buffer]} for at in range(0, count - buffer, buffer)]
    assert all(len(run) <= 5 for run in runs), "a buffer reads few places of the corpus"


def test_shards_train_as_files_do_and_go_on_to_the_bit(splits: Splits, tmp_path: Path) -> None:
    family = build("dual_encoder", splits)
    patterns = as_shards(splits, tmp_path / "shards")
    sources = {"files": splits, **{kind: load_splits(pattern) for kind, pattern in patterns.items()}}

    def trainer_on(kind: str, **options):
        trainer = make_trainer(copy.deepcopy(family), sources[kind], tmp_path / kind, **(OPTIONS | options))
        trainer.data_collator = copy.deepcopy(family.collator(True))  # with augmentation, from seeds by study and epoch
        trainer.data_collator.image_folder = sources[kind].image_folder
        return trainer

    files, tar = trainer_on("files"), trainer_on("tar", save_strategy="steps", save_steps=3)
    for trainer in (files, tar, parquet := trainer_on("parquet", dataloader_num_workers=1)):
        trainer.train()
    assert len(logged_losses(files)) == 4 and len(sources["tar"].test) == 3
    assert logged_losses(files) == logged_losses(tar) == logged_losses(parquet)
    after = trainer_on("parquet")
    after.train(resume_from_checkpoint=str(tmp_path / "tar" / "checkpoint-3"))
    assert logged_losses(after) == logged_losses(files)
    weights = files.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in after.model.state_dict().items())


def test_shards_are_mixed_within_a_buffer_and_files_altogether(splits: Splits, tmp_path: Path) -> None:
    family = build("dual_encoder", splits)
    shards = load_splits(as_shards(splits, tmp_path / "shards")["tar"])
    for source, buffer, wanted in ((splits, None, None), (shards, None, 1000), (splits, 5, 5)):
        trainer = make_trainer(copy.copy(family), source, tmp_path / "run", shuffle_buffer=buffer)
        sampler = trainer._get_train_sampler()
        assert getattr(sampler, "buffer", None) == wanted
    with pytest.raises(ValueError, match="--shuffle_buffer 0"):
        MedVLMArguments(output_dir=str(tmp_path), shuffle_buffer=0)
