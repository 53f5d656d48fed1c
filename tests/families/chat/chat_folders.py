"""Folders of tiny random chat models, one function a family, as `save_pretrained` writes them; nothing is downloaded.

Templates have the published ones' shape: what they add, trim and end with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

TEXTS = (
    "Describe the findings in this chest X-ray and write a report. You are a helpful assistant. user assistant system",
    "The heart size is normal. The lungs are clear. No pleural effusion or pneumothorax is seen. Is there an opacity?",
)
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}IMAGE{% else %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
QWEN_TOKENS += ["<|video_pad|>"]
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<start_of_image>{% else %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SMOL = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
INST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    "{% for c in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for c in message['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %} [/INST]"
    "{% else %} {{ message['content'][0]['text'] }}</s> {% endif %}{% endfor %}"
)
LLAVA_HF = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for c in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for c in message['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
PIXTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% for c in message['content'] %}{% if c['type'] == 'image' %}[IMG]{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}[/INST]{% else %}{{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL3 = (
    "{{ bos_token }}[SYSTEM_PROMPT]Today is {{ strftime_now('%Y-%m-%d') }}.[/SYSTEM_PROMPT]"
    + PIXTRAL.removeprefix("{{ bos_token }}")
)
DEEPSEEK = (
    "{% for message in messages %}{% if message['role'] == 'user' %}User: {% for c in message['content'] %}"
    "{% if c['type'] == 'image' %}<image_placeholder>{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}\n\n"
    "{% else %}Assistant: {{ message['content'][0]['text'] | trim }}{% if not loop.last %}{{ eos_token }}{% endif %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
MLLAMA = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% for c in message['content'] %}{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)

TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.1}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def make_tokenizer(special: list[str], bos: str | None, eos: str, pad: str, **extra: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; `bos` is put in front by the tokenizer where `extra["adds_bos"]`."""
    adds_bos = extra.pop("adds_bos", False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, model_max_length=4096, **extra
    )


def write_folder(
    folder: Path,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    processor: dict[str, Any],
    stops: list[int],
    seed: int = 0,
) -> Path:
    """Model, tokenizer, template and `processor_config.json` in `folder`."""
    torch.manual_seed(seed)
    kind = config.pop("model_type")
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **config))
    for name, parameter in model.named_parameters():
        if not parameter.any() and ("projection" in name or "gate" in name):
            torch.nn.init.normal_(parameter, std=0.3)  # Gemma 3 and Mllama begin blind
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def _qwen(folder: Path, kind: str, **vision: Any) -> Path:
    tokenizer = make_tokenizer(QWEN_TOKENS, None, "<|im_end|>", "<|endoftext|>")
    ids = tokenizer.convert_tokens_to_ids
    is_2_5 = kind == "qwen2_5_vl"
    patch = 14 if is_2_5 else 16
    rope = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 2, 2]}
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope}
    text |= {} if is_2_5 else {"head_dim": 12}
    if kind == "qwen3_5":
        text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
        text |= {"linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": patch}
    tower |= {"out_hidden_size": 48, "spatial_merge_size": 2, "temporal_patch_size": 2} | vision
    config = {"model_type": kind, "text_config": text, "vision_config": tower, "tie_word_embeddings": True}
    config |= {"image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>")}
    config |= {"vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>")}
    image = MEAN | {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": patch, "merge_size": 2}
    image |= {"temporal_patch_size": 2, "size": {"shortest_edge": 4 * patch**2, "longest_edge": 36 * patch**2}}
    name = "Qwen2_5_VLProcessor" if is_2_5 else "Qwen3VLProcessor"
    video = {"video_processor_type": "Qwen2VLVideoProcessor" if is_2_5 else "Qwen3VLVideoProcessor", "fps": 2.0}
    processor = {"processor_class": name, "image_processor": image, "video_processor": video}
    return write_folder(folder, config, tokenizer, QWEN, processor, [ids("<|im_end|>"), ids("<|endoftext|>")])


def qwen2_5_vl(folder: Path) -> Path:
    return _qwen(folder, "qwen2_5_vl", fullatt_block_indexes=[1], window_size=56)


def qwen3_vl(folder: Path) -> Path:
    return _qwen(folder, "qwen3_vl", deepstack_visual_indexes=[0], num_position_embeddings=16)


def qwen3_5(folder: Path) -> Path:
    """Every other layer a linear attention, as published."""
    return _qwen(folder, "qwen3_5", num_position_embeddings=16)


def gemma4(folder: Path) -> Path:
    """Images of any aspect ratio, up to 70 soft tokens; without the audio tower that some sizes have."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
    special += ["<end_of_image>", "<image_soft_token>", "<start_of_audio>", "<end_of_audio>", "<audio_soft_token>"]
    extra = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    extra |= {"boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>"}
    special.append("<|video|>")
    tokenizer = make_tokenizer(special, "<bos>", "<eos>", "<pad>", adds_bos=True, extra_special_tokens=extra)
    words = len(tokenizer)
    text = TEXT | {"vocab_size": words, "head_dim": 12, "global_head_dim": 12, "sliding_window": 16}
    text |= {"vocab_size_per_layer_input": words, "hidden_size_per_layer_input": 8, "pad_token_id": 0}
    text |= {"layer_types": ["sliding_attention", "full_attention"]}
    vision = VISION | {"num_key_value_heads": 4, "head_dim": 8, "patch_size": 7, "position_embedding_size": 64}
    config = {"model_type": "gemma4", "text_config": text, "vision_config": vision, "audio_config": None}
    config |= {"boi_token_id": 6, "eoi_token_id": 7, "image_token_id": 8, "boa_token_id": 9, "eoa_token_index": 10}
    config |= {"audio_token_id": 11, "video_token_id": 12}
    image = {"image_processor_type": "Gemma4ImageProcessor", "patch_size": 7, "max_soft_tokens": 70}
    processor = {"processor_class": "Gemma4Processor", "image_processor": image, "image_seq_length": 70}
    processor["feature_extractor"] = {"feature_extractor_type": "Gemma4AudioFeatureExtractor"}
    processor["video_processor"] = {"video_processor_type": "Gemma4VideoProcessor", "patch_size": 7}
    return write_folder(
        folder, config, tokenizer, GEMMA.replace("<start_of_image>", "<image_soft_token>"), processor, [1, 5]
    )


def gemma3(folder: Path) -> Path:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
    special += ["<end_of_image>", "<image_soft_token>"]
    extra = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = make_tokenizer(special, "<bos>", "<eos>", "<pad>", adds_bos=True, extra_special_tokens=extra)
    text = TEXT | {"vocab_size": len(tokenizer), "head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 12}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0}
    vision = VISION | {"image_size": 56, "patch_size": 14, "vision_use_head": False}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    config |= {"boi_token_index": 6, "eoi_token_index": 7, "image_token_index": 8}
    image = MEAN | {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}}
    processor = {"processor_class": "Gemma3Processor", "image_processor": image, "image_seq_length": 4}
    return write_folder(folder, config, tokenizer, GEMMA, processor, [1, 5])


def _smol(folder: Path, kind: str) -> Path:
    special = ["<|im_start|>", "<end_of_utterance>", "<|endoftext|>", "<fake_token_around_image>", "<image>"]
    special += ["<global-img>", *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))]
    tokenizer = make_tokenizer(special, "<|im_start|>", "<end_of_utterance>", "<|endoftext|>")
    ids = tokenizer.convert_tokens_to_ids
    text = TEXT | {"vocab_size": len(tokenizer), "model_type": "llama", "pad_token_id": 2}
    vision = VISION | {"image_size": 28, "patch_size": 7}
    config = {"model_type": kind, "text_config": text, "vision_config": vision, "image_token_id": ids("<image>")}
    config |= {"scale_factor": 2, "pad_token_id": 2}
    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[kind]
    image = MEAN | {"image_processor_type": f"{name}ImageProcessor", "size": {"longest_edge": 56}}
    image |= {"max_image_size": {"longest_edge": 28}, "do_image_splitting": True, "do_pad": True}
    processor = {"processor_class": f"{name}Processor", "image_processor": image, "image_seq_len": 4}
    if kind == "smolvlm":
        processor["video_processor"] = {"video_processor_type": "SmolVLMVideoProcessor", "fps": 1, "num_frames": 64}
    return write_folder(folder, config, tokenizer, SMOL, processor, [ids("<end_of_utterance>")])


def smolvlm(folder: Path) -> Path:
    return _smol(folder, "smolvlm")


def idefics3(folder: Path) -> Path:
    return _smol(folder, "idefics3")


def internvl(folder: Path) -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    extra = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    extra |= {"video_token": "<video>"}
    tokenizer = make_tokenizer(special, None, "<|im_end|>", "<|endoftext|>", extra_special_tokens=extra)
    ids = tokenizer.convert_tokens_to_ids
    text = TEXT | {"vocab_size": len(tokenizer), "model_type": "qwen2"}
    vision = VISION | {"image_size": [28, 28], "patch_size": [7, 7], "layer_scale_init_value": 0.5}
    config = {"model_type": "internvl", "text_config": text, "vision_config": vision, "downsample_ratio": 0.5}
    config |= {"image_token_id": ids("<IMG_CONTEXT>"), "image_seq_length": 4}
    image = MEAN | {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 28, "width": 28}}
    image |= {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
    video = {"video_processor_type": "InternVLVideoProcessor", "size": {"height": 28, "width": 28}}
    processor = {"processor_class": "InternVLProcessor", "image_processor": image, "image_seq_length": 4}
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
    processor |= {"video_processor": video}
    return write_folder(folder, config, tokenizer, template, processor, [ids("<|im_end|>")])


def _clip_llava(folder: Path, kind: str, name: str, template: str, **image: Any) -> Path:
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    tokenizer = make_tokenizer(special, "<s>", "</s>", "<pad>", adds_bos=True)
    text = TEXT | {"vocab_size": len(tokenizer), "model_type": "mistral", "pad_token_id": 4, "sliding_window": None}
    vision = VISION | {"image_size": 28, "patch_size": 7, "model_type": "clip_vision_model"}
    config = {"model_type": kind, "text_config": text, "vision_config": vision, "image_token_index": 3}
    config |= {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    if "image_grid_pinpoints" in image:
        config["image_grid_pinpoints"] = image["image_grid_pinpoints"]
    image = MEAN | {"image_processor_type": f"{name}ImageProcessor", "crop_size": {"height": 28, "width": 28}} | image
    image |= {"size": {"shortest_edge": 28}}
    processor = {"processor_class": f"{name}Processor", "image_processor": image, "patch_size": 7}
    processor |= {
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    return write_folder(folder, config, tokenizer, template, processor, [2])


def llava_next(folder: Path) -> Path:
    grid = [[28, 56], [56, 28], [56, 56]]
    return _clip_llava(folder, "llava_next", "LlavaNext", INST, image_grid_pinpoints=grid, do_pad=True)


def llava(folder: Path) -> Path:
    return _clip_llava(folder, "llava", "Llava", LLAVA_HF)


def llava_onevision(folder: Path) -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = make_tokenizer(special, None, "<|im_end|>", "<|endoftext|>")
    text = TEXT | {"vocab_size": len(tokenizer), "model_type": "qwen2"}
    vision = VISION | {"image_size": 28, "patch_size": 7, "model_type": "siglip_vision_model"}
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = {"model_type": "llava_onevision", "text_config": text, "vision_config": vision, "image_token_index": 3}
    config |= {"video_token_index": 4, "image_grid_pinpoints": grid, "vision_aspect_ratio": "anyres_max_9"}
    image = MEAN | {"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 28, "width": 28}}
    image |= {"image_grid_pinpoints": grid}
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": 28, "width": 28}}
    processor = {"processor_class": "LlavaOnevisionProcessor", "image_processor": image, "num_image_tokens": 16}
    processor |= {"vision_feature_select_strategy": "full", "video_processor": video}
    return write_folder(folder, config, tokenizer, CHATML.replace("IMAGE", "<image>\n"), processor, [2])


def _pixtral(folder: Path, kind: str, template: str, merge: int) -> Path:
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>"]
    special += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    tokenizer = make_tokenizer(special, "<s>", "</s>", "<pad>", adds_bos=True)
    text = TEXT | {"vocab_size": len(tokenizer), "model_type": "mistral", "pad_token_id": 8, "head_dim": 12}
    text |= {"sliding_window": None}
    vision = VISION | {"image_size": 56, "patch_size": 7, "model_type": "pixtral", "head_dim": 8}
    config = {"model_type": kind, "text_config": text, "vision_config": vision, "image_token_index": 5}
    config |= {"vision_feature_layer": -1}
    config |= {"spatial_merge_size": merge} if kind == "mistral3" else {"vision_feature_select_strategy": "full"}
    image = MEAN | {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 56}}
    image |= {"patch_size": {"height": 7 * merge, "width": 7 * merge}}
    processor = {"processor_class": "PixtralProcessor", "image_processor": image, "patch_size": 7}
    return write_folder(folder, config, tokenizer, template, processor | {"spatial_merge_size": merge}, [2])


def pixtral(folder: Path) -> Path:
    return _pixtral(folder, "llava", PIXTRAL, 1)


def mistral3(folder: Path) -> Path:
    return _pixtral(folder, "mistral3", MISTRAL3, 2)


def deepseek_vl(folder: Path) -> Path:
    special = ["<|begin|>", "<|end|>", "<image_placeholder>", "<pad>"]
    extra = {"image_token": "<image_placeholder>"}
    tokenizer = make_tokenizer(special, "<|begin|>", "<|end|>", "<pad>", adds_bos=True, extra_special_tokens=extra)
    text = TEXT | {"vocab_size": len(tokenizer), "model_type": "llama", "pad_token_id": 3}
    vision = VISION | {"image_size": 28, "patch_size": 7}
    config = {"model_type": "deepseek_vl", "text_config": text, "vision_config": vision, "image_token_id": 2}
    image = MEAN | {"image_processor_type": "DeepseekVLImageProcessor", "size": {"height": 28, "width": 28}}
    processor = {"processor_class": "DeepseekVLProcessor", "image_processor": image, "num_image_tokens": 16}
    return write_folder(folder, config, tokenizer, DEEPSEEK, processor, [1])


def mllama(folder: Path) -> Path:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
    special += ["<|python_tag|>", "<|end_of_text|>"]
    tokenizer = make_tokenizer(special, "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>")
    vocabulary = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})  # beyond the output layer, as published
    text = TEXT | {"vocab_size": vocabulary, "cross_attention_layers": [1], "pad_token_id": 4}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "attention_heads": 4}
    vision |= {"num_global_layers": 1, "image_size": 28, "patch_size": 14, "max_num_tiles": 4}
    vision |= {"intermediate_layers_indices": [0], "vision_output_dim": 64}
    vision |= {"supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]}
    config = {"model_type": "mllama", "text_config": text, "vision_config": vision, "image_token_index": vocabulary}
    image = MEAN | {"image_processor_type": "MllamaImageProcessor", "size": {"height": 28, "width": 28}}
    processor = {"processor_class": "MllamaProcessor", "image_processor": image | {"max_image_tiles": 4}}
    return write_folder(folder, config, tokenizer, MLLAMA, processor, [3, 6])


FAMILIES: dict[str, Callable[[Path], Path]] = {
    function.__name__: function
    for function in (
        qwen2_5_vl,
        qwen3_vl,
        qwen3_5,
        gemma3,
        gemma4,
        smolvlm,
        idefics3,
        internvl,
        llava_next,
        llava_onevision,
        llava,
        mistral3,
        pixtral,
        deepseek_vl,
        mllama,
    )
}
