"""Checkpoints as their authors publish them, with made-up weights: file names, key names, configurations, tokenizers.

Each function writes one into a folder. `full` takes the published sizes; otherwise the layers are as many, but narrow,
and the images as large, but cut into few patches, so that a plan needs no other options for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_medvlm.models.tiny import SPECIAL_TOKENS, train_tokenizer

NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_normalize": True,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}
WORDS = (
    "the heart size is normal . no pleural effusion or pneumothorax . there is a small left right moderate large "
    "opacity consolidation edema atelectasis cardiomegaly lungs are clear at base mild unchanged"
)


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def bert_words(folder: Path, words: int | None = None, **settings: Any) -> int:
    """`vocab.txt` as BERT's, filled up to `words`; returns how many there are."""
    vocabulary = list(train_tokenizer([WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789"], 400).get_vocab().items())
    pieces = [piece for piece, _ in sorted(vocabulary, key=lambda pair: pair[1])]
    pieces += [f"[unused{number}]" for number in range(len(pieces), words or 0)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if settings:
        write_json(folder / "tokenizer_config.json", settings)
        write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)
    return len(pieces)


def written_weights(model: t.PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """`config.json` in `folder`, and the weights under the names that files have."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    return weights


def write_shards(weights: Mapping[str, Tensor], folder: Path, stem: str, ending: str, count: int = 2) -> None:
    """Shards with their index: `stem`-00001-of-00002.`ending`."""
    names, index = sorted(weights), {}
    for number in range(count):
        part = {name: weights[name].contiguous() for name in names[number::count]}
        file = f"{stem}-{number + 1:05}-of-{count:05}.{ending}"
        (torch.save if ending == "bin" else save_file)(part, folder / file)
        index |= dict.fromkeys(part, file)
    write_json(folder / f"{stem}.{ending}.index.json", {"metadata": {}, "weight_map": index})


# ------------------------------------------------------------------------------------------- encoders


def vit(folder: Path, full: bool = False) -> Path:
    """google/vit-base-patch16-224-in21k."""
    sizes = (BASE if full else NARROW) | {"image_size": 224, "patch_size": 16 if full else 56}
    t.ViTModel(t.ViTConfig(**sizes)).save_pretrained(folder)
    pixels = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2}
    write_json(folder / "preprocessor_config.json", CLIP | pixels | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    return folder


def clinical_bert(folder: Path, full: bool = False) -> Path:
    """emilyalsentzer/Bio_ClinicalBERT: `.bin` with the heads of its pretraining, a bare vocab.txt."""
    words = bert_words(folder, 28996 if full else None)
    sizes = BASE if full else NARROW | {"hidden_size": 768, "num_hidden_layers": 2}
    model = t.BertForPreTraining(t.BertConfig(**sizes, vocab_size=words))
    weights = written_weights(model, folder)
    weights |= {
        "bert.embeddings.position_ids": torch.arange(512)[None],
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"],
    }
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def biomedclip(folder: Path, full: bool = False) -> Path:
    """microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224."""
    from hf_medvlm.families.dual_encoder.model import DualEncoderConfig, DualEncoderModel
    from hf_medvlm.families.dual_encoder.published import to_published

    bert = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    words = bert_words(folder, 30522 if full else None, tokenizer_class="BertTokenizer", do_lower_case=True)
    # heads are told from timm's name, and are 64 wide where it says nothing
    sizes = BASE if full else {"hidden_size": 192, "intermediate_size": 48, "num_attention_heads": 3}
    vision = t.ViTConfig(**sizes, image_size=224, patch_size=16 if full else 56, layer_norm_eps=1e-6)
    text = t.BertConfig(**sizes, vocab_size=words)
    projection = {"projection_size": 512 if full else 24, "text_projection": "mlp"}
    model = DualEncoderModel(DualEncoderConfig(vision_config=vision, text_config=text, **projection))
    positions = {"text.transformer.embeddings.position_ids": torch.arange(512)[None]}
    torch.save(to_published(model) | positions, folder / "open_clip_pytorch_model.bin")
    name = f"vit_{'base' if full else 'tiny'}_patch16_224"
    text_cfg = {"hf_model_name": bert, "hf_tokenizer_name": bert, "hf_proj_type": "mlp", "context_length": 256}
    text_cfg["hf_pooler_type"] = "cls_last_hidden_state_pooler"
    vision_cfg = {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    cfg = {"embed_dim": projection["projection_size"], "vision_cfg": vision_cfg | {"image_size": 224}}
    preprocess = {"mean": CLIP["image_mean"], "std": CLIP["image_std"]}
    write_json(
        folder / "open_clip_config.json",
        {"model_cfg": cfg | {"text_cfg": text_cfg}, "preprocess_cfg": preprocess},
    )
    return folder


def medklip(file: Path, full: bool = False) -> Path:
    """MedKLIP's checkpoint_final.pth: DataParallel's names, beside the optimizer's state."""
    from hf_medvlm.families.medklip.model import MedKlipConfig, MedKlipModel
    from hf_medvlm.families.medklip.published import to_published

    small = t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="bottleneck")
    sizes = {} if full else {"backbone_config": small, "d_model": 32, "ffn_dim": 48}
    weights = to_published(MedKlipModel(MedKlipConfig(**sizes)))
    content = {"model": {f"module.{key}": value for key, value in weights.items()}, "epoch": 99}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | {"optimizer": {}, "lr_scheduler": {}, "config": {"d_model": 256}}, file)
    return file


def biovil_t(folder: Path, full: bool = False) -> Path:
    """microsoft/BiomedVLP-BioViL-T: the image model, and CXR-BERT with code of its own, which is not run."""
    from hf_medvlm.families.biovil_t.cxr_bert import CXRBertConfig, CXRBertModel
    from hf_medvlm.families.biovil_t.model import BioViLTConfig, BioViLTModel
    from hf_medvlm.families.biovil_t.published import to_published

    code = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    words = bert_words(folder, 30522 if full else None, tokenizer_class="CXRBertTokenizer", auto_map=code)
    small = t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1])
    sizes = {} if full else {"backbone_config": small, "pooler_dim": 32}
    images = to_published(BioViLTModel(BioViLTConfig(**sizes)))
    torch.save(images, folder / "biovil_t_image_model_proj_size_128.pt")
    text = CXRBertModel(CXRBertConfig(**(BASE if full else NARROW), vocab_size=words))
    weights = written_weights(text, folder)
    width = text.config.hidden_size
    weights |= {"bert.embeddings.position_ids": torch.arange(512)[None]}
    weights |= {"bert.pooler.dense.weight": torch.zeros(width, width), "bert.pooler.dense.bias": torch.zeros(width)}
    torch.save(weights, folder / "pytorch_model.bin")
    record = json.loads((folder / "config.json").read_text())
    record["auto_map"] = {"AutoModel": "modeling_cxrbert.CXRBertModel"}
    write_json(folder / "config.json", record)
    return folder


# ------------------------------------------------------------------------------------------- captioners


def blip(folder: Path, full: bool = False, large: bool = False, files: str = "bin") -> Path:
    """Salesforce/blip-image-captioning-base and -large.

    Args:
        files: "bin" as first published, with buffers and tied copies; "shards" of it; "safetensors".
    """
    words = bert_words(folder, 30522 if full else None, tokenizer_class="BertTokenizer", do_lower_case=True)
    text = (BASE if full else NARROW) | {"num_hidden_layers": 12, "vocab_size": words + 2, "bos_token_id": words}
    text |= {"sep_token_id": 3, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512}
    sizes = (LARGE if large else BASE) if full else NARROW
    vision = sizes | {"num_hidden_layers": 24 if large else 12, "image_size": 384, "patch_size": 16 if full else 96}
    text["encoder_hidden_size"] = vision["hidden_size"]
    model = t.BlipForConditionalGeneration(t.BlipConfig(text_config=text, vision_config=vision))
    weights = written_weights(model, folder)
    pixels = {"image_processor_type": "BlipImageProcessor", "size": {"height": 384, "width": 384}}
    write_json(folder / "preprocessor_config.json", CLIP | pixels | {"processor_class": "BlipProcessor"})
    decoder = "text_decoder.cls.predictions."
    copies = {
        "text_decoder.bert.embeddings.position_ids": torch.arange(512)[None],
        f"{decoder}decoder.weight": weights["text_decoder.bert.embeddings.word_embeddings.weight"],
        f"{decoder}decoder.bias": weights[f"{decoder}bias"],
    }
    return _with_weights(folder, weights, copies, files)


def git(folder: Path, full: bool = False, large: bool = False, files: str = "bin") -> Path:
    """microsoft/git-base and git-large; arguments as of `blip`."""
    words = bert_words(folder, 30522 if full else None, tokenizer_class="BertTokenizer", do_lower_case=True)
    text = (BASE if full else NARROW) | {"num_hidden_layers": 6, "vocab_size": words, "bos_token_id": 2}
    text |= {"eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 1024}
    sizes = (LARGE if large else BASE) if full else NARROW
    patch = (14 if large else 16) if full else 32
    vision = sizes | {"num_hidden_layers": 24 if large else 12, "image_size": 224, "patch_size": patch}
    model = t.GitForCausalLM(t.GitConfig(**text, vision_config=vision))
    weights = written_weights(model, folder)
    pixels = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "do_center_crop": True}
    pixels |= {"crop_size": {"height": 224, "width": 224}, "processor_class": "GitProcessor"}
    write_json(folder / "preprocessor_config.json", CLIP | pixels)
    tokens = len(weights["git.image_encoder.vision_model.embeddings.position_embedding.weight"])
    buffers = {
        "git.embeddings.position_ids": torch.arange(1024)[None],
        "git.image_encoder.vision_model.embeddings.position_ids": torch.arange(tokens)[None],
    }
    return _with_weights(folder, weights, buffers, files)


def _with_weights(folder: Path, weights: dict[str, Tensor], more: dict[str, Tensor], files: str) -> Path:
    if files == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif files == "shards":
        write_shards(weights | more, folder, "pytorch_model", "bin")
    else:
        torch.save(weights | more, folder / "pytorch_model.bin")
    return folder


# ------------------------------------------------------------------------------------------- LLaVA-1.5


def sentencepiece_words(folder: Path) -> int:
    """A bare `tokenizer.model` as LLaMA's, with bytes for what it lacks; returns the size of its vocabulary."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    extra = "a chat between curious user and an artificial intelligence assistant gives helpful detailed polite answers"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS, extra, "USER: ASSISTANT: Describe this chest X-ray."] * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "model_max_length": 2048, "pad_token": None}
    settings |= {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", settings)
    return len(sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")))


def clip_336(folder: Path, full: bool = False) -> Path:
    """openai/clip-vit-large-patch14-336: both towers in one `.bin`, and how its pixels are prepared."""
    sizes = LARGE if full else NARROW
    vision = sizes | {"num_hidden_layers": 24 if full else 4, "image_size": 336, "patch_size": 14 if full else 84}
    text = NARROW | {"num_hidden_layers": 2, "vocab_size": 60, "eos_token_id": 59, "bos_token_id": 58}
    weights = written_weights(t.CLIPModel(t.CLIPConfig(vision_config=vision, text_config=text)), folder)
    torch.save(weights, folder / "pytorch_model.bin")
    pixels = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "do_center_crop": True}
    write_json(folder / "preprocessor_config.json", CLIP | pixels | {"crop_size": {"height": 336, "width": 336}})
    return folder


def llava(folder: Path, tower: str = "openai/clip-vit-large-patch14-336") -> Path:
    """liuhaotian/llava-v1.5-7b or -13b: bf16 `.bin` shards without a tower, a bare tokenizer.model, the tower's id."""
    from hf_medvlm.families.chat.model import LlavaReporter
    from hf_medvlm.families.chat.published import to_published

    words = sentencepiece_words(folder)
    text = NARROW | {"num_hidden_layers": 2, "vocab_size": words, "max_position_embeddings": 4096}
    vision = t.CLIPVisionConfig(**NARROW, num_hidden_layers=4, image_size=336, patch_size=84)
    config = t.LlavaConfig(text_config=t.LlamaConfig(**text), vision_config=vision)
    published = to_published(LlavaReporter(config))
    weights = {key: value.bfloat16() for key, value in published.items() if "vision_tower" not in key}
    write_shards(weights, folder, "pytorch_model", "bin")
    record = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_projector_type": "mlp2x_gelu"}
    record |= {"mm_vision_tower": tower, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    record |= {"mm_hidden_size": 32, "mm_use_im_start_end": False, "mm_use_im_patch_token": False}
    record |= {"image_aspect_ratio": "pad", "torch_dtype": "bfloat16", "tie_word_embeddings": False}
    write_json(folder / "config.json", record | text)
    return folder


# ------------------------------------------------------------------------------------------- the Hub's cache


def in_cache(cache: Path, name: str, write: Callable[[Path], Any]) -> Path:
    """What `write` makes, where huggingface_hub keeps a Hub id that it has fetched."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    if not snapshot.is_dir():
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        write(snapshot)
    return snapshot
