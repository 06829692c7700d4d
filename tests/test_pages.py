"""What is generated and printed about algorithms: pages, the verification table, `steelyard algorithms`, `conform`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import steelyard.errors
from steelyard.algorithms import catalogue, generate, load
from steelyard.algorithms.catalogue import load_catalogue
from steelyard.algorithms.core import algorithms, loss
from steelyard.algorithms.facts import GROUPS, SAME_LOSS, group_of, load_verification, sections
from steelyard.cli import main
from steelyard.conform import CHECKS, conform, variations
from steelyard.conform.inputs import build, inputs_of
from steelyard.errors import ConfigError
from steelyard.plugins import load_plugins
from steelyard.study.axes import expand

ROOT = Path(steelyard.errors.__file__).parents[2]
EXAMPLE = ROOT / "examples" / "my_algorithm.py"

load()


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test's plugins register is gone after it."""
    monkeypatch.setattr(catalogue, "_plugins", {})
    before = set(algorithms)
    yield
    for name in set(algorithms) - before:
        del algorithms._entries[name]
    for module in [name for name in sys.modules if name.startswith("steelyard_plugin_")]:
        del sys.modules[module]


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints (its error message if it must fail)."""
    assert main(list(words)) == code
    out = capsys.readouterr()
    return out.out if code in (0, 1) else out.err


# --------------------------------------------------------------------------------------------------
# Pages and tables


def test_every_algorithm_has_a_page_and_no_page_is_stale() -> None:
    wanted = generate.pages()
    found = {path.name: path.read_text(encoding="utf-8") for path in generate.PAGES.glob("*.md")}
    hint = "run `python tests/verification.py`"
    assert found.keys() == wanted.keys() == {"README.md", *(f"{key}.md" for key in load_catalogue())}, hint
    for name, text in wanted.items():
        assert found[name] == text, f"docs/algorithms/{name}: {hint}"
    for key in load_catalogue():
        assert f"]({key}.md)" in wanted["README.md"]


def test_the_verification_table_is_up_to_date_and_has_no_unexplained_hole() -> None:
    import verification

    found = verification.collect()
    hint = "run `python tests/verification.py`"
    assert verification.TABLE.read_text(encoding="utf-8") == verification.table_text(found), hint
    assert verification.PAGE.read_text(encoding="utf-8") == verification.page_text(found), hint
    assert verification.README.read_text(encoding="utf-8") == verification.readme_text(found), hint
    for key, entry in found["algorithms"].items():
        for name, cell in entry["evidence"].items():
            assert cell["why"] and verification.UNKNOWN not in cell["why"], f"{key}: {name} is not explained"
        if entry["check"]:
            assert entry["status"] == "provisional"
    excuses = set(verification.NO_ORACLE)
    covered = {key for key in excuses if found["algorithms"][key]["evidence"]["oracle"]["ok"]}
    assert not covered, f"NO_ORACLE excuses what has an oracle: {covered}"


def test_a_method_is_verified_only_by_something_beside_its_own_code() -> None:
    from verification import COLUMNS, Evidence, status_of

    spec = algorithms.get("dpo")
    cells = {name: Evidence(name in ("gradient", "invariances"), "because") for name in COLUMNS}
    golden = {"golden": Evidence(True, "1")}
    assert status_of(spec, cells) == "incomplete"
    assert status_of(spec, cells | golden) == "verified"
    # without finite differences only another library's gradient will do, and only where a part is detached
    detached = cells | golden | {"gradient": Evidence(False, "a part is detached", detached=True)}
    oracle = {"oracle": Evidence(True, "theirs")}
    assert status_of(spec, detached) == "incomplete" and status_of(spec, detached | oracle) == "verified"
    assert status_of(spec, cells | golden | oracle | {"gradient": Evidence(False, "too slow")}) == "incomplete"
    # who makes its own rows is verified only with the stage that makes them
    assert status_of(algorithms.get("star"), cells | golden) == "incomplete"
    assert status_of(algorithms.get("star"), cells | golden | {"data stage": Evidence(True, "kept")}) == "verified"
    assert status_of(algorithms.get("spo"), dict.fromkeys(COLUMNS, Evidence(True, "all"))) == "provisional"


def test_what_is_evidence_of_another_methods_loss_says_so() -> None:
    found = load_verification()["algorithms"]
    shared = {key: {n for n, e in entry["evidence"].items() if "shared" in e} for key, entry in found.items()}
    loss_only = {"golden", "oracle", "gradient", "invariances", "convergence"}
    assert shared["star"] == shared["spin"] == loss_only and {key for key in shared if shared[key]} == set(SAME_LOSS)
    assert "oracle" not in shared["neftune"], "Hugging Face's hook is held against the noise, not the loss"
    line = next(line for line in _page_of_verification() if "[`star`]" in line)
    assert line.count("✓ `sft`") == 5


def _page_of_verification() -> list[str]:
    import verification

    return verification.PAGE.read_text(encoding="utf-8").splitlines()


def test_the_tests_of_the_stages_are_read_from_the_tests() -> None:
    from verification import Evidence, _stage, stages

    found = stages()
    assert "right ones once each" in found["star"].why and "resumed equals uninterrupted" in found["star"].why
    assert "the first different steps of right and wrong" in found["step_dpo"].why
    assert found["grpo"].ok and not found["sft"].ok
    nothing: dict[str, dict[str, list[str]]] = {"test_rounds": {}, "test_rounds_unjudged": {}, "test_trainer": {}}
    runs = {**nothing, "test_rounds": {"star": ["resumed"]}}
    kept = {"correct_ones": ["right ones"]}
    star = algorithms.get("star")
    assert _stage(star, {}, kept, runs) == Evidence(True, "`correct_ones`: right ones; in runs: resumed")
    assert not _stage(star, {}, {}, runs).ok and not _stage(star, {}, kept, nothing).ok
    assert not _stage(algorithms.get("grpo"), {}, kept, nothing).ok
    assert not _stage(algorithms.get("dpo"), {}, kept, nothing).ok


@pytest.mark.parametrize("key", [key for key in SAME_LOSS if key in algorithms])
def test_methods_that_are_said_to_share_a_loss_do(key: str) -> None:
    spec, other = algorithms.get(key), algorithms.get(SAME_LOSS[key][0])
    assert SAME_LOSS[key][0] not in SAME_LOSS and spec.family == other.family
    shared = {name: hp.default for name, hp in spec.hyperparameters.items() if name in other.hyperparameters}
    view = build(spec, inputs_of(spec))
    torch.testing.assert_close(loss(key, view), loss(other.key, view, **shared), rtol=0, atol=0)


def test_sections_of_a_docstring() -> None:
    doc = "A title (2024).\n\n$x$ and\nmore.\n\nSecond.\n\nWatch: out\nhere.\n\nDiffers: there.\n\nArgs:\n    beta: b."
    assert sections(doc) == {"about": "$x$ and\nmore.\n\nSecond.", "watch": "out here.", "differs": "there."}
    assert sections("A title.") == {"about": "", "watch": "", "differs": ""}


# --------------------------------------------------------------------------------------------------
# steelyard algorithms


def test_the_list_and_its_families(capsys: pytest.CaptureFixture[str]) -> None:
    everything = run(capsys, "algorithms")
    assert all(key in everything for key in load_catalogue())
    listed = json.loads(run(capsys, "algorithms", "--family", "listwise", "--json"))
    assert listed and all(group_of(entry) == "listwise" for entry in listed.values())
    verified = load_verification()["algorithms"]
    assert all(entry["verification"] == verified[key] for key, entry in listed.items())
    assert json.loads(run(capsys, "algorithms", "show", "base", "--json"))["verification"] is None
    pairs = json.loads(run(capsys, "algorithms", "--family", "pairs", "--json"))
    assert "dpo" in pairs and all(entry["family"] == "Pairs" for entry in pairs.values())
    assert "Did you mean 'listwise'" in run(capsys, "algorithms", "--family", "listwize", code=2)
    assert {group_of(entry) for entry in load_catalogue().values()} <= GROUPS.keys()


def test_oxrls_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(run(capsys, "algorithms", "--oxrl", "--json"))
    assert len(rows) == 51 and rows[0] == {
        **{"name": "SFT", "key": "sft", "related": [], "built": True, "profile": {}},
        "oxrl": "divides by all positions, padding included",
    }
    text = run(capsys, "algorithms", "--oxrl")
    assert "RobustDPO" in text and "robust_dpo" in text and "cDPO / (1 - 2 eps)" in text


def test_one_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "algorithms", "fdpo")
    for words in ("$", "2309.16240", "frozen: the policy at step 0", "--algorithm.divergence", "watch:", "golden"):
        assert words in shown
    assert run(capsys, "algorithms", "show", "FDPO") == shown
    entry = json.loads(run(capsys, "algorithms", "beta_dpo", "--json"))
    assert entry["random"] and entry["verification"]["evidence"]["gradient"]["ok"]
    assert "'FDPO' is oxRL's name of `fdpo`" in capsys.readouterr().err or main(["algorithms", "FDPO"]) == 0
    assert "'FDPO' is oxRL's name of `fdpo` (`filtered_dpo` is something else)" in capsys.readouterr().err


def test_names_without_an_algorithm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unknown verb or algorithm 'dpoo'" in run(capsys, "algorithms", "dpoo", code=2)
    for words in (("algorithms", "show", "my_loss"), ("train", "dpo", "--algorithm.name", "my_loss", "--dry-run")):
        assert run(capsys, *words, code=2).endswith("An algorithm of your own needs --plugin FILE.\n")
    with pytest.raises(ConfigError, match=r"Did you mean 'simpo'\? An algorithm of your own needs --plugin FILE\.$"):
        catalogue.resolve("simpoo")
    with pytest.raises(ConfigError, match=r"Did you mean 'simpo'\?$"):
        catalogue.resolve("simpoo", where="loss")
    assert "algorithms conform mine.py" in run(capsys, "algorithms", "mine.py", code=2)
    known = {key: entry for key, entry in load_catalogue().items() if key != "kto"}
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: known)
    assert "is oxRL's name of `kto`, an algorithm that is not built yet" in run(capsys, "algorithms", "KTO", code=2)


# --------------------------------------------------------------------------------------------------
# oxRL's names and profile in a study


def test_a_study_over_profiles_with_oxrls_names() -> None:
    plain = {
        "name": "x",
        "data": {"task": "arithmetic", "generate": {}},
        "baseline": {"algorithm": "DPO"},
        "axes": {"algorithm": ["DPO", "DPOP", "simpo"], "profile": ["paper", "oxrl"]},
    }
    study = expand(plain, where="x.yaml", folder=Path("."))
    found = {(c.labels["algorithm"], c.labels["profile"]): c.config.algorithm.hyperparameters for c in study.cells}
    assert found["dpop", "oxrl"] == {"beta": 0.1, "lam": 5.0} and found["dpop", "paper"] == {"beta": 0.3, "lam": 50.0}
    assert found["simpo", "oxrl"] == {"beta": 0.1, "gamma": 0.5, "label_smoothing": 0.0}
    assert found["dpo", "oxrl"] == {"beta": 0.1}
    assert study.baseline == {"algorithm": "dpo"} and all(c.config.algorithm.name in algorithms for c in study.cells)
    assert [note.split("'")[1] for note in study.notes] == ["DPO", "DPOP"]
    with pytest.raises(ConfigError, match="profile.*unknown value 'oxr'.*Did you mean 'oxrl'"):
        expand({**plain, "axes": {"algorithm": ["dpo"], "profile": ["oxr"]}}, where="x.yaml", folder=Path("."))


# --------------------------------------------------------------------------------------------------
# The author's path

WRONG = {
    "pure": ("", "return (pairs.chosen.ref - pairs.chosen.logp).mean() * beta"),
    "gradient": ("", "x = pairs.chosen.logratio\n    return (x.detach() * x) * -beta - pairs.rejected.ref"),
    "policy": ("", "return (pairs.chosen.ref - pairs.chosen.logp.detach()) * beta"),
    "extreme": ("", "return (beta * (pairs.rejected.logratio - pairs.chosen.logratio)).exp()"),
    "direction": ("", "return beta * (pairs.chosen.logratio - pairs.rejected.logratio)"),
    "reference": ("", "return beta * (pairs.rejected.logp - pairs.chosen.logp)"),
    "needs": ("columns=('gap',)", "return beta * (pairs.rejected.logratio - pairs.chosen.logratio)"),
    "repeating": ("length_normalized=True", "return beta * (pairs.rejected.logratio - pairs.chosen.logratio)"),
    "doubling": ("beta_scale='sum'", "return beta**2 * (pairs.rejected.logratio - pairs.chosen.logratio)"),
    "masking": ("", "return -beta * pairs.chosen.logratio - pairs.chosen.mask.shape[1] * pairs.rejected.ref"),
    "split": ("", "x = beta * pairs.chosen.logratio\n    return x * x.mean() - pairs.rejected.logratio"),
    "coupled": ("coupled=lambda view: {}", "return beta * (pairs.rejected.logratio - pairs.chosen.logratio)"),
    "documented": ("", "return beta * (pairs.rejected.logratio - pairs.chosen.logratio)"),
}
"""Check -> a declaration and a body that break it."""


def wrong_plugin(path: Path, name: str) -> Path:
    """A plugin ``mine`` that breaks the check ``name``."""
    declared, body = WRONG[name]
    title = "Mine." if name == "documented" else "Mine (Me, 2026)."
    path.write_text(
        textwrap.dedent(f'''
        import steelyard
        from steelyard.types import Pairs

        @steelyard.algorithm(paper="me (2026)", reference=True, {declared})
        def mine(pairs: Pairs, *, beta: float = 0.1):
            """{title}

            $x$

            Args:
                beta: strength.
            """
        '''),
        encoding="utf-8",
    )
    path.write_text(path.read_text(encoding="utf-8") + f"    {body}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", WRONG)
def test_every_check_can_fail(name: str, tmp_path: Path, forgotten: None) -> None:
    load_plugins([wrong_plugin(tmp_path / "mine.py", name)])
    results = {result.check.name: result for result in conform(algorithms.get("mine"))}
    assert results[name].verdict == "fails" and results[name].why
    if name not in ("pure", "gradient", "policy"):  # which make much else impossible
        assert results["pure"].verdict == "holds"
    assert WRONG.keys() == CHECKS.keys()


def test_conform_says_what_holds_and_what_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], forgotten: None
) -> None:
    assert "nothing fails" in run(capsys, "algorithms", "conform", str(EXAMPLE))
    assert "dpo: nothing fails" in run(capsys, "algorithms", "conform", "DPO")
    assert (
        "excepted" in run(capsys, "algorithms", "conform", "ipo")
        or not load_verification()["algorithms"]["ipo"]["exceptions"]
    )
    path = wrong_plugin(tmp_path / "backwards.py", "direction")
    text = run(capsys, "algorithms", "conform", str(path), code=1)
    assert "mine: 1 of 13 checks fail" in text and "the gradient by policy_chosen, policy_rejected" in text
    found = json.loads(run(capsys, "algorithms", "conform", str(path), "--json", code=1))["mine"]
    assert [entry["check"] for entry in found if entry["verdict"] == "fails"] == ["direction"]


UNDECLARED = {
    "columns=()": ('pairs.column("margin")', 'declare `columns=("margin",)`'),
    "columns=('gap',)": ('pairs.column("gap") + pairs.column("margin")', 'declare `columns=("gap", "margin")`'),
    "extras=()": ('pairs.chosen.extra("entropy").sum(-1)', 'declare `extras=("entropy",)`'),
}
"""A declaration, an expression that needs more, and what to declare."""


@pytest.mark.parametrize("declared", UNDECLARED)
def test_one_cause_is_said_once_with_its_remedy(
    declared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], forgotten: None
) -> None:
    body, remedy = UNDECLARED[declared]
    path = wrong_plugin(tmp_path / "mine.py", "direction")
    text = path.read_text(encoding="utf-8").replace("reference=True, ", f"reference=True, {declared}")
    text = text.replace("return ", f"return {body} + ")
    path.write_text(text, encoding="utf-8")
    shown = run(capsys, "algorithms", "conform", str(path), code=1)
    assert shown.count(remedy) == 1 and "11 checks: pure, gradient," in shown and "11 of 13 checks fail" in shown
    found = json.loads(run(capsys, "algorithms", "conform", str(path), "--json", code=1))["mine"]
    assert sum(remedy in entry["why"] for entry in found) == 11, "JSON says it check by check"


def test_an_undeclared_reference_names_what_to_declare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], forgotten: None
) -> None:
    path = wrong_plugin(tmp_path / "mine.py", "doubling")
    text = path.read_text(encoding="utf-8").replace("reference=True, ", "")
    path.write_text(text, encoding="utf-8")
    assert "used, but not declared (`reference=True`)" in run(capsys, "algorithms", "conform", str(path), code=1)


def test_exceptions_are_declared_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], forgotten: None
) -> None:
    path = wrong_plugin(tmp_path / "excepted.py", "direction")
    text = path.read_text(encoding="utf-8")
    path.write_text(text + '\nEXCEPTIONS = {"mine": {"direction": "it goes the other way"}}\n', encoding="utf-8")
    assert "excepted       direction" in run(capsys, "algorithms", "conform", str(path))
    with pytest.raises(ConfigError, match="there is no check 'sign'"):
        conform(algorithms.get("mine"), exceptions={"sign": "why"})
    nothing = tmp_path / "nothing.py"
    nothing.write_text("x = 1\n", encoding="utf-8")
    assert "registers no algorithm" in run(capsys, "algorithms", "conform", str(nothing), code=2)


def test_variations_stay_within_bounds() -> None:
    found = variations(algorithms.get("gpo"))
    assert {"beta": 0.2} in found and {"link": "savage"} in found and {"link": "exp"} not in found
    assert {"average": False} in variations(algorithms.get("ipo"))
    assert all("label_smoothing" not in hp or hp["label_smoothing"] < 0.5 for hp in variations(algorithms.get("cdpo")))


def test_the_example_is_usable_by_name(capsys: pytest.CaptureFixture[str], forgotten: None) -> None:
    plugin = ["--plugin", str(EXAMPLE)]
    assert "heavy" in run(capsys, "algorithms", "show", "cauchy_dpo", *plugin)
    assert "cauchy_dpo" in run(capsys, "algorithms", "cauchy_dpo", *plugin)
    assert "cauchy_dpo" in run(capsys, "algorithms", *plugin)
    resolved = json.loads(run(capsys, "train", "dpo", "--algorithm.name", "cauchy_dpo", "--dry-run", "--json", *plugin))
    assert resolved["algorithm"] == {"name": "cauchy_dpo", "beta": 0.1}
    body = EXAMPLE.read_text(encoding="utf-8").split("@algorithm")[1].splitlines()
    assert len(body) <= 12, "the example is short"


def test_an_installed_package_offers_an_algorithm(tmp_path: Path) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    source = EXAMPLE.read_text(encoding="utf-8").replace("cauchy_dpo", "their_dpo")
    (package / "__init__.py").write_text(source, encoding="utf-8")
    info = tmp_path / "their_package-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 0.1\n", encoding="utf-8")
    points = "[steelyard.algorithms]\ntheir_dpo = their_package:their_dpo\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "steelyard", *words]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    first = ask("train", "dpo", "--algorithm.name", "their_dpo", "--dry-run", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["algorithm"] == {"name": "their_dpo", "beta": 0.1}
    (package / "__init__.py").write_text(source + "\n# another version\n", encoding="utf-8")
    second = ask("train", "dpo", "--algorithm.name", "their_dpo", "--dry-run", "--json")
    run_of = [done.stderr.split("run ")[1].split(":")[0] for done in (first, second)]
    assert run_of[0] != run_of[1], "the source of a package's algorithm belongs to the identity of its runs"
    assert "their_dpo (their_package:their_dpo)" in ask("algorithms").stdout


def test_the_record_of_a_study_of_all_methods(tmp_path: Path) -> None:
    from verification import _trained, record_zoo

    cells = [
        {"cell": {"algorithm": name, "seed": seed}, "run": f"{name}{seed}", "path": f"runs/{name}{seed}"}
        for name, seed in (("base", 0), ("dpo", 0), ("dpo", 1), ("kto", 0), ("rm", 0))
    ]
    (tmp_path / "study.json").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    measured = {"dpo0": {"eval/facts/acc": 0.5, "eval/arithmetic/score": 0.25}, "rm0": {"eval/preference/auc": 0.9}}
    for name, metrics in measured.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(
            json.dumps({"id": name, "status": "finished", "algorithm": name[:-1], "metrics": metrics}), encoding="utf-8"
        )
    found = record_zoo(tmp_path)
    assert {key: (entry["status"], entry["metric"], entry["value"], entry["run"]) for key, entry in found.items()} == {
        "dpo": ("trained", "arithmetic/score", 0.25, "dpo0"),
        "kto": ("failed", "", None, "kto0"),
        "rm": ("trained", "preference/auc", 0.9, "rm0"),
    }
    keys = ("dpo", "kto", "ipo", "grpo")
    cells_of = {key: (cell.ok, cell.why) for key in keys for cell in [_trained(algorithms.get(key), found)]}
    assert _trained(algorithms.get("grpo"), {}).why == "online: not in the study `zoo`"
    assert cells_of == {
        "dpo": (True, "arithmetic/score 0.250, run dpo0"),
        "kto": (False, "its run is not finished"),
        "ipo": (False, "not in the study `zoo`"),
        "grpo": (False, "online: not in the study `zoo`"),
    }
