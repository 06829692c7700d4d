"""Run directories: atomic, content-addressed, immutable once finished, one writer at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from steelyard import files, rundir
from steelyard.config import RunConfig
from steelyard.errors import RunError
from steelyard.rundir import RunDir, run_id, run_identity


def config(seed: int = 0, **changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {"algorithm": {"name": "dpo"}, "data": {"task": "arithmetic"}, "seed": seed, **changes}
    )


def identity(cfg: RunConfig, **changes: object) -> dict:
    given = {"data": {"rows": "d0"}, "weights": "w0", "plugins": {}, **changes}
    return run_identity(cfg, **given)  # type: ignore[arg-type]


def create(path: Path, cfg: RunConfig | None = None, **keywords: object) -> RunDir:
    cfg = cfg or config()
    return RunDir.create(path, cfg, identity(cfg), **keywords)  # type: ignore[arg-type]


# -- atomic writes


def test_an_interrupted_write_leaves_the_old_content_and_no_temporary(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    files.atomic_write(target, "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.atomic_write(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.atomic_directory(tmp_path / "model") as part:
        (part / "weights").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):  # an existing directory is replaced
        with files.atomic_directory(tmp_path / "model") as part:
            (part / "weights").write_text(content)
    assert (tmp_path / "model" / "weights").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_temporaries_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".model.tmp-{dead.pid}-aa").mkdir()
    (tmp_path / f".model.tmp-{os.getpid()}-bb").mkdir()
    files.remove_stale_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f".model.tmp-{os.getpid()}-bb"]


def test_canonical_json_ignores_the_order_of_keys_and_refuses_nan():
    assert files.sha256_json({"a": 1, "b": [2.5, None]}) == files.sha256_json({"b": [2.5, None], "a": 1})
    with pytest.raises(ValueError):
        files.sha256_json({"a": float("nan")})


# -- identity


def test_everything_that_changes_numbers_changes_the_id():
    base = run_id(identity(config()))
    assert len(base) == 16 and int(base, 16) >= 0
    assert base == run_id(identity(config()))
    others = [
        identity(config(seed=1)),
        identity(config(threads=2)),
        identity(config(optim={"learning_rate": 2e-4})),
        identity(config(algorithm={"name": "dpo", "beta": 0.2})),
        identity(config(), data={"rows": "d1"}),
        identity(config(), weights="w1"),
        identity(config(), plugins={"mine": "p0"}),
    ]
    ids = {base, *map(run_id, others)}
    assert len(ids) == len(others) + 1


def test_where_the_same_bytes_lie_does_not_matter():
    def located(folder: str) -> str:
        cfg = config(data={"path": f"{folder}/rows.jsonl"}, model={"name_or_path": f"{folder}/model"})
        return run_id(identity(cfg, data={"data.path": "d0"}))

    assert located("/here") == located("/there")


def test_the_source_is_part_of_the_identity(monkeypatch):
    before = run_id(identity(config()))
    monkeypatch.setattr(rundir, "source_hash", lambda: "edited")
    assert run_id(identity(config())) != before


def test_source_hash_covers_the_rooms_that_compute_and_no_others(tmp_path, monkeypatch):
    def digest() -> str:
        rundir.source_hash.cache_clear()
        return rundir.source_hash()

    (tmp_path / "models").mkdir()
    (tmp_path / "report").mkdir()
    monkeypatch.setattr(rundir, "__file__", str(tmp_path / "rundir.py"))
    try:
        empty = digest()
        (tmp_path / "report" / "html.py").write_text("x = 1")
        assert digest() == empty
        (tmp_path / "models" / "load.py").write_text("x = 1")
        assert digest() != empty
    finally:
        monkeypatch.undo()
        rundir.source_hash.cache_clear()


def test_an_identity_needs_the_weights():
    with pytest.raises(RunError, match="weights"):
        identity(config(), weights="")


# -- life of a run


def test_a_run_from_start_to_finish(tmp_path):
    run = create(tmp_path / "run", family="Pairs", given=["preference pairs"])
    assert run.status == "running" and run.alive
    run.log({"global_step": 1, "loss": 0.69})
    run.log({"global_step": 2, "loss": float("nan")})
    run.write_records("arithmetic", [{"item": "a", "score": 1}])
    run.write_json("render", {"kept": 3})
    run.finish(metrics={"eval/arithmetic/score": 1.0}, steps=2)
    again = RunDir.open(tmp_path / "run")
    facts = again.facts()
    assert again.finished and not again.alive
    assert facts["family"] == "Pairs" and facts["steps"] == 2 and facts["algorithm"] == "dpo"
    assert again.metrics() == [{"global_step": 1, "loss": 0.69}, {"global_step": 2, "loss": None}]
    assert again.records("arithmetic") == [{"item": "a", "score": 1}]
    assert again.config()["algorithm"]["beta"] == config().algorithm.hyperparameters["beta"]
    assert RunConfig.model_validate(again.config()) == config()
    assert json.loads((tmp_path / "run" / "logs" / "attempt_1.json").read_text())["status"] == "finished"
    again.verify()


def test_a_finished_run_is_immutable(tmp_path):
    run = create(tmp_path)
    run.finish()
    for change in (
        lambda: run.log({"global_step": 1}),
        lambda: run.write_records("arithmetic", []),
        lambda: run.finish(),
        lambda: run.fail("late"),
        lambda: RunDir.open(tmp_path).truncate_metrics(0),
        lambda: create(tmp_path),
        lambda: create(tmp_path, resume=False),
    ):
        with pytest.raises(RunError):
            change()
    assert RunDir.open(tmp_path).finished


def test_tampering_with_evidence_is_found(tmp_path):
    run = create(tmp_path)
    run.write_records("arithmetic", [{"item": "a", "score": 0}])
    run.finish()
    files.atomic_write(tmp_path / "eval" / "arithmetic.jsonl", '{"item": "a", "score": 1}\n')
    with pytest.raises(RunError, match="arithmetic.jsonl: changed"):
        RunDir.open(tmp_path).verify()


def test_a_failed_run_keeps_its_error_and_can_be_continued(tmp_path):
    run = create(tmp_path)
    run.log({"global_step": 1})
    run.fail(ValueError("loss is NaN"))
    assert RunDir.open(tmp_path).facts()["error"] == "ValueError: loss is NaN"
    run = create(tmp_path)
    assert run.facts()["attempts"] == 2 and run.facts()["error"] is None and len(run.metrics()) == 1
    run.close()
    run = create(tmp_path, resume=False)
    assert run.metrics() == []


def test_another_config_cannot_take_over_an_unfinished_run(tmp_path):
    create(tmp_path).close()
    with pytest.raises(RunError, match="choose another directory"):
        create(tmp_path, config(seed=7))
    create(tmp_path).finish()  # the failed attempt left the run as it was, and unlocked


def test_resuming_drops_later_rows_and_a_torn_line(tmp_path):
    run = create(tmp_path)
    for step in range(1, 6):
        run.log({"global_step": step})
    run.close()
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"global_step": 6, "lo')
    run = create(tmp_path)
    assert len(run.metrics()) == 5
    run.truncate_metrics(3)
    run.log({"global_step": 4, "again": True})
    rows = RunDir.open(tmp_path).metrics()
    assert [row["global_step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["again"]


def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path):
    create(tmp_path).close()
    (tmp_path / "metrics.jsonl").write_text('{"global_step": 1}\n{"glo\n{"global_step": 2}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2"):
        RunDir.open(tmp_path).metrics()


def test_checkpoints_are_ordered_by_step_and_half_written_ones_ignored(tmp_path):
    run = create(tmp_path)
    for name in ("checkpoint-10", "checkpoint-9", ".checkpoint-11.tmp-1-ab"):
        (tmp_path / name).mkdir()
    assert [c.name for c in run.checkpoints()] == ["checkpoint-9", "checkpoint-10"]


def test_opening_what_is_no_run_says_so(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        RunDir.open(tmp_path)
    create(tmp_path).finish()
    with pytest.raises(RunError, match="no records of task 'facts'"):
        RunDir.open(tmp_path).records("facts")


def test_two_writers_are_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from steelyard.config import RunConfig
        from steelyard.rundir import RunDir, run_identity
        cfg = RunConfig.model_validate({"algorithm": {"name": "dpo"}, "data": {"task": "arithmetic"}})
        run = RunDir.create(sys.argv[1], cfg, run_identity(cfg, data={"rows": "d0"}, weights="w0"))
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        assert RunDir.open(tmp_path).alive
        with pytest.raises(RunError, match=f"process {other.pid}"):
            create(tmp_path)
    finally:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()
    assert not RunDir.open(tmp_path).alive and RunDir.open(tmp_path).status == "running"
    create(tmp_path).finish()


def test_peak_memory_is_measured_per_job():
    if not rundir.reset_peak_memory():
        pytest.skip("this system cannot reset the peak (no /proc/self/clear_refs)")
    before = rundir.peak_memory_mib()
    block = b"x" * (64 * 2**20)
    assert rundir.peak_memory_mib() > before + 60
    del block
    rundir.reset_peak_memory()
    assert rundir.peak_memory_mib() < before + 32


def test_reading_and_writing_runs_imports_no_torch():
    code = "import sys, steelyard.rundir; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
