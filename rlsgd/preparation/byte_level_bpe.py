"""Tokenizers of the small models that `tools/` makes: byte-level BPE, learned from their text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def train_byte_level_bpe(
    texts: Iterable[str], *, vocabulary: int, pre_tokenizer: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer with which every text can be written: none has an unknown token.

    Args:
        texts: what the merges are learned from.
        vocabulary: the most tokens; 258 of them are `<pad>` (0), `<eos>` (1) and the bytes.
        pre_tokenizer: cuts texts before merging; must end in `tokenizers`' `ByteLevel`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
