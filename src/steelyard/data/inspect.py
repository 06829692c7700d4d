"""Looking at rows as a model will see them: token by token, with masks, roles, lengths and losses.

``steelyard data inspect FILE`` prints this; every number comes from the same renderer that training uses.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from steelyard.data.bpe import train_bpe
from steelyard.data.chat import Codec
from steelyard.data.render import Renderer, RenderReport
from steelyard.data.rows import Table
from steelyard.data.schemas import Family, detect_schema, schema_for
from steelyard.data.sides import as_messages, sides_of, template_options
from steelyard.data.sources import row_texts
from steelyard.types import Group

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

FAMILIES: dict[str, Family] = {
    "text": "Tokens",
    "messages": "Tokens",
    "prompt-completion": "Tokens",
    "preference": "Pairs",
    "unpaired": "Unpaired",
    "ranked": "Ranked",
    "stepwise": "StepLabels",
    "first-mistake": "StepLabels",
    "prompt-only": "Rollouts",
}
"""The family that rows of a schema are shown for when none is asked for."""

VIEW_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'] + ':\n' + (message['content'] or '') }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
"""Only for looking at conversations without a model; no model is ever trained on it."""

EXAMPLES = 5
"""Lost rows that are listed per reason."""


@dataclass(frozen=True)
class TokenView:
    """One token: its id, its text, whose turn it belongs to, and whether it is trained."""

    id: int
    text: str
    role: str
    trained: bool
    special: bool


@dataclass(frozen=True)
class RowView:
    """One row: its tokens as they are trained on, or why it is lost.

    Attributes:
        completions: (name, tokens) pairs; ``chosen`` and ``rejected`` for preference rows.
        note: empty, or what was dropped or cut.
    """

    key: str
    prompt: tuple[TokenView, ...]
    completions: tuple[tuple[str, tuple[TokenView, ...]], ...]
    note: str = ""


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_table` found."""

    report: RenderReport
    rows: tuple[RowView, ...]
    tokenizer: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "tokenizer": self.tokenizer,
            **self.report.to_dict(),
            "lost": [vars(lost) for lost in self.report.lost],
            "shown": [
                {
                    "key": row.key,
                    "note": row.note,
                    "prompt": [vars(token) for token in row.prompt],
                    "completions": {name: [vars(t) for t in tokens] for name, tokens in row.completions},
                }
                for row in self.rows
            ],
        }


def inspect_table(
    table: Table,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    label: str = "",
    family: Family | None = None,
    rows: int = 3,
    max_length: int = 512,
    overlong: Any = "drop",
    completion_only_loss: bool = True,
) -> Inspection:
    """Render ``table`` and keep the first ``rows`` rows for looking at.

    Args:
        tokenizer: default: a byte-level BPE trained on the rows themselves.
        label: how the tokenizer is called; default: its path.
        family: default: the one that the rows' schema suggests.
        rows: how many rows are shown token by token; all are counted.

    Raises:
        DataError: rows that cannot be read or do not fit the family.
    """
    schema = detect_schema(table) if family is None else schema_for(table, family)
    family = family or FAMILIES[schema]
    if tokenizer is None:
        tokenizer, name = _stand_in(table)
    else:
        name = f"{label or tokenizer.name_or_path or 'given'} ({len(tokenizer)} entries)"
    renderer = Renderer(
        tokenizer,
        max_length=max_length,
        overlong="truncate" if overlong == "error" else overlong,  # show them all, do not stop at the first
        completion_only_loss=completion_only_loss,
    )
    result = renderer.render(table, family, strict=False)
    groups = {group.key: group for group in result.groups}
    lost = {item.key: item for item in result.report.lost}
    unlimited = Renderer(tokenizer, max_length=sys.maxsize, completion_only_loss=completion_only_loss)
    views = []
    for index, row in enumerate(table.rows[:rows]):
        key = f"{PurePath(table.source).name}:{table.lines[index]}"
        note = f"{lost[key].reason}: {lost[key].detail}" if key in lost else ""
        if key not in groups:  # too long: shown whole, with the reason
            single = Table([row], table.source, table.sha256, [table.lines[index]])
            groups |= {g.key: g for g in unlimited.render(single, family, strict=False).groups}
        if key in groups:
            roles = _Roles(renderer.codec, row, schema, family)
            views.append(_row_view(renderer.codec, groups[key], roles, family, note))
        else:
            views.append(RowView(key, (), (), note))
    return Inspection(result.report, tuple(views), name)


def _stand_in(table: Table) -> tuple[PreTrainedTokenizerBase, str]:
    """A tokenizer trained on the rows, with a template for looking at conversations."""
    tokenizer = train_bpe(row_texts(table))
    name = f"a byte-level BPE of {len(tokenizer)} entries trained on these rows"
    conversational = any(_has_messages(value) for row in table.rows for value in row.values())
    if conversational:
        tokenizer.chat_template = VIEW_TEMPLATE
        name += ", with a plain template for looking"
    return tokenizer, f"{name} (give --model or --tokenizer to see what your model would see)"


def _has_messages(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict) or _has_messages(part) for part in value)


class _Roles:
    """Whose turn each token of a row belongs to, found by rendering the conversation turn by turn."""

    def __init__(self, codec: Codec, row: Mapping[str, Any], schema: str, family: str) -> None:
        self.codec, self.schema = codec, schema
        self.options = template_options(row)
        self.prompt, self.sides = sides_of(row, schema, family)

    def of(self, prompt: int, completion: int, side: int | None) -> list[str]:
        """One role per token of a prompt of ``prompt`` tokens and a completion of ``completion`` tokens."""
        if self.schema == "text" or not self.codec.template:
            return ["prompt"] * prompt + ["completion"] * completion
        messages = as_messages(self.prompt, "user")
        if side is not None:
            messages = [*messages, *as_messages(self.sides[side], "assistant")]
        roles: list[str] = []
        for number, message in enumerate(messages, start=1):
            end = len(self.codec.encode(self.codec.apply(messages[:number], self.options)))
            roles += [str(message["role"])] * (end - len(roles))
        roles += ["assistant"] * (prompt + completion - len(roles))  # the generation prompt
        return roles[: prompt + completion]


def _row_view(codec: Codec, group: Group, roles: _Roles, family: str, note: str) -> RowView:
    special = set(codec.tokenizer.all_special_ids) | set(codec.ends)
    size = len(group.prompt)
    names = ("chosen", "rejected") if group.k == 2 and family != "Ranked" else ("completion",) * group.k
    prompt_roles = roles.of(size, len(group.completions[0]) if group.k else 0, 0 if group.k else None)
    prompt = _tokens(codec, group.prompt.tolist(), prompt_roles[:size], [False] * size, special)
    completions = []
    for index, (name, ids, mask) in enumerate(zip(names, group.completions, group.masks, strict=True)):
        own = roles.of(size, len(ids), index)[size:]
        completions.append((name, _tokens(codec, ids.tolist(), own, mask.tolist(), special)))
    if family == "Ranked":
        scores = group.completion_columns["score"].tolist()
        completions = [(f"score {score:g}", tokens) for score, (_, tokens) in zip(scores, completions, strict=True)]
    if "label" in group.completion_columns:
        labels = group.completion_columns["label"].tolist()
        marks = ["desirable" if label else "undesirable" for label in labels]
        completions = [(mark, tokens) for mark, (_, tokens) in zip(marks, completions, strict=True)]
    return RowView(group.key, prompt, tuple(completions), note)


def _tokens(
    codec: Codec, ids: Sequence[int], roles: Sequence[str], masks: Sequence[bool], special: set[int]
) -> tuple[TokenView, ...]:
    return tuple(
        TokenView(token, codec.decode([token], special=True), role, bool(mask), token in special)
        for token, role, mask in zip(ids, roles, masks, strict=True)
    )


# --------------------------------------------------------------------------------------------------
# Printing


def show(inspection: Inspection, console: Console) -> None:
    """Print an inspection: coloured running text on a terminal, one line per token elsewhere."""
    from rich.markup import escape

    console.print(f"tokenizer: {escape(inspection.tokenizer)}", highlight=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    if coloured:
        legend = " ".join(f"[{style}] {name} [/]" for name, style in LEGEND.items())
        console.print(f"colours: {legend}\n", highlight=False)
    for row in inspection.rows:
        console.print(_title(row), style="bold", highlight=False, markup=False, soft_wrap=True)
        for name, tokens in (("prompt", row.prompt), *row.completions):
            if not tokens:
                continue
            trained = sum(token.trained for token in tokens)
            counted = f"  {name}: {len(tokens)} tokens, {trained} trained"
            console.print(counted, highlight=False, markup=False)
            if coloured:
                console.print(_running_text(tokens))
            else:
                _print_tokens(tokens, console)
    _show_report(inspection.report, console)


LEGEND = {"trained": "black on green", "not trained": "white on grey23", "special": "bold black on yellow"}
"""How tokens are coloured; neighbours differ a little in shade, so that their borders can be seen."""

_SHADES = {"trained": ("black on green", "black on green3"), "plain": ("white on grey23", "white on grey30")}


def _title(row: RowView) -> str:
    return f"{row.key}  {row.note}" if row.note else row.key


def _running_text(tokens: Sequence[TokenView]) -> Text:
    from rich.text import Text

    text, role = Text(), ""
    for number, token in enumerate(tokens):
        if token.role != role:
            text.append(f"{token.role}> ", style="cyan")
            role = token.role
        shade = _SHADES["trained" if token.trained else "plain"][number % 2]
        style = f"bold underline {shade}" if token.special and token.trained else shade
        style = LEGEND["special"] if token.special and not token.trained else style
        text.append(token.text.replace("\n", "⏎\n") or "∅", style=style)
    return text


def _print_tokens(tokens: Sequence[TokenView], console: Console) -> None:
    for number, token in enumerate(tokens):
        mark = "trained" if token.trained else "-"
        line = f"    {number:5d} {token.id:7d}  {mark:7s}  {token.role:10s}  {token.text!r}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _show_report(report: RenderReport, console: Console) -> None:
    from rich.table import Table as Grid

    console.print()
    for line in report.lines()[:2]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    lengths = {name: quantiles for name, quantiles in report.lengths().items() if quantiles}
    if lengths:
        grid = Grid("tokens", *next(iter(lengths.values())), title=f"Lengths (max_length {report.max_length})")
        for name, quantiles in lengths.items():
            grid.add_row(
                name, *(f"{value:g}" if value == int(value) else f"{value:.1f}" for value in quantiles.values())
            )
        console.print(grid)
    for problem in report.problems():
        console.print(f"! {problem}", highlight=False, markup=False, soft_wrap=True)
    for reason in dict.fromkeys(lost.reason for lost in report.lost):
        same = [lost for lost in report.lost if lost.reason == reason]
        for lost in same[:EXAMPLES]:
            console.print(f"  {reason}: {lost.key}: {lost.detail}", highlight=False, markup=False, soft_wrap=True)
        if len(same) > EXAMPLES:
            console.print(f"  {reason}: and {len(same) - EXAMPLES} more", highlight=False, markup=False)
    if not report.problems():
        console.print("nothing is dropped, cut or suspicious", highlight=False)
