"""A trainer that takes milliseconds: the same stages and run directories as the real one, invented numbers.

``FAKE_TRAINER`` names a directory with ``calls.log`` (one line per piece of work) and, optionally,
``script.json``: what to do to the job ``<kind>:<algorithm>:<seed>`` (or ``<kind>:<algorithm>``):
``fail``, ``nan``, ``die``, ``die-once``, ``sleep``.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from steelyard.algorithms.catalogue import describe
from steelyard.errors import NumericalError
from steelyard.files import atomic_directory, sha256_json
from steelyard.plugins import load_plugins
from steelyard.rundir import RunDir, run_identity

PEAK = 1e-3
"""The learning rate at which every invented score is best."""


@dataclass(frozen=True)
class FakeStage:
    kind: str
    id: str
    deps: tuple[str, ...]

    def directory(self, cache: Path) -> Path:
        return cache / f"{self.kind}-{self.id}"


def _stage(kind, spec, deps=()):
    return FakeStage(kind, sha256_json({"kind": kind, "spec": spec, "deps": list(deps)})[:16], tuple(deps))


class FakeTrainer:
    def stages(self, config):
        data = describe(config.algorithm.name)["data"]
        if data not in ("pairs", "correct"):
            return []
        generate = _stage("generate", [config.model.name_or_path, config.seed])
        chosen = _stage(data, {}, (generate.id,))
        if describe(config.algorithm.name)["reference"] != "frozen":
            return [generate, chosen]
        return [generate, chosen, _stage("reference", {}, (chosen.id,))]

    def stage_done(self, stage, cache):
        return stage.directory(cache).is_dir()

    def identity(self, config, plugins):
        weights = "weights of " + config.model.name_or_path
        return run_identity(config, data={}, weights=weights, plugins=plugins)

    def prepare(self, plugins):
        load_plugins(plugins)
        self.home = Path(os.environ["FAKE_TRAINER"])
        if (self.home / "broken").exists():
            raise ImportError("the fake trainer is broken")

    def _work(self, kind, config):
        name = f"{kind}:{config.algorithm.name}:{config.seed}"
        with open(self.home / "calls.log", "a") as log:
            log.write(f"{name} pid={os.getpid()} out={os.environ['OMP_NUM_THREADS']}\n")
        script_file = self.home / "script.json"
        script = json.loads(script_file.read_text()) if script_file.exists() else {}
        action = script.get(name) or script.get(name.rpartition(":")[0])
        if action == "fail":
            print("about to fail")
            raise RuntimeError("invented failure\nwith a second line")
        if action == "nan":
            raise NumericalError("step 3: the loss is NaN")
        if action == "die" or (action == "die-once" and not (self.home / f"{name}.died").exists()):
            (self.home / f"{name}.died").touch()
            os._exit(9)
        if action == "sleep":
            time.sleep(60)

    def run_stage(self, config, kind, cache, progress):
        stage = next(stage for stage in self.stages(config) if stage.kind == kind)
        progress({"phase": kind, "step": 0, "total": 1})
        self._work(kind, config)
        with atomic_directory(stage.directory(cache)) as directory:
            (directory / "rows.jsonl").write_text("{}\n")

    def execute(self, config, out, cache, progress, plugins):
        for stage in self.stages(config):
            assert self.stage_done(stage, cache), f"{stage.kind} was not made before the run"
        run = RunDir.create(out, config, self.identity(config, plugins))
        try:
            self._work("run", config)
        except NumericalError as error:
            run.fail(error)
            raise
        rate = config.optim.learning_rate
        score = round(0.5 - abs(rate - PEAK) + 0.01 * (config.seed % 7), 6)
        for step in (1, 2):
            run.log({"global_step": step, "loss": 1.0 / step})
            progress({"phase": "train", "step": step, "total": 2, "tokens_per_second": 1234.5})
        metrics = {f"eval/{task}/score": score for task in config.eval.tasks}
        run.finish(metrics=metrics, weights_sha256=sha256_json([str(out), config.seed]), steps=2)
