"""Reading a published table: CSV, JSON or plain rows into numbers that know how they were printed.

A number is kept as its text, because the digits say how it was rounded.  JSON numbers and the CSV files of most
programs lose trailing zeros (``52.60`` becomes ``52.6``).  Where the cells of a column differ in their digits and
none ends in a zero, both readings are kept: *padded* (zeros were lost: every cell has the digits of the longest)
and *own* (every cell is as it was printed).  In a long column whose short cells are about as many as zeros at the
end would be, a tenth, zeros were lost and the matter is settled.  Whoever knows says so with ``decimals``.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from steelyard.errors import DataError, unknown
from steelyard.stats.families import CORRECTIONS
from steelyard.stats.published import EFFECTS, TESTS, Range, half

COLUMNS: Mapping[str, tuple[str, str]] = {
    "name": ("text", "what the row is about; required"),
    "task": ("text", "rows are compared with the baseline's row of the same task"),
    "class": ("text", "a label; not checked"),
    "n": ("whole", "independent runs (seeds) behind the row"),
    "items": ("whole", "test items that a run is scored on; only if the score is the share of right answers"),
    "samples": ("whole", "answers per item and run that the score averages over; 1"),
    "correct": ("whole", "right answers, over all runs"),
    "settings": ("whole", "hyperparameter settings that were tried for the row"),
    "mean": ("number", "mean over the runs; `53.89 ± 0.60` also fills sd (or se: see plus_minus)"),
    "sd": ("number", "standard deviation over the runs"),
    "se": ("number", "standard error of the mean"),
    "low": ("number", "lower end of the confidence interval of the mean"),
    "high": ("number", "upper end of the confidence interval of the mean"),
    "seeds": ("values", "the runs' scores: a list, `51.2; 53.0; 52.4`, or columns seed_1, seed_2, ..."),
    "delta": ("number", "difference from the baseline"),
    "t": ("number", "test statistic"),
    "df": ("number", "its degrees of freedom"),
    "p": ("number", "p-value of the comparison with the baseline; `<0.001` is understood"),
    "p_adjusted": ("number", "the same, corrected for many comparisons"),
    "d": ("number", "standardised difference from the baseline"),
    "g": ("number", "Hedges' g"),
    "significant": ("flag", "claimed to differ significantly from the baseline"),
    "equal": ("flag", "claimed to equal the baseline"),
    "fixed": ("flag", "untrained and evaluated deterministically: its runs are one model"),
    "selected_on": ("text", "split that the row's settings or checkpoints were chosen on"),
}
"""Column -> (kind of cell, meaning)."""

SETTINGS: Mapping[str, str] = {
    "title": "what the table is",
    "source": "where it was published",
    "header": "column names of rows that are plain lists",
    "columns": "our name -> the table's name",
    "ignore": "columns that are left out",
    "decimals": "column -> printed digits, or `own`: every cell is as it was printed",
    "baseline": "name of the row that delta, p and d refer to",
    "unit": "percent, fraction or score (unbounded); else seen from the means",
    "n": "runs per row, where the rows do not say",
    "items": "items per run, where the rows do not say",
    "samples": "answers per item and run, where the rows do not say",
    "plus_minus": "what stands behind ±: sd or se",
    "ddof": "divisor of the sds: 1 for n - 1, 0 for n",
    "test": f"the test behind p: {', '.join(TESTS)}, or other",
    "side": "two-sided, greater or less",
    "effect": f"what d is: {', '.join(EFFECTS)}, or paired",
    "alpha": "level of significance; 0.05",
    "level": "coverage of the intervals; 0.95",
    "correction": f"for many comparisons: {', '.join(CORRECTIONS)}",
    "comparisons": "how many comparisons the correction is said to count",
    "threshold": "the corrected level that is printed (0.0026)",
    "margin": "smallest difference of interest, in the unit of the score",
    "selected_on": "split that settings or checkpoints were chosen on",
    "reported_on": "split of the printed scores; test",
    "rows": "the rows, or the name of a file that holds them",
    "claims": "sentences of the paper, encoded; see docs/audit.md",
}
"""Key of a JSON document (and keyword of :func:`steelyard.audit`) -> meaning."""

KINDS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "power": (("power",), ("d", "difference", "sd", "n", "alpha", "comparisons")),
    "detectable": (("power",), ("d", "difference", "sd", "n", "alpha", "comparisons")),
    "significant": (("rows",), ("p", "corrected")),
    "corrected": (("method", "significant"), ("comparisons",)),
    "equal": (("rows",), ("margin",)),
    "difference": (("rows", "value"), ()),
    "relative": (("rows", "value"), ()),
    "range": (("value",), ("rows",)),
    "average": (("value",), ("rows",)),
    "order": (("rows",), ()),
    "best": (("row",), ()),
}
"""Kind of claim -> (keys it needs, keys it may have); every claim may also have ``text`` and ``task``."""

CHOICES: Mapping[str, Sequence[Any]] = {
    "unit": ("percent", "fraction", "score"),
    "plus_minus": ("sd", "se"),
    "ddof": (0, 1),
    "test": (*TESTS, "other"),
    "side": ("two-sided", "greater", "less"),
    "effect": (*EFFECTS, "paired"),
    "correction": tuple(CORRECTIONS),
}
Reading = Literal["padded", "own", "cut"]
"""How digits are understood: see the module; ``cut``: digits were dropped instead of rounded."""

LONG = 10
"""Cells from which the share of short ones says whether zeros were lost."""

MISSING = {"", "-", "–", "—", "n/a", "na", "nan", "none", "null"}
YES, NO = {"yes", "y", "true", "1", "x", "*", "**", "***"}, {"no", "n", "false", "0", "n.s.", "ns"}
_NUMBER = re.compile(r"(?P<less><)?\s*(?P<digits>[+-]?\d*\.?\d+|[+-]?\d+\.)(?:[eE](?P<power>[+-]?\d+))?\s*%?\s*\**")


@dataclass(frozen=True, slots=True)
class Printed:
    """A number as it was printed.

    Attributes:
        text: its digits.
        value: what they say.
        low, high: what they may stand for.
        decimals: digits after the point.
        below: printed as "less than": any value from 0 to ``value``.
    """

    text: str
    value: float
    low: float
    high: float
    decimals: int
    below: bool = False

    @property
    def range(self) -> Range:
        """What it may stand for."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Row:
    """One row; ``numbers`` has the cells of kind *number* that are there."""

    name: str
    task: str
    numbers: Mapping[str, Printed]
    n: int | None
    items: int | None
    samples: int
    correct: int | None
    settings: int | None
    seeds: tuple[Printed, ...]
    significant: bool | None
    equal: bool | None
    fixed: bool
    selected_on: str | None

    @property
    def label(self) -> str:
        """Name, and the task if there is one."""
        return f"{self.name} ({self.task})" if self.task else self.name


@dataclass(frozen=True, slots=True)
class Table:
    """A published table under one reading of its digits; settings as in :data:`SETTINGS`."""

    rows: tuple[Row, ...]
    baseline: str | None
    unit: str
    settings: Mapping[str, Any]
    claims: tuple[Mapping[str, Any], ...]

    @property
    def top(self) -> float | None:
        """Largest possible score; ``None`` when unbounded."""
        return {"percent": 100.0, "fraction": 1.0}.get(self.unit)

    @property
    def alpha(self) -> float:
        """Level of significance."""
        return float(self.settings.get("alpha", 0.05))

    def pairs(self) -> list[tuple[Row, Row]]:
        """Every row with the baseline's row of its task."""
        bases = {row.task: row for row in self.rows if row.name == self.baseline}
        return [(row, bases[row.task]) for row in self.rows if row.name != self.baseline and row.task in bases]

    def row(self, name: str, task: str, where: str) -> Row:
        """The row of that name.

        Raises:
            DataError: there is none.
        """
        for row in self.rows:
            if row.name == name and row.task == (task or row.task):
                return row
        raise DataError(unknown("row", name, {row.name for row in self.rows}, where=where))


# --------------------------------------------------------------------------------------------------
# Files


@dataclass(frozen=True)
class Document:
    """Rows of texts with the settings that explain them; :meth:`table` reads the digits."""

    where: str
    rows: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    places: tuple[str, ...] = field(default=())

    @classmethod
    def read(cls, table: Any, settings: Mapping[str, Any]) -> Document:
        """A file, a mapping with ``rows``, or rows; ``settings`` win over the document's own.

        Raises:
            DataError: the file cannot be read, or a column or setting is unknown; with the nearest known name.
        """
        where = str(table) if isinstance(table, str | Path) else "table"
        raw = _load(Path(table)) if isinstance(table, str | Path) else table
        if hasattr(raw, "to_dict") and hasattr(raw, "columns"):  # a data frame
            raw = raw.to_dict("records")
        own: dict[str, Any] = {}
        if isinstance(raw, Mapping):
            own, raw = {k: v for k, v in raw.items() if k != "rows"}, raw.get("rows")
            if isinstance(raw, str):
                folder = Path(table).parent if isinstance(table, str | Path) else Path()
                raw = _load(folder / raw)
        merged = own | {key: value for key, value in settings.items() if value is not None}
        checked = _settings(merged, where)
        rows = _named_rows(raw, checked, where)
        places = tuple(f"{where}: row {i + 1}" for i in range(len(rows)))
        return cls(
            where, tuple(_canonical(row, checked, at) for row, at in zip(rows, places, strict=True)), checked, places
        )

    @property
    def ambiguous(self) -> list[str]:
        """Columns that may have lost trailing zeros."""
        return [name for name, cells in self._columns().items() if self._lost(name, cells) == "perhaps"]

    def table(self, reading: Reading) -> Table:
        """The numbers under one reading."""
        columns = self._columns()
        padded = ("surely",) if reading == "own" else ("surely", "perhaps")
        widest = {n: max(map(_decimals, cells)) for n, cells in columns.items() if self._lost(n, cells) in padded}
        stated = self.settings.get("decimals", {})

        def printed(text: str, column: str) -> Printed:
            digits = stated.get(column)
            if digits is None or digits == "own":
                digits = widest.get(column) if "e" not in text.lower() else None
            return _printed(text, digits, cut=reading == "cut")

        rows = tuple(self._row(row, at, printed) for row, at in zip(self.rows, self.places, strict=True))
        return Table(
            rows, self._baseline(rows), self._unit(rows), self.settings, tuple(self.settings.get("claims", ()))
        )

    def _columns(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for row in self.rows:
            for name, cell in row.items():
                if COLUMNS[name][0] in ("number", "values") and cell is not None:
                    found.setdefault(name, []).extend(cell if isinstance(cell, list) else [cell])
        return found

    def _lost(self, name: str, cells: Sequence[str]) -> Literal["no", "perhaps", "surely"]:
        """Whether the column has lost the zeros at the ends of its numbers."""
        plain = [cell for cell in cells if "e" not in cell.lower()]
        digits = [_decimals(cell) for cell in plain]
        # A zero at the end was written by somebody; `0.0` is how programs write nought.
        verbatim = any(_decimals(c) > 1 and c.rstrip("*% ").endswith("0") for c in plain)
        if len(set(digits)) < 2 or name in self.settings.get("decimals", {}) or verbatim:
            return "no"
        short = sum(each < max(digits) for each in digits)
        likely = stats.binom.sf(short - 1, len(digits), 0.1) > 0.05
        return "surely" if len(digits) >= LONG and likely else "perhaps"

    def _row(self, row: Mapping[str, Any], at: str, printed: Any) -> Row:
        numbers = {k: printed(v, k) for k, v in row.items() if COLUMNS[k][0] == "number" and v is not None}
        seeds = tuple(printed(text, "seeds") for text in row.get("seeds") or ())
        n = row.get("n") or (len(seeds) or None) or self.settings.get("n")
        if seeds and n != len(seeds):
            raise DataError(f"{at}: {len(seeds)} values under 'seeds', but n = {n}")
        return Row(
            name=row["name"],
            task=row.get("task") or "",
            numbers=numbers,
            n=n,
            items=row.get("items") or self.settings.get("items"),
            samples=row.get("samples") or self.settings.get("samples") or 1,
            correct=row.get("correct"),
            settings=row.get("settings"),
            seeds=seeds,
            significant=row.get("significant"),
            equal=row.get("equal"),
            fixed=bool(row.get("fixed")),
            selected_on=row.get("selected_on") or self.settings.get("selected_on"),
        )

    def _baseline(self, rows: Sequence[Row]) -> str | None:
        stated, names = self.settings.get("baseline"), list(dict.fromkeys(row.name for row in rows))
        if stated is not None:
            if stated not in names:
                raise DataError(unknown("baseline row", stated, names, where=self.where))
            return stated
        compared = {row.name for row in rows if {"delta", "t", "p", "d", "g", "p_adjusted"} & row.numbers.keys()}
        others = [name for name in names if name not in compared]
        return others[0] if compared and len(others) == 1 else None

    def _unit(self, rows: Sequence[Row]) -> str:
        stated = self.settings.get("unit")
        means = [row.numbers["mean"].value for row in rows if "mean" in row.numbers]
        means += [seed.value for row in rows for seed in row.seeds]
        if stated or not means:
            return stated or "score"
        if min(means) < 0 or max(means) > 100:
            return "score"
        return "percent" if max(means) > 1 else "fraction"


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not text in UTF-8; expected CSV or JSON") from None
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(
            csv.DictReader(text.splitlines(), dialect="excel-tab" if path.suffix.lower() == ".tsv" else "excel")
        )
    if path.suffix.lower() != ".json":
        raise DataError(f"{path}: expected a table ending in .csv, .tsv or .json")
    try:
        return json.loads(text, parse_float=str, parse_int=str)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}") from None


def _named_rows(raw: Any, settings: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise DataError(
            f"{where}: expected at least one row: a CSV with a header, a JSON list, or an object with 'rows'"
        )
    if all(isinstance(row, Mapping) for row in raw):
        return list(raw)
    header = settings.get("header")
    if header is None:
        raise DataError(f"{where}: the rows are plain lists; name their columns: --header name,mean,sd,...")
    for i, row in enumerate(raw):
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(header):
            raise DataError(f"{where}: row {i + 1}: expected {len(header)} cells ({', '.join(header)})")
    return [dict(zip(header, row, strict=True)) for row in raw]


# --------------------------------------------------------------------------------------------------
# Cells


def _canonical(row: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """One row by our column names, every cell of its kind."""
    theirs = {name: ours for ours, name in (settings.get("columns") or {}).items()}
    cells: dict[str, Any] = {}
    for name, cell in row.items():
        if name is None:
            raise DataError(f"{where}: more cells than the header has columns")
        key = theirs.get(name, name.strip())
        if name in settings.get("ignore", ()):
            continue
        if re.fullmatch(r"seed_\d+", key):
            if (text := _text(cell)) is not None:
                cells.setdefault("seeds", []).append(_checked(text, key, where))
        elif key not in COLUMNS:
            hint = " (--columns OURS=THEIRS renames one, --ignore leaves one out)"
            raise DataError(unknown("column", key, COLUMNS, where=where) + hint)
        else:
            cells |= _cell(key, cell, settings, where)
    if not cells.get("name"):
        raise DataError(f"{where}: column 'name' is missing")
    return cells


def _cell(key: str, cell: Any, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = COLUMNS[key][0]
    if kind == "values":
        parts = cell if isinstance(cell, list | tuple) else [p for p in re.split(r"[;\s]+", _text(cell) or "") if p]
        texts = [_text(part) for part in parts]
        return {key: [_checked(text, key, where) for text in texts if text is not None]}
    text = _text(cell)
    if text is None:
        return {key: None}
    if kind == "text":
        return {key: text}
    if kind == "flag":
        if text.lower() not in YES | NO:
            raise DataError(f"{where}: column '{key}': expected yes or no, got '{text}'")
        return {key: text.lower() in YES}
    if kind == "whole":
        return {key: _whole(text, f"{where}: column '{key}'")}
    mean, sign, spread = re.sub(r"\+/?-|\\pm", "±", text).partition("±")
    if sign and key == "mean":
        other = settings.get("plus_minus", "sd")
        return {key: _checked(mean.strip(), key, where), other: _checked(spread.strip(), other, where)}
    return {key: _checked(text, key, where)}


def _text(cell: Any) -> str | None:
    """The cell's text; ``None`` for nothing."""
    if cell is None:
        return None
    text = cell if isinstance(cell, str) else repr(float(cell)) if isinstance(cell, float) else str(cell)
    text = text.strip().replace("\u2212", "-")
    return None if text.lower() in MISSING else text


def _checked(text: str, column: str, where: str) -> str:
    if _NUMBER.fullmatch(text) is None:
        raise DataError(f"{where}: column '{column}': expected a number as printed (53.89, <0.001, 4e-5), got '{text}'")
    return text


def _whole(text: str, where: str) -> int:
    number = float(text) if _NUMBER.fullmatch(text) and "<" not in text and "%" not in text else -1.0
    if number < 0 or number != int(number):
        raise DataError(f"{where}: expected a whole number, got '{text}'")
    return int(number)


def _decimals(text: str) -> int:
    """Digits after the point; of ``4.1e-5`` six."""
    match = _NUMBER.fullmatch(text)
    assert match is not None
    after = len(match["digits"].partition(".")[2])
    return max(0, after - int(match["power"] or 0))


def _printed(text: str, digits: int | None, *, cut: bool) -> Printed:
    match = _NUMBER.fullmatch(text)
    assert match is not None
    value = float(match["digits"] + (f"e{match['power']}" if match["power"] else ""))
    decimals = _decimals(text) if digits is None else digits
    shown = text if digits is None or match["power"] else f"{value:.{max(decimals, _decimals(text))}f}"
    if match["less"]:
        return Printed(text, value, 0.0, value, decimals, below=True)
    slack = half(decimals)
    if cut:
        low, high = (value, value + 2 * slack) if value >= 0 else (value - 2 * slack, value)
    else:
        low, high = value - slack, value + slack
    return Printed(shown, value, low, high, decimals)


# --------------------------------------------------------------------------------------------------
# Settings


def _settings(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for key, value in given.items():
        if key not in SETTINGS:
            raise DataError(unknown("setting", key, SETTINGS, where=where))
        at = f"{where}: {key}"
        if value is None:
            continue
        if key in ("n", "items", "samples", "ddof", "comparisons"):
            value = _whole(str(value), at)
        elif key in ("alpha", "level", "margin", "threshold"):
            value = plain_number(value, at)
        elif key in ("header", "ignore"):
            value = [str(part) for part in _list(value, at)]
        elif key == "decimals":
            value = {str(k): "own" if v == "own" else _whole(str(v), at) for k, v in _mapping(value, at).items()}
            _known(value, COLUMNS, "column", at)
        elif key == "columns":
            value = {str(k): str(v) for k, v in _mapping(value, at).items()}
            _known(value, COLUMNS, "column", at)
        elif key == "claims":
            value = [_claim(claim, f"{where}: claims[{i}]") for i, claim in enumerate(_list(value, at))]
        if key in CHOICES and value not in CHOICES[key]:
            raise DataError(unknown(key, str(value), map(str, CHOICES[key]), where=where))
        checked[key] = value
    for key in ("alpha", "level"):
        if not 0 < checked.get(key, 0.5) < 1:
            raise DataError(f"{where}: {key}: expected a number between 0 and 1, got {checked[key]}")
    return checked


def _claim(claim: Any, where: str) -> dict[str, Any]:
    claim = _mapping(claim, where)
    kind = str(claim.get("kind", ""))
    if kind not in KINDS:
        raise DataError(unknown("kind of claim", kind, KINDS, where=where))
    needed, optional = KINDS[kind]
    _known(claim, (*needed, *optional, "kind", "text", "task"), "key", where)
    for key in needed:
        if key not in claim:
            raise DataError(f"{where}: a claim of kind '{kind}' needs '{key}'")
    return {k: [str(part) for part in v] if isinstance(v, list) else v for k, v in claim.items()}


def _known(names: Iterable[str], choices: Iterable[str], what: str, where: str) -> None:
    choices = list(choices)
    for name in names:
        if name not in choices:
            raise DataError(unknown(what, name, choices, where=where))


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"{where}: expected a list, got {value!r}")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected names with values, got {value!r}")
    return value


def plain_number(value: Any, where: str) -> float:
    """A number of a setting or claim, which is meant exactly.

    Raises:
        DataError: it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected a number, got {value!r}") from None


def printed_number(value: Any, where: str) -> Printed:
    """A number that a claim quotes, with the rounding that its digits say."""
    text = _text(value)
    if text is None or _NUMBER.fullmatch(text) is None:
        raise DataError(f"{where}: expected a number, got {value!r}")
    return _printed(text, None, cut=False)
