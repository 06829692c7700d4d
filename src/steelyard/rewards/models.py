"""Reward models: text in, one number out.

::

    model = RewardModel.load("runs/3f2a.../model")
    model.score(["how many ?"], ["5 + 3 = 8 . #### 8"])     # [1.73]

A score is always oriented: higher is better.  What it is depends on how the model was trained:

==================  ===============================================================================
score head          the head's output at the last token; of a cost model its negative
outcome head        the output at the last token
process head        the least (or the product) of the steps' probabilities of being right
implicit reward     beta * (log pi - log ref), summed over the completion: needs the reference model
==================  ===============================================================================

Importing this module imports no torch; loading a model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steelyard.errors import ConfigError, DataError, ModelError
from steelyard.rewards.core import Reward, reward

if TYPE_CHECKING:
    from steelyard.config import RewardConfig
    from steelyard.models.heads import RewardFacts
    from steelyard.models.load import Policy
    from steelyard.types import Group

Aggregate = Literal["min", "product"]
"""How steps make a completion's score (Lightman et al., 2023; Wang et al., 2023)."""


class RewardModel:
    """A reward model in memory.

    Args:
        policy: model and tokenizer.
        facts: what its outputs mean.
        reference: of an implicit reward.
        aggregate: of a process head.
    """

    def __init__(
        self, policy: Policy, facts: RewardFacts, *, reference: Policy | None = None, aggregate: Aggregate = "min"
    ) -> None:
        self.policy, self.facts, self.reference, self.aggregate = policy, facts, reference, aggregate

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        reference: str | Path | None = None,
        beta: float | None = None,
        aggregate: Aggregate = "min",
        dtype: str = "float32",
    ) -> RewardModel:
        """Load a saved reward model: a run directory, its ``model/``, or any classification model of transformers.

        Args:
            reference: of an implicit reward: the model that its training started from.  Not needed when that was a
                model with a name (then it is written beside the weights); after a supervised stage it is the
                ``model/`` of that stage.
            beta: of an implicit reward; default: what it was trained with.  With a reference it makes any two
                language models an implicit reward.
            aggregate: ``min`` or ``product`` of the steps of a process head.

        Raises:
            ModelError: no reward model, or an implicit one whose reference is not known.
        """
        from steelyard.config import ModelConfig
        from steelyard.models.heads import RewardFacts, load_facts
        from steelyard.models.load import load_policy

        directory = Path(path) / "model" if (Path(path) / "run.json").is_file() else Path(path)
        if not directory.is_dir():
            raise ModelError(f"reward model: {path}: no such directory")
        facts = RewardFacts(head="lm", beta=beta) if beta is not None else load_facts(directory)
        where = str(reference) if reference is not None else facts.reference
        other = None
        if facts.beta is not None:
            if where is None:
                raise ModelError(
                    f"{path}: an implicit reward is beta * (log pi - log ref), and its reference was a stage of the "
                    "run; name it (reference=DIR, --reference DIR): the `model` of the run's sft stage"
                )
            other = load_policy(ModelConfig.model_validate({"name_or_path": where, "dtype": dtype}), seed=0)
        cfg = ModelConfig.model_validate({"name_or_path": str(directory), "dtype": dtype})
        policy = load_policy(cfg, head=facts.head, seed=0)
        return cls(policy, facts, reference=other, aggregate=aggregate)

    def score(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """Scores of completions, higher is better.

        Args:
            prompts: a string or a list of messages per completion.
            completions: likewise; for a process head also a list of steps (strings), otherwise text is cut into
                steps as training cuts it (:func:`steelyard.data.steps.split_steps`).

        Raises:
            DataError: another number of prompts than of completions, or a completion without a token.
        """
        return [score for score, _ in self.judge(prompts, completions)]

    def judge(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[tuple[float, list[float]]]:
        """As :meth:`score`; beside each score the step probabilities of a process head (else an empty list)."""
        if len(prompts) != len(completions):
            raise DataError(f"reward model: {len(prompts)} prompts for {len(completions)} completions")
        pairs = enumerate(zip(prompts, completions, strict=True))
        groups = [self.group(prompt, [self._text(text)], key=f"row {i + 1}") for i, (prompt, text) in pairs]
        judged = []
        for rows in self._judged(groups, self.values(groups)):
            judged.append((self._aggregate(rows[0]), rows[0].tolist() if self.facts.process else []))
        return judged

    def group(self, prompt: Any, completions: Sequence[Any], *, key: str = "", eos: bool = True) -> Group:
        """One prompt with completions as a group of tokens, as training renders them (end token included)."""
        from steelyard.data.render import completion_ids, prompt_ids
        from steelyard.types import Group

        ids = [completion_ids(self.policy.tokenizer, prompt, text, eos=eos) for text in completions]
        for text, tokens in zip(completions, ids, strict=True):
            if len(tokens) == 0:
                raise DataError(f"reward model: {key}: the completion {text!r} has no token")
        masks = tuple(np.ones(len(tokens), dtype=bool) for tokens in ids)
        return Group(prompt_ids(self.policy.tokenizer, prompt), tuple(ids), masks, key=key)

    def values(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """What the model says, unaggregated: see :func:`steelyard.models.heads.completion_values`."""
        from steelyard.models.heads import completion_values

        return completion_values(self.policy, self.facts, groups, reference=self.reference)

    def scores(self, groups: Sequence[Group]) -> list[np.ndarray]:
        """``float64[k]`` per group: the score of each completion, higher is better."""
        judged = self._judged(groups, self.values(groups))
        return [np.array([self._aggregate(row) for row in rows]) for rows in judged]

    def _judged(self, groups: Sequence[Group], values: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        """The values that a score is made from: of a process head those at the ends of steps."""
        if not self.facts.process:
            return values
        return [
            [row[ends] for row, ends in zip(rows, self.step_ends(group), strict=True)]
            for group, rows in zip(groups, values, strict=True)
        ]

    def _aggregate(self, row: np.ndarray) -> float:
        if self.facts.process:
            return float(row.min() if self.aggregate == "min" else row.prod())
        if self.facts.beta is not None:
            return float(row.sum())
        return -float(row[-1]) if self.facts.cost else float(row[-1])

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """The probability of being right that a score states (outcome and implicit rewards; steps state theirs)."""
        from scipy.special import expit

        if self.facts.process:
            return np.asarray(scores)
        return np.clip(scores, 0.0, 1.0) if self.facts.probability == "identity" else expit(scores)

    def step_ends(self, group: Group) -> list[list[int]]:
        """Per completion, the place among its scored tokens of the last token of every step: where labels stand, or
        where :func:`steelyard.data.steps.step_ends` finds the ends."""
        from steelyard.data.render import completion_text
        from steelyard.data.steps import step_ends

        tokenizer, labels = self.policy.tokenizer, group.token_columns.get("step_label")
        found = []
        for index, (ids, mask) in enumerate(zip(group.completions, group.masks, strict=True)):
            if labels is not None:
                ends = np.flatnonzero(~np.isnan(labels[index]) & mask)
            else:
                ends = np.array(step_ends(ids.tolist(), lambda part: completion_text(tokenizer, part)), dtype=int)
                ends = ends[mask[ends]] if len(ends) else ends
            if not len(ends):  # nothing that is a step: the whole completion is one
                ends = np.flatnonzero(mask)[-1:]
            place = np.cumsum(mask) - 1
            found.append(place[ends].tolist())
        return found

    def _text(self, completion: Any) -> Any:
        """A list of steps as the text that training sees; text and messages as they are."""
        from steelyard.data.steps import join_steps

        steps = isinstance(completion, list) and completion and all(isinstance(part, str) for part in completion)
        return join_steps(completion) if steps else completion


@reward("model")
def model_reward(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
) -> list[float | None]:
    """The name of :class:`ModelReward` in recipes; on its own it has no model to ask."""
    raise ConfigError("the reward 'model' needs a path: rewards: [{name: model, path: DIR}]")


def reward_of(cfg: RewardConfig) -> str | Reward:
    """The reward of one entry of a recipe's ``rewards``: a name, or a reward model."""
    if cfg.name != "model":
        return cfg.name
    assert cfg.path is not None
    return ModelReward(cfg.path, reference=cfg.reference)


class ModelReward:
    """A reward model as a reward function of online and iterative methods (``rewards: [{name: model, path: DIR}]``).

    Loaded when it is first asked.  What it is asked about is rendered as the model's own tokenizer and template have
    it; a completion without a token cannot be judged (None).
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.path, self.options = path, options
        self.model: RewardModel | None = None
        place = Path(path)
        self.__name__ = f"model:{place.parent.name if place.name == 'model' else place.name}"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One score per completion, higher is better."""
        if self.model is None:
            self.model = RewardModel.load(self.path, **self.options)
        written = [i for i, text in enumerate(completions) if not isinstance(text, str) or text.strip()]
        scores = self.model.score([prompts[i] for i in written], [completions[i] for i in written])
        found = dict(zip(written, scores, strict=True))
        return [found.get(i) for i in range(len(completions))]
