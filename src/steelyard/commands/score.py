"""``steelyard score MODEL FILE``: what a reward model says of rows that hold completions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steelyard.commands.parser import Arguments, one_of, renames, whole
from steelyard.errors import ConfigError, DataError

SIDES = ("chosen", "rejected")


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    arguments = Arguments(
        "score",
        "Score the completions of a file with a reward model; higher is better.\n\n"
        "Rows with `prompt` and `completion` (or `steps`) get a column `score`, with `completions` a column\n"
        "`scores`, with `chosen` and `rejected` the columns `score_chosen` and `score_rejected`; a process head\n"
        "adds `step_scores`, the probability of being right of every step.",
        epilog="examples:\n"
        "  steelyard score runs/3f2a... answers.jsonl --out scored.jsonl\n"
        "  steelyard score runs/3f2a.../model data:hh_harmless_base_test --limit 100\n",
    )
    arguments.add("model", help="a run directory, a saved reward model, or any classification model of transformers")
    arguments.add("file", help="rows (JSONL, JSON, CSV, Parquet), or data:NAME")
    arguments.add("--columns", type=renames, default={}, metavar="ours=theirs", help="renames of the file's columns")
    arguments.add("--limit", type=whole, metavar="N", help="rows at most")
    arguments.add("--reference", metavar="DIR", help="of an implicit reward: the model that its training started from")
    arguments.add("--beta", type=float, metavar="B", help="of an implicit reward; default: what it was trained with")
    arguments.add(
        "--aggregate", type=one_of("aggregate", ("min", "product")), default="min", help="of steps; default: min"
    )
    arguments.add("--dtype", default="float32", help="type of the weights; default: float32")
    arguments.add("--threads", type=whole, default=1, metavar="N", help="default: 1")
    arguments.add("--out", type=Path, metavar="FILE.jsonl", help="write the rows with their scores there, atomically")
    arguments.add("--json", action="store_true", help="print the rows with their scores as JSON lines")
    args = arguments.parse(words)
    if args.out is not None and args.out.exists():
        raise ConfigError(f"score: {args.out} exists already; name a new file")
    if args.beta is not None and args.reference is None:
        raise ConfigError("score: --beta is of an implicit reward, which needs --reference DIR as well")
    from steelyard.data.sources import read_source

    table = read_source(args.file, columns=args.columns, limit=args.limit)
    asked = [_asked(row, table.where(index), table.columns) for index, row in enumerate(table.rows)]
    rows = [{**row, **found} for row, found in zip(table.rows, _scores(args, asked), strict=True)]
    from steelyard.files import atomic_write, json_line

    if args.out is not None:
        atomic_write(args.out, "".join(json_line(row) for row in rows))
        print(f"{len(rows)} rows written to {args.out}", file=sys.stderr)
    elif args.json:
        sys.stdout.writelines(json_line(row) for row in rows)
    else:
        _print(rows, table.source)
    return 0


Asked = tuple[str, Any, list[Any]]
"""What is asked about a row: the form of its answer, its prompt, its completions."""


def _asked(row: Mapping[str, Any], where: str, columns: Sequence[str]) -> Asked:
    from steelyard.data.sides import Dropped, sides_of

    if all(row.get(side) is not None for side in SIDES):
        try:
            prompt, sides = sides_of(row, "preference", "Scores")
        except Dropped as error:
            raise DataError(f"{where}: {error}") from None
        return "pair", prompt, list(sides)
    prompt = row.get("prompt")
    if not isinstance(prompt, str | list):
        raise DataError(
            f"{where}: column 'prompt': expected a string or a list of messages; columns: {', '.join(columns)} (rename "
            "with --columns prompt=...)"
        )
    if isinstance(row.get("steps"), list):
        return "one", prompt, [row["steps"]]
    if isinstance(row.get("completions"), list) and row["completions"]:
        stepwise = isinstance(row.get("labels"), list)  # the steps of one answer, each with its label
        return ("one", prompt, [row["completions"]]) if stepwise else ("list", prompt, row["completions"])
    if isinstance(row.get("completion"), str | list):
        return "one", prompt, [row["completion"]]
    raise DataError(
        f"{where}: expected a column 'completion', 'completions' or 'steps', or 'chosen' and 'rejected'; columns: "
        f"{', '.join(columns)} (rename with --columns completion=...)"
    )


def _scores(args: Any, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """The columns that every row gets."""
    import torch

    from steelyard.commands.quiet import quiet_libraries
    from steelyard.rewards.models import RewardModel

    quiet_libraries()
    torch.set_num_threads(args.threads)
    model = RewardModel.load(
        args.model, reference=args.reference, beta=args.beta, aggregate=args.aggregate, dtype=args.dtype
    )
    found = iter(model.judge([p for _, p, sides in asked for _ in sides], [s for _, _, sides in asked for s in sides]))
    columns = []
    for form, _, sides in asked:
        judged = [next(found) for _ in sides]
        names = {"one": [""], "pair": [f"_{side}" for side in SIDES]}.get(form)
        if names is None:
            row: dict[str, Any] = {"scores": [score for score, _ in judged]}
            if model.facts.process:
                row["step_scores"] = [steps for _, steps in judged]
        else:
            row = {f"score{name}": score for name, (score, _) in zip(names, judged, strict=True)}
            if model.facts.process:
                row |= {f"step_scores{name}": steps for name, (_, steps) in zip(names, judged, strict=True)}
        columns.append(row)
    return columns


def _print(rows: Sequence[Mapping[str, Any]], source: str) -> None:
    """The first rows' scores and, of preference rows, how often the chosen side wins."""
    from rich.table import Table

    from steelyard.commands.console import wide_console

    console = wide_console()
    table = Table("row", "score", "text", box=None, pad_edge=False, title=source, title_justify="left")
    for index, row in enumerate(rows[:20]):
        for score, text in _lines(row):
            table.add_row(str(index + 1), f"{score:.4f}", _short(text))
    console.print(table)
    if len(rows) > 20:
        console.print(f"... and {len(rows) - 20} more rows (--json or --out FILE for all)", style="dim")
    pairs = [row for row in rows if "score_chosen" in row]
    if pairs:
        import numpy as np

        from steelyard.evals.quality import correctness, proportion

        right = proportion(correctness(*(np.array([row[f"score_{side}"] for row in pairs]) for side in SIDES)))
        interval = f"95 % interval {100 * right['low']:.1f} to {100 * right['high']:.1f}"
        print(f"{len(pairs)} pairs: the chosen completion scores higher in {100 * right['value']:.1f} % ({interval})")


def _lines(row: Mapping[str, Any]) -> list[tuple[float, Any]]:
    if "score_chosen" in row:
        return [(row[f"score_{side}"], row[side]) for side in SIDES]
    if "scores" in row:
        return list(zip(row["scores"], row["completions"], strict=True))
    steps = next(
        (row[name] for name in ("steps", "completions") if isinstance(row.get(name), list) and row[name]), None
    )
    return [(row["score"], row["completion"] if steps is None else steps)]


def _short(text: Any) -> Any:
    from rich.text import Text

    plain = (
        text if isinstance(text, str) else " | ".join(str(t.get("content") if isinstance(t, dict) else t) for t in text)
    )
    plain = " ".join(plain.split())
    return Text(plain if len(plain) <= 90 else f"...{plain[-87:]}")
