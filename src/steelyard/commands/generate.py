"""``steelyard generate MODEL --prompt TEXT``: completions of a model, sampled as training samples them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelyard.commands.parser import Arguments, one_of, renames, whole
from steelyard.errors import ConfigError


def main(verb: str, words: Sequence[str]) -> int:
    """Run the verb."""
    arguments = Arguments(
        "generate",
        "Sample completions from a model; rows go to stdout or to a JSONL file.",
        epilog="examples:\n"
        "  steelyard generate builtin:0.1m --task arithmetic --split selection --limit 5\n"
        "  steelyard generate runs/3f2a... --prompt 'how many ?' --n 4 --temperature 0.7\n",
    )
    arguments.add("model", help="a model directory, a run directory, builtin:SIZE or a hub name")
    arguments.add("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    arguments.add("--prompts", metavar="FILE", help="rows with a column `prompt` (or data:NAME)")
    arguments.add("--task", metavar="NAME", help="the prompts of a task; answers are verified")
    arguments.add("--split", type=one_of("split", ("train", "selection", "test")), default="selection")
    arguments.add("--columns", type=renames, default={}, metavar="prompt=question", help="renames for --prompts")
    arguments.add("--limit", type=whole, metavar="N", help="prompts at most")
    arguments.add("--n", type=whole, default=1, metavar="N", help="completions per prompt")
    arguments.add("--temperature", type=float, default=0.0, metavar="T", help="default: 0, greedy")
    arguments.add("--top-p", type=float, default=1.0, metavar="P")
    arguments.add("--top-k", type=int, default=0, metavar="K")
    arguments.add("--min-p", type=float, default=0.0, metavar="P")
    arguments.add("--max-completion-length", type=whole, default=128, metavar="N", help="tokens; default: 128")
    arguments.add("--seed", type=int, default=0)
    arguments.add("--threads", type=whole, default=1, metavar="N", help="default: 1")
    arguments.add("--dtype", default="float32", help="type of the weights; default: float32")
    arguments.add("--out", type=Path, metavar="FILE.jsonl", help="write rows there, atomically")
    arguments.add("--json", action="store_true", help="print rows as JSON lines")
    args = arguments.parse(words)
    if sum(map(bool, (args.prompt, args.prompts, args.task))) != 1:
        raise ConfigError("generate: give exactly one of --prompt TEXT, --prompts FILE and --task NAME")
    if args.n > 1 and args.temperature == 0:
        raise ConfigError("generate: --n above 1 needs a --temperature above 0: greedy completions are all the same")
    if args.out is not None and args.out.exists():
        raise ConfigError(f"generate: {args.out} exists already; name a new file")
    rows = _sample(args)
    from steelyard.files import atomic_write, json_line

    if args.out is not None:
        atomic_write(args.out, "".join(json_line(row) for row in rows))
        print(f"{len(rows)} completions written to {args.out}", file=sys.stderr)
    elif args.json:
        sys.stdout.writelines(json_line(row) for row in rows)
    else:
        _print(rows)
    return 0


def _questions(args: Any) -> list[dict[str, Any]]:
    """One mapping per prompt: ``key``, ``prompt``, and the task's item where there is one."""
    if args.prompt:
        return [{"key": str(index), "prompt": text} for index, text in enumerate(args.prompt)]
    if args.task:
        from steelyard.evals.tasks import get_task

        items = get_task(args.task, where="--task").items(args.split, purpose="report", limit=args.limit)
        return [{"key": item.id, "prompt": item.prompt, "item": item} for item in items]
    from steelyard.data.sources import read_source
    from steelyard.errors import DataError

    table = read_source(args.prompts, columns=args.columns, limit=args.limit)
    questions = []
    for index, row in enumerate(table.rows):
        if not isinstance(row.get("prompt"), str | list):
            raise DataError(
                f"{table.where(index)}: column 'prompt': expected a string or a list of messages; "
                f"columns: {', '.join(table.columns)} (rename with --columns prompt=...)"
            )
        questions.append({"key": f"{index}", "prompt": row["prompt"]})
    return questions


def _sample(args: Any) -> list[dict[str, Any]]:
    from steelyard.commands.evaluate import model_directory
    from steelyard.config import ModelConfig
    from steelyard.configfile import validate_section

    model = validate_section(ModelConfig, {"name_or_path": model_directory(args.model), "dtype": args.dtype}, "model")
    questions = _questions(args)
    import torch

    from steelyard.commands.quiet import quiet_libraries
    from steelyard.data.render import completion_text, prompt_ids
    from steelyard.models.load import load_policy
    from steelyard.rollout.sampler import NativeSampler, SamplingParams

    quiet_libraries()
    torch.set_num_threads(args.threads)
    params = SamplingParams(
        n=args.n,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        max_completion_length=args.max_completion_length,
    )
    policy = load_policy(model, seed=args.seed)
    sampler = NativeSampler.of(policy)
    if sampler.why:
        print(f"note: {sampler.why}", file=sys.stderr)
    prompts = [prompt_ids(policy.tokenizer, question["prompt"]) for question in questions]
    groups = sampler.generate(prompts, params, seed=args.seed, keys=[question["key"] for question in questions])
    rows = []
    for question, group in zip(questions, groups, strict=True):
        for index, ids in enumerate(group.completions):
            text = completion_text(policy.tokenizer, ids)
            row = {"key": question["key"], "prompt": question["prompt"], "sample": index, "completion": text}
            row |= {"tokens": len(ids), "finished": bool(group.completion_columns["finished"][index])}
            rows.append(row | _verdict(args.task, question, text))
    return rows


def _verdict(task: str | None, question: dict[str, Any], text: str) -> dict[str, Any]:
    if task is None:
        return {}
    from steelyard.evals.tasks import get_task

    verify = get_task(task).verify
    if verify is None:
        return {"answer": question["item"].answer}
    verdict = verify(text, question["item"])
    return {"answer": question["item"].answer, "strict": verdict.strict, "flexible": verdict.flexible}


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    previous = None
    for row in rows:
        if row["key"] != previous:
            console.rule(str(row["key"]), align="left", style="dim")
            prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1].get("content", "")
            console.print(Text(str(prompt), style="dim"), soft_wrap=True)
            previous = row["key"]
        notes = [] if row["finished"] else ["cut at the length limit"]
        if "strict" in row:
            notes.append({True: "right", False: "wrong", None: "cannot be judged"}[row["strict"]])
        console.print(Text(str(row["completion"])), soft_wrap=True)
        if notes:
            console.print(Text(f"  [{', '.join(notes)}]", style="cyan"))
