"""The dual encoder: any two towers, its losses, what it refuses, and that it comes back as it was saved."""

import math

import pytest
import torch
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    ResNetConfig,
    RobertaConfig,
    SwinConfig,
    ViTConfig,
    ViTModel,
)

from hf_medvlm.families.dual_encoder.model import DualEncoderConfig, DualEncoderModel
from hf_medvlm.families.dual_encoder.processor import build_processor
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.training.parts import parts_of, set_trainable

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT = ViTConfig(**SMALL, image_size=32, patch_size=8)
BERT = BertConfig(**SMALL, vocab_size=50)


def build(**options) -> DualEncoderModel:
    torch.manual_seed(0)
    return DualEncoderModel(DualEncoderConfig(**({"vision_config": VIT, "text_config": BERT} | options)))


def batch(size: int = 32, count: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(count, 7, dtype=torch.long)
    mask[1:2, 4:] = 0
    return {
        "pixel_values": torch.randn(count, 3, size, size),
        "input_ids": torch.randint(5, 50, (count, 7)) * mask,
        "attention_mask": mask,
        "pair_ids": torch.tensor([3, 8, 3, 9][:count]),
    }


@pytest.mark.parametrize(
    ("vision", "text", "size"),
    [
        (VIT, BERT, 32),
        (SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=64, window_size=4), BERT, 64),
        (
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
            RobertaConfig(**SMALL, vocab_size=50),
            64,
        ),
    ],
    ids=["vit-bert", "swin-bert", "resnet-roberta"],
)
@pytest.mark.parametrize("local", [None, "gloria", "mgca", "filip"])
def test_every_trainable_parameter_learns(vision, text, size, local):
    model = build(vision_config=vision, text_config=text, local_loss=local, vision_projection="mlp").train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    output = model(**batch(size))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert sum(output.loss_terms.values()) == pytest.approx(output.loss.item(), rel=1e-6)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())  # batch norms too


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_saved_and_loaded_it_gives_the_same_outputs(tmp_path, loss):
    model = build(loss=loss, temperature=0.2).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.25)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(again, DualEncoderModel) and again.config.temperature == 0.2
    first, second = model(**batch()), again(**batch())
    assert torch.equal(first.logits_per_image, second.logits_per_image) and torch.equal(first.loss, second.loss)


def test_without_labels_there_are_logits_and_no_loss():
    model, inputs = build().eval(), batch()
    del inputs["pair_ids"]
    output = model(**inputs)
    assert output.loss is None and output.logits_per_image.shape == (4, 4)
    expected = output.image_embeds @ output.text_embeds.T / 0.07
    torch.testing.assert_close(output.logits_per_image, expected)
    image = torch.nn.functional.normalize(model.get_image_features(inputs["pixel_values"]), dim=-1)
    torch.testing.assert_close(image, output.image_embeds)


def test_the_loss_knows_duplicates_and_padding_changes_nothing():
    model, inputs = build().eval(), batch()
    loss = model(**inputs).loss
    assert loss != model(**(inputs | {"pair_ids": torch.arange(4)})).loss
    pad = torch.zeros(4, 9, dtype=torch.long)
    longer = {name: torch.cat([inputs[name], pad], 1) for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**(inputs | longer)).loss, loss)


def test_a_frozen_tower_stays_frozen_in_training_and_is_not_saved_so(tmp_path):
    model = build()
    set_trainable(model, parts_of(model), ("connector", "language"))
    model.save_pretrained(tmp_path)
    assert all(p.requires_grad for p in DualEncoderModel.from_pretrained(tmp_path).parameters())
    model.train().load_state_dict(DualEncoderModel.from_pretrained(tmp_path).state_dict())
    assert not model.vision_tower.training and model.text_tower.training
    model(**batch()).loss.backward()
    assert all(p.grad is None for p in model.vision_tower.parameters())
    assert all(p.grad is not None for p in model.text_tower.parameters())


def test_two_pretrained_towers_keep_their_weights(tmp_path):
    torch.manual_seed(5)
    vision, text = ViTModel(VIT), BertModel(BERT)
    vision.save_pretrained(tmp_path / "vit")
    text.save_pretrained(tmp_path / "bert")
    model = DualEncoderModel.from_vision_text_pretrained(
        str(tmp_path / "vit"), str(tmp_path / "bert"), projection_size=16
    )
    assert torch.equal(model.vision_tower.layernorm.weight, vision.layernorm.weight)
    theirs = text.embeddings.word_embeddings.weight
    assert torch.equal(model.text_tower.embeddings.word_embeddings.weight, theirs)
    assert model.vision_projection.weight.shape == (16, 32)


def test_a_processor_comes_back_with_the_model(tmp_path):
    tokenizer = train_tokenizer(["No acute process.", "Left pleural effusion."])
    model = DualEncoderModel.tiny(tokenizer, image_size=32)
    model.save_pretrained(tmp_path)
    build_processor(tokenizer, 32).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor.image_processor).__name__ == "OpenClipImageProcessor"
    pixels = processor.image_processor(torch.zeros(3, 41, 70, dtype=torch.uint8).numpy(), return_tensors="pt")
    assert pixels.pixel_values.shape == (1, 3, 32, 32)
    assert processor.tokenizer("No acute process.").input_ids == tokenizer("No acute process.").input_ids


def test_it_runs_in_bf16_with_gradient_checkpointing():
    model = build().train().to(torch.bfloat16)
    model.gradient_checkpointing_enable()
    inputs = batch()
    output = model(**(inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}))
    output.loss.backward()
    assert output.image_embeds.dtype == torch.float32 and torch.isfinite(output.loss)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": math.nan}, "temperature must be a finite number, got nan"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"loss": "clip"}, "loss must be one of info_nce, sigmoid, got 'clip'"),
        ({"local_loss": "best"}, "local_loss must be one of None, gloria"),
        ({"vision_projection": "deep"}, "linear, mlp, none, got 'deep'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        build(**options)


def test_batches_without_contrast_are_refused():
    model = build().train()
    with pytest.raises(ValueError, match="a contrastive loss needs at least two pairs"):
        model(**batch(count=1))
    with pytest.raises(ValueError, match="all 4 texts are the same"):
        model(**(batch() | {"pair_ids": torch.full((4,), 7)}))
    with torch.no_grad():
        model.logit_scale.fill_(math.nan)
    with pytest.raises(ValueError, match="training has diverged"):
        model(**batch())
    assert build().eval()(**batch(count=1)).loss == 0  # nothing to tell it from


def test_the_scale_is_bounded():
    model = build().eval()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert model.scale.item() == pytest.approx(100.0)
