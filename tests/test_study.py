"""Studies: expansion, shared jobs, resuming, failures, dead workers, selection records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fake_trainer import FakeTrainer
from steelyard.errors import ConfigError, RunError, StudyError
from steelyard.files import Lock
from steelyard.rundir import RunDir, source_hash
from steelyard.study.axes import Study, expand, load_study, resolve
from steelyard.study.executor import available_cores
from steelyard.study.plan import make_plan
from steelyard.study.run import StudyOutcome, run_study
from steelyard.study.select import write_record
from steelyard.study.status import status_command, study_status

BACKEND = "fake_trainer:FakeTrainer"
BASE = {
    "name": "tiny",
    "description": "a study of nothing",
    "data": {"task": "arithmetic", "generate": {"prompts": 8}},
    "train": {"max_steps": 2},
    "eval": {"tasks": ["arithmetic"]},
}


def study(axes: dict | None = None, **changes: object) -> dict:
    return {**BASE, "axes": axes or {"algorithm": ["sft", "dpo", "ipo"], "seed": [0, 1]}, **changes}


def expanded(axes: dict | None = None, folder: Path = Path(), **changes: object) -> Study:
    return expand(study(axes, **changes), where="tiny.yaml", folder=folder)


def refused(message: str, axes: dict | None = None, **changes: object) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        expanded(axes, **changes)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------
# Axes


def test_cells_are_the_product_of_the_axes_with_labels():
    made = expanded({"algorithm": ["sft", "dpo"], "model": ["builtin:0.1m", "builtin:0.5m"], "seed": [0, 1, 2]})
    assert len(made.cells) == 12
    assert made.cells[0].labels == {"algorithm": "sft", "model": "builtin:0.1m", "seed": 0}
    assert made.cells[-1].config.model.name_or_path == "builtin:0.5m"
    assert made.cells[-1].config.seed == 2 and made.cells[-1].config.algorithm.name == "dpo"
    assert made.baseline == {"algorithm": "sft"} and made.purpose == "report"


def test_an_algorithm_entry_carries_hyperparameters_overrides_and_a_label():
    entry = {
        "name": "dpo",
        "beta": 0.05,
        "label": "dpo-low",
        "overrides": {"train.max_steps": 5},
        "optim.learning_rate": 3e-4,
    }
    made = expanded({"algorithm": ["dpo", entry]})
    low = made.cells[1]
    assert low.labels["algorithm"] == "dpo-low"
    assert low.config.algorithm.hyperparameters["beta"] == 0.05
    assert low.config.train.max_steps == 5 and low.config.optim.learning_rate == 3e-4
    assert made.cells[0].config.train.max_steps == 2


def test_an_algorithm_may_have_axes_of_its_own():
    made = expanded(
        {"algorithm": ["sft", {"name": "dpo", "axes": {"optim.learning_rate": [1e-4, 1e-3]}}], "seed": [0, 1]}
    )
    rates = [(c.labels["algorithm"], c.labels.get("optim.learning_rate"), c.labels["seed"]) for c in made.cells]
    assert rates == [
        ("sft", None, 0),
        ("sft", None, 1),
        ("dpo", 1e-4, 0),
        ("dpo", 1e-4, 1),
        ("dpo", 1e-3, 0),
        ("dpo", 1e-3, 1),
    ]
    assert made.cells[-1].config.optim.learning_rate == 1e-3


def test_a_model_entry_carries_model_keys_overrides_and_a_label():
    entry = {"name_or_path": "builtin:0.5m", "label": "half", "init": "random", "train.max_steps": 7}
    made = expanded({"algorithm": ["sft"], "model": ["builtin:0.1m", entry]})
    half = made.cells[1]
    assert half.labels["model"] == "half" and half.config.model.init == "random"
    assert half.config.train.max_steps == 7


def test_any_dotted_key_is_an_axis_and_values_may_be_labelled():
    lora = [{"label": "full", "value": None}, {"label": "rank 8", "value": {"r": 8}}]
    made = expanded({"algorithm": ["dpo"], "lora": lora, "algorithm.beta": [0.1, 0.2]})
    assert [c.labels["lora"] for c in made.cells] == ["full", "full", "rank 8", "rank 8"]
    assert made.cells[3].config.lora is not None and made.cells[3].config.lora.r == 8
    assert made.cells[3].config.algorithm.hyperparameters["beta"] == 0.2
    assert made.cells[3].title == "dpo · builtin:0.1m · lora=rank 8 · algorithm.beta=0.2 · seed 0"


def test_the_untrained_base_is_evaluated_once_per_model_and_not_per_training_key():
    axes = {"algorithm": ["dpo"], "model": ["builtin:0.1m", "builtin:0.5m"], "seed": [3, 4]}
    made = expanded({**axes, "optim.learning_rate": [1e-4, 1e-3]}, include_base=True)
    base = [c.labels for c in made.cells if c.labels["algorithm"] == "base"]
    assert base == [
        {"algorithm": "base", "model": "builtin:0.1m", "seed": 3},
        {"algorithm": "base", "model": "builtin:0.5m", "seed": 3},
    ]
    assert made.baseline == {"algorithm": "base"}


def test_a_base_that_depends_on_the_seed_is_evaluated_per_seed():
    axes = {"algorithm": ["dpo"], "seed": [0, 1]}
    for changes in ({"model": {"init": "random"}}, {"sft": {"train": {"max_steps": 1}}}):
        made = expanded(axes, include_base=True, **changes)
        assert [c.labels["seed"] for c in made.cells if c.labels["algorithm"] == "base"] == [0, 1]


def test_wrong_studies_are_refused_with_the_nearest_choice():
    refused("'learning_rat' in .optim..*Did you mean 'optim\.learning_rate'", {"optim.learning_rat": [1]})
    refused("Did you mean 'optim.learning_rate'", {"learning_rate": [1]})
    refused("unknown key 'modle'.*Did you mean 'model'", modle={})
    refused("unknown algorithm 'dppo'.*Did you mean 'dpo'", {"algorithm": ["dppo"]})
    refused("unknown hyperparameter of sft 'beta'", {"algorithm": ["dpo", "sft"], "algorithm.beta": [0.1]})
    refused("listed twice", {"algorithm": ["dpo", {"name": "dpo", "beta": 0.2}]})
    refused("listed twice", {"algorithm": ["dpo"], "seed": [0, 1, 0]})
    refused("same run", {"algorithm": ["dpo", {"name": "dpo", "label": "again"}]})
    refused("at least one value", {"algorithm": []})
    refused("whole numbers", {"algorithm": ["dpo"], "seed": ["a"]})
    refused("same axis", {"algorithm": ["dpo"], "algorithm.name": ["ipo"]})
    refused("baseline: unknown algorithm 'sff'.*Did you mean 'sft'", baseline={"algorithm": "sff"})
    refused("baseline: unknown axis", baseline={"optim.learning_rate": 1})
    refused("only be an axis of the whole study", {"algorithm": [{"name": "dpo", "axes": {"seed": [0]}}]})
    refused(
        "is an axis of the study and of 'dpo'",
        {"algorithm": [{"name": "dpo", "axes": {"optim.eps": [1e-8]}}], "optim.eps": [1e-7]},
    )
    with pytest.raises(ConfigError, match="needs `axes:`.*steelyard train"):
        expand({**BASE}, where="tiny.yaml", folder=Path())
    for name in ("../x", "/tmp/x", ".x", "a b", "a/b"):
        refused("name: '.*' must be letters, digits", {"algorithm": ["dpo"]}, name=name)
    with pytest.raises(ConfigError, match="recipe of one run.*steelyard train"):
        expand({"algorithm": "dpo", "data": {"task": "arithmetic"}}, where="r.yaml", folder=Path())


def test_an_invalid_cell_is_named_before_anything_runs():
    refused("train.max_steps.*cell algorithm=dpo", {"algorithm": [{"name": "dpo", "train.max_steps": -1}]})


def test_selecting_may_not_read_unseen_tasks():
    with pytest.raises(ConfigError, match="'chains' is unseen"):
        expanded(eval={"tasks": ["arithmetic", "chains"], "split": "selection"})
    assert expanded(eval={"tasks": ["arithmetic"], "split": "selection"}).purpose == "select"
    refused("one split", {"algorithm": ["dpo"], "eval.split": ["selection", "test"]})


def test_a_study_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    Path("studies/mine.yaml").write_text(yaml.safe_dump(study()))
    assert resolve("mine") == Path("studies/mine.yaml")
    assert load_study("studies/mine.yaml").name == "tiny"
    with pytest.raises(ConfigError, match="Did you mean 'mine'"):
        resolve("mime")
    with pytest.raises(ConfigError, match="no such study file"):
        resolve("elsewhere/mine.yaml")


def test_planning_imports_no_torch():
    code = "import sys, steelyard.study.run, steelyard.study.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------------------------------
# Plan


def test_shared_inputs_are_planned_once():
    plan = make_plan(expanded({"algorithm": ["sft", "dpo", "ipo", "simpo"], "seed": [0, 1]}), FakeTrainer(), {})
    assert plan.count() == {"generate": 2, "pairs": 2, "reference": 2, "run": 8}
    order = list(plan.jobs)
    for job in plan.jobs.values():
        assert all(order.index(dep) < order.index(job.id) for dep in job.deps)
    generate = next(job for job in plan.jobs.values() if job.kind == "generate")
    kinds = Counter(plan.jobs[job].kind for job in plan.dependents(generate.id))
    assert kinds == {"pairs": 1, "reference": 1, "run": 3}  # simpo needs no reference, but the pairs


def test_larger_models_and_what_others_wait_for_come_first():
    made = expanded({"algorithm": ["sft", "dpo"], "model": ["builtin:0.1m", "builtin:6m"]})
    plan = make_plan(made, FakeTrainer(), {})
    ranked = sorted(plan.jobs.values(), key=lambda job: -plan.priority[job.id])
    assert ranked[0].kind == "generate" and "6m" in ranked[0].title
    small = next(i for i, job in enumerate(ranked) if "0.1m" in job.title)
    assert all("6m" in job.title for job in ranked[:small]) and small == 5


def test_ids_do_not_depend_on_place_or_name():
    first = make_plan(expanded(), FakeTrainer(), {})
    moved = expand({**study(), "name": "other", "description": "x"}, where="b.yaml", folder=Path("/elsewhere"))
    assert first.runs == make_plan(moved, FakeTrainer(), {}).runs
    assert first.runs != make_plan(expanded(), FakeTrainer(), {"mine": "p0"}).runs
    changed = expanded(train={"max_steps": 3})
    assert not set(first.runs) & set(make_plan(changed, FakeTrainer(), {}).runs)


# --------------------------------------------------------------------------------------------------
# Running


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where the fake trainer reads its script and writes its calls."""
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("FAKE_TRAINER", str(folder))
    source_hash.cache_clear()  # the source may be edited while the tests run, and workers compare it
    return folder


def script(home: Path, **actions: str) -> None:
    named = {name.replace("__", ":"): action for name, action in actions.items()}
    (home / "script.json").write_text(json.dumps(named))


def calls(home: Path) -> Counter[str]:
    log = home / "calls.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.split()[0] for line in lines)


def run(tmp_path: Path, plain: dict | None = None, out: str = "out", **keywords: object) -> StudyOutcome:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(plain or study()))
    text = StringIO()
    keywords = {"workers": 1, "report": False, "console": Console(file=text, width=200), **keywords}
    try:
        return run_study(file, tmp_path / out, backend=BACKEND, **keywords)  # type: ignore[arg-type]
    finally:
        (tmp_path / "output.txt").write_text(text.getvalue())


def jobs(out: Path) -> dict[str, str]:
    return {job["title"]: job["status"] for job in json.loads((out / "study.json").read_text())["jobs"]}


def test_a_study_runs_every_job_once_and_only_once(tmp_path, home):
    outcome = run(tmp_path, workers=2)
    assert outcome.exit_code == 0 and outcome.counts == {"finished": 12}
    done = calls(home)
    assert sum(done.values()) == 12 and set(done.values()) == {1}
    facts = json.loads((outcome.out / "study.json").read_text())
    assert facts["status"] == "finished" and len(facts["cells"]) == 6
    for cell in facts["cells"]:
        finished = RunDir.open(outcome.out / cell["path"])
        assert finished.finished and finished.id == cell["run"]
        assert finished.config()["seed"] == cell["cell"]["seed"]
    assert all(job["seconds"] is not None for job in facts["jobs"])
    assert {line.split()[2] for line in (home / "calls.log").read_text().splitlines()} == {"out=1"}
    again = run(tmp_path)
    assert again.counts == {"finished": 12} and calls(home) == done
    assert "nothing to do" in (tmp_path / "output.txt").read_text()
    facts = json.loads((outcome.out / "study.json").read_text())
    assert all(job["seconds"] is not None for job in facts["jobs"])  # remembered from the first time


def test_more_seeds_later_run_only_what_is_new(tmp_path, home):
    run(tmp_path, study({"algorithm": ["sft", "dpo"], "seed": [0]}))
    before = calls(home)
    outcome = run(tmp_path, study({"algorithm": ["sft", "dpo"], "seed": [0, 1]}))
    assert outcome.counts == {"finished": 10}
    assert {name: n for name, n in (calls(home) - before).items()} == {
        f"{job}:1": 1 for job in ("run:sft", "run:dpo", "generate:dpo", "pairs:dpo", "reference:dpo")
    }


def test_workers_and_place_change_no_id(tmp_path, home):
    one = run(tmp_path, out="a", workers=1)
    two = run(tmp_path, out="b/c", workers=3)
    names = [sorted(p.name for p in (o.out / "runs").iterdir()) for o in (one, two)]
    assert names[0] == names[1]


def test_a_failed_job_is_shown_blocks_its_dependents_and_stops_nothing_else(tmp_path, home):
    script(home, generate__dpo__0="fail", run__sft__1="fail")
    outcome = run(tmp_path, workers=2)
    assert outcome.exit_code == 4
    assert outcome.counts == {"finished": 6, "failed": 2, "blocked": 4}
    status = jobs(outcome.out)
    assert status["generate · builtin:0.1m · seed 0"] == "failed"
    assert status["dpo · builtin:0.1m · seed 0"] == "blocked"
    assert status["dpo · builtin:0.1m · seed 1"] == "finished"
    assert calls(home)["run:sft:1"] == 1  # a job that raises is not repeated
    title, error, log = next(f for f in outcome.failures if f[0].startswith("generate"))
    assert error == "RuntimeError: invented failure with a second line"
    assert "raise RuntimeError" in log.read_text()
    assert "about to fail" in (log.parent / "log.txt").read_text()
    assert f"FAILED {title}: {error}" in (tmp_path / "output.txt").read_text()
    script(home)  # repaired: the same command does the rest
    outcome = run(tmp_path)
    assert outcome.exit_code == 0 and outcome.counts == {"finished": 12}
    assert not log.exists() and calls(home)["run:sft:0"] == 1


def test_a_worker_that_dies_once_is_replaced(tmp_path, home):
    script(home, run__dpo__0="die-once")
    outcome = run(tmp_path, workers=2)
    assert outcome.exit_code == 0 and calls(home)["run:dpo:0"] == 2
    assert "trying once more" in (tmp_path / "output.txt").read_text()


def test_a_job_that_kills_its_worker_twice_has_failed(tmp_path, home):
    script(home, run__dpo__0="die")
    outcome = run(tmp_path, workers=2)
    assert outcome.exit_code == 4 and outcome.counts == {"finished": 11, "failed": 1}
    assert calls(home)["run:dpo:0"] == 2
    assert outcome.failures[0][1] == "the worker process ended with exit code 9, 2 times (out of memory?)"
    assert study_status(outcome.out).failures[0][1] == outcome.failures[0][1]


def test_workers_that_cannot_start_end_the_study_with_the_reason(tmp_path, home):
    (home / "broken").touch()
    with pytest.raises(StudyError, match="ImportError: the fake trainer is broken"):
        run(tmp_path)


def test_source_that_changes_under_a_study_is_noticed(tmp_path, home, monkeypatch):
    monkeypatch.setattr("steelyard.study.executor.source_hash", lambda: "another")
    with pytest.raises(StudyError, match="source of steelyard changed"):
        run(tmp_path)
    assert not calls(home)


def test_plugins_are_part_of_a_runs_name_and_reach_the_workers(tmp_path, home):
    plugin = tmp_path / "mine.py"
    plugin.write_text("import os, pathlib\npathlib.Path(os.environ['FAKE_TRAINER'], str(os.getpid())).touch()\n")
    plain = study({"algorithm": ["sft"]})
    bare, with_plugin = run(tmp_path, plain, out="a"), run(tmp_path, plain, out="b", plugins=[str(plugin)])
    names = [[p.name for p in (outcome.out / "runs").iterdir()] for outcome in (bare, with_plugin)]
    assert names[0] != names[1]
    worker = (home / "calls.log").read_text().splitlines()[-1].split()[1].removeprefix("pid=")
    assert {str(os.getpid()), worker} <= {p.name for p in home.iterdir()}
    with pytest.raises(ConfigError, match="expected a Python file"):
        run(tmp_path, plain, plugins=[str(tmp_path / "none.py")])


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, home):
    outcome = run(tmp_path, dry_run=True)
    assert outcome.counts == {"finished": 0, "waiting": 12} and not outcome.out.exists()
    text = (tmp_path / "output.txt").read_text()
    assert "learning_rate: 0.0001" in text and "generate" in text and "dpo" in text
    run(tmp_path)
    assert run(tmp_path, dry_run=True).counts == {"finished": 12, "waiting": 0}


def test_another_study_or_another_process_in_the_same_place_is_refused(tmp_path, home):
    out = run(tmp_path, study({"algorithm": ["sft"]})).out
    with pytest.raises(RunError, match="holds the study 'tiny', not 'other'"):
        run(tmp_path, study({"algorithm": ["sft"]}, name="other"))
    (tmp_path / "single").mkdir()
    (tmp_path / "single/run.json").write_text("{}")
    with pytest.raises(RunError, match="holds a single run"):
        run(tmp_path, study({"algorithm": ["sft"]}), out="single")
    assert [file.name for file in (tmp_path / "single").iterdir()] == ["run.json"]
    lock = Lock(out / "lock")
    lock.acquire("study")
    with pytest.raises(RunError, match=f"process {os.getpid()}"):
        run(tmp_path)
    lock.release()


def start_in_background(tmp_path: Path) -> subprocess.Popen:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study()))
    code = textwrap.dedent(
        """
        import sys
        from steelyard.study.run import run_study
        spec, out, backend = sys.argv[1:]
        try:
            run_study(spec, out, 2, backend=backend, report=False)
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    words = [sys.executable, "-c", code, str(tmp_path / "tiny.yaml"), str(tmp_path / "out"), BACKEND]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "timed out"
        time.sleep(0.02)


def workers_of(home: Path) -> set[int]:
    log = home / "calls.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return {int(line.split()[1].removeprefix("pid=")) for line in lines if line.endswith("out=1")}


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_study_leaves_no_worker_and_the_same_command_continues(tmp_path, home, how):
    script(home, run__dpo__0="sleep", run__ipo__1="sleep")
    parent = start_in_background(tmp_path)
    try:
        wait_for(lambda: {"run:dpo:0", "run:ipo:1"} <= set(calls(home)))
        before = calls(home)
        assert study_status(tmp_path / "out").alive
        parent.send_signal(how)
        output, _ = parent.communicate(timeout=20)
        assert parent.returncode == (130 if how == signal.SIGINT else -9)
    finally:
        parent.kill()
    wait_for(lambda: all(gone(pid) for pid in workers_of(home)))
    state = study_status(tmp_path / "out")
    assert not state.alive and state.status == "interrupted"
    if how == signal.SIGINT:
        assert "the same command continues" in output
    script(home)
    outcome = run(tmp_path)
    assert outcome.exit_code == 0 and outcome.counts == {"finished": 12}
    repeated = calls(home) - before
    interrupted = {name: 1 for name in ("run:dpo:0", "run:ipo:1")}
    assert all(repeated[name] == 1 for name in interrupted)
    assert all(before[name] + repeated[name] == 1 for name in calls(home) if name not in interrupted)


def test_status_shows_jobs_scores_and_failures(tmp_path, home):
    script(home, run__ipo__0="nan")
    out = run(tmp_path).out
    found = study_status(out)
    assert found.jobs["run"] == {"finished": 5, "failed": 1}
    scores = {(c["algorithm"], c["seed"]): s for c, _, s in found.cells}
    assert scores["sft", 1] == {"arithmetic": pytest.approx(0.5 - 0.0009 + 0.01)}
    assert scores["ipo", 0] == {}
    text = StringIO()
    assert status_command(out, console=Console(file=text, width=160)) == 0
    assert "FAILED ipo · builtin:0.1m · seed 0: step 3: the loss is NaN" in text.getvalue()
    with pytest.raises(StudyError, match="not a study directory"):
        study_status(tmp_path)


def test_cores_are_counted():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


# --------------------------------------------------------------------------------------------------
# Selection

SELECT = {"tasks": ["arithmetic"], "split": "selection"}
RATES = {"optim.learning_rate": [1e-4, 1e-3, 1e-2]}


@pytest.fixture
def record(tmp_path, home) -> Path:
    """A record made by a real (fake) selection study of sft and dpo."""
    axes = {"algorithm": ["sft", {"name": "dpo", "axes": {}}], "seed": [100, 101], **RATES}
    out = run(tmp_path, study(axes, name="tiny-select", eval=SELECT), out="select").out
    write_record(out, tmp_path / "record.json")
    return tmp_path / "record.json"


def digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_record_chooses_the_best_mean_over_seeds(record):
    content = json.loads(record.read_text())
    assert content["seeds"] == [100, 101] and content["keys"] == ["optim.learning_rate"]
    assert content["metric"] == "mean of eval/arithmetic/score" and content["split"] == "selection"
    for cell in content["cells"]:
        assert cell["chosen"] == {"optim.learning_rate": 1e-3} and cell["at_edge"] == []
        assert [entry["optim.learning_rate"] for entry in cell["tried"]] == [1e-4, 1e-3, 1e-2]
        assert set(cell["tried"][0]["scores"]) == {"100", "101"}


def test_a_record_is_the_same_bytes_each_time(record, tmp_path):
    write_record(tmp_path / "select", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == record.read_bytes()


def test_ties_go_to_the_smaller_value_and_edges_are_flagged(tmp_path, home):
    # 0.0005 and 0.0015 lie equally far from the best rate of the fake trainer
    axes = {"algorithm": ["sft"], "seed": [100], "optim.learning_rate": [1.5e-3, 5e-4, 1e-2]}
    out = run(tmp_path, study(axes, eval=SELECT)).out
    cell = write_record(out, tmp_path / "record.json")["cells"][0]
    assert cell["chosen"] == {"optim.learning_rate": 5e-4} and cell["at_edge"] == ["optim.learning_rate"]


def test_a_value_that_ends_in_nan_is_not_chosen_but_other_failures_must_be_repaired(tmp_path, home):
    axes = {"algorithm": ["sft"], "seed": [100, 101], **RATES}
    script(home, run__sft__100="nan")
    out = run(tmp_path, study(axes, eval=SELECT)).out
    with pytest.raises(StudyError, match="every value tried stopped with NaN"):
        write_record(out, tmp_path / "record.json")
    script(home, run__sft__100="fail")
    run(tmp_path, study(axes, eval=SELECT))
    with pytest.raises(StudyError, match="continue the study first"):
        write_record(out, tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


def test_nothing_is_selected_on_the_test_split(tmp_path, home):
    out = run(tmp_path, study({"algorithm": ["sft"], **RATES})).out
    with pytest.raises(StudyError, match="test split"):
        write_record(out, tmp_path / "record.json")


def selecting(record: Path, axes: dict | None = None, **changes: object) -> Study:
    select = {"record": record.name, "sha256": digest(record), **changes}
    return expanded(axes or {"algorithm": ["sft", "dpo"], "seed": [0, 1]}, record.parent, select=select)


def test_a_study_reads_the_chosen_rates_and_says_where_from(record):
    made = selecting(record)
    assert {cell.config.optim.learning_rate for cell in made.cells} == {1e-3}
    assert made.selection is not None and made.selection.summary()["sha256"] == digest(record)
    assert made.notes == ()
    base = expanded(
        {"algorithm": ["sft"], "seed": [0]},
        record.parent,
        include_base=True,
        select={"record": record.name, "sha256": digest(record)},
    )
    assert base.cells[0].labels["algorithm"] == "base"


def test_a_changed_record_is_refused_and_the_new_hash_named(record):
    stated = digest(record)
    record.write_text(record.read_text().replace("0.001", "0.002"))
    with pytest.raises(ConfigError, match=digest(record)):
        selecting(record, sha256=stated)
    with pytest.raises(ConfigError, match="no hash"):
        selecting(record, sha256=None)


def test_seeds_that_selected_may_not_be_reported(record):
    with pytest.raises(ConfigError, match="seeds 101 were used to select"):
        selecting(record, {"algorithm": ["sft"], "seed": [0, 101]})


def test_an_arm_without_a_chosen_value_is_an_error(record):
    with pytest.raises(ConfigError, match="no value for ipo on builtin:0.1m"):
        selecting(record, {"algorithm": ["sft", "ipo"], "seed": [0]})


def test_a_selected_key_may_not_also_be_set_elsewhere(record):
    for axes in (
        {"algorithm": ["sft"], "optim.learning_rate": [1e-3]},
        {"algorithm": [{"name": "sft", "optim.learning_rate": 1e-3}]},
    ):
        with pytest.raises(ConfigError, match="comes from the selection record"):
            selecting(record, axes)


def test_a_missing_record_says_how_to_make_it(tmp_path):
    with pytest.raises(ConfigError, match="steelyard study select"):
        expanded(folder=tmp_path, select={"record": "none.json", "sha256": "0"})


def test_other_settings_than_those_of_the_selection_are_noted(record):
    made = selecting(record, {"algorithm": ["sft", {"name": "dpo", "train.max_steps": 9}], "seed": [0]})
    assert made.notes == ("selected with train.max_steps=2, used with train.max_steps=9 (dpo on builtin:0.1m)",)


def test_settings_that_did_not_exist_at_the_selection_are_noted_only_when_they_are_used(record):
    content = json.loads(record.read_text())
    del content["settings"]["optim.weight_decay"]
    record.write_text(json.dumps(content))
    assert selecting(record).notes == ()
    (note,) = selecting(record, {"algorithm": ["sft"], "seed": [0], "optim.weight_decay": [0.1]}).notes
    assert note.startswith("selected with optim.weight_decay=None, used with optim.weight_decay=0.1")


# --------------------------------------------------------------------------------------------------
# With the real trainer


@pytest.mark.slow
def test_a_real_study_gives_the_same_numbers_whoever_computes_them(tmp_path):
    plain = {
        "name": "real",
        "data": {"task": "arithmetic", "generate": {"prompts": 32, "num_generations": 4}},
        "train": {"max_steps": 3, "prompts_per_step": 8},
        "rollout": {"num_generations": 4},
        "optim": {"learning_rate": 1e-3},
        "eval": {"tasks": ["arithmetic", "facts"], "limit": 40},
        "include_base": True,
        "axes": {"algorithm": ["sft", "rft", "dpo", "kto", "grpo"], "model": ["builtin:0.1m"], "seed": [0, 1]},
    }
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(plain))
    console = Console(file=StringIO(), width=120)
    one = run_study(tmp_path / "real.yaml", tmp_path / "one", 1, report=False, console=console)
    two = run_study(tmp_path / "real.yaml", tmp_path / "two", 2, console=console)
    assert one.exit_code == two.exit_code == 0 and one.counts == two.counts == {"finished": 19}
    assert two.report is not None and (two.out / "results.json").is_file()
    names = sorted(p.name for p in (one.out / "runs").iterdir())
    assert len(names) == 11 and names == sorted(p.name for p in (two.out / "runs").iterdir())
    weights = set()
    for name in names:
        a, b = (RunDir.open(outcome.out / "runs" / name) for outcome in (one, two))
        a.verify()
        assert a.facts()["weights_sha256"] == b.facts()["weights_sha256"]
        assert a.facts()["metrics"] == b.facts()["metrics"]
        assert [row["loss"] for row in a.metrics() if "loss" in row] == [
            row["loss"] for row in b.metrics() if "loss" in row
        ]
        weights.add(a.facts()["weights_sha256"])
    assert len(weights) == 11  # every algorithm and every seed ended elsewhere
