"""CXR-BERT: the text side of BioViL and BioViL-T. A BERT for masked language with a projection of its [CLS] state.

Knows no image and no tokenizer. Boecking et al. 2022, "Making the Most of Text Semantics to Improve Biomedical
Vision-Language Processing" (arXiv 2204.09817); the code of microsoft/hi-ml-multimodal is the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, normalize
from transformers import AutoConfig, AutoModel, BertConfig, BertForMaskedLM

from hf_medvlm.models.convert.checkpoint import load_weights, read_state_dict
from hf_medvlm.models.declared import check_declared
from hf_medvlm.models.loading import read_config
from hf_medvlm.models.outputs import CXRBertOutput

# A buffer of old versions, and a pooler that the published file holds and its model never runs.
OLD_KEYS = ("bert.embeddings.position_ids", "bert.pooler.*")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class CXRBertConfig(BertConfig):
    """`BertConfig` with the width of the joint space; the defaults are the published model's."""

    model_type = "cxr-bert"
    base_config_key = "text_config"

    projection_size: int = 128
    hidden_dropout_prob: float = 0.25
    attention_probs_dropout_prob: float = 0.25

    def __post_init__(self, **kwargs: Any) -> None:
        check_declared(self)
        super().__post_init__(**kwargs)


class ProjectionHead(nn.Module):
    """Linear, exact GELU, layer norm, linear; no dropout."""

    def __init__(self, config: CXRBertConfig) -> None:
        super().__init__()
        self.dense_to_hidden = nn.Linear(config.hidden_size, config.projection_size)
        self.LayerNorm = nn.LayerNorm(config.projection_size, eps=1e-12)
        self.dense_to_output = nn.Linear(config.projection_size, config.projection_size)

    def forward(self, states: Tensor) -> Tensor:
        """(..., hidden) -> (..., D)."""
        return self.dense_to_output(self.LayerNorm(gelu(self.dense_to_hidden(states))))


class CXRBertModel(BertForMaskedLM):
    """BERT, its masked-language head and the projection; parameter names are those of the published files."""

    config_class = CXRBertConfig
    config: CXRBertConfig

    def __init__(self, config: CXRBertConfig) -> None:
        super().__init__(config)
        self.cls_projection_head = ProjectionHead(config)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> CXRBertOutput:
        """All three outputs of the published model.

        Args:
            input_ids, attention_mask: (B, T); without a mask every token counts.
        """
        states = self.encode(input_ids, attention_mask)
        return CXRBertOutput(
            last_hidden_state=states, logits=self.cls(states), cls_projected_embedding=self.project(states[:, 0])
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states, (B, T) -> (B, T, hidden); the vocabulary-wide logits are left out."""
        return self.bert(input_ids, attention_mask=attention_mask).last_hidden_state

    def project(self, states: Tensor) -> Tensor:
        """Hidden states into the joint space, (..., hidden) -> (..., D), not normalised."""
        return self.cls_projection_head(states)

    def get_projected_text_embeddings(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, normalize_embeddings: bool = True
    ) -> Tensor:
        """The projected [CLS] state of each text, (B, T) -> (B, D), L2-normalised unless told otherwise."""
        embeddings = self.project(self.encode(input_ids, attention_mask)[:, 0])
        return normalize(embeddings, dim=-1) if normalize_embeddings else embeddings

    @classmethod
    def from_published(cls, path: str | Path, config: CXRBertConfig | None = None) -> CXRBertModel:
        """Load a published CXR-BERT strictly; the old `position_ids` buffer is left out.

        Args:
            path: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, or the weight file itself.
            config: instead of the `config.json` beside the weights.

        Raises:
            ValueError: no weights or no configuration there, or weights of another kind.
        """
        path = Path(path)
        if path.is_dir():
            files = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
            if not files:
                raise ValueError(f"{path}: holds neither {' nor '.join(WEIGHT_FILES)}")
            path = files[0]
        if config is None:
            if not (path.parent / "config.json").is_file():
                raise ValueError(f"{path}: there is no config.json beside it; put it there or pass `config`")
            config = CXRBertConfig.from_dict(read_config(path.parent))
        model = cls(config)
        state_dict = read_state_dict(path)
        for target, source in cls._tied_weights_keys.items():  # a file in safetensors leaves tied tensors out
            if source in state_dict:
                state_dict.setdefault(target, state_dict[source])
        load_weights(model, state_dict, ignorable=OLD_KEYS, what=f"CXR-BERT in {path}")
        return model.eval()


AutoConfig.register(CXRBertConfig.model_type, CXRBertConfig)
AutoModel.register(CXRBertConfig, CXRBertModel)
