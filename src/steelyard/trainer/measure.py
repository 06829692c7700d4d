"""What a run measures of a reward model: best-of-n on tasks, and its quality on rows that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from steelyard.algorithms.core import AlgorithmSpec
from steelyard.config import RunConfig
from steelyard.data.render import Renderer
from steelyard.data.rows import Table
from steelyard.data.schemas import Family, row_family
from steelyard.data.sources import load_table, read_source
from steelyard.errors import ConfigError, ModelError
from steelyard.evals.quality import Report, headline
from steelyard.evals.reward import HELD_OUT, evaluate_by_choosing, judge_rows, pair_report
from steelyard.evals.runner import PREFERENCES
from steelyard.models.heads import FACTS, RewardFacts, facts_of, load_facts, saved_head
from steelyard.models.load import Policy, load_policy
from steelyard.rewards.models import RewardModel
from steelyard.rundir import RunDir
from steelyard.trainer.plan import model_directory

FAMILIES: dict[str, Family] = {
    "score": "Scores",
    "token_score": "TokenScores",
    "token_labels": "StepLabels",
    "lm": "Unpaired",
}
"""The rows that a reward model is measured on when no algorithm says which (`algorithm: base`)."""

QUALITY = "quality.json"
"""Where a run keeps the quality reports of its reward model, by what they were made on."""


def reward_facts(cfg: RunConfig, spec: AlgorithmSpec) -> RewardFacts | None:
    """What the outputs of a run's model mean, if it trains (or, with ``base``, measures) a reward model.

    Raises:
        ConfigError: the recipe asks of it what only a policy, or only a reward model, can do.
    """
    facts = _facts(cfg, spec)
    if facts is None and cfg.eval.quality_path is not None:
        who = cfg.model.name_or_path if spec.loss is None else f"what '{spec.key}' trains"
        raise ConfigError(
            f"eval.quality_path (--quality): {who} is a policy, which has no scores to report on. Measure it on pairs "
            "by its log-probabilities: eval.preference_path (--preferences FILE); or on tasks: eval.tasks (--tasks A,B)"
        )
    return facts


def _facts(cfg: RunConfig, spec: AlgorithmSpec) -> RewardFacts | None:
    if spec.loss is not None:
        named = cfg.sft is None and cfg.model.init == "pretrained"
        return facts_of(spec, cfg.algorithm.hyperparameters, cfg.model.name_or_path if named else None)
    if cfg.model.init == "random":
        return None
    directory = model_directory(cfg.model)
    known = (directory / FACTS).is_file() or saved_head(directory) != "lm"
    facts = load_facts(directory) if known else None
    if facts is not None and facts.head != "lm" and cfg.eval.tasks:
        raise ConfigError(
            f"eval.tasks: {cfg.model.name_or_path} is a reward model, which answers no task by itself; its own run "
            "picks among samples of the start (eval.best_of). Measure it on rows: eval.quality_path (--quality), "
            "eval.preference_path (--preferences)"
        )
    return facts


class RewardMeasure:
    """The evaluation of one run's reward model.

    Args:
        start: loads the policy at step 0 as a language model.
    """

    def __init__(
        self,
        cfg: RunConfig,
        spec: AlgorithmSpec,
        facts: RewardFacts,
        policy: Policy,
        run: RunDir,
        start: Callable[[], Policy],
    ) -> None:
        self.cfg, self.spec, self.facts, self.run, self.start = cfg, spec, facts, run, start
        self.model = RewardModel(policy, facts)
        self.reports: dict[str, Report] = {}

    def tasks(self) -> dict[str, float]:
        """Best-of-n on ``eval.tasks``."""
        cfg, start = self.cfg, self.start()
        if self.facts.beta is not None:
            self.model.reference = start
        metrics, reports = evaluate_by_choosing(
            self.model,
            start,
            cfg.eval,
            seed=cfg.seed,
            writer=self.run.write_records,
            purpose="report" if cfg.eval.split == "test" else "select",
        )
        self.reports |= reports
        return metrics

    def preferences(self) -> dict[str, float]:
        """The report on the held-out pairs whose records have just been written."""
        rows = self.run.records(PREFERENCES)
        if self.facts.beta is not None:
            beta = self.facts.beta
            rows = [
                row | {f"score_{s}": beta * (row[f"logp_{s}"] - row[f"ref_{s}"]) for s in ("chosen", "rejected")}
                for row in rows
                if "ref_chosen" in row
            ]
        if not rows:
            return {}
        self.reports[PREFERENCES] = pair_report(rows)
        numbers = headline(self.reports[PREFERENCES])
        return {f"eval/{PREFERENCES}/{key}": numbers[key] for key in ("ece", "length_correlation") if key in numbers}

    def rows(self) -> dict[str, float]:
        """The report on ``eval.quality_path``, or on the rows that ``data.holdout`` keeps back."""
        table = self._table()
        if table is None:
            return {}
        if self.facts.beta is not None:
            self.model.reference = self._reference()
        trained = self.spec.loss is not None
        family = row_family(self.spec.family, self.spec.head) if trained else FAMILIES[self.facts.head]
        result = Renderer.from_config(self.model.policy.tokenizer, self.cfg.data).render(table, family)
        report, records = judge_rows(self.model, result.groups)
        self.run.write_json("held_out_rows.json", result.report.to_dict())
        self.run.write_records(HELD_OUT, records)
        self.reports[HELD_OUT] = report
        return {f"eval/{HELD_OUT}/{key}": value for key, value in headline(report).items()}

    def _table(self) -> Table | None:
        if self.cfg.eval.quality_path is not None:
            return read_source(self.cfg.eval.quality_path, columns=self.cfg.data.columns)
        held_out = self.spec.loss is not None and self.cfg.data.path is not None and self.cfg.data.holdout
        return load_table(self.cfg.data, "held_out") if held_out else None

    def _reference(self) -> Policy:
        if self.spec.loss is not None:
            return self.start()
        if self.facts.reference is None:
            raise ModelError(
                f"{self.cfg.model.name_or_path}: an implicit reward, and its reference was a stage of its run; "
                "score rows with `steelyard score MODEL FILE --reference DIR`"
            )
        return load_policy(self.cfg.model.model_copy(update={"name_or_path": self.facts.reference}), seed=0)

    def write(self) -> None:
        """Keep the reports, if there are any."""
        if self.reports:
            self.run.write_json(QUALITY, {"model": asdict(self.facts), "reports": self.reports})

    @property
    def how(self) -> dict[str, Any]:
        """How tasks were answered, for ``run.json``."""
        if self.spec.loss is None or not self.cfg.eval.tasks:
            return {}
        return {"evaluated_by": f"best of {self.cfg.eval.best_of} samples of the start"}
