"""Who completes the prompts of a round: the policy, the start, a teacher, a mixture of two, or the rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from steelyard.algorithms.core import AlgorithmSpec
from steelyard.config import RunConfig
from steelyard.data.render import prompt_ids, template_options
from steelyard.errors import DataError
from steelyard.models.load import Policy
from steelyard.rollout.sampler import Mixture, NativeSampler, SamplingParams
from steelyard.trainer.judge import Judge
from steelyard.types import Group


class Writers:
    """Completes and judges the prompts of a round, sampler by sampler (see :class:`~steelyard.algorithms.core.Rounds`).

    Args:
        frozen: the policy at step 0, where the method samples from it.
        teacher: where the method samples from one.

    Attributes:
        generated_tokens: tokens of all completions so far.
    """

    def __init__(
        self,
        cfg: RunConfig,
        spec: AlgorithmSpec,
        judge: Judge,
        *,
        frozen: Policy | None = None,
        teacher: Policy | None = None,
    ) -> None:
        assert spec.rounds is not None and cfg.data.generate is not None
        self.seed, self.rounds, self.settings = cfg.seed, spec.rounds, cfg.data.generate
        self.judge, self.frozen, self.teacher = judge, frozen, teacher
        self.share = cfg.algorithm.hyperparameters[spec.rounds.mixture] if spec.rounds.mixture else 0.0
        self.generated_tokens = 0

    def sample(
        self, rows: Sequence[Group], policy: Policy, *, number: int, version: int
    ) -> tuple[list[Group], dict[str, float]]:
        """One judged group per row with the completions of all samplers; and how they were.

        A function of (seed, ``number``, policy): ``number`` is the round's, or the step's.
        """
        groups = [_nothing(row, version) for row in rows]
        unscored = 0
        for origin, name in enumerate(self.rounds.samplers):
            asked = list(range(len(rows)))
            if name == "hinted":  # a second try, with the answer
                asked = [i for i in asked if not (groups[i].completion_columns["verdict"] == 1).any()]
            theirs = [rows[i] for i in asked]
            written = self._write(name, theirs, policy, f"{number}:{origin}")
            judged = self.judge(theirs, [_with_origin(group, origin) for group in written], keep=name == "gold")
            unscored += sum(w.k - _scored(j) for w, j in zip(written, judged, strict=True))
            for i, group in zip(asked, judged, strict=True):
                groups[i] = _joined(groups[i], group)
        return groups, {**measure(groups, self.rounds.samplers), "rewards/unscored": float(unscored)}

    def _write(self, name: str, rows: Sequence[Group], policy: Policy, stream: str) -> list[Group]:
        if name == "gold":
            return [_own(row) for row in rows]
        if not rows:
            return []
        sampler = NativeSampler.of(self._voice(name, policy), mixture=self._mixture() if name == "mixture" else None)
        greedy = name in ("greedy", "hinted")
        params = SamplingParams(
            n=1 if greedy else self.rounds.count or self.settings.num_generations,
            temperature=0.0 if greedy else self.settings.temperature,
            top_p=self.settings.top_p,
            max_completion_length=self.settings.max_completion_length,
        )
        prompts = [hinted(policy.tokenizer, row) if name == "hinted" else row.prompt for row in rows]
        keys = [f"{stream}:{place}" for place in range(len(rows))]
        written = sampler.generate(prompts, params, seed=self.seed, keys=keys)
        self.generated_tokens += sum(len(ids) for group in written for ids in group.completions)
        return [group.replace(prompt=row.prompt) for group, row in zip(written, rows, strict=True)]

    def _voice(self, name: str, policy: Policy) -> Policy:
        voice = {"reference": self.frozen, "teacher": self.teacher}.get(name, policy)
        assert voice is not None, f"{name} was not given"
        return voice

    def _mixture(self) -> Mixture:
        if self.teacher is not None:
            return Mixture(self.teacher, self.share, "arithmetic")
        assert self.frozen is not None
        return Mixture(self.frozen, self.share, "geometric")


def hinted(tokenizer: Any, row: Group) -> np.ndarray:
    """The tokens of a row's prompt with its answer behind the question; :class:`DataError` without one of them."""
    for name in ("prompt", "answer"):
        if name not in row.columns:
            raise DataError(f"row {row.key}: a hint needs a column '{name}'; columns: {', '.join(row.columns)}")
    prompt, hint = row.columns["prompt"], f" ( answer : {row.columns['answer']} )"
    if isinstance(prompt, str):
        prompt = prompt + hint
    else:
        prompt = [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}{hint}"}]
    return prompt_ids(tokenizer, prompt, **template_options(row.columns))


def measure(groups: Sequence[Group], samplers: Sequence[str]) -> dict[str, float]:
    """What the samples (not the rows' own completions) were like, on average; scores over those that have one."""
    own = np.array([samplers[int(o)] != "gold" for g in groups for o in g.completion_columns["origin"]], bool)
    if not own.any():
        return {}

    def mean(of: Callable[[Group], Any]) -> float:
        return float(np.concatenate([np.asarray(of(group), np.float64) for group in groups if group.k])[own].mean())

    metrics = {
        "completions/mean_length": mean(lambda g: [len(ids) for ids in g.completions]),
        "completions/clipped_ratio": 1 - mean(lambda g: g.completion_columns["finished"]),
    }
    own &= np.concatenate([np.isfinite(group.completion_columns["score"]) for group in groups if group.k])
    if own.any():
        metrics["reward"] = mean(lambda g: g.completion_columns["score"])
        metrics["rounds/right"] = mean(lambda g: g.completion_columns["verdict"] == 1)
    return metrics


def _scored(group: Group) -> int:
    """How many of a judged group's completions have a score."""
    return int(np.isfinite(group.completion_columns["score"]).sum()) if group.k else 0


def _nothing(row: Group, version: int) -> Group:
    """The prompt of a row without completions."""
    return Group(row.prompt, (), (), columns=row.columns, policy_version=version, key=row.key)


def _own(row: Group) -> Group:
    """A row's own completions, as if they had been written; nobody knows with which log-probabilities."""
    unknown = tuple(np.full(len(ids), np.nan, np.float32) for ids in row.completions)
    return row.replace(completion_columns={"finished": np.ones(row.k, bool)}, token_columns={"behaviour": unknown})


def _with_origin(group: Group, origin: int) -> Group:
    return group.replace(completion_columns={**group.completion_columns, "origin": np.full(group.k, origin)})


def _joined(one: Group, other: Group) -> Group:
    """The completions of both, under the name of the first."""
    if not other.k:
        columns = {name: values[:0] for name, values in other.completion_columns.items()}
        return one if one.k else one.replace(completion_columns=columns)
    if not one.k:
        return one.replace(
            completions=other.completions,
            masks=other.masks,
            completion_columns=other.completion_columns,
            token_columns=other.token_columns,
            trained=other.trained,
        )
    return one.replace(
        completions=one.completions + other.completions,
        masks=one.masks + other.masks,
        completion_columns={
            name: np.concatenate([values, other.completion_columns[name]])
            for name, values in one.completion_columns.items()
        },
        token_columns={name: values + other.token_columns[name] for name, values in one.token_columns.items()},
        trained=one.trained + other.trained,
    )
