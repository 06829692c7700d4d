"""Names and hyperparameters: the registry, the decorator that fills it, errors with the nearest choice."""

from __future__ import annotations

import ast
import inspect
import math
import statistics
import textwrap
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Interval, Lt
from torch import Tensor

from steelyard import registry as registry_module
from steelyard.algorithms import catalogue, core, facts, load, oxrl
from steelyard.algorithms.advantages import advantages
from steelyard.algorithms.catalogue import describe, load_catalogue, resolve_hyperparameters
from steelyard.algorithms.core import algorithm, algorithms, loss
from steelyard.data.schemas import REQUIRED, SCHEMAS
from steelyard.errors import ConfigError, SteelyardError, nearest, unknown
from steelyard.registry import Registry
from steelyard.types import Pairs, Tokens

load()

# --------------------------------------------------------------------------------------------------
# Registry and messages


def test_registry_keeps_order_and_refuses_duplicates() -> None:
    tools: Registry[int] = Registry("tool")
    assert tools("saw")(1) == 1 and tools.register("axe", 2) == 2
    assert tools.register("saw", 1) == 1  # the same entry again: a module imported twice
    assert (list(tools), len(tools), dict(tools.items())) == (["saw", "axe"], 2, {"saw": 1, "axe": 2})
    assert "saw" in tools and "hammer" not in tools
    with pytest.raises(ConfigError, match="tool 'saw' is registered twice"):
        tools.register("saw", 3)


def test_an_unknown_name_gets_the_choices_and_the_nearest() -> None:
    tools: Registry[int] = Registry("tool")
    with pytest.raises(ConfigError, match=r"^unknown tool 'saw'; choices: \(none\)\.$"):
        tools.get("saw")
    tools.register("hammer", 1)
    tools.register("axe", 2)
    with pytest.raises(ConfigError, match="^a.yaml: unknown tool 'hamer'; choices: axe, hammer.* 'hammer'"):
        tools.get("hamer", where="a.yaml")
    assert unknown("tool", "zzz", ["axe"]) == "unknown tool 'zzz'; choices: axe."
    assert nearest("HAMMERS", ["Hammer", "axe"]) == "Hammer" and nearest("zzz", ["axe"]) is None
    assert issubclass(ConfigError, SteelyardError) and issubclass(SteelyardError, ValueError)


def test_entry_points_are_loaded_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Point:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> str:
            asked.append(self.name)
            return f"loaded {self.name}"

    def entry_points(*, group: str) -> list[Point]:
        assert group == "steelyard.tools"
        return [Point("lathe"), Point("press")]

    monkeypatch.setattr(registry_module, "entry_points", entry_points)
    tools: Registry[str] = Registry("tool")
    tools.register("saw", "own")
    assert tools.get("saw") == "own" and not asked
    assert tools.get("lathe") == tools.get("lathe") == "loaded lathe" and asked == ["lathe"]
    with pytest.raises(ConfigError, match="unknown tool 'drill'"):
        tools.get("drill")
    assert asked == ["lathe"]


# --------------------------------------------------------------------------------------------------
# The decorator


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """An empty registry in the place of the real one."""
    empty: Registry[Any] = Registry("algorithm")
    monkeypatch.setattr(core, "algorithms", empty)
    return empty


def test_keyword_only_defaults_become_hyperparameters(fresh: Registry[Any]) -> None:
    @algorithm(paper="2401.00001", reference=True)
    def mine(
        pairs: Pairs,
        *,
        beta: Annotated[float, Gt(0.0)] = 0.1,
        share: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.5,
        cap: Annotated[float, Gt(-7)] | None = None,
        floor: Annotated[float | None, Ge(0.0), Lt(9.0)] = None,
        link: Literal["logistic", "hinge"] = "logistic",
        steps: int = 3,
        average: bool = True,
    ) -> Tensor:
        """A title (Somebody, 2024).

        Args:
            beta: a strength that needs
                two lines.
            link: which link.
        """
        return -pairs.chosen.logp

    spec = fresh.get("mine")
    assert (spec.family, spec.reference, spec.data, spec.title) == (
        "Pairs",
        "frozen",
        "pairs",
        "A title (Somebody, 2024).",
    )
    found = {name: (hp.type, hp.default, hp.optional, hp.bounds) for name, hp in spec.hyperparameters.items()}
    assert found == {
        "beta": ("float", 0.1, False, {"gt": 0.0}),
        "share": ("float", 0.5, False, {"ge": 0.0, "lt": 1.0}),
        "cap": ("float", None, True, {"gt": -7.0}),
        "floor": ("float", None, True, {"ge": 0.0, "lt": 9.0}),
        "link": ("str", "logistic", False, {}),
        "steps": ("int", 3, False, {}),
        "average": ("bool", True, False, {}),
    }
    assert spec.hyperparameters["link"].choices == ("logistic", "hinge")
    assert spec.hyperparameters["beta"].help == "a strength that needs two lines."
    assert isinstance(spec.hyperparameters["cap"].bounds["gt"], float)


def test_an_ill_formed_algorithm_is_refused_when_it_is_defined(fresh: Registry[Any]) -> None:
    def positional(pairs: Pairs, beta: float = 0.1) -> Tensor:
        return pairs.chosen.logp

    def without_default(pairs: Pairs, *, beta: float) -> Tensor:
        return pairs.chosen.logp

    def of_no_family(pairs: Tensor) -> Tensor:
        return pairs

    def unusable(tokens: Tokens, *, mix: int | float = 1) -> Tensor:
        return tokens.completions.logp

    for function, message in (
        (positional, "'beta' must be keyword-only with a default"),
        (without_default, "'beta' must be keyword-only with a default"),
        (of_no_family, "of_no_family: annotate 'pairs' with one of Tokens, Pairs"),
        (unusable, "'mix' has an unusable annotation"),
    ):
        with pytest.raises(ConfigError, match=message):
            algorithm(paper="-")(function)
    assert not len(fresh)


def test_columns_are_declared_once_and_ordered_among_themselves(fresh: Registry[Any]) -> None:
    def mine(pairs: Pairs) -> Tensor:
        return pairs.chosen.logp

    with pytest.raises(ConfigError, match="mine: the column 'a' is declared as needed and as optional"):
        algorithm(paper="-", columns=("a",), optional_columns=("a",))(mine)
    with pytest.raises(ConfigError, match="mine: `ordered` names 'b', which is not among its `columns`"):
        algorithm(paper="-", columns=("a",), ordered=("a", "b"))(mine)
    algorithm(paper="-", columns=("a", "b"), optional_columns=("c",), ordered=("a", "b"))(mine)
    entry = fresh.get("mine").describe()
    assert (entry["columns"], entry["optional_columns"], entry["ordered"]) == (["a", "b"], ["c"], ["a", "b"])
    said = dict(facts.needs(entry))
    assert said["columns"] == "a, b (a above b in every row)" and said["may carry"].startswith("c (")


def test_the_order_and_the_optional_columns_of_the_catalogue() -> None:
    known = load_catalogue()
    assert {name for name, entry in known.items() if entry["ordered"]} == {"odpo"}
    assert {name: entry["optional_columns"] for name, entry in known.items() if entry["optional_columns"]} == {
        "bco": ["density_ratio"]
    }


def test_what_is_said_of_a_files_rows_is_what_is_checked() -> None:
    assert {**SCHEMAS, "Rollouts": ()} == {**facts.FILE_ROWS, "Rollouts": ()}
    for kind, columns in facts.ROW_COLUMNS.items():
        assert set(REQUIRED[kind]) <= set(columns.replace(" or ", ", ").split(", "))
    said = {name: facts.file_rows(entry) for name, entry in load_catalogue().items() if entry["data"] != "none"}
    assert said["kto"].startswith("unpaired (prompt, completion, label) or preference (prompt, chosen, rejected)")
    assert said["prm"].startswith("stepwise (") and said["grpo"] == "any with a prompt"
    assert said["filtered_dpo"].startswith("preference (") and "answer to judge by" in said["filtered_dpo"]
    assert "labelled completions" in dict(facts.needs(describe("kto")))["learns from"]


def test_the_untrained_start_has_no_loss() -> None:
    assert algorithms.get("base").loss is None and not algorithms.get("base").online
    with pytest.raises(ConfigError, match="'base' has no loss"):
        loss("base", Tokens.from_logps([-1.0]))


def test_only_methods_that_sample_are_online() -> None:
    assert all(spec.family == "Rollouts" and spec.loss for _, spec in algorithms.items() if spec.online)
    assert not algorithms.get("dpo").online and algorithms.get("grpo").online
    assert all(not spec.advantage or spec.advantage in advantages for _, spec in algorithms.items())


# --------------------------------------------------------------------------------------------------
# Hyperparameters of the registered algorithms

HYPERPARAMETERS = [
    (name, hp, entry) for name, e in load_catalogue().items() for hp, entry in e["hyperparameters"].items()
]
every_hyperparameter = pytest.mark.parametrize(
    ("name", "hp", "entry"), HYPERPARAMETERS, ids=[f"{name}-{hp}" for name, hp, _ in HYPERPARAMETERS]
)


@every_hyperparameter
def test_the_default_is_valid_and_is_the_functions_own(name: str, hp: str, entry: dict[str, Any]) -> None:
    assert resolve_hyperparameters(name, {}) == resolve_hyperparameters(name, {hp: entry["default"]})
    function = algorithms.get(name).loss
    assert function is not None and (function.__kwdefaults__ or {})[hp] == entry["default"]


@every_hyperparameter
def test_values_out_of_bounds_and_of_other_types_are_refused(name: str, hp: str, entry: dict[str, Any]) -> None:
    for bound, limit in entry["bounds"].items():
        near = 1 if entry["type"] == "int" else 1e-6
        outside = {"gt": limit, "ge": limit - near, "lt": limit, "le": limit + near}[bound]
        with pytest.raises(ConfigError, match=rf"^algorithm\.{hp}: must be .* {limit}, got"):
            resolve_hyperparameters(name, {hp: outside})
    words = {"float": "number", "int": "whole number", "bool": "value true or false", "str": "string"}
    wrong: list[Any] = [[1.0], {}]
    wrong += [1.0, 1] if entry["type"] == "str" else ["much"]
    wrong += [1.0, "true", 1] if entry["type"] == "bool" else [True, math.nan, math.inf]
    wrong += ["nan"] if entry["type"] in ("int", "float") else []
    wrong += [] if entry["optional"] else [None]
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"^algorithm\.{hp}: expected a {words[entry['type']]}, got"):
            resolve_hyperparameters(name, {hp: value})


@every_hyperparameter
def test_a_misspelt_hyperparameter_gets_a_suggestion(name: str, hp: str, entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"unknown hyperparameter of {name} '{hp}x'.*Did you mean '{hp}'\?"):
        resolve_hyperparameters(name, {f"{hp}x": entry["default"]})


def test_numbers_as_yaml_reads_them() -> None:
    values = resolve_hyperparameters("dpo", {"beta": "1e-2"})  # YAML 1.1 reads 1e-2 as a string
    assert values == {"beta": 0.01} and resolve_hyperparameters("dpo", {"beta": 1}) == {"beta": 1.0}
    assert isinstance(resolve_hyperparameters("dpo", {"beta": 1})["beta"], float)
    assert resolve_hyperparameters("grpo", {"epsilon_high": 0.28})["epsilon_high"] == 0.28
    assert resolve_hyperparameters("grpo", {"epsilon_high": None})["epsilon_high"] is None


def test_choices_are_listed() -> None:
    declared = {"link": {"type": "str", "default": "logistic", "choices": ["logistic", "hinge"]}}
    with pytest.raises(ConfigError, match="algorithm.link: unknown value 'hing'; .*Did you mean 'hinge'"):
        resolve_hyperparameters("mine", {"link": "hing"}, declared=declared)
    assert resolve_hyperparameters("mine", {"link": "hinge"}, declared=declared) == {"link": "hinge"}


def test_the_loss_checks_its_hyperparameters() -> None:
    view = Pairs.from_logps([-1.0], [-2.0], [-1.0], [-2.0])
    assert torch.allclose(loss("dpo", view, beta=0.5), torch.tensor([math.log(2)]))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown hyperparameter of dpo 'gamma'"):
        loss("dpo", view, gamma=0.5)
    with pytest.raises(ConfigError, match="algorithm.beta: must be greater than 0.0, got -0.5"):
        loss("dpo", view, beta=-0.5)


def test_an_unknown_algorithm_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="unknown algorithm 'simpoo'; choices: .*Did you mean 'simpo'"):
        describe("simpoo")
    with pytest.raises(ConfigError, match="Did you mean 'dpo_norm'"):
        algorithms.get("dpo_norms")


def test_a_plugins_algorithm_is_known_to_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_plugins", {})
    entry = {"hyperparameters": {"beta": {"type": "float", "default": 1.0}}}
    catalogue.add_plugin_entry("mine", entry)
    assert describe("mine").items() >= entry.items() and "mine" not in load_catalogue()
    assert resolve_hyperparameters("mine", {}) == {"beta": 1.0}


# --------------------------------------------------------------------------------------------------
# oxRL's names and profile


def test_oxrl_has_51_names_each_with_a_key() -> None:
    assert len(oxrl.ALIASES) == 51 and len({alias.key for alias in oxrl.ALIASES.values()}) == 51
    folded = {name.lower().replace("-", "") for name in oxrl.ALIASES}
    assert len(folded) == 51, "two names that differ only in case or dashes would be ambiguous"
    missing = {alias.key for alias in oxrl.ALIASES.values()} - set(load_catalogue())
    assert missing <= oxrl.ONLINE, "only online reinforcement learning may still be missing"


@pytest.mark.parametrize("alias", oxrl.ALIASES.values(), ids=list(oxrl.ALIASES))
def test_a_name_of_oxrl_means_our_key_in_any_spelling(alias: oxrl.Alias) -> None:
    if alias.key not in load_catalogue():
        with pytest.raises(ConfigError, match=f"^here: '{alias.name}' is oxRL's name of `{alias.key}`, .* not built"):
            catalogue.resolve(alias.name, where="here")
        return
    assert catalogue.resolve(alias.name) == alias.key and describe(alias.name) == load_catalogue()[alias.key]
    for spelling in (alias.name.upper(), alias.name.lower(), alias.name.replace("-", "_"), alias.name + "-"):
        own = spelling in load_catalogue()  # a key means itself: `bco` is not oxRL's BCO
        assert catalogue.resolve(spelling) == (spelling if own else alias.key)
    assert alias.name in oxrl.note(alias.name, alias.key) and alias.remark in oxrl.note(alias.name, alias.key)


def test_what_differs_from_a_key_by_its_case_alone_is_said() -> None:
    clashes = {name for name, alias in oxrl.ALIASES.items() if name.lower() in load_catalogue()}
    clashes = {name for name in clashes if oxrl.ALIASES[name].key != name.lower()}
    assert clashes == {"BCO", "EXO", "NCA"}
    for name in clashes:
        assert f"(`{name.lower()}` is something else)" in oxrl.note(name, oxrl.ALIASES[name].key)


@pytest.mark.parametrize("key", oxrl.PROFILES["oxrl"])
def test_the_oxrl_profile_fits_the_signatures(key: str) -> None:
    values = oxrl.PROFILES["oxrl"][key]
    assert resolve_hyperparameters(key, values).items() >= values.items()
    assert values.get("beta", 0.1) == 0.1


def test_the_profile_covers_oxrls_comparison() -> None:
    assert len(oxrl.PROFILES["oxrl"]) == 20 and oxrl.PROFILES["oxrl"].keys() <= {a.key for a in oxrl.ALIASES.values()}
    assert oxrl.fill_from_profile({"name": "dpop", "lam": 7.0}, "oxrl", "dpop") == {
        **{"name": "dpop", "lam": 7.0, "beta": 0.1},
    }
    assert oxrl.fill_from_profile({"name": "sft"}, "oxrl", "sft") == {"name": "sft"}
    assert oxrl.fill_from_profile({"name": "dpop"}, "paper", "dpop") == {"name": "dpop"}


# --------------------------------------------------------------------------------------------------
# Algorithms of installed packages


def test_an_installed_packages_algorithm_is_found_by_name(
    fresh: Registry[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name, value = "theirs", "their_package.losses:theirs"

        def load(self) -> Any:
            @algorithm(paper="2401.00001")
            def theirs(pairs: Pairs, *, beta: float = 0.25) -> Tensor:
                """A loss (Them, 2024)."""
                return -beta * pairs.chosen.logp

            return theirs  # what an entry point names is the function, which has registered itself

    points = lambda *, group: [Point()] if group == "steelyard.algorithms" else []  # noqa: E731
    monkeypatch.setattr(catalogue, "entry_points", points)
    monkeypatch.setattr(registry_module, "entry_points", points)
    monkeypatch.setattr(catalogue, "_plugins", {})
    assert catalogue.installed() == {"theirs": "their_package.losses:theirs"}
    assert catalogue.resolve("theirs") == "theirs" and resolve_hyperparameters("theirs", {}) == {"beta": 0.25}
    with pytest.raises(ConfigError, match="Did you mean 'theirs'"):
        describe("their")


# --------------------------------------------------------------------------------------------------
# The bar for the losses


def body_lines(function: Any) -> int:
    """Lines of a function's body without its docstring."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    body = definition.body[1:] if ast.get_docstring(definition) else definition.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_losses_are_a_few_lines() -> None:
    lines = {
        name: body_lines(spec.loss)
        for name, spec in algorithms.items()
        if spec.loss is not None and spec.loss.__module__.startswith("steelyard.")
    }
    assert max(lines.values()) <= 20, max(lines, key=lambda name: lines[name])
    assert statistics.median(lines.values()) <= 6
