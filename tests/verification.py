"""Which evidence there is for every algorithm, read from the tests themselves: ``python tests/verification.py``.

Writes ``docs/verification.md``, ``src/steelyard/algorithms/verification.json`` (which the command line and the
pages of the algorithms read), the counts in ``README.md``, and then everything that ``steelyard.algorithms.generate``
makes.  ``python tests/verification.py --zoo runs/zoo`` first records a finished study of all methods as
``docs/studies/zoo.json``.  A test fails when any of it is stale.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rows import ROWS
from steelyard.algorithms import generate, load, oxrl
from steelyard.algorithms.core import AlgorithmSpec, algorithms
from steelyard.algorithms.facts import GROUPS, SAME_LOSS, group_of
from steelyard.conform.checks import CHECKS
from steelyard.trainer.needs import SELECTED

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "verification.md"
TABLE = ROOT / "src" / "steelyard" / "algorithms" / "verification.json"
ZOO = ROOT / "docs" / "studies" / "zoo.json"
"""``{key: {"status": "trained" | "failed", "metric": name, "value": number or null, "run": id, "why": ""}}``."""
SCORES = ("eval/arithmetic/strict", "eval/arithmetic/score")
"""What the record of the study quotes, where a run has it; otherwise its first metric."""
README = ROOT / "README.md"
BEGIN, END = "<!-- counts: python tests/verification.py -->", "<!-- /counts -->"

RECORDED = ", recorded"
"""How an oracle's words end that is stored numbers, not a library that runs in the tests."""

PRIMITIVE = "torch "
"""How an oracle's words begin that is made of PyTorch's own functions: a check, but nobody else's loss."""

COLUMNS = {
    "golden": "numbers of the catalogue, each from an independent implementation or computed from the formula alone",
    "identity": "equalities with other methods, limits, and cases worked by hand",
    "oracle": "another library's loss: ✓ runs live in the tests on the same batches (TRL's trainers through a model, "
    "Liger, torchtune, ms-swift); (✓) was run once, by its authors' code, and its values and gradients are stored",
    "gradient": "finite differences in float64; – where a part is detached by the method's own definition, which "
    "finite differences cannot follow",
    "invariances": "masks, padding, any split of a step, declared needs, finite at log-ratios of 1000, sign: the "
    "battery of `steelyard algorithms conform`",
    "convergence": "on a tabular bandit the optimum that the theory states, computed exactly",
    "data stage": "what is kept of samples, worked by hand (`tests/test_select.py`, `tests/test_rounds.py`), and for "
    "methods in rounds that a resumed run equals an uninterrupted one; of online methods, runs "
    "(`tests/test_trainer.py`)",
    "trained": "on the embedded default, in the study `zoo`",
}

UNKNOWN = "not explained"
"""A hole that nobody has explained: a test fails."""

TORCH = "it is one of PyTorch's own losses on quantities of ours"
NO_ORACLE = {
    "exo": TORCH,
    "implicit_prm": TORCH,
    "orm": TORCH + "; the known implementation divides the tokens' squares by the number of completions",
    "spo": "no code of the authors and no library's was found",
    "unlikelihood": TORCH + "; the authors' code is written for fairseq",
}
"""Why no other library's loss is run, per key."""


OF_THE_LOSS = ("golden", "oracle", "gradient", "invariances", "convergence")
"""Columns that look at nothing but the loss: for a key of ``SAME_LOSS`` they show it of the other's loss."""

LOSS_ONLY = re.compile(r": the loss\b")
"""In an oracle's words: it is held against the loss, not against what the method does beside it."""

DETACHED = ("detached", "constant")
"""Words of a reason why finite differences are not run that name a part without a gradient."""

MAKES_ROWS = ("rounds", "correct", "prompts")
"""Data stages without which a method is another one: it has no rows but those that it makes."""


@dataclass(frozen=True)
class Evidence:
    """One cell.

    Attributes:
        ok: whether the evidence is there.
        why: what it is, or why there is none.
        shared: the key whose loss it is about, where the method has no loss of its own.
        detached: there is none because a part of the loss is detached (``gradient``).
    """

    ok: bool
    why: str
    shared: str = ""
    detached: bool = False


# --------------------------------------------------------------------------------------------------
# Reading the tests


def modules_with(name: str, pattern: str) -> Iterator[tuple[str, Any]]:
    """(module, value) of the variable ``name`` in every test module that matches ``pattern``."""
    for path in sorted(TESTS.glob(pattern)):
        if any(name in targets for targets in _assigned(path)):
            yield path.stem, getattr(import_module(path.stem), name)


def _assigned(path: Path) -> Iterator[set[str]]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            yield {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield {node.target.id}


def oracles() -> dict[str, str]:
    """Key -> the libraries' losses that it is held against, from the ``COVERS`` of the oracle tests."""
    found: dict[str, list[str]] = {}
    for pattern in ("test_oracle_*.py", "test_algorithms_oracle.py"):
        for _, covers in modules_with("COVERS", pattern):
            for key, words in covers.items():
                found.setdefault(key, []).extend(part for part in words.split("; ") if part)
    return {key: "; ".join(dict.fromkeys(parts)) for key, parts in found.items()}


def convergence() -> tuple[dict[str, str], dict[str, str]]:
    """Key -> what it converges to, and key -> why it has no case."""
    from test_convergence import CONVERGES, WITHOUT

    online = "the optimum depends on what is sampled; cases are made for offline methods"
    without = {key: online for key, spec in algorithms.items() if spec.family == "Rollouts"}
    return {key: case.statement for key, case in CONVERGES.items()}, {**without, **WITHOUT}


def identities() -> dict[str, str]:
    """Key -> the identity tests in which it takes part.

    A module's ``IDENTITIES`` (key -> words) is taken at its word.  Otherwise its tests are read: a key belongs to a
    test whose source names it, or names a table of the module that names it.
    """
    found: dict[str, list[str]] = {}
    for key, (other, _) in SAME_LOSS.items():
        found[key] = [f"equals {other}"]
    others = [TESTS / name for name in ("test_algorithms.py", "test_coupled_pairwise.py") if (TESTS / name).is_file()]
    for path in sorted([*TESTS.glob("test_identities_*.py"), *others]):
        if any("IDENTITIES" in targets for targets in _assigned(path)):
            for key, words in import_module(path.stem).IDENTITIES.items():
                found.setdefault(key, []).append(words)
            continue
        prefix = "test_identities_" if path.stem == "test_algorithms" else "test_"
        for key, words in _identities_in(ast.parse(path.read_text(encoding="utf-8")), prefix):
            found.setdefault(key, []).append(words)
    return {key: _some(words) for key, words in found.items()}


def _identities_in(tree: ast.Module, prefix: str) -> Iterator[tuple[str, str]]:
    keys = set(algorithms)
    tables: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    tables[target.id] = _named(node, keys, tables)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith(prefix):
            for key in sorted(_named(node, keys, tables)):
                yield key, node.name.removeprefix("test_").replace("_", " ")


def _named(node: ast.AST, keys: set[str], tables: Mapping[str, set[str]]) -> set[str]:
    found = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)} & keys
    return found.union(*(tables.get(n.id, set()) for n in ast.walk(node) if isinstance(n, ast.Name)))


def stages() -> dict[str, Evidence]:
    """Key -> whether the stage that makes its rows is tested."""
    kept = _tests_of("test_select", "select"), _tests_of("test_rounds", "rounds")
    runs = {name: _runs_of(name) for name in ("test_rounds", "test_rounds_unjudged", "test_trainer")}
    return {key: _stage(algorithms.get(key), *kept, runs) for key in keys()}


def _stage(
    spec: AlgorithmSpec,
    selections: Mapping[str, list[str]],
    in_rounds: Mapping[str, list[str]],
    runs: Mapping[str, Mapping[str, list[str]]],
) -> Evidence:
    if spec.rounds is not None:
        kept = in_rounds.get(spec.rounds.select.__name__, [])
        run = [*runs["test_rounds"].get(spec.key, []), *runs["test_rounds_unjudged"].get(spec.key, [])]
        if not kept or not any(name.startswith("resumed") for name in run):
            return Evidence(False, UNKNOWN)
        return Evidence(True, f"`{spec.rounds.select.__name__}`: {_some(kept)}; in runs: {_some(run)}")
    if spec.data == "prompts":
        run = runs["test_trainer"].get(spec.key, [])
        return Evidence(bool(run), f"in runs: {_some(run)}" if run else UNKNOWN)
    kept = [*selections.get(spec.data, []), *(selections.get("SELECTIONS", []) if spec.data in SELECTED else [])]
    if spec.data in SELECTED:
        return Evidence(bool(kept), f"`{spec.data}`: {_some(kept)}" if kept else UNKNOWN)
    return Evidence(False, "it has none: it learns from the file's rows as they are")


def _functions(stem: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(words, function) of every test of a module."""
    for node in ast.parse((TESTS / f"{stem}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name.removeprefix("test_").replace("_", " "), node


def _tests_of(stem: str, room: str) -> dict[str, list[str]]:
    """Function of the module ``room`` -> the tests that use it by name (``room.function``)."""
    found: dict[str, list[str]] = {}
    for words, node in _functions(stem):
        used = (n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name))
        for name in sorted({n.attr for n in used if isinstance(n.value, ast.Name) and n.value.id == room}):
            found.setdefault(name, []).append(words)
    return found


def _runs_of(stem: str) -> dict[str, list[str]]:
    """Key -> the tests that name it, or that run once for each name of a list of the module that has it."""
    module, known = import_module(stem), set(keys())
    found: dict[str, list[str]] = {}
    for words, node in _functions(stem):
        named = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        for decorator in node.decorator_list:
            for name in (n.id for n in ast.walk(decorator) if isinstance(n, ast.Name)):
                listed = getattr(module, name, None)
                named |= {entry for entry in listed if isinstance(entry, str)} if isinstance(listed, list) else set()
        for key in sorted(named & known):
            found.setdefault(key, []).append(words)
    return {key: sorted(names, key=lambda words: not words.startswith("resumed")) for key, names in found.items()}


def _some(words: list[str]) -> str:
    shown = list(dict.fromkeys(words))
    more = f"; and {len(shown) - 3} more" if len(shown) > 3 else ""
    return "; ".join(shown[:3]) + more


# --------------------------------------------------------------------------------------------------
# One algorithm


def keys() -> list[str]:
    """Every algorithm of the package that has a loss."""
    load()
    own = "steelyard.algorithms."
    return [key for key, spec in sorted(algorithms.items()) if spec.loss and spec.loss.__module__.startswith(own)]


def evidence(spec: AlgorithmSpec, known: Mapping[str, Any]) -> dict[str, Evidence]:
    """Every column of one algorithm; what is evidence of a loss that it shares says so."""
    cells = _evidence(spec, known)
    other = SAME_LOSS.get(spec.key, ("", ""))[0]
    for name in OF_THE_LOSS if other else ():
        cell = cells[name]
        own = name == "oracle" and not LOSS_ONLY.search(cell.why)
        if cell.ok and not own:
            cells[name] = replace(cell, why=f"{_prefix(other)}{cell.why}", shared=other)
    return cells


def _more(number: int) -> str:
    return f" and {number} more setting{'s' * (number > 1)}" if number else ""


def _prefix(other: str) -> str:
    return f"of the loss of `{other}`: "


def _evidence(spec: AlgorithmSpec, known: Mapping[str, Any]) -> dict[str, Evidence]:
    row = ROWS.get(spec.key)
    if row is None:
        nothing = Evidence(False, "no row in tests/rows")
        return {
            **dict.fromkeys(COLUMNS, nothing),
            "oracle": _oracle(spec.key, known["oracles"]),
            "convergence": _convergence(spec.key, *known["convergence"]),
            "data stage": known["stages"][spec.key],
            "trained": _trained(spec, known["zoo"]),
        }
    neutral = "" if "neutral" in row.exceptions else "; its value at the neutral point is checked in closed form"
    golden = [hp for hp, _ in row.golden]
    named = known["identities"].get(spec.key)
    battery = [check for check in CHECKS if check != "gradient" and check not in row.exceptions]
    excepted = [f"{name}: {why}" for name, why in row.exceptions.items() if name in CHECKS and name != "gradient"]
    return {
        "golden": Evidence(True, f"{len(golden)} setting{'s' * (len(golden) > 1)}")
        if golden
        else Evidence(False, f"the catalogue has none{neutral}"),
        "identity": Evidence(True, named) if named else Evidence(False, f"none is known{neutral}"),
        "oracle": _oracle(spec.key, known["oracles"]),
        "gradient": Evidence(
            False, row.exceptions["gradient"], detached=any(word in row.exceptions["gradient"] for word in DETACHED)
        )
        if "gradient" in row.exceptions
        else Evidence(True, "at the defaults" + _more(len(row.settings))),
        "invariances": Evidence(
            True, f"{len(battery)} checks" + (f"; by its theory not {'; '.join(excepted)}" if excepted else "")
        ),
        "convergence": _convergence(spec.key, *known["convergence"]),
        "data stage": known["stages"][spec.key],
        "trained": _trained(spec, known["zoo"]),
    }


def _oracle(key: str, found: Mapping[str, str]) -> Evidence:
    theirs = [part for part in found.get(key, "").split("; ") if part and not part.startswith(PRIMITIVE)]
    own = [part for part in found.get(key, "").split("; ") if part.startswith(PRIMITIVE)]
    if theirs:
        return Evidence(True, _some([*theirs, *own]))
    shared = SAME_LOSS.get(key, ("", ""))[0]
    if shared and any(not part.startswith(PRIMITIVE) for part in found.get(shared, PRIMITIVE).split("; ")):
        return Evidence(False, f"not of its own: its loss is `{shared}`'s, which has one")
    only = f"; held against {'; '.join(own)}" if own else ""
    return Evidence(False, NO_ORACLE.get(key, UNKNOWN) + only)


def _convergence(key: str, reached: Mapping[str, str], without: Mapping[str, str]) -> Evidence:
    return Evidence(True, reached[key]) if key in reached else Evidence(False, without.get(key, UNKNOWN))


def _trained(spec: AlgorithmSpec, zoo: Mapping[str, Any]) -> Evidence:
    run = zoo.get(spec.key)
    if run is None and spec.data == "prompts":
        return Evidence(False, "online: not in the study `zoo`")
    if run is None:
        return Evidence(False, "not in the study `zoo`" if zoo else "the study `zoo` has not been run")
    if run["status"] != "trained":
        return Evidence(False, run.get("why") or f"its run is {run['status']}")
    value = "" if run.get("value") is None else f" {run['value']:.3f}"
    return Evidence(True, f"{run['metric']}{value}, run {run['run']}")


def status_of(spec: AlgorithmSpec, cells: Mapping[str, Evidence]) -> str:
    """``provisional``, ``verified`` (as :data:`VERIFIED` says it) or ``incomplete``."""
    if spec.provisional:
        return "provisional"
    outside = any(cells[name].ok for name in ("golden", "oracle", "convergence"))
    slope = cells["gradient"].ok or (cells["gradient"].detached and cells["oracle"].ok)
    rows = cells["data stage"].ok or spec.data not in MAKES_ROWS
    return "verified" if slope and cells["invariances"].ok and outside and rows else "incomplete"


VERIFIED = (
    "A method is *verified* when four things hold. Its gradient agrees with finite differences, or is excepted for a "
    "stated reason: a detached part; then another library's gradient is the evidence. Its invariances hold, but for "
    "those that it does not have by its theory (last section). Its numbers agree with something beside its own code: "
    "golden numbers, another library, or the optimum of its theory. And if it makes its own rows, that stage is tested."
)


# --------------------------------------------------------------------------------------------------
# All of them


def collect() -> dict[str, Any]:
    """The whole table as plain values (``verification.json``)."""
    names = keys()
    zoo = json.loads(ZOO.read_text(encoding="utf-8")) if ZOO.is_file() else {}
    known = {
        "oracles": oracles(),
        "convergence": convergence(),
        "identities": identities(),
        "stages": stages(),
        "zoo": zoo,
    }
    table = {}
    for key in names:
        spec = algorithms.get(key)
        cells = evidence(spec, known)
        table[key] = {
            "status": status_of(spec, cells),
            "check": spec.provisional,
            "exceptions": dict(ROWS[key].exceptions) if key in ROWS else {},
            "evidence": {name: _plain(cell) for name, cell in cells.items()},
        }
    counts = count(table)
    return {"counts": counts, "summary": summary(counts), "algorithms": table}


def _plain(cell: Evidence) -> dict[str, Any]:
    return {"ok": cell.ok, "why": cell.why} | ({"shared": cell.shared} if cell.shared else {})


def count(table: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of the summary."""
    distinct = [key for key in table if key not in SAME_LOSS]
    return {
        "keys": len(table),
        "objectives": len(distinct),
        "shared": len(table) - len(distinct),
        "verified": sum(table[key]["status"] == "verified" for key in distinct),
        "provisional": sum(table[key]["status"] == "provisional" for key in distinct),
        "incomplete": sum(table[key]["status"] == "incomplete" for key in distinct),
        "oracle": sum(table[key]["evidence"]["oracle"]["ok"] for key in distinct),
        "live": sum(_mark(table[key]["evidence"]["oracle"]) == "✓" for key in distinct),
        "golden": sum(table[key]["evidence"]["golden"]["ok"] for key in distinct),
        "converge": sum(table[key]["evidence"]["convergence"]["ok"] for key in distinct),
        "trained": sum(table[key]["evidence"]["trained"]["ok"] for key in table),
        "aliases": len(oxrl.ALIASES),
        "resolved": sum(alias.key in algorithms for alias in oxrl.ALIASES.values()),
    }


def summary(n: Mapping[str, int]) -> str:
    """The counts in words."""
    incomplete = f", {n['incomplete']} are incomplete" if n["incomplete"] else ""
    return (
        f"{n['keys']} methods, of which {n['objectives']} are distinct objectives; the other {n['shared']} share "
        f"another's loss function and differ in data, reference or forward pass. Of the {n['objectives']}, "
        f"{n['verified']} are verified and {n['provisional']} provisional (something remains to be checked in the "
        f"paper){incomplete}. {n['oracle']} are held against another library's loss ({n['live']} of them live), "
        f"{n['golden']} against golden numbers, {n['converge']} reach the optimum of their theory. "
        f"{n['trained']} of the {n['keys']} were trained on the embedded default."
    )


def page_text(found: Mapping[str, Any]) -> str:
    """``docs/verification.md``."""
    table: dict[str, Any] = found["algorithms"]
    lines = [
        *("# Verification", "", found["summary"], ""),
        "Generated from the tests (`python tests/verification.py`). ✓ is evidence that runs in CI; – has its reason "
        "below. ✓ `sft` is evidence of the loss that a method shares with `sft`: it says nothing of what the method "
        "does beside it, which is in the column *data stage*, or in the reference or the forward pass.",
        *("", VERIFIED, ""),
        "*Provisional*: something remains to be checked in the paper (listed below); it does not count as verified, "
        "whatever the tests say.",
        *("", "| column | evidence |", "|---|---|", *(f"| {name} | {words} |" for name, words in COLUMNS.items()), ""),
        *("## What counts as an objective", ""),
        "A method counts as an objective of its own if its loss is a function of the model's outputs that no other key "
        "computes. Aliases, adapters and pipelines are methods, not objectives; a test checks that these losses are "
        "equal:",
        "",
        *(f"- `{key}` is `{other}`: {how}" for key, (other, how) in SAME_LOSS.items() if key in table),
        "",
    ]
    for group, title in GROUPS.items():
        members = [key for key in table if group_of(generate.entry_of(algorithms.get(key))) == group]
        if members:
            lines += [
                f"## {title}",
                "",
                f"| method | status | {' | '.join(COLUMNS)} |",
                "|---|---" + "|---" * len(COLUMNS) + "|",
            ]
            lines += [_row(key, table[key]) for key in members] + [""]
    lines += ["## What is not there, and why", ""]
    for key, entry in table.items():
        if entry["check"]:
            lines.append(f"- `{key}`, provisional: {entry['check']}")
        lines += [f"- `{key}`, {name}: {cell['why']}" for name, cell in entry["evidence"].items() if not cell["ok"]]
    lines += ["", "## By its theory", "", "Checks that a method does not pass because it should not:", ""]
    lines += [f"- `{key}`, {name}: {why}" for key, e in table.items() for name, why in e["exceptions"].items()]
    return "\n".join([*lines, ""])


def _row(key: str, entry: Mapping[str, Any]) -> str:
    cells = [_mark(entry["evidence"][name]) for name in COLUMNS]
    status = "*provisional*" if entry["status"] == "provisional" else entry["status"]
    return f"| [`{key}`](algorithms/{key}.md) | {status} | {' | '.join(cells)} |"


def _mark(cell: Mapping[str, Any]) -> str:
    shared = cell.get("shared", "")
    parts = [part for part in cell["why"].removeprefix(_prefix(shared)).split("; ") if not part.startswith(PRIMITIVE)]
    stored = cell["ok"] and all(part.endswith(RECORDED) or part.startswith("and ") for part in parts)
    mark = "(✓)" if stored else generate.MARKS[cell["ok"]]
    return f"{mark} `{shared}`" if shared else mark


def table_text(found: Mapping[str, Any]) -> str:
    """``verification.json``."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def readme_text(found: Mapping[str, Any]) -> str:
    """``README.md`` with the counts between its marks; unchanged where it has none."""
    text = README.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{found['summary']}\n{end}{after}" if begin and end else text


def record_zoo(study: Path) -> dict[str, Any]:
    """``docs/studies/zoo.json`` from a finished study: one entry per algorithm, from its first cell."""
    from steelyard.rundir import RunDir

    found: dict[str, Any] = {}
    for cell in json.loads((study / "study.json").read_text(encoding="utf-8"))["cells"]:
        key, run = cell["cell"]["algorithm"], study / cell["path"]
        facts: dict[str, Any] = RunDir(run).facts() if (run / "run.json").is_file() else {"status": "not finished"}
        key = facts.get("algorithm", key)  # an arm may have a label of its own
        if key in found or key == "base":
            continue
        entry = {"status": "failed", "metric": "", "value": None, "run": cell["run"], "why": ""}
        if facts["status"] == "finished":
            metrics = facts.get("metrics") or {}
            name = next((metric for metric in (*SCORES, *metrics) if metric in metrics), "")
            value = round(metrics[name], 4) if name else None
            found[key] = entry | {"status": "trained", "metric": name.removeprefix("eval/"), "value": value}
        else:
            found[key] = entry | {"why": f"its run is {facts['status']}"}
    return dict(sorted(found.items()))


def write() -> None:
    """Write everything that is generated."""
    found = collect()
    TABLE.write_text(table_text(found), encoding="utf-8")
    PAGE.write_text(page_text(found), encoding="utf-8")
    README.write_text(readme_text(found), encoding="utf-8")
    generate.write()


if __name__ == "__main__":
    if "--zoo" in sys.argv:
        recorded = record_zoo(Path(sys.argv[sys.argv.index("--zoo") + 1]))
        ZOO.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    write()
