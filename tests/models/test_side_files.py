"""The JSON files beside the weights: what a name cannot have is refused by name, what upstream writes is taken."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, BertModel, GenerationConfig, ResNetConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from hf_medvlm.models.loading import load_strictly, load_tokenizer
from hf_medvlm.models.side_files import CONFIG, FILES, GENERATION, PIXELS, check_side_files

WRONG = [
    ("tokenizer_config.json", '{"model_max_length": "512"}', "model_max_length"),
    ("tokenizer_config.json", '{"model_max_length": -1}', "model_max_length"),
    ("tokenizer_config.json", '{"pad_token": 5}', "pad_token"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"0": {"content": 1}}}', "added_tokens_decoder"),
    ("tokenizer_config.json", '{"padding_side": ["left"]}', "padding_side"),
    ("tokenizer_config.json", '{"chat_template": 7}', "chat_template"),
    ("generation_config.json", '{"eos_token_id": NaN}', "eos_token_id"),
    ("generation_config.json", '{"eos_token_id": ["a"]}', "eos_token_id"),
    ("generation_config.json", '{"num_beams": 0}', "num_beams"),
    ("generation_config.json", '{"temperature": 1e400}', "temperature"),
    ("generation_config.json", '{"max_new_tokens": 1000000000000000000000}', "max_new_tokens"),
    ("generation_config.json", '{"unheard_of": [1, {"a": NaN}]}', "unheard_of"),
    ("config.json", '{"hidden_size": 8, "layer_norm_eps": NaN}', "layer_norm_eps"),
    ("config.json", '{"text_config": {"attention_dropout": 1.5}}', "attention_dropout"),
    ("config.json", '{"vision_config": {"image_size": -1}}', "image_size"),
    ("config.json", '{"num_hidden_layers": 2, "num_hidden_layers": 3}', "stands twice"),
    ("config.json", '{"hidden_act": "\\ud800"}', "surrogates"),
    ("config.json", '{"hidden_size": %s}' % ("9" * 5000), "digits"),
    ("config.json", "[" * 100_000, "nested too deep"),
    ("preprocessor_config.json", '{"do_resize": "yes"}', "do_resize"),
    ("preprocessor_config.json", '{"size": {"height": 1e3}}', "size"),
    ("processor_config.json", '{"image_processor": {"resample": 99}}', "resample"),
    ("processor_config.json", "[]", "JSON object"),
    ("special_tokens_map.json", '{"bos_token": [[1]]}', "bos_token"),
    ("added_tokens.json", '{"<x>": "a"}', "<x>"),
    ("adapter_config.json", '{"r": "8"}', "'r'"),
    ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', "weight_map"),
]


@pytest.mark.parametrize(("name", "text", "word"), WRONG)
def test_a_value_that_its_name_cannot_have_is_refused_with_file_and_name(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as refused:
        check_side_files(tmp_path)
    message = str(refused.value)
    assert str(tmp_path / name) in message and word in message and "\n" not in message and len(message) < 700


def test_what_upstream_writes_passes():
    """Chat models, towers and language models of many kinds, with their generation configs and pixel settings."""
    names = "llava qwen2_5_vl gemma3 smolvlm internvl blip git vit clip siglip dinov2 swin resnet bert mamba2 cvt"
    for name in names.split():
        config = CONFIG_MAPPING[name]()
        CONFIG(json.loads(config.to_json_string(use_diff=False)), name)
        generation = GenerationConfig.from_model_config(config)
        GENERATION(json.loads(generation.to_json_string(use_diff=False)), name)
        processor = IMAGE_PROCESSOR_MAPPING_NAMES.get(name, {}).get("pil")
        if processor:
            made = getattr(__import__("transformers"), processor)()
            PIXELS(json.loads(made.to_json_string()), processor)
    published = {"model_max_length": 1000000000000000019884624838656, "add_bos_token": True, "pad_token": None}
    from hf_medvlm.models.side_files import TOKENIZER

    TOKENIZER(published | {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "sp_model_kwargs": {}}, "llama")


OLDER: list[tuple[str, dict]] = [
    ("preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}),
    ("preprocessor_config.json", {"size": [960, 1280], "do_thumbnail": True, "do_align_long_axis": False}),
    ("preprocessor_config.json", {"size": 800, "max_size": 1333, "format": "coco_detection", "image_mean": None}),
    ("preprocessor_config.json", {"_valid_processor_keys": ["images"], "size": None, "do_pad": None, "device": None}),
    ("preprocessor_config.json", {"patch_size": {"height": 16, "width": 16}, "image_grid_pinpoints": [[336, 672]]}),
    ("preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor", "mel_filters": [[-0.0, 1e-3]]}),
    ("config.json", {"torch_dtype": "float16", "vision_config_dict": {"image_size": 224}, "text_config_dict": None}),
    ("config.json", {"text_config": {"bad_words_ids": None, "id2label": {"0": "A"}, "typical_p": 1.0, "top_k": 50}}),
    ("config.json", {"mm_vision_tower": "openai/clip", "image_token_index": -200, "pad_token_id": -1}),
    ("config.json", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "quantization_config": None}),
    (
        "config.json",
        {"attn_pdrop": 0.1, "image_size": [384, 512], "hidden_size": [64, 128], "max_position_embeddings": 4e3},
    ),
    ("generation_config.json", {"_from_model_config": True, "max_length": 4096, "temperature": None, "top_k": 0}),
    (
        "generation_config.json",
        {"forced_decoder_ids": [[1, None]], "suppress_tokens": [1, -1], "alignment_heads": [[5, 3]]},
    ),
    ("tokenizer_config.json", {"split_special_tokens": False, "spaces_between_special_tokens": False, "legacy": None}),
    ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<image>"}, "cls_token_box": [0, 0, 0, 0]}),
    (
        "tokenizer_config.json",
        {"extra_special_tokens": ["<a>"], "pad_token_label": -100, "auto_map": {"A": ["x", None]}},
    ),
    ("processor_config.json", {"num_additional_image_tokens": 1, "patch_size": 14, "image_token": "<image>"}),
    ("processor_config.json", {"add_eos_token": False, "image_seq_len": 169, "num_query_tokens": None}),
    ("adapter_config.json", {"peft_type": "LORA", "r": 8, "lora_alpha": 16.5, "target_modules": "all-linear"}),
    ("adapter_config.json", {"peft_type": "LORA", "modules_to_save": None, "rank_pattern": {}, "use_dora": False}),
]
"""What older versions of transformers and peft wrote, under names and in kinds that the present ones do not use."""


@pytest.mark.parametrize(("name", "written"), OLDER)
def test_what_older_versions_wrote_passes(name, written):
    FILES[name](written, name)


def test_what_processors_of_transformers_take_by_default_passes():
    """Every default of a keyword of every processor there is, read from its code: most need torchvision to be made."""
    folder = Path(transformers.__file__).parent / "models"
    seen = 0
    for file in sorted(folder.glob("*/processing_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                names = [argument.arg for argument in node.args.args[-len(node.args.defaults) :]]
                for name, value in zip(names, node.args.defaults, strict=False):
                    if isinstance(value, ast.Constant):
                        PIXELS({name: value.value}, file.name)
                        seen += 1
    assert seen > 300


def test_loaders_look_at_the_side_files_first(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nheart\n")
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": "long"}')
    with pytest.raises(ValueError, match="model_max_length.*found long"):
        load_tokenizer(tmp_path)


def test_a_config_that_lost_its_sizes_is_refused_before_the_large_model_is_built(tmp_path):
    small = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(small).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 1}')
    with pytest.raises(ValueError, match=r"config.json: it describes a model of [\d,]+ parameters, but the weights"):
        load_strictly(BertModel, tmp_path)


def test_configs_of_our_own_hold_what_they_declare():
    from hf_medvlm.families.biovil_t.config import BioViLTConfig
    from hf_medvlm.families.biovil_t.cxr_bert import CXRBertConfig
    from hf_medvlm.families.dual_encoder.model import DualEncoderConfig
    from hf_medvlm.families.medklip.model import MedKlipConfig
    from hf_medvlm.families.patch_ib.config import PatchIBConfig

    for kind, field, value in (
        (MedKlipConfig, "positions", -1),
        (MedKlipConfig, "entities", [1]),
        (MedKlipConfig, "d_model", "x"),
        (MedKlipConfig, "dropout", 1.0),
        (MedKlipConfig, "backbone_config", 0),
        (BioViLTConfig, "temporal", "yes"),
        (BioViLTConfig, "local_weight", float("nan")),
        (CXRBertConfig, "projection_size", 0),
        (DualEncoderConfig, "match_duplicates", 1),
        (DualEncoderConfig, "text_config", -1),
        (PatchIBConfig, "anneal_steps", -1),
        (PatchIBConfig, "drop_layers", [[1]]),
    ):
        with pytest.raises(ValueError, match=field):
            kind(**{field: value})
    made = MedKlipConfig(backbone_config=ResNetConfig(), position_weight=1, entities=("edema",), dtype=torch.float32)
    assert made.position_weight == 1


def test_options_of_a_chat_run_that_are_none_are_named(tmp_path):
    from hf_medvlm.families.chat.inference import _options

    assert _options(tmp_path, {"prompts": ["Report?"], "prior": True}).prompts == ("Report?",)
    for written in ({"prior_": True}, {"prior": "yes"}, {"views": "side"}, {"prompts": [""]}, {"sections": 5}):
        with pytest.raises(ValueError, match="inference.json 'options'") as refused:
            _options(tmp_path, written)
        assert str(tmp_path) in str(refused.value)
