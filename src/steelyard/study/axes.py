"""A study file: a base run config, and the axes along which its runs differ.

::

    name: quick
    model: {name_or_path: builtin:0.1m}       # any section of a run config
    data: {task: arithmetic}
    baseline: {algorithm: base}               # what the others are compared with
    include_base: true                        # also evaluate every model untrained
    axes:
      algorithm: [sft, {name: dpo, beta: 0.05, label: dpo-low, overrides: {train.max_steps: 24}}]
      model: [builtin:0.1m, {name_or_path: builtin:0.5m, label: half}]
      seed: [0, 1, 2]
      optim.weight_decay: [0.0, 0.1]          # any dotted key of a run config
    select: {record: quick-select.record.json, sha256: ...}   # learning rates chosen by another study

A cell is one combination; its labels name it in tables, and its resolved :class:`RunConfig` is validated
before anything is launched.  No torch here: a study is planned in an instant.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.algorithms import oxrl
from steelyard.algorithms.catalogue import key_of
from steelyard.config import RunConfig
from steelyard.configfile import check_key, load_run_config, read_yaml
from steelyard.errors import ConfigError, SteelyardError, unknown
from steelyard.files import sha256_json
from steelyard.study.select import Selection, apply_record

BASE = "base"
"""The algorithm that trains nothing: the model as it was loaded (or after its supervised stage)."""

STUDY_KEYS = ("name", "description", "baseline", "include_base", "axes", "select")
"""Keys of a study file that are not sections of a run config."""

ALIASES = {"algorithm.name": "algorithm", "model.name_or_path": "model"}
"""Other spellings of the two special axes."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a study may be called: its name is also the folder that it is written to."""

Labels = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a study: its place on the axes (for tables) and its resolved config."""

    labels: Labels
    config: RunConfig

    @property
    def title(self) -> str:
        """``dpo · builtin:0.1m · seed 0``, with further axes as ``key=value``."""
        named = ("algorithm", "model", "seed")
        rest = [f"{key}={value}" for key, value in self.labels.items() if key not in named]
        labels = self.labels
        return " · ".join([str(labels["algorithm"]), str(labels["model"]), *rest, f"seed {labels['seed']}"])


@dataclass(frozen=True)
class Study:
    """A study file, read, expanded and checked.

    Attributes:
        plain: the study file as written, plain values.
        axes: the axes as written.
        baseline: labels of the arm that others are compared with.
        selection: the record that learning rates (or other keys) were read from, or None.
        notes: what a reader must know (settings that differ from the selection's, ...).
    """

    name: str
    description: str
    plain: dict[str, Any]
    axes: dict[str, list[Any]]
    baseline: Labels
    cells: tuple[Cell, ...]
    selection: Selection | None = None
    notes: tuple[str, ...] = ()

    @property
    def purpose(self) -> str:
        """``select`` when the runs are scored on the selection split, else ``report``."""
        return "select" if all(c.config.eval.split == "selection" for c in self.cells) else "report"

    @property
    def sha256(self) -> str:
        """Hash of all cells with their resolved configs: two studies with equal hashes do the same work."""
        return sha256_json([{"cell": c.labels, "config": c.config.model_dump(mode="json")} for c in self.cells])


@dataclass(frozen=True)
class Entry:
    """One value of an axis: how it is labelled, what it sets, and sub-axes of its own."""

    label: Any
    changes: Mapping[str, Any]
    axes: Mapping[str, list[Any]] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------
# Finding and reading


def resolve(spec: str | Path) -> Path:
    """A study file by path, by name in ``./studies``, or by name among the studies that come with Steelyard.

    Raises:
        ConfigError: nothing of that name; lists what there is.
    """
    path = Path(spec)
    if path.is_file():
        return path
    package = Path(__file__).parents[1]
    folders = [Path("studies"), package / "studies", package.parents[1] / "studies"]  # the last: a checkout
    for folder in folders:
        candidate = folder / f"{spec}.yaml"
        if candidate.is_file():
            return candidate
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"{path}: no such study file")
    names = {f.stem for folder in folders if folder.is_dir() for f in folder.glob("*.yaml")}
    raise ConfigError(unknown("study", str(spec), names))


def load_study(spec: str | Path) -> Study:
    """Read, expand and check a study.

    Raises:
        ConfigError: unknown keys, duplicate cells, a cell whose config is invalid, a selection record that
            does not fit (see :mod:`steelyard.study.select`).
    """
    path = resolve(spec)
    return expand(read_yaml(path), where=str(path), folder=path.parent)


# --------------------------------------------------------------------------------------------------
# Expansion


def expand(plain: Mapping[str, Any], *, where: str, folder: Path) -> Study:
    """Expand a study given as plain values; ``folder`` is what relative paths in it start from."""
    if "axes" not in plain and "name" not in plain:
        raise ConfigError(
            f"{where}: is the recipe of one run (it has no `name:` and no `axes:`): use `steelyard train`"
        )
    base = {key: copy.deepcopy(value) for key, value in plain.items() if key not in STUDY_KEYS}
    sections = {"schema", *RunConfig.model_fields} - {"schema_"}
    for key in base:
        if key not in sections:
            raise ConfigError(unknown("key", key, {*sections, *STUDY_KEYS}, where=where))
    name = plain.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: a study needs a name")
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: name: '{name}' must be letters, digits, '.', '_' and '-', and begin with a letter or a digit"
        )
    if isinstance(base.get("model"), str):
        base["model"] = {"name_or_path": base["model"]}
    axes = _check_axes(plain.get("axes"), where)
    algorithms = _algorithms(axes, base, where)
    models = _models(axes, base, where)
    seeds = axes.get("seed", [base.get("seed", 0)])
    others = {key: values for key, values in axes.items() if key not in ("algorithm", "model", "seed")}

    selection: Selection | None = None
    draft: list[tuple[Labels, dict[str, Any]]] = []
    if plain.get("include_base", False):
        draft += _base_cells(base, models, seeds, others, where)
    for model, algorithm in itertools.product(models, algorithms):
        grid = {**others, **algorithm.axes}
        for clash in set(others) & set(algorithm.axes):
            raise ConfigError(f"{where}: axes: '{clash}' is an axis of the study and of '{algorithm.label}'")
        for point in _grid(grid):
            for seed in seeds:
                labels = {"algorithm": algorithm.label, "model": model.label, **_labels(point), "seed": seed}
                changes = {**model.changes, **algorithm.changes, **_values(point), "seed": seed}
                draft.append((labels, _changed(base, changes)))
    if plain.get("select") is not None:
        arms = list(dict.fromkeys((m.label, a.label) for m in models for a in algorithms))
        selection = apply_record(plain["select"], arms, seeds=seeds, where=where, folder=folder)
        for key in selection.keys:
            entries = [*models, *algorithms]
            set_by = [str(e.label) for e in entries if key in e.changes or key in e.axes]
            if key in others or set_by:
                place = "an axis" if key in others else f"set for {', '.join(set_by)}"
                raise ConfigError(f"{where}: '{key}' comes from the selection record, but is also {place}")
        draft = [
            (labels, _changed(config, selection.chosen.get((labels["model"], labels["algorithm"]), {})))
            for labels, config in draft
        ]
    cells = tuple(_cell(labels, config, where, folder) for labels, config in draft)
    _refuse_duplicates(cells, where)
    _check_purpose(cells, where)
    return Study(
        name=name,
        description=str(plain.get("description", "")).strip(),
        plain=dict(plain),
        axes={key: list(values) for key, values in axes.items()},
        baseline=_baseline(plain.get("baseline"), cells, where),
        cells=cells,
        selection=selection,
        notes=(*_aliases(axes), *_profiles(cells), *(selection.differing_settings(cells) if selection else ())),
    )


def _check_axes(axes: Any, where: str) -> dict[str, list[Any]]:
    if not isinstance(axes, Mapping) or not axes:
        raise ConfigError(
            f"{where}: a study needs `axes:`, for example `axes: {{algorithm: [dpo, ipo]}}`; "
            "for a single run use `steelyard train`"
        )
    checked: dict[str, list[Any]] = {}
    for key, values in axes.items():
        canonical = ALIASES.get(str(key), str(key))
        if canonical in checked:
            raise ConfigError(f"{where}: axes: '{key}' and '{canonical}' are the same axis")
        check_key(canonical, f"{where}: axes")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: axes: '{key}' must be a list with at least one value")
        checked[canonical] = values
    for seed in checked.get("seed", []):
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"{where}: axes: seed: expected whole numbers, got {seed!r}")
    for key, values in checked.items():
        _refuse_twice([_text(value) for value in values], f"{where}: axes: {key}")
    return checked


def _refuse_twice(labels: list[str], where: str) -> None:
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ConfigError(f"{where}: {', '.join(sorted(twice))} is listed twice (give each its own `label:`)")


def _mapping(value: Any, key: str, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {key: value}
    if isinstance(value, Mapping) and isinstance(value.get(key), str):
        return dict(value)
    raise ConfigError(f"{where}: expected a name or a mapping with `{key}:`, got {value!r}")


def _split(given: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[Any]]]:
    """Take label-free parts out of an entry: (its own keys, overrides by dotted key, sub-axes)."""
    overrides = dict(given.pop("overrides", None) or {})
    axes = given.pop("axes", None) or {}
    for key in [key for key in given if "." in key]:
        overrides[key] = given.pop(key)
    for key in overrides:
        check_key(key, f"{where}: overrides")
    if not isinstance(axes, Mapping):
        raise ConfigError(f"{where}: axes: expected a mapping of keys to lists, got {axes!r}")
    for key, values in axes.items():
        check_key(key, f"{where}: axes")
        if key in ("algorithm", "model", "seed", *ALIASES):
            raise ConfigError(f"{where}: axes: '{key}' can only be an axis of the whole study")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: axes: '{key}' must be a list with at least one value")
        _refuse_twice([_text(value) for value in values], f"{where}: axes: {key}")
        if key in overrides:
            raise ConfigError(f"{where}: '{key}' is both overridden and an axis")
    return given, overrides, {key: list(values) for key, values in axes.items()}


def _algorithms(axes: Mapping[str, list[Any]], base: Mapping[str, Any], where: str) -> list[Entry]:
    if "algorithm" not in axes and "algorithm" not in base:
        raise ConfigError(f"{where}: name the algorithms: `axes: {{algorithm: [...]}}`")
    entries = []
    for value in axes.get("algorithm", [base.get("algorithm")]):
        given = _mapping(value, "name", f"{where}: axes: algorithm")
        given["name"] = key_of(given["name"])
        label = str(given.pop("label", given["name"]))
        section, overrides, sub = _split(given, f"{where}: axes: algorithm: {label}")
        entries.append(Entry(label, {"algorithm": section, **overrides}, sub))
    _refuse_twice([entry.label for entry in entries], f"{where}: axes: algorithm")
    return entries


def _aliases(axes: Mapping[str, list[Any]]) -> list[str]:
    """A note for every algorithm of the axes that is called by oxRL's name."""
    entries = axes.get("algorithm", [])
    names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in entries]
    return [oxrl.note(name, key) for name in dict.fromkeys(map(str, names)) if (key := key_of(name)) != name]


def _profiles(cells: tuple[Cell, ...]) -> list[str]:
    """A note for every algorithm whose own values win over those of the study's profile."""
    configs = [cell.config for cell in cells]
    notes = [oxrl.profile_note(c.profile, c.algorithm.name, c.algorithm.hyperparameters) for c in configs]
    return [note for note in dict.fromkeys(notes) if note]


def _models(axes: Mapping[str, list[Any]], base: Mapping[str, Any], where: str) -> list[Entry]:
    section = base.get("model")
    name = section.get("name_or_path") if isinstance(section, Mapping) else None
    default = {"name_or_path": name or RunConfig.model_fields["model"].default.name_or_path}
    entries = []
    for value in axes.get("model", [default]):
        given = _mapping(value, "name_or_path", f"{where}: axes: model")
        label = str(given.pop("label", given["name_or_path"]))
        section, overrides, sub = _split(given, f"{where}: axes: model: {label}")
        if sub:
            raise ConfigError(f"{where}: axes: model: {label}: only an algorithm may have axes of its own")
        entries.append(Entry(label, {f"model.{key}": item for key, item in section.items()} | overrides))
    _refuse_twice([entry.label for entry in entries], f"{where}: axes: model")
    return entries


def _base_cells(
    base: dict[str, Any], models: list[Entry], seeds: list[int], others: Mapping[str, list[Any]], where: str
) -> list[tuple[Labels, dict[str, Any]]]:
    """The untrained models, once each: what only matters for training is not repeated.

    A pretrained model without a supervised stage is the same for every seed, so it is evaluated once; three
    equal copies would pretend to have a standard deviation of zero.
    """
    cells = []
    for model in models:
        start = _changed(base, {**model.changes, "algorithm": {"name": BASE}})
        supervised = start.get("sft") is not None
        seeded = supervised or start.get("model", {}).get("init") == "random"
        matters = ("model.", "eval.", "threads") + (("sft", "data.", "lora") if supervised else ())
        grid = {key: values for key, values in others.items() if key.startswith(matters)}
        for point, seed in itertools.product(_grid(grid), seeds if seeded else seeds[:1]):
            labels = {"algorithm": BASE, "model": model.label, **_labels(point), "seed": seed}
            cells.append((labels, _changed(start, {**_values(point), "seed": seed})))
    return cells


def _grid(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for combination in itertools.product(*axes.values()):
        yield dict(zip(axes, combination, strict=True))


def _is_labelled(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"label", "value"}


def _text(value: Any) -> str:
    if _is_labelled(value):
        return str(value["label"])
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _labels(point: Mapping[str, Any]) -> Labels:
    return {key: value if isinstance(value, (int, float, str)) else _text(value) for key, value in point.items()}


def _values(point: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value["value"] if _is_labelled(value) else value for key, value in point.items()}


def _changed(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of ``plain`` with dotted keys set."""
    result = copy.deepcopy(dict(plain))
    for key, value in changes.items():
        place = result
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                given = place.get(parent)
                # `algorithm: dpo` and `model: builtin:0.1m` are short for a section with a name
                short = {"algorithm": "name", "model": "name_or_path"}.get(parent)
                place[parent] = {short: given} if isinstance(given, str) and short else {}
            place = place[parent]
        place[last] = copy.deepcopy(value)
    return result


# --------------------------------------------------------------------------------------------------
# Checks


def _cell(labels: Labels, plain: dict[str, Any], where: str, folder: Path) -> Cell:
    title = ", ".join(f"{key}={value}" for key, value in labels.items())
    try:
        # What there is to note is said once for the whole study, not cell by cell.
        return Cell(labels, load_run_config(plain, where=where, folder=folder, notice=lambda _: None))
    except SteelyardError as error:
        raise type(error)(f"{error} (cell {title})") from error


def _refuse_duplicates(cells: tuple[Cell, ...], where: str) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        digest = sha256_json(cell.config.model_dump(mode="json"))
        if digest in seen:
            raise ConfigError(f"{where}: two cells are the same run: {seen[digest].title} and {cell.title}")
        seen[digest] = cell


def _check_purpose(cells: tuple[Cell, ...], where: str) -> None:
    """Every task exists, all runs are scored on one split, and selecting reads no unseen task."""
    from steelyard.evals.tasks import get_task

    splits = {cell.config.eval.split for cell in cells}
    if len(splits) > 1:
        raise ConfigError(f"{where}: a study scores all its runs on one split, not on selection and test")
    for name in dict.fromkeys(task for cell in cells for task in cell.config.eval.tasks):
        task = get_task(name)
        if splits == {"selection"} and task.role == "unseen":
            raise ConfigError(
                f"{where}: eval.tasks: '{name}' is unseen: a study on the selection split may not read it"
            )
    if splits == {"selection"} and any(cell.config.eval.preference_path for cell in cells):
        raise ConfigError(
            f"{where}: eval.preference_path: held-out preferences are reported, not selected on; leave it out of a "
            "study on the selection split"
        )


def _baseline(given: Any, cells: tuple[Cell, ...], where: str) -> Labels:
    names = [cell.labels["algorithm"] for cell in cells]
    if given is None:
        given = {"algorithm": BASE if BASE in names else names[0]}
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where}: baseline: expected labels such as {{algorithm: base}}, got {given!r}")
    keys = {key for cell in cells for key in cell.labels}
    for key, value in given.items():
        if key not in keys:
            raise ConfigError(unknown("axis", str(key), keys, where=f"{where}: baseline"))
        values = {str(cell.labels[key]) for cell in cells if key in cell.labels}
        if key == "algorithm" and value not in values:
            given = {**given, key: key_of(str(value))}
        if str(given[key]) not in values:
            raise ConfigError(unknown(key, str(value), values, where=f"{where}: baseline"))
    return dict(given)
