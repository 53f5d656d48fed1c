"""Which figures go to which tracker: all to one on this machine, none that shows a study to one on a server."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from made_run import make_run

from hf_medvlm.figures import SHOW_STUDIES, draw_all
from hf_medvlm.sharing.trackers import send_figures


@pytest.fixture
def folder(tmp_path):
    folder = make_run(tmp_path / "out", studies=3)
    draw_all(folder)
    return folder


@pytest.fixture
def servers(monkeypatch):
    """Stand-ins for wandb and trackio, which keep what they are sent and answer to the calls made of them."""
    kept = {"wandb": {}, "trackio": {}}
    for name, pictures in kept.items():
        run = SimpleNamespace(log=pictures.update, finish=lambda: None)
        module = SimpleNamespace(run=None, Image=lambda path: path, init=lambda run=run, **options: run)
        monkeypatch.setitem(sys.modules, name, module)
    return kept


def options(folder, *trackers):
    return SimpleNamespace(report_to=list(trackers), output_dir=str(folder), project="p", run_name="r")


def test_free_data_goes_to_the_servers_with_its_pictures(folder, servers):
    send_figures(folder, options(folder, "wandb", "trackio"))
    expected = {f"figures/{path.stem}" for path in (folder / "figures").iterdir()}
    assert set(servers["wandb"]) == set(servers["trackio"]) == expected
    assert {"figures/heat_maps", "figures/examples"} <= expected


@pytest.mark.parametrize("change", [{"sources": ["MIMIC-CXR"]}, {"licences": []}])
def test_closed_or_unknown_data_sends_no_study_to_a_server(folder, servers, change):
    info = json.loads((folder / "run.json").read_text()) | change
    (folder / "run.json").write_text(json.dumps(info))
    send_figures(folder, options(folder, "wandb"))
    assert "figures/loss_curve" in servers["wandb"]
    assert not {f"figures/{name.removesuffix('.png')}" for name in SHOW_STUDIES} & set(servers["wandb"])


def test_tensorboard_gets_them_all_on_this_machine(folder):
    pytest.importorskip("tensorboard", reason="needs `pip install tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sent = send_figures(folder, options(folder, "tensorboard"))
    events = EventAccumulator(str(folder / "runs" / "figures")).Reload()
    assert set(events.Tags()["images"]) == {path.stem for path in (folder / "figures").iterdir()}
    assert len(sent) == len(events.Tags()["images"])


def test_no_tracker_is_needed(folder):
    assert send_figures(folder, options(folder)) == []
