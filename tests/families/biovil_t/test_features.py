"""The extractor: right numbers, resumed to the bit after kill -9, refused where it would mix two extractions."""

import signal
import time

import pytest
import torch
from families import build
from launch import start

from hf_medvlm.families.biovil_t.features import FeatureOptions, extract_features, read_features, shard_path

OPTIONS = FeatureOptions(batch_size=4, shard_size=8, workers=0)


@pytest.fixture(scope="module")
def family(splits):
    return build("biovil_t", splits)


@pytest.fixture(scope="module")
def whole(family, splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    extract_features(family.model, family.collator(False), splits.train[:21], folder, OPTIONS)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_features_are_those_of_the_model_study_by_study(family, splits, whole):
    by_study = dict(read_features(whole))
    assert list(by_study) == [study.study_id for study in splits.train[:21]]
    for study in (splits.train[0], splits.train[20]):
        batch = family.collator(False)([study])
        with torch.no_grad():
            features = family.model.eval().get_image_features(
                batch["pixel_values"], batch["previous_pixel_values"], batch["has_previous"]
            )
            text = family.model.get_text_features(batch["input_ids"], batch["attention_mask"])
        ours = by_study[study.study_id]
        for name in ("img_embedding", "projected_global_embedding", "projected_patch_embeddings"):
            torch.testing.assert_close(ours[name], features[name][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours["text_embedding"], text[0], rtol=1e-4, atol=1e-5)
        assert ours["has_previous"] == batch["has_previous"][0]


def test_missing_shards_are_made_again_to_the_bit(family, splits, whole, tmp_path):
    collator = family.collator(False)
    extract_features(family.model, collator, splits.train[:21], tmp_path, OPTIONS)
    shard_path(tmp_path, 1).unlink()
    (tmp_path / "index.json").unlink()
    (tmp_path / ".features-00001.safetensors.77.part").write_bytes(b"half a shard")
    untouched = shard_path(tmp_path, 0).stat().st_mtime_ns
    with pytest.raises(ValueError, match="has not ended"):
        next(read_features(tmp_path))
    extract_features(
        family.model, collator, splits.train[:21], tmp_path, FeatureOptions(("image", "patch", "text"), 4, 8)
    )
    assert contents(tmp_path) == contents(whole)
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == untouched


def test_two_extractions_are_not_mixed(family, splits, tmp_path):
    collator, image = family.collator(False), FeatureOptions(("image",), 4, 8, "float16", 0)
    extract_features(family.model, collator, splits.train[:3], tmp_path, image)
    (_, first), *_ = read_features(tmp_path)
    assert set(first) == {"img_embedding", "projected_global_embedding", "has_previous"}
    assert first["img_embedding"].dtype == torch.float16
    with pytest.raises(ValueError, match="begun with other studies, features, dtype"):
        extract_features(family.model, collator, splits.train[:4], tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kinds": ("image", "pixels")}, "got pixels"),
        ({"kinds": ()}, "got none"),
        ({"shard_size": 10, "batch_size": 4}, "multiple of batch_size, got 10 and 4"),
        ({"dtype": "int8"}, "float32, float16, bfloat16"),
    ],
)
def test_options_that_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        FeatureOptions(**options)


@pytest.mark.slow
def test_killed_half_way_it_ends_on_the_same_files(family, cache, root, tmp_path):
    family.model.save_pretrained(tmp_path / "model")
    family.collator(False).processor.save_pretrained(tmp_path / "model")

    def extract(folder):
        words = ["--output_dir", folder, "--synthetic_studies", 320, "--synthetic_size", 64, "--use_cpu", "true"]
        words += ["--model_name_or_path", tmp_path / "model", "--per_device_eval_batch_size", 16, "--shard_size", 32]
        return start(root / "recipes" / "extract_biovil_t.py", *words)

    assert extract(tmp_path / "whole").wait() == 0
    killed = extract(tmp_path / "killed")
    while sum(path.suffix == ".safetensors" for path in (tmp_path / "killed").glob("*")) < 3:
        assert killed.poll() is None, "it was too quick to be killed"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "index.json").exists()
    assert extract(tmp_path / "killed").wait() == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sum(1 for _ in read_features(tmp_path / "whole")) == 320
