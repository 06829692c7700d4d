"""A small byte-level BPE tokenizer trained on the rows at hand.

For models that start from random weights (``model.train_tokenizer``) and for looking at data without a model.
Byte-level: any text encodes and decodes back exactly, and no token is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from steelyard.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
MINIMUM_VOCABULARY = 3 + 256
"""Special tokens and one token per byte."""


def train_bpe(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train a tokenizer; the same texts in any order give the same tokenizer.

    Special tokens are ``<pad>`` (id 0), ``<bos>`` (1) and ``<eos>`` (2), all distinct; plain text begins with
    ``<bos>``; there is no chat template.

    Args:
        texts: what to learn the merges from.
        vocab_size: entries, special tokens and the 256 bytes included; fewer when the texts offer no more.

    Raises:
        DataError: no text is given, or ``vocab_size`` has no room for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    corpus = sorted(text for text in texts if text)
    if not corpus:
        raise DataError("a tokenizer cannot be trained without any text")
    if vocab_size < MINIMUM_VOCABULARY:
        least = MINIMUM_VOCABULARY
        raise DataError(f"model.train_tokenizer.vocab_size: must be at least {least}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer, length=len(corpus))
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
