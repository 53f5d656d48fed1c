"""What a recipe trains when no checkpoint is named: a tokenizer trained on the spot, positions known from the start.

The tiny configs stand with their families.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

TINY_PATCH = 16
TINY_INIT = 0.07
"""About 1 / sqrt(width) of the tiny models: with BERT's 0.02 the image would count only late in training."""

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 2000, model_max_length: int = 512
) -> PreTrainedTokenizerFast:
    """A BERT-like WordPiece tokenizer (lower-cased, `[CLS] text [SEP]`) of the most frequent words, and of all letters.

    The ids of [PAD], [UNK], [CLS], [SEP], [MASK] are 0 to 4. The same texts give the same ids in every process, which
    `tokenizers`' own trainer does not promise (it breaks ties as its hash maps happen to lie).

    Raises:
        ValueError: there is no text to train on.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = list(SPECIAL_TOKENS.values())
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not words:
        raise ValueError("cannot train a tokenizer: every text is empty; look at --text_columns")
    letters = sorted({letter for word in words for letter in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *frequent])
    kept = list(pieces)[: max(vocab_size, len(special) + 2 * len(letters))]
    vocabulary = {piece: number for number, piece in enumerate(kept)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))]
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=True,
        **SPECIAL_TOKENS,
    )
