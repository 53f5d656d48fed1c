"""README's "Use it", word for word, on real DICOM files and radiographs; skipped where there are none."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from saved_families import save_family

from hf_medvlm.__main__ import main


@pytest.mark.slow
def test_use_it_on_real_files(splits, shared, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = {"finetune_blip": "blip", "train_dual_encoder": "dual_encoder", "train_medklip": "medklip"}
    for recipe, family in runs.items():
        save_family(family, splits, tmp_path / "runs" / recipe / "1")
    images = tmp_path / "images"
    images.mkdir()
    for number, path in enumerate(sorted((shared / "data/real_cxr/images").iterdir())[:4]):
        (images / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    dicom = sorted((shared / "data/dicom").glob("*chest*.dcm"))
    (tmp_path / "chest.dcm").write_bytes(dicom[0].read_bytes())
    block = re.search(r"## Use it\n.*?```bash\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line)[1:] for line in block.group(1).splitlines() if line.startswith("hf-medvlm")]
    assert [words[0] for words in commands] == ["predict", "index", "search", "predict", "ground", "demo"]
    for words in commands:
        if words[0] == "demo":  # tests/inference/test_demo.py drives it
            continue
        if words[0] == "predict":
            import predict

            predict.main([*words[1:], "--workers", "0"])
        else:
            main(words)
    printed = capsys.readouterr().out
    assert printed.count("report.html") == 2 and "searched 4 studies" in printed
    told = [json.loads(line) for line in Path("reports/predictions.jsonl").read_text().splitlines()]
    assert len(told) == 4 and all("prediction" in line for line in told)
    likely = json.loads(Path("findings/predictions.jsonl").read_text())["probabilities"]
    assert all(0 <= value <= 1 for value in likely.values())
    assert Path("index/search.html").is_file() and Path("findings/chest.ground.png").is_file()
