"""`recipes/prepare_data.py` from end to end: counts, files, options, and every way in which a run can be stopped."""

import gzip
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import make_corpora
import prepare_data
import pytest
from make_corpora import SENTENCES, make_iu_kaggle, make_mimic, make_open_i, make_r2gen, make_roco
from PIL import Image

import hf_medvlm.data.prepare
from hf_medvlm.data.counting import hash_studies
from hf_medvlm.data.load import load_splits
from hf_medvlm.data.prepare_options import parse_options
from hf_medvlm.data.study import read_jsonl

RECIPE = Path(prepare_data.__file__)
SHARED = RECIPE.parents[2] / "shared" / "data"


def prepare(corpus, root, *options, out=None):
    """Run the recipe; return its statistics, the studies and the rejected entries as they stand on disk."""
    out = out or root / "out" / "master.jsonl"
    prepare_data.main([corpus, "--root", str(root), "--out", str(out), *options])
    rejected = [json.loads(line) for line in out.with_name("rejected.jsonl").read_text().splitlines()]
    return json.loads(out.with_name("statistics.json").read_text()), read_jsonl(out), rejected


def run(*arguments, **options):
    """Run the recipe as users do."""
    return subprocess.run([sys.executable, RECIPE, *map(str, arguments)], capture_output=True, text=True, **options)


def mimic_dicom_folder(root):
    return make_mimic(root, ".dcm", zipped=False)


def make_table(root):
    """A table of hospital reports: 20 good rows of 10 patients, and one row for each thing that can be wrong."""
    lines = ["image,patient_id,study_id,findings,study_date,labels"]
    for n in range(20):
        make_corpora.write_image(root / f"i/{n}.png", seed=n)
        lines.append(
            f'i/{n}.png,p{n // 2},s{n},Case {n}. {SENTENCES[1]},2180-01-{n % 2 + 1:02},"{{""Edema"": {n % 2}}}"'
        )
    make_corpora.write_image(root / "i/20.png")
    lines += [f"i/20.png,p20,s20,{SENTENCES[1]},2180-02-30,", f'i/20.png,p20,s21,{SENTENCES[1]},,"{{""Edema"": 2}}"']
    lines += [f"../i/20.png,p20,s22,{SENTENCES[1]},,", "i/20.png,p20,s23,,,", "i/20.png,p20,s24,Normal.,,"]
    lines += [f"i/21.png,p20,s25,{SENTENCES[1]},,", "i/20.png,p20", f"i/19.png,p9,s26,Case 19. {SENTENCES[1]},,"]
    (root / "reports.csv").write_text("\n".join(lines) + "\n")
    reasons = "impossible date|impossible label|path leaves the image folder|empty text|short text|image not on disk"
    reasons += "|no frontal image|wrong number of fields|duplicate row"
    return make_corpora.Planted(20, 20, Counter(), Counter(reasons.split("|")))


CORPORA = {
    "mimic-cxr": ("mimic-cxr", make_mimic, ()),
    "mimic-cxr-dicom": ("mimic-cxr", mimic_dicom_folder, ()),
    "open-i": ("iu-xray", make_open_i, ()),
    "iu-kaggle": ("iu-xray", make_iu_kaggle, ()),
    "r2gen": ("iu-xray", make_r2gen, ()),
    "roco": ("roco", make_roco, ()),
    "table": ("table", make_table, ("--table", "reports.csv")),
}


@pytest.mark.parametrize("name", CORPORA)
def test_every_count_in_the_report_is_what_was_planted(tmp_path, name, capsys):
    corpus, make, options = CORPORA[name]
    planted = make(tmp_path)
    statistics, studies, rejected = prepare(corpus, tmp_path, "--verify_images", *options)
    every = statistics["splits"]["all"]
    assert (
        (every["studies"], every["images"])
        == (planted.studies, planted.images)
        == (
            len(studies),
            sum(len(study.images) for study in studies),
        )
    )
    assert Counter(statistics["left_out"]) == planted.rejected == Counter(entry["reason"] for entry in rejected)
    if planted.splits:
        assert planted.splits == Counter({s: v["studies"] for s, v in statistics["splits"].items() if s != "all"})
    assert len({(study.patient_id, study.split) for study in studies}) == every["patients"]
    ids = {study.study_id: study.patient_id for study in studies}
    assert all(ids[study.prior_study_id] == study.patient_id for study in studies if study.prior_study_id)
    printed = capsys.readouterr().out
    assert "| label_policy | keep |" in (tmp_path / "out" / "statistics.md").read_text()
    assert all(f"| {reason} | {count} |" in printed for reason, count in planted.rejected.items())
    for entry in rejected:  # a line that is named is the line of the study
        if entry["line"] and entry["study_id"] and entry["file"].endswith((".csv", ".txt")):
            line = Path(entry["file"]).read_text().splitlines()[entry["line"] - 1]
            assert entry["study_id"].removeprefix("CXR") in line


def test_the_master_file_is_what_recipes_take(tmp_path):
    planted = make_mimic(tmp_path)
    prepare("mimic-cxr", tmp_path, "--verify_images")
    splits = load_splits(str(tmp_path / "out" / "master.jsonl"), image_folder=tmp_path)
    assert {name: len(studies) for name, studies in splits.studies.items()} == dict(planted.splits)


@pytest.mark.parametrize("name", ["mimic-cxr", "open-i", "table"])
def test_all_bytes_are_the_same_in_another_process(tmp_path, name):
    corpus, make, options = CORPORA[name]
    make(tmp_path / "in")
    common = (corpus, "--root", tmp_path / "in", "--out", tmp_path / "out" / "m.jsonl", "--verify_images", *options)
    contents = []
    for seed in ("1", "2"):
        assert run(*common, env={**os.environ, "PYTHONHASHSEED": seed}).returncode == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
        shutil.rmtree(tmp_path / "out")
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"m.jsonl", "rejected.jsonl", "statistics.csv", "statistics.json", "statistics.md"}


@pytest.mark.parametrize("options", [(), ("--rows", "image", "--labels", "text"), ("--label_policy", "u-zeros")])
def test_in_blocks_by_several_processes_the_bytes_are_the_same(tmp_path, monkeypatch, options):
    studies = list(make_corpora.simulate_mimic(studies=400, images=700, patients=120))
    for study in studies[::20]:
        study.report = make_corpora.mimic_report("Normal.", "")
    make_corpora.write_mimic(tmp_path, studies)
    (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").unlink()

    def contents():
        prepare("mimic-cxr", tmp_path, "--workers", "2", *options)
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    whole = contents()
    monkeypatch.setattr(hf_medvlm.data.prepare, "BLOCK", 30)
    in_blocks = contents()
    in_blocks_rejected = in_blocks["rejected.jsonl"]
    left_out = [sorted(files.pop("rejected.jsonl").splitlines()) for files in (whole, in_blocks)]
    assert in_blocks == whole and left_out[0] == left_out[1]
    master = tmp_path / "out" / "master.jsonl"
    assert {study.split for study in read_jsonl(master)} == {"train", "validate", "test"}
    if not options:  # the same corpus as Parquet
        monkeypatch.setenv("HF_MEDVLM_CACHE", str(tmp_path / "known"))
        parquet = tmp_path / "parquet" / "master.parquet"
        prepare_data.main(["mimic-cxr", "--root", str(tmp_path), "--out", str(parquet), "--workers", "2"])
        table, plain = (load_splits(str(path), tmp_path, verify_images=False) for path in (parquet, master))
        assert {split: list(part) for split, part in table.studies.items()} == plain.studies
        assert hash_studies(table.studies.values()) == hash_studies(plain.studies.values())
        assert (parquet.with_name("rejected.jsonl")).read_bytes() == in_blocks_rejected


PARTS = {
    "blocks": ("mimic-cxr", None, ("--rows", "image", "--labels", "text", "--workers", "1")),
    "mimic-cxr": ("mimic-cxr", make_mimic, ("--convert", "png", "--size", "16")),
    "open-i": ("iu-xray", make_open_i, ("--verify_images",)),
    "table": ("table", make_table, ("--table", "reports.csv", "--label_policy", "u-zeros", "--cache", "pictures")),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_joined_to_the_files_of_one_process(tmp_path, monkeypatch, capsys, name):
    corpus, make, options = PARTS[name]
    monkeypatch.chdir(tmp_path)
    if make is None:
        make_corpora.write_mimic(tmp_path, make_corpora.simulate_mimic(studies=200, images=350, patients=60))
        monkeypatch.setattr(hf_medvlm.data.prepare, "BLOCK", 30)
    else:
        make(tmp_path)
    prepare(corpus, tmp_path, *options)
    (tmp_path / "out").rename(tmp_path / "alone")
    common = [corpus, "--root", str(tmp_path), "--out", str(tmp_path / "out" / "master.jsonl"), *options]
    for number in (3, 1, 2):
        if number == 2:
            with pytest.raises(ValueError, match="1 of 3 parts are missing: --shard 2/3"):
                prepare_data.main([*common, "--merge"])
        prepare_data.main([*common, "--shard", f"{number}/3"])
    with pytest.raises(ValueError, match="prepared with --seed 0, the merge says 1"):
        prepare_data.main([*common, "--merge", "--seed", "1"])
    capsys.readouterr()
    prepare_data.main([*common, "--merge"])
    assert "studies; " in capsys.readouterr().out
    ours, theirs = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "out", tmp_path / "alone")
    )
    assert ours == theirs and len(read_jsonl(tmp_path / "out" / "master.jsonl")) > 5


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    make_table(tmp_path)
    common = ["table", "--root", str(tmp_path), "--out", str(tmp_path / "master.jsonl"), "--table", "reports.csv"]
    for shard, why in (("0/2", "K/N is needed"), ("3/2", "K/N"), ("x", "K/N"), ("1/2/3", "K/N")):
        with pytest.raises(ValueError, match=why):
            prepare_data.main([*common, "--shard", shard])
    with pytest.raises(ValueError, match="take --merge when all parts are there"):
        prepare_data.main([*common, "--shard", "1/2", "--merge"])
    with pytest.raises(ValueError, match="there is no part beside"):
        prepare_data.main([*common, "--merge"])
    prepare_data.main([*common, "--shard", "1/2"])
    prepare_data.main([*common, "--shard", "1/3"])
    with pytest.raises(ValueError, match="parts of 2 and 3"):
        prepare_data.main([*common, "--merge"])
    (tmp_path / "master.jsonl.shard-1-of-3.jsonl.gz").unlink()
    with open(tmp_path / "reports.csv", "a") as table:
        table.write(f"i/20.png,p20,s99,{SENTENCES[1]} More.,,\n")
    prepare_data.main([*common, "--shard", "2/2"])
    with pytest.raises(ValueError, match="the corpus has changed"):
        prepare_data.main([*common, "--merge"])
    part = tmp_path / "master.jsonl.shard-2-of-2.jsonl.gz"
    part.write_bytes(part.read_bytes()[:60])
    with pytest.raises(ValueError, match="prepare this part again"):
        prepare_data.main([*common, "--merge"])
    assert not (tmp_path / "master.jsonl").exists()


def test_no_patient_name_reaches_a_log_or_a_file(tmp_path):
    make_mimic(tmp_path / "in", ".dcm", zipped=False)
    done = run(
        *("mimic-cxr", "--root", tmp_path / "in", "--out", tmp_path / "out" / "m.jsonl"),
        *("--convert", "png", "--size", "16"),
    )
    assert done.returncode == 0
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    everything = (done.stdout + done.stderr).encode() + written
    assert b"unreadable image" in everything and b"secret" not in everything.lower()


def test_converted_images_are_where_the_master_file_says(tmp_path, capsys):
    planted = make_mimic(tmp_path, ".dcm")
    statistics, studies, _ = prepare("mimic-cxr", tmp_path, "--convert", "png", "--size", "16")
    cache = tmp_path / "out" / "master_png16"
    assert f"--image_folder {cache}" in capsys.readouterr().out
    assert Counter(statistics["left_out"]) == planted.rejected and len(studies) == planted.studies
    sizes = {Image.open(cache / image.path).size for study in studies for image in study.images}
    assert sizes == {(16, 16)}


def test_one_row_per_frontal_image(tmp_path):
    make_mimic(tmp_path)
    _, by_study, _ = prepare("mimic-cxr", tmp_path, out=tmp_path / "a" / "m.jsonl")
    _, by_image, _ = prepare("mimic-cxr", tmp_path, "--rows", "image", out=tmp_path / "b" / "m.jsonl")
    frontal = [(s, i) for s in by_study for i in s.images if i.is_frontal]
    assert len(by_image) == len(frontal) > len(by_study)
    firsts = {s.study_id: f"{s.study_id}-{Path(s.images[0].path).stem}" for s in by_study}
    for row, (study, image) in zip(by_image, frontal, strict=True):
        assert row.study_id == f"{study.study_id}-{Path(image.path).stem}" and row.images[0] == image
        assert list(row.images[1:]) == [other for other in study.images if not other.is_frontal]
        assert row.prior_study_id == firsts.get(study.prior_study_id) and row.split == study.split


def test_a_prior_that_was_left_out_gives_way_to_the_one_before(tmp_path):
    text = make_corpora.mimic_report(SENTENCES[0], SENTENCES[1])
    reports = [text, make_corpora.mimic_report("Normal.", ""), text.replace("is", "seems")]
    studies = [
        make_corpora.MimicStudy(10_000_001, 50_000_000 + n, "train", report, date=f"2180010{n + 1}")
        for n, report in enumerate(reports)
    ]
    make_corpora.write_mimic(tmp_path, studies)
    _, studies, _ = prepare("mimic-cxr", tmp_path)
    assert [(s.study_id, s.prior_study_id) for s in studies] == [("50000000", None), ("50000002", "50000000")]


def test_reports_in_other_languages_are_named_where_labels_come_from_the_text(tmp_path, capsys):
    make_corpora.write_image(tmp_path / "a.png")
    make_corpora.write_image(tmp_path / "b.png", seed=1)
    spanish = "No se observa derrame pleural. La silueta cardíaca es normal y los pulmones están sin hallazgos."
    (tmp_path / "t.csv").write_text(f'image,patient_id,findings\na.png,1,"{spanish}"\nb.png,2,"{SENTENCES[1]}"\n')
    for labels in ("text", "corpus"):
        table = ["--table", str(tmp_path / "t.csv"), "--labels", labels]
        statistics, _, _ = prepare("table", tmp_path, *table, out=tmp_path / labels / "m.jsonl")
        printed = capsys.readouterr().out
        assert ("warning: --labels text reads English; of the reports 1 in Spanish" in printed) == (labels == "text")
        assert statistics.get("other_languages") == ({"Spanish": 1} if labels == "text" else None)


def test_labels_from_the_text_and_by_policy(tmp_path):
    make_open_i(tmp_path)
    _, studies, _ = prepare("iu-xray", tmp_path, "--labels", "text")
    study = next(s for s in studies if s.study_id == "CXR3")
    assert study.labels["Pleural Effusion"] == 1 and study.labels["Cardiomegaly"] == 1
    make_mimic(tmp_path / "mimic")
    _, studies, _ = prepare("mimic-cxr", tmp_path / "mimic", "--label_policy", "u-ones")
    assert studies[0].labels["Atelectasis"] == 1 and studies[0].labels["Consolidation"] == 1
    assert studies[0].labels["Cardiomegaly"] == 0 and studies[0].labels["Edema"] is None


def test_a_data_set_with_images_inside(tmp_path):
    import datasets

    make_table(tmp_path / "a")
    names = [f"{n}.png" for n in range(20)]
    columns = {"image": [str(tmp_path / "a" / "i" / name) for name in names], "patient_id": names}
    columns |= {"findings": [f"Case {name}. {SENTENCES[1]}" for name in names]}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    table = table.map(lambda row: {"image": {"bytes": Path(row["image"]["path"]).read_bytes(), "path": None}})
    (tmp_path / "b").mkdir()
    table.to_parquet(tmp_path / "b" / "set.parquet")
    statistics, studies, _ = prepare("table", tmp_path / "b", "--table", "set.parquet", "--verify_images")
    assert statistics["splits"]["all"]["images"] == len(studies) == 20 and not statistics["left_out"]


def test_llava_format(tmp_path):
    make_roco(tmp_path)
    out = tmp_path / "out" / "chat.json"
    prepare_data.main(["roco", "--root", str(tmp_path), "--out", str(out), "--format", "llava"])
    samples = json.loads(out.read_text())
    assert len(samples) == 24 and samples[0]["image"] == "data/train/radiology/images/ROCO_00002.jpg"
    assert [turn["from"] for turn in samples[0]["conversations"]] == ["human", "gpt"]
    assert "AP chest radiograph" in samples[0]["conversations"][1]["value"]


def test_the_yaml_beside_the_recipe_holds_the_defaults(tmp_path):
    common = ["--root", str(tmp_path), "--out", "m.jsonl"]
    for corpus, more in {"mimic-cxr": [], "iu-xray": [], "roco": [], "table": ["--table", "x.csv"]}.items():
        plain = parse_options([corpus, *common, *more])
        configured = parse_options([corpus, "--config", str(RECIPE.with_suffix(".yaml")), *common, *more])
        assert vars(configured) | {"config": None} == vars(plain)


def test_yaml_sets_defaults_and_the_command_line_wins(tmp_path):
    config = tmp_path / "x.yaml"
    lines = ["min_characters: 7", "verify_images: true", "seed: 3", "text_columns: [findings, note]", "table: t.csv"]
    config.write_text("\n".join([*lines, "root: in", "out: m.jsonl"]))
    options = parse_options(["table", "--seed", "5", "--config", str(config)])
    assert (options.min_characters, options.verify_images, options.seed) == (7, True, 5)
    assert options.text_columns == "findings,note" and options.root == Path("in")


@pytest.mark.parametrize(
    "arguments, yaml, message",
    [
        (["--min_character", "3"], "", "unknown option '--min_character'; did you mean '--min_characters'"),
        ([], "min_caracters: 3", r"x\.yaml: unknown key 'min_caracters'; did you mean 'min_characters'"),
        ([], "chest_xray: true", r"x\.yaml: unknown key 'chest_xray'"),  # ROCO's
        ([], "- 1", "expected .name: value. lines, found a list"),
        ([], "a: [", r"x\.yaml:1: not YAML"),
        (["--size", "512"], "", "--size is the longer side of the copies that --convert png makes"),
        (["--format", "llava", "--out", "o.parquet"], "", "--format llava writes JSON: give --out another ending"),
        (["--min_characters", "0"], "", "--min_characters must be at least 1"),
    ],
)
def test_options_that_are_none(tmp_path, arguments, yaml, message):
    (tmp_path / "x.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=message):
        parse_options(["iu-xray", "--root", "r", "--out", "o", "--config", str(tmp_path / "x.yaml"), *arguments])


def test_a_patient_in_two_splits_stops_the_run(tmp_path):
    studies = list(make_corpora.simulate_mimic(studies=6, images=6, patients=2))
    studies[0].split, studies[1].split = "train", "test"
    make_corpora.write_mimic(tmp_path, studies)
    with pytest.raises(ValueError, match=rf"1 patient\(s\) in two splits: {studies[0].patient} in test and train"):
        prepare("mimic-cxr", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_corpus_of_which_nothing_is_left_says_why(tmp_path):
    make_open_i(tmp_path)
    with pytest.raises(
        ValueError, match=r"no study is left; left out: 13 short text, 1 not XML.*; the first: .*not XML"
    ):
        prepare("iu-xray", tmp_path, "--min_characters", "10000")


def test_bad_input_ends_in_one_line_with_file_and_line(tmp_path):
    make_mimic(tmp_path)
    table = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(gzip.compress(b"study_id,subject_id,split\n50000001,10000001,dev\n"))
    done = run("mimic-cxr", "--root", tmp_path, "--out", tmp_path / "m.jsonl")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: {table}:2: split 'dev' is none of train, validate, test" in done.stderr
    done = run("mimic-cxr", "--root", tmp_path / "nowhere", "--out", tmp_path / "m.jsonl")
    assert done.returncode == 1 and "nowhere is no folder" in done.stderr


@pytest.fixture
def unprivileged():
    """A folder anyone may enter; within the test this process may not read what is closed to all."""
    folder = Path(tempfile.mkdtemp(prefix="medvlm-"))
    folder.chmod(0o777)
    root = os.geteuid() == 0

    def lower():
        if root:
            os.seteuid(65534)

    yield folder, lower
    if root:
        os.seteuid(0)
    for path, folders, names in os.walk(folder):
        for name in (".", *folders, *names):
            os.chmod(os.path.join(path, name), stat.S_IRWXU)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "make, corpus, closed",
    [
        (make_mimic, "mimic-cxr", "mimic-cxr-2.0.0-metadata.csv.gz"),
        (make_mimic, "mimic-cxr", "mimic-cxr-reports.zip"),
        (mimic_dicom_folder, "mimic-cxr", "files/p10"),
        (make_open_i, "iu-xray", "NLMCXR_reports/ecgen-radiology"),
        (make_r2gen, "iu-xray", "annotation.json"),
        (make_roco, "roco", "data/test/radiology/images"),
        (make_roco, "roco", "data/test/radiology/captions.txt"),
    ],
)
def test_no_permission_is_named(unprivileged, make, corpus, closed):
    folder, lower = unprivileged
    make(folder)
    (folder / closed).chmod(0)
    lower()
    with pytest.raises(ValueError, match=rf"{closed}.*: cannot be read: Permission denied"):
        prepare(corpus, folder)


def test_a_folder_that_may_not_be_written_to_is_named(unprivileged):
    folder, lower = unprivileged
    make_r2gen(folder)
    (folder / "closed").mkdir(mode=0o500)
    lower()
    with pytest.raises(ValueError, match="closed.*Permission denied; name another place"):
        prepare("iu-xray", folder, out=folder / "closed" / "m.jsonl")


def write_simulated(root, studies):
    make_corpora.write_mimic(root, make_corpora.simulate_mimic(studies, studies * 3 // 2, studies // 3))


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    write_simulated(tmp_path, 300)
    out = tmp_path / "out" / "m.jsonl"
    out.parent.mkdir()
    out.write_text("the former one\n")
    full = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))}
    done = run("mimic-cxr", "--root", tmp_path, "--out", out, **full)
    assert done.returncode == 1 and f"could not write {out}" in done.stderr and "Traceback" not in done.stderr
    assert out.read_text() == "the former one\n"
    assert not [path for path in out.parent.iterdir() if path.name.endswith(".part")]


def test_a_killed_run_leaves_no_half_file(tmp_path):
    write_simulated(tmp_path, 3000)
    out = tmp_path / "out" / "m.jsonl"
    command = [sys.executable, RECIPE, "mimic-cxr", "--root", tmp_path, "--out", out]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("out/.m.jsonl.*.part")):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    assert run("mimic-cxr", "--root", tmp_path, "--out", out).returncode == 0
    assert len(read_jsonl(out)) > 2500


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_real_files(tmp_path):
    statistics, studies, rejected = prepare(
        "iu-xray", SHARED / "iu_sample", "--verify_images", "--labels", "text", out=tmp_path / "a" / "m.jsonl"
    )
    assert len(studies) == 5 and statistics["splits"]["all"]["images"] == 8
    assert [entry["reason"] for entry in rejected] == ["image not on disk"]
    options = ("--table", "metadata.csv", "--text_columns", "findings", "--verify_images")
    _, studies, rejected = prepare("table", SHARED / "real_cxr", *options, out=tmp_path / "b" / "m.jsonl")
    assert len(studies) > 100 and {entry["reason"] for entry in rejected} <= {"short text", "duplicate row"}


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_real_dicom(tmp_path):
    names = sorted(path.name for path in (SHARED / "dicom").glob("*.dcm"))
    lines = [
        "image,patient_id,findings",
        *(f"{name},{name},A real file in {name[:3]}. {SENTENCES[1]}" for name in names),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    out = tmp_path / "out" / "m.jsonl"
    options = ("--table", str(tmp_path / "t.csv"), "--convert", "png", "--size", "256")
    _, studies, rejected = prepare("table", SHARED / "dicom", *options, out=out)
    assert len(studies) == len(names) >= 4 and not rejected
    assert all(Image.open(out.parent / "m_png256" / study.images[0].path).mode == "L" for study in studies)
