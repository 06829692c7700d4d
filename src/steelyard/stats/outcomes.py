"""Per-item outcomes of several arms on one task: the table that paired comparisons start from.

An arm is a matrix ``[seeds, items]``.  Arms are paired by item (unequal items are refused), and by seed where they
have the same seeds, because methods of one seed share generated data and data order.  Outcomes come from run
directories (:func:`from_results`) or from plain tables (:func:`read_tables`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.errors import DataError, StudyError, unknown
from steelyard.stats.table import MEASURES, Results, Run


@dataclass(frozen=True, eq=False)
class Arm:
    """One arm's outcomes.

    Attributes:
        seeds: names of the runs.
        scores: ``[seeds, items]``; NaN where an item could not be scored.
        fixed: one untrained model, however often it was evaluated: its runs are no repetitions.
    """

    name: str
    seeds: tuple[str, ...]
    scores: np.ndarray
    fixed: bool = False

    @property
    def means(self) -> np.ndarray:
        """``[seeds]`` mean over the scored items."""
        return np.nanmean(self.scores, axis=1)

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return float(self.means.mean())


@dataclass(frozen=True, eq=False)
class Outcomes:
    """All arms on one task, on the same items.

    Attributes:
        task: name of the task; empty where a table names none.
        measure: what the score is.
        arms: by name, in the order in which they were given.
    """

    task: str
    measure: str
    items: tuple[str, ...]
    arms: Mapping[str, Arm]

    def arm(self, name: str) -> Arm:
        """The arm of that name; :class:`StudyError` suggests the nearest."""
        if name not in self.arms:
            raise StudyError(unknown("arm", name, self.arms))
        return self.arms[name]

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""
        known = [arm.scores[np.isfinite(arm.scores)] for arm in self.arms.values()]
        return all(bool(np.isin(values, (0.0, 1.0)).all()) for values in known)

    @property
    def proportion(self) -> bool:
        """Whether all scores lie in [0, 1], so that differences are points."""
        return all(np.nanmin(a.scores) >= 0 and np.nanmax(a.scores) <= 1 for a in self.arms.values())


@dataclass(frozen=True, eq=False)
class Sides:
    """Two arms laid side by side.

    Attributes:
        a, b: ``[seeds, items]`` each; with ``seeds_paired`` row i of both is the same seed.
        seeds_paired: both arms have at least two seeds, and the same ones.
        note: what was left out to pair them.
    """

    a: np.ndarray
    b: np.ndarray
    seeds_paired: bool
    a_fixed: bool = False
    b_fixed: bool = False
    note: str = ""

    @property
    def runs(self) -> tuple[int, int]:
        """Runs of a and of b; a fixed arm counts as one."""
        return (1 if self.a_fixed else len(self.a)), (1 if self.b_fixed else len(self.b))

    @property
    def items(self) -> int:
        """Number of common items that both could be scored on."""
        return self.a.shape[1]

    @property
    def difference(self) -> float:
        """Mean of a minus mean of b."""
        return float(self.a.mean() - self.b.mean())

    @property
    def by_item(self) -> np.ndarray:
        """``[items]`` difference, each item's score averaged over the runs."""
        return self.a.mean(axis=0) - self.b.mean(axis=0)

    @property
    def by_seed(self) -> np.ndarray:
        """``[seeds]`` differences of seed means; only with ``seeds_paired``."""
        if not self.seeds_paired:
            raise StudyError("the arms have no common seeds: differences by seed do not exist; try mixed or welch")
        return self.a.mean(axis=1) - self.b.mean(axis=1)

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""
        return bool(np.isin(self.a, (0.0, 1.0)).all() and np.isin(self.b, (0.0, 1.0)).all())


def sides(a: Arm, b: Arm) -> Sides:
    """Pair two arms: by seed if they have at least two seeds in common, and by item.

    Items that either arm could not be scored on in some run are left out of both (said in ``note``).

    Raises:
        StudyError: no item is left.
    """
    notes = []
    a_scores, b_scores = a.scores[:1] if a.fixed else a.scores, b.scores[:1] if b.fixed else b.scores
    common = [] if a.fixed or b.fixed else [seed for seed in a.seeds if seed in b.seeds]
    paired = len(common) >= 2 and len(common) == min(len(a.seeds), len(b.seeds))
    if paired:
        dropped = len(a.seeds) + len(b.seeds) - 2 * len(common)
        if dropped:
            notes.append(f"{dropped} runs whose seed only one arm has are left out")
        a_scores = a_scores[[a.seeds.index(seed) for seed in common]]
        b_scores = b_scores[[b.seeds.index(seed) for seed in common]]
    known = np.isfinite(a_scores).all(axis=0) & np.isfinite(b_scores).all(axis=0)
    if not known.any():
        raise StudyError(f"{a.name} and {b.name}: no item was scored in all runs of both")
    if not known.all():
        notes.append(f"{int((~known).sum())} of {known.size} items were not scored in every run and are left out")
    return Sides(a_scores[:, known], b_scores[:, known], paired, a.fixed, b.fixed, "; ".join(notes))


# --------------------------------------------------------------------------------------------------
# From run directories


def from_results(
    results: Results, groups: Mapping[str, Sequence[Run]], task: str, measure: str, *, fixed: Sequence[str] = ()
) -> Outcomes | None:
    """The outcomes of groups of runs (arms) on a task; ``None`` when a run kept no records of it.

    Args:
        groups: runs by arm.
        fixed: arms that are one untrained model.
    """
    arms = {}
    for name, runs in groups.items():
        scores = results.item_scores(runs, task, MEASURES[measure])
        if scores is None:
            return None
        arms[name] = Arm(name, tuple(run.seed for run in runs), scores, name in fixed)
    return Outcomes(task, measure, results.tasks[task].items, arms)


# --------------------------------------------------------------------------------------------------
# From plain tables

ARM_COLUMNS = ("arm", "algorithm", "method", "system", "model")
ITEM_COLUMNS = ("item", "item_id", "doc_id", "id")
_ENDINGS = (".csv", ".tsv", ".jsonl", ".jsonl.gz", ".csv.gz")


def is_table(path: str | Path) -> bool:
    """Whether a path names a file that :func:`read_tables` reads."""
    return Path(path).is_file() and str(path).lower().endswith(_ENDINGS)


def read_tables(paths: Sequence[str | Path]) -> list[Outcomes]:
    """Per-item tables (CSV, TSV or JSON lines, also gzipped) as outcomes, one per task.

    *Long*: one row per outcome with the columns ``item``, ``score``, and optionally ``arm`` (or ``algorithm``,
    ``method``, ``system``, ``model``; default: the file's name), ``seed``, ``task``, ``sample`` (samples of one run
    and item are averaged).  *Wide*: ``item`` and one column of scores per arm, optionally ``seed`` and ``task``;
    a table is wide when it has no ``score``.

    Raises:
        DataError: a missing column or a score that is no number (file, row, column).
        StudyError: an outcome that occurs twice, or arms on unequal items.
    """
    cells: dict[str, dict[str, dict[str, dict[str, list[tuple[str, float]]]]]] = {}
    for path in map(Path, paths):
        for task, arm, seed, item, sample, score in _outcomes(path):
            run = cells.setdefault(task, {}).setdefault(arm, {}).setdefault(seed, {})
            found = run.setdefault(item, [])
            if any(sample == other for other, _ in found):
                hint = f", sample {sample}" if sample else " (add a column `seed` or `sample` to tell them apart)"
                raise StudyError(f"{path}: arm '{arm}', seed {seed or 'not given'}, item '{item}' occurs twice{hint}")
            found.append((sample, score))
    return [_assembled(task, arms) for task, arms in cells.items()]


def _assembled(task: str, arms: Mapping[str, Mapping[str, Mapping[str, list[tuple[str, float]]]]]) -> Outcomes:
    where = f"task '{task}': " if task else ""
    items: tuple[str, ...] | None = None
    first = ""
    built = {}
    for arm, runs in arms.items():
        rows = []
        for seed, found in runs.items():
            label = f"{arm}, seed {seed}" if seed else arm
            if items is None:
                items, first = tuple(found), label
            if set(found) != set(items):
                differ = len(set(found) ^ set(items))
                raise StudyError(
                    f"{where}{first} and {label} were measured on unequal items ({len(items)} and {len(found)}, "
                    f"{differ} not in common): they cannot be compared"
                )
            rows.append([float(np.mean([score for _, score in found[item]])) for item in items])
        built[arm] = Arm(arm, tuple(runs), np.array(rows))
    return Outcomes(task, "score", items or (), built)


def _outcomes(path: Path) -> Iterator[tuple[str, str, str, str, str, float]]:
    """``task, arm, seed, item, sample, score`` of every outcome of a file."""
    rows = _rows(path)
    try:
        number, head = next(rows)
    except StopIteration:
        raise DataError(f"{path}: an empty table") from None
    item = next((name for name in ITEM_COLUMNS if name in head), None)
    if item is None:
        raise DataError(f"{path}: no column `item` (or {', '.join(ITEM_COLUMNS[1:])}); found: {', '.join(head)}")
    wide = "score" not in head
    arm = None if wide else next((name for name in ARM_COLUMNS if name in head), None)
    others = [name for name in head if name not in (item, "seed", "task", "sample")]
    if wide and not others:
        raise DataError(f"{path}: no column `score`, and no columns of arms; found: {', '.join(head)}")
    for place_of, row in _chain((number, head), rows):
        place = f"{path}: row {place_of}"
        if row.get(item) in (None, ""):
            raise DataError(f"{place}, column `{item}`: expected the name of an item")
        known = [str(row.get(name) if row.get(name) is not None else "") for name in ("task", "seed", "sample")]
        for name in others if wide else ["score"]:
            score = _score(row.get(name), f"{place}, column `{name}`")
            label = name if wide else str(row.get(arm) or "") if arm else path.name.split(".")[0]
            if not label:
                raise DataError(f"{place}, column `{arm}`: expected the name of an arm")
            yield known[0], label, known[1], str(row[item]), known[2], score


def _chain(first: tuple[int, Any], rest: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    yield first
    yield from rest


def _score(value: Any, place: str) -> float:
    if value is None or value == "":
        return math.nan
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{place}: expected a number, got {value!r}") from None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(row number, row)``; the first row of data is 1."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    name = path.name.removesuffix(".gz").lower()
    if name.endswith((".csv", ".tsv")):
        yield from enumerate(csv.DictReader(io.StringIO(text), delimiter="\t" if name.endswith(".tsv") else ","), 1)
        return
    if not name.endswith(".jsonl"):
        raise DataError(f"{path}: expected a table ({', '.join(_ENDINGS)})")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: row {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number}: expected an object")
        yield number, row
