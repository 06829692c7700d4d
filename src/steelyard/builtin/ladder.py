"""The ladder: four sizes of one ordinary architecture (Llama: RMSNorm, RoPE, SwiGLU, tied embeddings).

Head dimension 32 throughout, which serving engines accept.  A size is a Hugging Face model directory like
any other; nothing in Steelyard treats it differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.errors import ModelError, unknown

if TYPE_CHECKING:
    from transformers import LlamaConfig

HEAD_DIM = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """One size.

    Attributes:
        hidden: width, a multiple of :data:`HEAD_DIM`.
        layers: depth.
        intermediate: width inside the SwiGLU blocks.
        rate: Muon's learning rate in pretraining.
    """

    hidden: int
    layers: int
    intermediate: int
    rate: float


LADDER: dict[str, Shape] = {
    "0.1m": Shape(hidden=64, layers=2, intermediate=128, rate=2e-2),
    "0.5m": Shape(hidden=128, layers=3, intermediate=256, rate=1e-2),
    "1.8m": Shape(hidden=192, layers=4, intermediate=512, rate=1e-2),
    "6m": Shape(hidden=320, layers=5, intermediate=832, rate=1e-2),
}
"""size -> shape; about 0.1, 0.5, 1.8 and 6 million parameters."""


def shape(size: str) -> Shape:
    """The shape of ``size``; an unknown size raises :class:`ModelError` with the nearest one."""
    if size not in LADDER:
        raise ModelError(unknown("ladder size", size, LADDER))
    return LADDER[size]


def config(size: str) -> LlamaConfig:
    """A stock ``LlamaConfig`` of ``size`` for the built-in tokenizer."""
    from transformers import LlamaConfig

    from steelyard.builtin import tokenizer

    wanted, ids = shape(size), tokenizer.vocabulary()
    return LlamaConfig(
        vocab_size=len(ids),
        hidden_size=wanted.hidden,
        intermediate_size=wanted.intermediate,
        num_hidden_layers=wanted.layers,
        num_attention_heads=wanted.hidden // HEAD_DIM,
        num_key_value_heads=wanted.hidden // HEAD_DIM,
        head_dim=HEAD_DIM,
        max_position_embeddings=tokenizer.MAX_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=ids[tokenizer.PAD],
        bos_token_id=ids[tokenizer.BOS],
        eos_token_id=ids[tokenizer.EOS],
    )


def directory(size: str) -> Path:
    """Where the weights of ``size`` are, or would be."""
    shape(size)
    return Path(__file__).parent / "models" / size


def shipped() -> list[str]:
    """The sizes whose weights come with the package, smallest first."""
    return [size for size in LADDER if (directory(size) / "model.safetensors").is_file()]


def path(size: str) -> Path:
    """The model directory of ``size``; :class:`ModelError` names the command that trains it."""
    found = directory(size)
    if size not in shipped():
        raise ModelError(
            f"builtin:{size} is not shipped (shipped: {', '.join(shipped()) or 'none'}); train it with: "
            f"steelyard builtin train --size {size} --out {size}, and name that directory instead"
        )
    return found
