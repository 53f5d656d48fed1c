"""What is planted in private studies, on the command line and in the environment does not arrive on the Hub, nor in
`run.json`, the page or the card. Every family is trained for a step and pushed, with LoRA adapters and without."""

from __future__ import annotations

import json
import os
import runpy
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer

from hf_medvlm.data.licences import is_open
from hf_medvlm.data.secrets import masked, masked_command
from hf_medvlm.data.study import write_jsonl
from hf_medvlm.families.chat.arguments import PROMPTS
from hf_medvlm.labels import CHEXPERT_14, MEDKLIP_ENTITIES
from hf_medvlm.sharing.hub import check_may_be_public
from hf_medvlm.training.words import ALL_WORDS, PUBLIC_WORDS, learnable, trained_words

NAME = "Zebulonsson was seen by Dr Wolframheimer, MRN 7704412, Quixote{number}."
CANARIES = "zebulon wolframh 7704412 70441 quixote canary ward7 dua-internal hf_canary s3cretpass".split()
SECRET = "hf_CANARYcanaryCANARYcanary12345"
WORDS = """--train_studies 16 --eval_studies 8 --per_device_train_batch_size 4 --per_device_eval_batch_size 8
    --max_steps 1 --eval_strategy no --save_strategy no --dataloader_num_workers 0 --use_cpu True --report_to none
    --verify_images False --disable_tqdm True --image_size 32""".split()
RUNS = {
    "finetune_blip": ["--max_length", "64"],
    "finetune_git": ["--max_length", "64"],
    "train_dual_encoder": [],
    "train_patch_ib": ["--variant", "D"],
    "train_medklip": [],
    "finetune_biovil_t": ["--task", "alignment"],
    "llava_mimic": ["--max_new_tokens", "8"],
    "finetune_chat": ["--max_new_tokens", "8", "--image_size", "56"],
}
LORA = ["--lora_rank", "2", "--merge_lora", "False", "--train_studies", "4", "--eval_studies", "4"]


@pytest.fixture(scope="module")
def planted(splits, tmp_path_factory) -> Path:
    """A master file of private studies, in a folder whose name is private too, as are its images' and its labels'."""
    folder = tmp_path_factory.mktemp("CANARYHOME")
    studies = []
    for number, study in enumerate(study for split in ("train", "validate", "test") for study in splits.studies[split]):
        text = f"{study.findings} {NAME.format(number=number % 9)}"
        told = {"findings": text, "report": text, "source": "Ward7 of Zebulonsson", "licence": "DUA-internal"}
        ids = {"study_id": f"CANARYSTUDY{number}", "patient_id": f"CANARYPAT{number}", "prior_study_id": None}
        paths = [f"ward7/Zebulonsson_7704412_{number}_{n}.png" for n in range(len(study.images))]
        for image, path in zip(study.images, paths, strict=True):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).symlink_to(splits.image_folder / image.path)
        told["images"] = tuple(replace(image, path=path) for image, path in zip(study.images, paths, strict=True))
        told["labels"] = {**study.labels, "Zebulonsson sign": number % 2, "MRN 7704412": 1}
        told["boxes"] = tuple(replace(box, phrase=f"Zebulonsson's {box.phrase}") for box in study.boxes)
        studies.append(replace(study, **told, **ids, extra={"ward": "ward7"}))
    write_jsonl(studies, folder / "canary_ward7.jsonl")
    return folder / "canary_ward7.jsonl"


@pytest.fixture(scope="module")
def hub():
    from huggingface_hub import constants

    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.hf_api.ENDPOINT", server.url, raising=False)
        yield server


def search(name: str, content: bytes) -> list[str]:
    text = content.lower()
    return [f"{name}: {canary}" for canary in CANARIES if canary.encode() in text]


def check_metric_names(recipe: str, out: Path) -> None:
    """A metric of a run can be named by `--metric_for_best_model`, and a misspelt one is known to be none."""
    from hf_medvlm.evaluation.retrieval import RetrievalEvaluation
    from hf_medvlm.evaluation.text import TextEvaluation
    from hf_medvlm.families.biovil_t.evaluation import BioViLTEvaluation
    from hf_medvlm.families.chat.evaluation import ChatEvaluation
    from hf_medvlm.families.medklip.evaluation import MedKlipEvaluation
    from hf_medvlm.families.patch_ib.evaluation import PatchEvaluation

    kinds = {"train_dual_encoder": RetrievalEvaluation, "train_patch_ib": PatchEvaluation}
    kinds |= {"train_medklip": MedKlipEvaluation, "finetune_biovil_t": BioViLTEvaluation}
    kinds |= dict.fromkeys(("llava_mimic", "finetune_chat"), ChatEvaluation)
    patterns = kinds.get(recipe, TextEvaluation).METRICS
    metrics = json.loads((out / "test_results.json").read_text())["metrics"]
    assert metrics and [name for name in metrics if not any(fnmatchcase(name, p) for p in patterns)] == []
    assert not any(fnmatchcase(name, p) for name in ("cidre", "combine", "mean_acu") for p in patterns)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_nothing_that_is_planted_arrives(recipe, planted, hub, root, tmp_path, monkeypatch):
    """Of a run, and of adapters that start from it: its folder is named as a repository on the Hub could be."""
    monkeypatch.setattr("hf_medvlm.figures.draw_all", lambda folder: [])  # nothing of it is pushed
    monkeypatch.setenv("WANDB_API_KEY", "CANARYs3cretpass-of-the-environment")
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(root / "recipes" / f"{recipe}.py"))["main"]
    data = ["--dataset", str(planted), "--image_folder", str(planted.parent), "--hub_token", SECRET]
    data += [*WORDS, *RUNS[recipe], "--run_name", "CANARYs3cretpass-of-the-environment"]
    main([*data, "--output_dir", "zebulonsson/ward7"])
    out = tmp_path / "zebulonsson" / "ward7"
    check_metric_names(recipe, out)
    for name in ("notes.txt", ".hidden", "training_args.bin", "optimizer.pt", "model.safetensors.tmp", ".cache/x.json"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(NAME)
    check_push(recipe, out, planted, hub, monkeypatch)
    (out / "README.md").write_text(NAME)
    main([*data, *LORA, "--model_name_or_path", "zebulonsson/ward7", "--output_dir", "adapter"])
    check_push(f"{recipe}-lora", tmp_path / "adapter", planted, hub, monkeypatch)


def check_push(name: str, out: Path, planted: Path, hub: HubServer, monkeypatch) -> None:
    from hf_medvlm.sharing.hub import files_to_push, push

    for path in (path for path in out.rglob("*") if path.is_file()):  # tokens stand in no file of the run
        assert not [one for one in search(path.name, path.read_bytes()) if one.endswith(("hf_canary", "s3cretpass"))]
    with monkeypatch.context() as patch:
        patch.chdir("/")
        push(out, f"tester/{name}", token=TOKEN)
    arrived = hub.repos[f"tester/{name}"].files
    assert sorted(arrived) == [path.name for path in files_to_push(out)]
    assert ("adapter_config.json" in arrived) == name.endswith("-lora") == ("config.json" not in arrived)
    local = [str(out.parent), str(planted.parent), str(Path.home()), os.getcwd()]
    for file, content in arrived.items():
        assert search(file, content) == []
        assert not [place for place in local if len(place) > 1 and place.encode() in content], file
    card = arrived["README.md"].decode()
    assert "1 not among those known to be open" in card and "1 named in the data" in card
    if "tokenizer.json" in arrived:
        assert PUBLIC_WORDS in card
    with pytest.raises(ValueError, match="DUA-internal.*none of the licences known to be open"):
        push(out, "tester/public", token=TOKEN, private=False)


def test_adapters_and_configs_lose_the_paths_of_this_machine(tmp_path):
    from hf_medvlm.sharing.hub import content_to_push

    before = {"base_model_name_or_path": str(tmp_path), "r": 4, "nested": {"_name_or_path": "runs/blip/1"}}
    others = {"tower": {"_name_or_path": "google/vit-base"}, "file": "/home/someone/x.txt", "act": "gelu", "slash": "/"}
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(before | others))
    assert json.loads(content_to_push(path)) == {
        "base_model_name_or_path": None,
        "r": 4,
        "nested": {"_name_or_path": None},
        "tower": {"_name_or_path": "google/vit-base"},
        "file": None,
        "act": "gelu",
        "slash": "/",
    }


def test_a_relative_folder_is_no_hub_id(tmp_path):
    """`ward7/zebulonsson` reads like a repository. The run says that it was a folder; for an older one it is looked."""
    from hf_medvlm.sharing.hub import content_to_push, local_starts

    (tmp_path / "ward7" / "zebulonsson").mkdir(parents=True)
    out = tmp_path / "runs" / "1"
    out.mkdir(parents=True)
    path = out / "adapter_config.json"
    path.write_text('{"base_model_name_or_path": "ward7/zebulonsson"}')
    (out / "inference.json").write_text('{"text_encoder": "ward7/bert"}')
    for info in ({}, {"started_from": ["ward7/zebulonsson", "ward7/bert"]}):
        local = local_starts(out, info)
        assert json.loads(content_to_push(path, local)) == {"base_model_name_or_path": None}
    assert json.loads(content_to_push(out / "inference.json", local)) == {"text_encoder": None}
    path.write_text('{"base_model_name_or_path": "google/vit-base"}')
    assert content_to_push(path, local_starts(out, {})) == path


@pytest.mark.parametrize(
    ("file", "content", "doubt"),
    [
        ("inference.json", {"prompt": "Zebulonsson has"}, "Zebulonsson"),
        ("inference.json", {"system_prompt": "You read films of ward 7, MRN 7704412."}, "7704412"),
        ("inference.json", {"options": {"prompts": ["Describe it.", "As on 03/11/2019?"]}}, "03/11/2019"),
        ("inference.json", {"thresholds": {"edema": 0.5, "zebulonsson": 0.1}}, "zebulonsson"),
        ("config.json", {"entities": ["effusion", "wolframheimer"]}, "wolframheimer"),
        ("config.json", {"id2label": {"0": "Zebulonsson"}}, "Zebulonsson"),
        ("inference.json", {"findings": list(CHEXPERT_14), "options": {"prompts": list(PROMPTS)}}, None),
        ("config.json", {"entities": list(MEDKLIP_ENTITIES), "model_type": "medklip"}, None),
    ],
)
def test_a_prompt_or_a_list_that_may_name_a_patient_needs_the_users_word(file, content, doubt, tmp_path):
    from hf_medvlm.sharing.prompts import check_texts

    (tmp_path / file).write_text(json.dumps(content))
    if doubt is None:
        check_texts(tmp_path)
    else:
        with pytest.raises(ValueError, match=f"^{file} holds .*{doubt}.* --hub_public_acknowledged"):
            check_texts(tmp_path)


def test_a_tokenizer_learns_public_words_of_private_reports_and_all_words_of_open_ones(splits):
    def texts(study):
        return [study.findings]

    studies = [replace(s, findings=f"{s.findings} Zebulonsson 7704412") for s in splits.train[:20]]
    assert trained_words(studies) == ALL_WORDS and learnable(studies, texts) == [s.findings for s in studies]
    private = [replace(s, licence="") for s in studies]
    assert trained_words(private) == PUBLIC_WORDS
    together = " ".join(learnable(private, texts))
    assert "Zebulonsson" not in together and "7704412" not in together and "Z e b u l o n s s o n" in together
    assert " the " in together.lower()
    few = [replace(s, findings="Sarcoidosis is there." if n < 4 else "Clear.") for n, s in enumerate(private)]
    assert "Sarcoidosis" not in " ".join(learnable(few, texts))


@pytest.mark.parametrize(
    "licence, known",
    [
        *((name, True) for name in ("CC0-1.0", "CC0 1.0 Universal", "CC BY 4.0", "cc-by-sa-4.0", "Apache-2.0", "MIT")),
        *((name, False) for name in ("", "All rights reserved", "CC BY-NC-ND 4.0", "DUA-internal - do not share")),
        *((name, False) for name in ("CheXpert Stanford research agreement", "permitted", "MIT and our own terms")),
    ],
)
def test_open_is_what_is_known_to_be_open(licence, known):
    assert is_open(licence) is known
    info = {"licences": [licence] if licence else [], "dataset": "x"}
    if known:
        check_may_be_public(info)
        with pytest.raises(ValueError, match="nobody stated the licence of 3 of the studies"):
            check_may_be_public(info | {"studies_without_licence": 3})
    else:
        with pytest.raises(ValueError, match="--hub_public_acknowledged"):
            check_may_be_public(info)


def test_secrets_are_masked_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "abcdefgh-1234")
    for words, shown in (
        (["x.py", "--hub_token", SECRET, "--max_steps", "3"], "x.py --hub_token *** --max_steps 3"),
        (["x.py", "--hub-token=short"], "x.py --hub-token=***"),
        (["x.py", "--wandb_api_key", "k", "--max_new_tokens", "8"], "x.py --wandb_api_key *** --max_new_tokens 8"),
        (
            ["x.py", "--dataset", "https://user:pw@host/x?token=abc&y=1"],
            "x.py --dataset https://***@host/x?token=***&y=1",
        ),
        (["x.py", "--prompt", "abcdefgh-1234"], "x.py --prompt ***"),
        (["x.py", "--tokenizer", "bert", "--hub_token"], "x.py --tokenizer bert --hub_token"),
    ):
        assert masked_command(words) == shown
    assert masked(f"401 for {SECRET} at http://a:b@c") == "401 for *** at http://***@c"


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "vocab.json"])
def test_a_tokenizer_of_an_earlier_version_which_says_nothing_of_its_words_stays(tmp_path, name):
    """Earlier versions kept names and numbers, and had no `tokenizer_words`; a published vocabulary is no such list."""
    from hf_medvlm.sharing.hub import SMALL_VOCABULARY, check_tokenizer
    from hf_medvlm.sharing.model_card import UNDESCRIBED

    def write(size: int) -> None:
        words = {f"w{number}": number for number in range(size)}
        contents = {"tokenizer.json": json.dumps({"model": {"vocab": words}}), "vocab.txt": "\n".join(words)}
        (tmp_path / name).write_text(contents.get(name, json.dumps(words)))

    write(2000)
    private, opened = {"licences": ["DUA-internal"]}, {"licences": ["CC0-1.0"]}
    for info in (private, {}, opened | {"studies_without_licence": 1}, opened | {"tokenizer_words": UNDESCRIBED}):
        with pytest.raises(ValueError, match=f"^{name} holds 2,000 words.*may name patients. Train again"):
            check_tokenizer(tmp_path, info)
    for info in (opened, private | {"tokenizer_words": None}, private | {"tokenizer_words": PUBLIC_WORDS}):
        check_tokenizer(tmp_path, info)
    write(SMALL_VOCABULARY + 1)
    check_tokenizer(tmp_path, private)


def test_a_run_that_begins_with_an_undescribed_folder_is_marked_so(splits, tmp_path):
    from types import SimpleNamespace

    from hf_medvlm.sharing.model_card import UNDESCRIBED
    from hf_medvlm.training.provenance import provenance

    def words_of(start: str | None) -> str | None:
        return provenance(splits, SimpleNamespace(model=SimpleNamespace(model_name_or_path=start)))["tokenizer_words"]

    assert words_of(str(tmp_path)) == UNDESCRIBED and words_of("bert-base-uncased") is None
    for words in (None, PUBLIC_WORDS):
        (tmp_path / "run.json").write_text(json.dumps({"tokenizer_words": words}))
        assert words_of(str(tmp_path)) == words
    (tmp_path / "run.json").write_text("{}")
    assert words_of(f"bert-base-uncased,{tmp_path}") == UNDESCRIBED
