"""A few hundred malformed inputs, each refused with a sentence that names its place, or accepted by a rule.

The inputs and the rules are those of benchmarks/fuzz.py, which runs thousands within limits of time and memory. Here
hypothesis chooses the cases, always the same ones, in this process: no pipes and devices, which it could hang on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

HERE = {
    "images": 40,
    "DICOM": 30,
    "tables": 40,
    "master file": 60,
    "conversations": 40,
    "annotations": 40,
    "YAML of a recipe": 20,
    "DeepSpeed JSON": 30,
    "YAML of prepare": 30,
    "options": 20,
    "weight files": 40,
    "metrics": 30,
    "pairs": 30,
    "shards": 25,
}
"""Reader -> cases. Checkpoints, whole corpora and pages of results, which take longer, are the long run's."""


def readers():
    from fuzzing import exports, models, pixels, scores, tables
    from fuzzing import settings as options

    return {r.name: r for module in (pixels, tables, options, models, scores, exports) for r in module.READERS}


@pytest.mark.parametrize("name", HERE)
def test_malformed_inputs_are_refused_or_rightly_taken(name, cache, monkeypatch):
    from fuzzing.mutate import SPECIAL
    from fuzzing.pixels import SIDES
    from fuzzing.pool import BAD, judge

    SPECIAL.clear()  # see the docstring above
    SIDES[:] = [30_000]

    monkeypatch.chdir(tempfile.gettempdir())
    reader, before = readers()[name], dict(os.environ)

    @settings(
        max_examples=HERE[name],
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 1_000_000))
    def one(seed: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            outcome = judge(reader, seed, folder)
        finally:
            os.chdir(tempfile.gettempdir())
            shutil.rmtree(folder, ignore_errors=True)
            os.environ.clear()
            os.environ.update(before)
        assert outcome.kind not in BAD, f"python benchmarks/fuzz.py --only '{name} {seed}': {outcome}"

    one()


def test_what_is_no_plain_file_is_refused_at_once(tmp_path):
    """A pipe or a device where a file is wanted; opening one would wait for ever, so that nothing opens it."""
    from hf_medvlm.data.files import check_place, load_json, read_yaml, write_json
    from hf_medvlm.data.images import open_radiograph
    from hf_medvlm.data.load import load_splits
    from hf_medvlm.data.sources.conversation_files import read_conversation_file
    from hf_medvlm.data.sources.table import load_table
    from hf_medvlm.data.study import read_jsonl
    from hf_medvlm.families.chat.pairs import read_pairs
    from hf_medvlm.figures.results import load_run
    from hf_medvlm.models.convert.checkpoint import read_json, read_state_dict
    from hf_medvlm.models.loading import find_folder
    from hf_medvlm.training.deepspeed import read_deepspeed

    pipe, zeros = tmp_path / "pipe", tmp_path / "zeros"
    os.mkfifo(pipe)
    zeros.symlink_to("/dev/zero")
    reads = [read_yaml, load_json, read_json, open_radiograph, read_jsonl, read_state_dict, read_deepspeed]
    for path in (pipe, zeros):
        for read in reads:
            with pytest.raises(ValueError, match=path.name):
                read(str(path))
        for suffix, read in (
            (".json", read_conversation_file),
            (".csv", lambda p: load_table(str(p), image_folder=tmp_path)),
            (".parquet", lambda p: load_table(str(p), image_folder=tmp_path)),
            (".tar", lambda p: load_splits(str(p))),
            (".jsonl", lambda p: read_pairs(p, [])),
        ):
            named = path.with_suffix(suffix)
            named.symlink_to(path)
            with pytest.raises(ValueError, match=named.name):
                read(named)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").symlink_to(pipe)
    with pytest.raises(ValueError, match="run.json.*no plain file"):
        load_run(run)
    with pytest.raises(ValueError, match="vocab.txt.*no plain file"):
        (run / "vocab.txt").symlink_to(pipe)
        find_folder(run)
    for write in (lambda path: write_json(path, {}), lambda path: check_place(path, "--out")):
        with pytest.raises((ValueError, OSError), match="zeros"):
            write(zeros)


def test_errors_of_libraries_become_sentences_and_ours_stay_tracebacks():
    from hf_medvlm.errors import library_errors

    with pytest.raises(ValueError, match=r"^x\.json \(JSONDecodeError: Expecting value.*\); look at it$"):
        with library_errors("x.json", "look at it"):
            __import__("json").loads("{]"[1:])
    module: dict = {"__name__": "hf_medvlm.made_up"}
    exec("def fault():\n    return {}['a']\n", module)
    with pytest.raises(KeyError), library_errors("x", "y"):
        module["fault"]()
