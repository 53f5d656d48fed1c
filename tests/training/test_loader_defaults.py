"""Workers by the cores, the epoch in workers that live on, and who waits for whom."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
from test_preflight import checks_of
from torch.utils.data import DataLoader

from hf_medvlm.data.rows import Row, StudyRows
from hf_medvlm.training import loading
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.checks import OK
from hf_medvlm.training.loading import choose_workers


@pytest.mark.parametrize(
    ("cores", "processes", "studies", "workers"),
    [(2, 1, 5000, 1), (32, 8, 5000, 3), (64, 1, 5000, 16), (1, 1, 5000, 0), (8, 8, 5000, 0), (32, 1, 1999, 0)],
)
def test_workers_share_the_cores(tmp_path, monkeypatch, cores, processes, studies, workers):
    monkeypatch.setattr(loading, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    args = MedVLMArguments(output_dir=str(tmp_path), use_cpu=True)
    choose_workers(args, studies)
    assert (args.dataloader_num_workers, args.dataloader_persistent_workers) == (workers, workers > 0)
    assert args.dataloader_prefetch_factor == (4 if workers else None) and not args.dataloader_pin_memory
    asked = MedVLMArguments(output_dir=str(tmp_path), use_cpu=True, dataloader_num_workers=0)
    choose_workers(asked, studies)
    assert asked.dataloader_num_workers == 0 and not asked.dataloader_persistent_workers


def epochs(rows: list[Row]) -> list[int]:
    return [row.epoch for row in rows]


def test_workers_that_live_on_see_the_next_epoch(splits):
    rows = StudyRows(splits.train[:8])
    loader = DataLoader(rows, batch_size=2, collate_fn=epochs, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 7):
        rows.set_epoch(epoch)
        assert [each for batch in loader for each in batch] == [epoch] * 8
    copy = pickle.loads(pickle.dumps(rows))
    copy.set_epoch(3)
    assert (rows.epoch, copy.epoch, copy[0].epoch) == (7, 3, 3)


@pytest.mark.parametrize("family", ["blip", "dual_encoder"])
def test_a_dry_run_says_who_waits(splits, tmp_path, family):
    checks, _ = checks_of(splits, tmp_path, family=family, dry_run=True, per_device_train_batch_size=4)
    ((state, text),) = checks["loader"]
    assert state == OK and "studies/s from 0 worker(s)" in text and "on cpu" in text and "will wait" in text
    assert "loader" not in checks_of(splits, tmp_path, family=family)[0]


def test_a_slow_loader_lets_the_model_wait(monkeypatch):
    def checked(loaded: float, device: str) -> tuple[str, str]:
        monkeypatch.setattr(loading, "loader_rate", lambda trainer: loaded)
        monkeypatch.setattr(loading, "model_rate", lambda trainer: 100.0)
        args = SimpleNamespace(deepspeed=None, dataloader_num_workers=0, image_cache=None)
        args.device = SimpleNamespace(type=device)
        model = SimpleNamespace(parameters=list)
        checks = loading.Checks()
        loading.check_loading(checks, SimpleNamespace(args=args, train_dataset=[1], model=model))
        ((state, _, text),) = checks.lines
        return state, text

    state, text = checked(25.0, "cuda")
    assert state == "warning" and "the model will wait 75% of the time; --image_cache" in text
    state, text = checked(250.0, "cuda")
    assert state == OK and "the loader will wait for the model" in text
