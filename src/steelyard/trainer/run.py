"""A whole run: inputs, training, evaluation, and its directory.

``execute`` is idempotent: a finished run is returned as it is, an unfinished one continues from its last
checkpoint, and the result is the same bit for bit (same build, CPU and thread count).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from steelyard.algorithms import load as load_algorithms
from steelyard.algorithms.core import AlgorithmSpec, algorithms
from steelyard.config import RunConfig
from steelyard.data.sources import read_source
from steelyard.errors import RunError
from steelyard.evals.runner import evaluate_preferences, evaluate_tasks
from steelyard.models.heads import RewardFacts, keeps_lm_head, save_facts
from steelyard.models.load import Policy, freeze_copy, save_policy, weights_sha256
from steelyard.models.reference import attach_reference
from steelyard.rewards.models import reward_of
from steelyard.rundir import RunDir, peak_memory_mib, reset_peak_memory, run_id
from steelyard.trainer.judge import Judge, round_rows
from steelyard.trainer.loop import Loop, Progress
from steelyard.trainer.measure import RewardMeasure, reward_facts
from steelyard.trainer.moving import MovingReference
from steelyard.trainer.plan import given_of, rows_stage, run_identity_of, with_teacher
from steelyard.trainer.rounds import RoundSource
from steelyard.trainer.rows import TrainingRows, task_items, training_rows
from steelyard.trainer.sources import OfflineSource, OnlineSource, Source, attach_now
from steelyard.trainer.stages import ensure_stages, load_start, load_teacher, reference_store, stage_facts
from steelyard.trainer.state import checkpoints
from steelyard.types import Group


def execute(
    cfg: RunConfig,
    out: Path,
    *,
    cache: Path,
    progress: Progress | None = None,
    resume: bool = True,
    plugins: Sequence[tuple[str, str]] = (),
) -> RunDir:
    """Train and evaluate (``algorithm: base``: evaluate only) into the run directory ``out``.

    Args:
        cache: where shared inputs live (generated rows, reference log-probabilities); runs may share it.
        progress: receives ``{"phase", "step", "total", ...}`` as the run goes on.
        resume: continue an unfinished run from its last checkpoint; False starts over.
        plugins: (name, source hash) of imported plugin files; part of the run's identity.

    Raises:
        RunError: ``out`` holds a finished run of another identity, or one whose files have changed since.
        NumericalError: the loss or the gradient stopped being finite; the run is marked failed.
    """
    torch.set_num_threads(cfg.threads)
    load_algorithms()
    spec = algorithms.get(cfg.algorithm.name)
    reward = reward_facts(cfg, spec)
    identity = run_identity_of(cfg, dict(plugins))
    if (out / "run.json").is_file():
        existing = RunDir.open(out)
        if existing.status == "finished":
            if existing.facts()["id"] == run_id(identity):
                existing.verify()
                return existing
            other = existing.facts()["id"]
            raise RunError(f"{out}: holds the finished run {other}, which is another one; choose another directory")
    reset_peak_memory()
    started = time.perf_counter()
    stages = ensure_stages(cfg, cache, progress)
    run = RunDir.create(out, cfg, identity, resume=resume, family=spec.family, given=_given(cfg, spec))
    try:
        _Run(cfg, spec, reward, run, cache, stages, progress, started).go()
    except BaseException as error:
        run.fail(error if not isinstance(error, KeyboardInterrupt) else "interrupted")
        raise
    return RunDir.open(out)


def _given(cfg: RunConfig, spec: AlgorithmSpec) -> list[str]:
    """What the method was given, in words."""
    if cfg.data.task is None and spec.data not in ("none", "rounds"):
        words = {"Pairs": "preference pairs", "Scores": "preference pairs", "Unpaired": "labelled completions"}
        given = [words.get(spec.family, "rows of the file"), *with_teacher(spec.describe())]
    else:
        given = given_of(spec.describe(), task=cfg.data.task is not None)
    return (["a supervised start"] if cfg.sft is not None else []) + given


class _Run:
    """The parts of :func:`execute` that share a run's objects."""

    def __init__(
        self,
        cfg: RunConfig,
        spec: AlgorithmSpec,
        reward: RewardFacts | None,
        run: RunDir,
        cache: Path,
        stages: dict[str, Path],
        progress: Progress | None,
        started: float,
    ) -> None:
        self.cfg, self.spec, self.run, self.cache, self.stages = cfg, spec, run, cache, stages
        self.progress = progress or (lambda _: None)
        self.started = started
        self.reward = reward
        self.head = spec.head if reward is None else reward.head
        self.adapter = cfg.lora is not None and spec.loss is not None
        self.watch_seconds = 0.0
        self.teacher: Policy | None = None

    def go(self) -> None:
        """Train if there is something to train, evaluate, and finish the run."""
        facts: dict[str, Any] = {"steps": 0}
        train_seconds = 0.0
        tokens = 0
        stages = self._stages()
        if self.spec.loss is None:
            policy = load_start(self.cfg, self.cache, head=self.head)
            self.run.truncate_metrics(-1)
        else:
            policy, loop, rows = self._train()
            train_seconds, tokens = loop.seconds, loop.tokens
            stages["generated_tokens"] += getattr(loop.source, "generated_tokens", 0)
            facts |= {"steps": loop.step, "data_sha256": rows.sha256, "rows": rows.report}
            if loop.ended:
                facts["ended_early"] = loop.ended
        before = time.perf_counter()
        metrics, how = self._evaluate(policy)
        eval_seconds = self.watch_seconds + time.perf_counter() - before
        self.run.log({"global_step": facts["steps"], **metrics})
        self.run.finish(
            **facts,
            **how,
            weights_sha256=weights_sha256(policy.model),
            why_not_packed=policy.why_not_packed,
            metrics=metrics,
            cost={
                "seconds": train_seconds + eval_seconds + sum(v for k, v in stages.items() if k.endswith("_seconds")),
                "wall_seconds": time.perf_counter() - self.started,
                "train_seconds": train_seconds,
                "eval_seconds": eval_seconds,
                **stages,
                "tokens": tokens,
                "peak_memory_mib": peak_memory_mib(),
            },
        )

    def _stages(self) -> dict[str, Any]:
        """Seconds of the shared inputs, charged in full to every method that uses them."""
        facts = {kind: stage_facts(directory) for kind, directory in self.stages.items()}
        kinds = ("sft", "generate", "reference")
        seconds = {f"{kind}_seconds": facts[kind]["seconds"] if kind in facts else 0.0 for kind in kinds}
        return {**seconds, "generated_tokens": facts["generate"]["generated_tokens"] if "generate" in facts else 0}

    # -- training

    def _train(self) -> tuple[Policy, Loop, TrainingRows]:
        saved = checkpoints(self.run.path)
        checkpoint = saved[-1][1] if saved else None
        lm_head = keeps_lm_head(self.head, self.cfg.algorithm.hyperparameters)
        start = load_start(self.cfg, self.cache, adapter=self.adapter, head=self.head, lm_head=lm_head)
        source, rows = self._rounds(start) if self.spec.data == "rounds" else self._rows(start)
        self.progress({"phase": "rows", "step": len(rows.groups), "total": rows.report["rows"]})
        # From here on the start is the policy: whoever needs the policy at step 0 has taken a copy or values.
        policy = start
        loop = Loop(
            self.cfg, self.spec, policy, source, seed=self.cfg.seed, other=self._other(start), progress=self.progress
        )
        if checkpoint is not None:
            loop.restore(checkpoint)
            self.progress({"phase": "resume", "step": loop.step, "total": loop.total})
        self.run.truncate_metrics(loop.step)
        train = self.cfg.train
        for row in loop.steps():
            if loop.step % train.logging_steps == 0 or loop.step == loop.total:
                self.run.log(row)
            if train.eval_steps and loop.step % train.eval_steps == 0 and loop.step < loop.total:
                before = time.perf_counter()
                watched = self._watch(policy)
                self.watch_seconds += time.perf_counter() - before
                if watched:
                    self.run.log({"global_step": loop.step, **watched})
            if train.save_steps and loop.step % train.save_steps == 0 and loop.step < loop.total:
                loop.save(self.run.path)
        if isinstance(source, OnlineSource):
            self.run.write_json("samples.json", source.samples)
        save_policy(policy, self.run.path / "model")
        if self.reward is not None:
            save_facts(self.reward, self.run.path / "model")
        return policy, loop, rows

    def _rounds(self, start: Policy) -> tuple[Source, TrainingRows]:
        """Rows that are sampled, judged and selected again in every round."""
        assert self.spec.rounds is not None
        found = round_rows(self.cfg, self.spec, start.tokenizer, self.stages.get("pairs"))
        judge = Judge(
            start.tokenizer,
            self._rewards(),
            verifying=not self.cfg.rewards,
            gold=found.gold,
            required=self.spec.rounds.judged,
        )
        self.teacher = load_teacher(self.cfg, start) if self.spec.teacher else None
        source = RoundSource(
            self.cfg, self.spec, found.rows.groups, judge, start=start, run=self.run.path, teacher=self.teacher
        )
        return source, found.rows

    def _rows(self, start: Policy) -> tuple[Source, TrainingRows]:
        """Offline rows with cached reference log-probabilities, or online sampling."""
        stage = rows_stage(self.stages)
        rows = training_rows(self.cfg, self.spec, start.tokenizer, stage)
        hp = self.cfg.algorithm.hyperparameters
        switch = self.spec.reference_unless_zero
        wanted = self.spec.reference == "frozen" and (switch is None or bool(hp[switch]))
        if not self.spec.online:
            attach = (lambda groups: self._attach(start, groups)) if wanted else None
            source: Source = OfflineSource(
                rows.groups,
                self.cfg.train,
                seed=self.cfg.seed,
                attach=attach,
                mismatch=self.spec.mismatched,
                moving=self._moving(start),
            )
            return source, rows
        source = OnlineSource(
            prompts=rows.groups,
            train=self.cfg.train,
            rollout=self.cfg.rollout,
            spec=self.spec,
            rewards=self._rewards(),
            seed=self.cfg.seed,
            reference=freeze_copy(start) if wanted else None,
        )
        return source, rows

    def _rewards(self) -> list[tuple[Any, float]]:
        """The recipe's rewards, or the task's verifier."""
        return [(reward_of(r), r.weight) for r in self.cfg.rewards] or [(self._verifier(), 1.0)]

    def _other(self, start: Policy) -> Policy | None:
        """The frozen model beside the policy: a teacher's distribution, or the start's over the vocabulary."""
        if self.spec.family == "Distill":
            return self.teacher or load_teacher(self.cfg, start)
        return freeze_copy(start) if "ref_kl" in self.spec.extras else None

    def _moving(self, start: Policy) -> MovingReference | None:
        if self.spec.moving is None:
            return None
        share, interval = (self.cfg.algorithm.hyperparameters[name] for name in self.spec.moving)
        budget = self.cfg.train.tokens_per_microbatch
        return MovingReference(start, share, interval, lambda policy, groups: attach_now(policy, groups, budget))

    def _verifier(self) -> Any:
        """The default reward: what also judges the task's answers in evaluation and in generated data."""
        if self.cfg.data.task is None:
            return "answer"
        items, verify = task_items(self.cfg)
        by_id = {item.id: item for item in items}

        def verifier(
            prompts: Any, completions: Any, completion_ids: Any, *, item: Any, finished: Any, **columns: Any
        ) -> list[float | None]:
            verdicts = [verify(text, by_id[name]).strict for text, name in zip(completions, item, strict=True)]
            return [None if v is None else float(v and end) for v, end in zip(verdicts, finished, strict=True)]

        return verifier

    def _attach(self, start: Policy, groups: Sequence[Group]) -> list[Group]:
        """Reference log-probabilities: the policy at step 0, from the shared cache."""
        reference = start if start.adapter is None else freeze_copy(start)
        store = reference_store(self.cache)
        logps = store.logps(reference, groups, tokens_per_microbatch=self.cfg.train.tokens_per_microbatch)
        return attach_reference(groups, logps)

    # -- evaluation

    def _watch(self, policy: Policy) -> dict[str, float]:
        """Development tasks on their selection split, while training goes on."""
        from steelyard.evals.tasks import get_task

        names = [n for n in self.cfg.eval.tasks if get_task(n).role == "development"]
        if self.reward is not None or not names:
            return {}
        watched = self.cfg.eval.model_copy(update={"tasks": names, "split": "selection"})
        return evaluate_tasks(policy, watched, seed=self.cfg.seed, writer=None, purpose="select")

    def _evaluate(self, policy: Policy) -> tuple[dict[str, float], dict[str, str]]:
        """Metrics, and what to know about how they came about."""
        self.progress({"phase": "evaluate", "step": 0, "total": 0})
        metrics: dict[str, float] = {}
        measure = None
        if self.reward is not None:
            start = lambda: load_start(self.cfg, self.cache)  # noqa: E731
            measure = RewardMeasure(self.cfg, self.spec, self.reward, policy, self.run, start)
        choosing = measure is not None and self.spec.loss is not None
        if self.cfg.eval.tasks and not choosing:
            purpose = "report" if self.cfg.eval.split == "test" else "select"
            metrics |= evaluate_tasks(
                policy, self.cfg.eval, seed=self.cfg.seed, writer=self.run.write_records, purpose=purpose
            )
        elif self.cfg.eval.tasks and measure is not None:
            metrics |= measure.tasks()
        if self.cfg.eval.preference_path is not None:
            metrics |= evaluate_preferences(
                policy,
                self._held_out(policy),
                writer=self.run.write_records,
                head=self.head,
                reward=None if measure is None else measure.model,
            )
        if measure is not None:
            if self.cfg.eval.preference_path is not None:
                metrics |= measure.preferences()
            metrics |= measure.rows()
            measure.write()
        return metrics, {} if measure is None else measure.how

    def _held_out(self, policy: Policy) -> list[Group]:
        """Held-out preference pairs, with the start's log-probabilities for scoring by log-ratio."""
        from steelyard.data.render import Renderer

        assert self.cfg.eval.preference_path is not None
        table = read_source(self.cfg.eval.preference_path, columns=self.cfg.data.columns)
        result = Renderer.from_config(policy.tokenizer, self.cfg.data).render(table, "Pairs")
        self.run.write_json("held_out.json", result.report.to_dict())
        if self.head != "lm":
            return result.groups
        return self._attach(load_start(self.cfg, self.cache), result.groups)
