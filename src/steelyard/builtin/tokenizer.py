"""A word-level tokenizer in which a number is one token, as an ordinary ``PreTrainedTokenizerFast``.

One token per number matters: after the same training, models that read digits solve a third to a half as
many problems.  The vocabulary is closed and its order fixed, so building it twice gives the same files.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from steelyard.builtin import arithmetic, facts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<|pad|>", "<|bos|>", "<|end|>", "<|unk|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant", "tool")}
VOCABULARY_SIZE = 576
"""Rows of the embedding; what the words leave free is reserved."""
MAX_LENGTH = 512
"""Positions of every ladder model."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
"""Only an assistant's turn ends with a token of its own (EOS); a prefix of turns is a prefix of the text."""

_SIGNS = ("####", "+", "-", "*", "/", "=", ".", ",", "?", "!", ":", ";", "(", ")", '"', "'", "%", "$")
_GENERAL = """
a an the and or not no yes so then if of to in on at by for from with as is are was be i you he she it we they
this that these those my your his her one word words line lines list letter number numbers answer question
sentence first last next before after left right big small more less most only all some any each every same
other begin start end stop repeat reverse count sort say write use avoid include exactly least than twice once
please thanks thank hello hi bye sorry sure good great bad nice happy sad kind rude help welcome friend today
now new old who what why when how can could would should will do make give tell think know like want short
long easy hard step steps total remain
"""
"""Words for conversations and instructions."""


def words() -> list[str]:
    """The vocabulary without special and reserved tokens, in the order of its ids."""
    told = [verb.phrase.replace("{k}", "") for verb in arithmetic.VERBS]
    told += ["has how many does have", *arithmetic.NAMES, *arithmetic.OBJECTS]
    told += [question.replace("{creature}", "") for question, _ in facts.ATTRIBUTES.values()]
    told += [value for _, values in facts.ATTRIBUTES.values() for value in values]
    told += [*facts.FIRST, *facts.SECOND]
    numbers = [str(number) for number in range(arithmetic.LARGEST + 1)]
    return list(
        dict.fromkeys([*numbers, *_SIGNS, *(word for text in told for word in text.split()), *_GENERAL.split()])
    )


@cache
def vocabulary() -> dict[str, int]:
    """token -> id, :data:`VOCABULARY_SIZE` entries."""
    tokens = [PAD, BOS, EOS, UNK, *ROLES.values(), *words()]
    reserved = VOCABULARY_SIZE - len(tokens)
    assert reserved >= 0, f"{len(tokens)} tokens do not fit into a vocabulary of {VOCABULARY_SIZE}"
    tokens += [f"<|reserved_{number}|>" for number in range(reserved)]
    return {token: number for number, token in enumerate(tokens)}


def build() -> PreTrainedTokenizerFast:
    """The tokenizer; ``save_pretrained`` writes it together with its chat template."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [token for token in vocabulary() if re.fullmatch(r"<\|\w+\|>", token)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
