"""From a row to a prompt and its completions, still as text or messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steelyard.data.steps import join_steps

Side = str | list[dict[str, Any]]
"""A prompt or a completion: plain text or messages."""


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with their text blocks joined into one string, so that any chat template can render them."""
    result = []
    for message in messages:
        plain = dict(message)
        if isinstance(plain.get("content"), list):
            plain["content"] = "".join(block["text"] for block in plain["content"])
        result.append(plain)
    return result


def split_conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict], list[dict]]:
    """``(prompt, completion)``: the completion starts at the first assistant message and ends at the last.

    The completion is empty when there is no assistant message.
    """
    plain = plain_messages(messages)
    turns = [i for i, message in enumerate(plain) if message["role"] == "assistant"]
    if not turns:
        return plain, []
    return plain[: turns[0]], plain[turns[0] : turns[-1] + 1]


def split_pair(chosen: Side, rejected: Side) -> tuple[Side, Side, Side]:
    """``(prompt, chosen, rejected)`` of a pair whose prompt is the common beginning of its two sides.

    Messages: the longest common list of messages that ends before an assistant turn.  Strings: the dialogue
    form of hh-rlhf is cut behind the last common ``"\\n\\nAssistant:"``, other strings behind the last common
    whitespace, so that no word is divided between prompt and completion.
    """
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if isinstance(chosen, str) and isinstance(rejected, str):
        marker = "\n\nAssistant:"
        found = chosen.rfind(marker, 0, common)
        if found >= 0:
            common = found + len(marker)
        else:
            while common > 0 and not chosen[common - 1].isspace():
                common -= 1
    else:
        limit = min(len(chosen), len(rejected)) - 1
        common = min(common, limit)
        while common > 0 and not _is_assistant(chosen[common]):
            common -= 1
    return chosen[:common], chosen[common:], rejected[common:]


def as_messages(side: Side, role: str) -> list[dict[str, Any]]:
    """``side`` as messages; a string is one message of ``role``."""
    return [{"role": role, "content": side}] if isinstance(side, str) else list(side)


def _is_assistant(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


# --------------------------------------------------------------------------------------------------
# One row


class Dropped(Exception):
    """Leaves a row out; ``reason`` is a key of the render report."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def sides_of(row: Mapping[str, Any], schema: str, family: str) -> tuple[Side, list[Side]]:
    """The prompt and the completions that ``family`` learns from in a row of ``schema``."""
    if schema == "text":
        return "", [row["text"]]
    if schema == "messages" or (schema == "unpaired" and "messages" in row):
        prompt, completion = split_conversation(row["messages"])
        return prompt, [] if family == "Rollouts" else [completion]
    if schema == "preference":
        chosen, rejected = _plain(row["chosen"]), _plain(row["rejected"])
        if row.get("prompt") is not None:
            prompt = _plain(row["prompt"])
            chosen, rejected = _without_prompt(chosen, prompt), _without_prompt(rejected, prompt)
        else:
            prompt, chosen, rejected = split_pair(chosen, rejected)
            if not prompt:
                raise Dropped("no_common_prompt", "no prompt, and the two sides begin differently")
        sides = {"Tokens": [chosen], "Distill": [chosen], "Rollouts": []}.get(family, [chosen, rejected])
        return prompt, sides
    prompt = _plain(row["prompt"])
    if schema == "prompt-only" or family == "Rollouts":
        return prompt, []
    if schema == "ranked":
        return prompt, [_without_prompt(_plain(side), prompt) for side in row["completions"]]
    if schema in ("stepwise", "first-mistake"):
        return prompt, [join_steps(steps_of(row, schema))]
    return prompt, [_without_prompt(_plain(row["completion"]), prompt)]


def steps_of(row: Mapping[str, Any], schema: str) -> list[str]:
    """The steps of the one answer of a row whose steps are labelled."""
    return row["completions"] if schema == "stepwise" else row["steps"]


def _plain(side: Side) -> Side:
    return side if isinstance(side, str) else plain_messages(side)


def _without_prompt(side: Side, prompt: Side) -> Side:
    """Messages that repeat the prompt before the answer (as UltraFeedback does), without it."""
    if isinstance(side, str) or not side:
        return side
    before = as_messages(prompt, "user")
    return side[len(before) :] if side[: len(before)] == before else side


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row hands to the chat template: its tools and its ``chat_template_kwargs``."""
    options = dict(row.get("chat_template_kwargs") or {})
    tools = row.get("tools")
    if tools:
        options["tools"] = json.loads(tools) if isinstance(tools, str) else tools
    return options
