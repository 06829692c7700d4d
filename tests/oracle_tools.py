"""What the oracle tests share: ragged batches, a tiny model and its reference, other people's code, comparison.

An oracle is a loss that others wrote.  Each ``test_oracle_*`` file holds a table ``ORACLES``: our algorithm's
key -> its :class:`Oracle` entries, and ``COVERS``: key -> who it is held against, in words.  Trainers run their
real code path in float32 log-probabilities; ours start from the same model's logits in float64.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import math
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor, nn

from conftest import VOCABULARY, build_model, build_tokenizer
from steelyard.algorithms import load
from steelyard.types import Pairs

load()
datasets.disable_progress_bars()

# --------------------------------------------------------------------------------------------------
# Batches


@dataclass(frozen=True)
class Batch:
    """Right-padded rows ``[b, w]``: a prompt and a completion in which some tokens are not trained."""

    ids: Tensor
    attention: Tensor
    completion: Tensor
    """1 on completion tokens."""
    trained: Tensor
    """1 on the completion tokens that are trained."""

    @property
    def labels(self) -> Tensor:
        """Hugging Face labels: -100 where nothing is trained."""
        return self.ids.masked_fill(self.trained == 0, -100)

    def rows(self, index: Any) -> Batch:
        """Some of the rows."""
        return Batch(*(value[index] for value in vars(self).values()))


def ragged(seed: int, rows: int, *, prompt: int = 6, completion: int = 9, holes: bool = True) -> Batch:
    """Random rows with prompts and completions up to the given lengths; ``holes``: untrained tokens within."""
    generator = torch.Generator().manual_seed(seed)

    def lengths(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (rows, 1), generator=generator)

    start, count = lengths(1, prompt), lengths(2, completion)
    place = torch.arange(int((start + count).max()))
    attention = place < start + count
    ids = torch.randint(3, VOCABULARY, attention.shape, generator=generator) * attention
    inside = attention & (place >= start)
    trained = inside & ((torch.rand(attention.shape, generator=generator) < 0.8) | (not holes))
    trained |= place == start + count - 1  # at least one
    return Batch(ids, attention.long(), inside.long(), trained.long())


def joined(chosen: Batch, rejected: Batch) -> Batch:
    """The chosen half, then the rejected half, padded to one width."""
    width = max(chosen.ids.shape[1], rejected.ids.shape[1])

    def widen(value: Tensor) -> Tensor:
        return nn.functional.pad(value, (0, width - value.shape[1]))

    both = zip(vars(chosen).values(), vars(rejected).values(), strict=True)
    return Batch(*(torch.cat([widen(a), widen(b)]) for a, b in both))


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Next-token logits ``[b, w-1, v]`` for the tokens after the first."""
    return model(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1].double()


def token_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[b, w-1]`` of the tokens after the first, from the logits, and their mask."""
    logp = logits_of(model, batch).log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    return logp, batch.trained[:, 1:].bool()


def log_sum_p2(model: nn.Module, batch: Batch) -> Tensor:
    """``[b, w-1]`` log of the sum over the vocabulary of the squared probabilities, detached."""
    with torch.no_grad():
        return (2 * logits_of(model, batch).log_softmax(-1)).logsumexp(-1)


def likely(model: Any, batch: Batch) -> Batch:
    """The same rows with every completion replaced by the model's greedy one."""
    ids = batch.ids.clone()
    with torch.no_grad():
        for place in range(1, ids.shape[1]):
            best = model(input_ids=ids, attention_mask=batch.attention).logits[:, place - 1].argmax(-1)
            ids[:, place] = torch.where(batch.completion[:, place].bool(), best, ids[:, place])
    return Batch(ids, batch.attention, batch.completion, batch.trained)


def pairs(model: nn.Module, reference: nn.Module | None, chosen: Batch, rejected: Batch, **columns: Any) -> Pairs:
    """The view of preference pairs."""
    values: dict[str, Any] = {}
    for side, batch in (("chosen", chosen), ("rejected", rejected)):
        values[f"policy_{side}"], values[f"mask_{side}"] = token_logps(model, batch)
        if reference is not None:
            with torch.no_grad():
                values[f"ref_{side}"] = token_logps(reference, batch)[0]
        values[f"extras_{side}"] = {"log_sum_p2": log_sum_p2(model, batch)}
    return Pairs.from_logps(**values, **columns)


# --------------------------------------------------------------------------------------------------
# Models and other people's trainers


def policy() -> Any:
    """The tiny model that is trained; a new copy, because trainers patch their models."""
    return build_model("llama")


def reference() -> Any:
    """A new copy of a model unlike the policy: log-ratios of tens."""
    return build_model("llama", seed=1)


def near() -> Any:
    """A new copy of a model close to the policy: log-ratios about one, as in training."""
    model = policy()
    with torch.no_grad():
        for mine, other in zip(model.parameters(), reference().parameters(), strict=True):
            mine.lerp_(other, 0.05)
    return model


@cache
def models(ref: Callable[[], Any] = reference) -> tuple[Any, Any]:
    """A policy and a reference that no trainer patches."""
    return policy(), ref()


def trainer(kind: Any, config: Any, row: Mapping[str, Any], *, model: Any = None, **options: Any) -> Any:
    """Instantiate a Hugging Face style trainer: plain CPU settings, a four-row dataset, our tokenizer."""
    extra = {key: options.pop(key) for key in ("ref_model", "reward_funcs", "teacher_model") if key in options}
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    with torch.random.fork_rng(devices=[]):
        return kind(
            model=policy() if model is None else model,
            args=config(output_dir=tempfile.mkdtemp(prefix="oracle"), **plain, **options),
            processing_class=build_tokenizer(),
            train_dataset=datasets.Dataset.from_list([dict(row)] * 4),
            **extra,
        )


def function_of(distribution: str, path: str, name: str) -> Any:
    """One function (``f`` or ``Class.f``) of an installed distribution, without importing what surrounds it.

    Its source is compiled as it stands, with torch and typing as its only names.
    """
    body: list[ast.stmt] = ast.parse(_place(distribution, path).read_text()).body
    for part in name.split("."):
        found = [n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == part]
        assert len(found) == 1, f"{distribution}: {path} has {len(found)} of {part}"
        node, body = found[0], found[0].body
    namespace: dict[str, Any] = {"torch": torch, "F": nn.functional, "nn": nn, **vars(typing)}
    exec(compile(ast.Module([node], []), path, "exec"), namespace)
    return namespace[node.name]


def _place(distribution: str, path: str) -> Path:
    place = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    assert place.is_file(), f"{distribution} has no file {path}"
    return place


def file_of(distribution: str, path: str) -> ModuleType:
    """One file of an installed distribution as a module, without importing its package.

    The loss files of some libraries need only torch while their packages need a training stack.
    """
    place = _place(distribution, path)
    spec = importlib.util.spec_from_file_location(f"oracle_{distribution}_{place.stem}".replace("-", "_"), place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------------------------
# The table and the comparison

Both = tuple[Tensor, Any, nn.Module]
"""Their loss, ours, and the model whose parameters the gradients are compared by."""


@dataclass(frozen=True)
class Oracle:
    """Somebody else's loss, and the settings at which ours is held against it.

    Attributes:
        by: whose loss it is, and what is compared.
        run: (our hyperparameters, a seed) -> theirs, ours, model.
        settings: our hyperparameters, one dict per run.
        rtol: allowed relative difference of the values; of the gradients ten times that.
        seeds: random batches per setting.
    """

    by: str
    run: Callable[[dict[str, Any], int], Both]
    settings: tuple[dict[str, Any], ...] = ({},)
    rtol: float = 2e-5
    seeds: tuple[int, ...] = (7, 41)

    def check(self, settings: dict[str, Any], seed: int) -> None:
        """Run both and compare."""
        agree(*self.run(settings, seed), rtol=self.rtol)


Table = Mapping[str, Sequence[Oracle]]


def grid(**values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """All combinations of named values."""
    rows: list[dict[str, Any]] = [{}]
    for name, choices in values.items():
        rows = [{**row, name: choice} for row in rows for choice in choices]
    return tuple(rows)


def cases(table: Table) -> Iterator[Any]:
    """``pytest`` parameters (oracle, settings, seed), named by key, setting and seed."""
    for key, oracles in table.items():
        for oracle in oracles:
            for settings in oracle.settings:
                words = ",".join(f"{name}={value}" for name, value in settings.items())
                for seed in oracle.seeds:
                    yield pytest.param(oracle, settings, seed, id="-".join(filter(None, (key, words, str(seed)))))


def covers(table: Table) -> dict[str, str]:
    """Key -> whose losses it is held against."""
    return {key: "; ".join(dict.fromkeys(oracle.by for oracle in oracles)) for key, oracles in table.items()}


def agree(theirs: Tensor, ours: Any, model: nn.Module, *, rtol: float = 2e-5) -> None:
    """Equal values, and equal gradients by every parameter (relative to the gradient's norm)."""
    assert math.isfinite(float(theirs))
    assert float(ours) == pytest.approx(float(theirs), rel=rtol, abs=1e-6)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for value in (theirs, ours):
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        found.append(torch.cat([g.double().flatten() for g in filled]))
    assert float(found[0].norm()) > 1e-6
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 10 * rtol
