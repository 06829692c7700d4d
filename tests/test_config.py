"""Recipes and flags: precedence, shorthands, and one sentence for everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from steelyard.config import ModelConfig, RunConfig
from steelyard.configfile import (
    dump_yaml,
    keys,
    load_run_config,
    read_yaml,
    validate_section,
)
from steelyard.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
BASE = "algorithm: {name: dpo, beta: 0.2}\ndata: {task: arithmetic, generate: {}}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A file that :func:`load` rewrites."""
    return tmp_path / "r.yaml"


def load(recipe: Path, text: str, *flags: str) -> RunConfig:
    recipe.write_text(text, encoding="utf-8")
    return load_run_config(recipe, flags, notice=lambda _: None)


# --------------------------------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_its_own_dump(path: Path, tmp_path: Path) -> None:
    config = load_run_config(path)
    (tmp_path / "dump.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert load_run_config(tmp_path / "dump.yaml") == config
    assert load_run_config(config.model_dump(mode="json")) == config


def test_defaults_then_files_then_flags(recipe: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("optim: {learning_rate: 2e-5}\nseed: 4\n", encoding="utf-8")
    recipe.write_text(BASE + "optim: {learning_rate: 1e-5, weight_decay: 0.1}\n", encoding="utf-8")
    assert load_run_config(recipe).optim.learning_rate == 1e-5
    both = load_run_config([recipe, later], ["seed=5"])
    assert (both.optim.learning_rate, both.optim.weight_decay, both.seed) == (2e-5, 0.1, 5)
    assert both.optim.lr_scheduler_type == "cosine" and both.algorithm.hyperparameters == {"beta": 0.2}


def test_shorthands(recipe: Path) -> None:
    text = (
        "model: builtin:0.5m\nalgorithm: grpo\ndata: {task: arithmetic}\nrewards: [answer, {name: format, weight: 2}]\n"
    )
    config = load(recipe, text)
    assert config.model.name_or_path == "builtin:0.5m" and config.algorithm.name == "grpo"
    assert [(r.name, r.weight) for r in config.rewards] == [("answer", 1.0), ("format", 2.0)]
    assert load(recipe, text, "model=builtin:0.1m").model.name_or_path == "builtin:0.1m"


@pytest.mark.parametrize(
    ("flag", "key", "value"),
    [
        ("optim.learning-rate=1e-6", "optim.learning_rate", 1e-6),
        ("optim.learning_rate=2", "optim.learning_rate", 2.0),
        ("optim.eps=1E-9", "optim.eps", 1e-9),
        ("optim.betas=[0.8, 0.9]", "optim.betas", (0.8, 0.9)),
        ("optim.max_grad_norm=null", "optim.max_grad_norm", None),
        ("train.gradient-checkpointing=true", "train.gradient_checkpointing", True),
        ("eval.tasks=arithmetic,facts", "eval.tasks", ["arithmetic", "facts"]),
        ("eval.tasks=[arithmetic]", "eval.tasks", ["arithmetic"]),
        ("lora.r=8", "lora.r", 8),
        ("lora.target_modules=q_proj,v_proj", "lora.target_modules", ["q_proj", "v_proj"]),
        ("lora.target_modules=all-linear", "lora.target_modules", "all-linear"),
        ("model.name_or_path=123", "model.name_or_path", "123"),
        ("data.columns={prompt: q}", "data.columns", {"prompt": "q"}),
        ("data.columns.prompt=q", "data.columns", {"prompt": "q"}),
        ("algorithm.beta=1", "algorithm.beta", 1.0),
    ],
)
def test_flags_mean_what_they_look_like(recipe: Path, flag: str, key: str, value: Any) -> None:
    found: Any = load(recipe, BASE, flag)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_numbers_in_yaml_need_no_dot(recipe: Path) -> None:
    config = load(recipe, BASE + "optim: {learning_rate: 1e-6, eps: 1E-9}\ntrain: {max_steps: 3}\n")
    assert (config.optim.learning_rate, config.optim.eps, config.train.max_steps) == (1e-6, 1e-9, 3)


def test_another_algorithm_drops_the_hyperparameters_of_the_first(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(BASE, encoding="utf-8")
    config = load_run_config(recipe, ["algorithm.name=simpo", "algorithm.gamma=0.5"])
    expected = {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0}
    assert config.algorithm.name == "simpo" and config.algorithm.hyperparameters == expected
    said = capsys.readouterr()
    assert "the algorithm is now simpo; dropped dpo's beta=0.2" in said.err and not said.out
    same = load_run_config(recipe, {"algorithm.name": "dpo"})
    assert same.algorithm.hyperparameters == {"beta": 0.2} and not capsys.readouterr().err


def test_paths_start_from_the_recipe_if_they_exist_there(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "gsm").mkdir()
    text = "algorithm: sft\ndata: {path: %s}\neval: {tasks: ['gsm8k:gsm', arithmetic], preference_path: data:x}\n"
    config = load(recipe, text % "rows.jsonl")
    assert config.data.path == str(tmp_path / "rows.jsonl")
    assert config.eval.tasks == [f"gsm8k:{tmp_path / 'gsm'}", "arithmetic"]
    assert config.eval.preference_path == "data:x"
    assert load(recipe, text % "elsewhere.jsonl").data.path == "elsewhere.jsonl"
    assert load(recipe, text % "rows.jsonl", "data.path=rows.jsonl").data.path == "rows.jsonl", "flags: as typed"
    assert load_run_config({"algorithm": "sft", "data": {"path": "rows.jsonl"}}, folder=tmp_path).data.path == str(
        tmp_path / "rows.jsonl"
    )


def test_sections_on_their_own() -> None:
    assert validate_section(ModelConfig, {"dtype": "bfloat16"}, "model").dtype == "bfloat16"
    with pytest.raises(ConfigError, match="model.dtype: unknown value 'bf16'.*'bfloat16'"):
        validate_section(ModelConfig, {"dtype": "bf16"}, "model")


# --------------------------------------------------------------------------------------------------
# What is wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys: the line, and where the key belongs
        (BASE + "optim: {lerning_rate: 1}\n", "r.yaml:3: unknown key 'lerning_rate' in `optim`;"),
        (BASE + "optim: {lerning_rate: 1}\n", "Did you mean 'optim.learning_rate'?"),
        (BASE + "learning_rate: 1\n", "r.yaml:3: unknown key 'learning_rate'. Did you mean 'optim.learning_rate'?"),
        (BASE + "optim:\n  lr: 1\n", "r.yaml:4: unknown key 'lr' in `optim`. Did you mean 'optim.learning_rate'?"),
        (BASE + "sft: {optim: {lr: 1}}\n", "in `sft.optim`. Did you mean 'sft.optim.learning_rate'?"),
        (BASE + "per_device_train_batch_size: 8\n", "Did you mean 'train.prompts_per_step'?"),
        (BASE + "num_generations: 8\n", "'data.generate.num_generations'? (or 'rollout.num_generations')"),
        (BASE + "beta: 1\n", "Did you mean 'algorithm.beta'?"),
        (BASE + "optim: {beta: 1}\n", "unknown key 'beta' in `optim`. Did you mean 'algorithm.beta'?"),
        (BASE + "desirable_weight: 1\n", "it is a hyperparameter of kto, kto_pair, not of dpo"),
        (BASE + "wat: 1\n", "unknown key 'wat'; choices: algorithm, data, eval,"),
        (
            BASE + "seed: 0\nrewards: [{name: answer, wieght: 2}]\n",
            "rewards.0: unknown key 'wieght'; choices: name, path, reference, weight.",
        ),
        # algorithms
        (
            "algorithm: dpoo\ndata: {task: a}\n",
            "r.yaml:1: algorithm.name: unknown algorithm 'dpoo'; choices: alpha_dpo,",
        ),
        ("algorithm: {name: dpo, bet: 1}\ndata: {task: a}\n", "unknown hyperparameter of dpo 'bet'; choices: beta."),
        ("algorithm: {name: dpo, beta: -1}\ndata: {task: a}\n", "algorithm.beta: must be greater than 0"),
        ("algorithm: {name: dpo, beta: x}\ndata: {task: a}\n", "algorithm.beta: expected a number, got 'x'"),
        ("algorithm: {beta: 1}\ndata: {task: a}\n", "'algorithm.name' is missing"),
        ("data: {task: a}\n", "r.yaml: 'algorithm' is missing: name what is optimised"),
        # types and bounds
        (
            BASE + "optim:\n  weight_decay: 0\n  learning_rate: fast\n",
            "r.yaml:5: optim.learning_rate: expected a number, got 'fast'",
        ),
        (BASE + "optim: {learning_rate: '1e-5'}\n", "optim.learning_rate: expected a number, got '1e-5'"),
        (BASE + "optim: {learning_rate: -1}\n", "optim.learning_rate: must be at least 0, got -1"),
        (BASE + "optim: {learning_rate: .inf}\n", "optim.learning_rate: expected a finite number"),
        (
            BASE + "optim: {lr_scheduler_type: cosin}\n",
            "unknown value 'cosin'; choices: constant, cosine, linear. Did you mean 'cosine'?",
        ),
        (BASE + "optim: {betas: [0.9]}\n", "optim.betas: expected more values, got [0.9]"),
        (BASE + "optim: 3\n", "r.yaml:3: optim: expected a section with keys, got 3"),
        (BASE + "seed: 1.5\n", "seed: expected a whole number, got 1.5"),
        (BASE + "seed: true\n", "seed: expected a whole number, got true"),
        (BASE + "threads: 0\n", "threads: must be greater than 0, got 0"),
        (BASE + "eval: {tasks: arithmetic}\n", "eval.tasks: expected a list, got 'arithmetic'"),
        (BASE + "lora: {target_modules: 3}\n", "lora.target_modules: expected a string or a list, got 3"),
        (BASE + "schema: 2\n", "schema: unknown value '2'; choices: 1."),
        ("algorithm: sft\n", "'data' is missing: say where the rows come from"),
        ("algorithm: sft\ndata: {}\n", "r.yaml:2: data needs exactly one of `task`"),
        ("algorithm: sft\ndata: {task: a, path: b}\n", "data needs exactly one of `task`"),
        # YAML itself
        (BASE + "seed: 1\nseed: 2\n", "r.yaml:4:1: malformed YAML: the key 'seed' is given twice (first in line 3)"),
        ("a: [1\nb: 2\n", "r.yaml:2:2: malformed YAML"),
        (
            "a:\n\t- b\n",
            "r.yaml:2:1: malformed YAML: found character '\\t' that cannot start any token; indent with spaces",
        ),
        ("", "r.yaml: the file is empty, expected a mapping"),
        ("- a\n", "r.yaml: expected a mapping of sections, got ['a']"),
        ("a: !!python/object:os.system {}\n", "r.yaml:1:4: malformed YAML: could not determine a constructor"),
    ],
)
def test_files_that_are_wrong(recipe: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(recipe, text)
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value) and "Input should" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("lr=1", "--lr: unknown key 'lr'. Did you mean 'optim.learning_rate'?"),
        ("opim.learning_rate=1", "--opim.learning_rate: unknown key 'opim'; choices: algorithm,"),
        ("seed.x=1", "--seed.x: 'seed' is a value, not a section; it has no key 'x'"),
        ("algorithm.gama=1", "--algorithm.gama: unknown hyperparameter of dpo 'gama'; choices: beta."),
        ("algorithm.name=dpoo", "--algorithm.name: unknown algorithm 'dpoo'"),
        ("optim.learning_rate=fast", "--optim.learning_rate: expected a number, got 'fast'"),
        ("algorithm.beta=null", "--algorithm.beta: expected a number, got null"),
        ("algorithm.beta=yes", "--algorithm.beta: expected a number, got true"),
        ("seed=[", "--seed:1:2: malformed YAML"),
        ("seed", "'seed': expected key=value"),
    ],
)
def test_flags_that_are_wrong(recipe: Path, flag: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(recipe, BASE, flag)
    assert str(caught.value).startswith(message)


def test_all_problems_are_named_at_once(recipe: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(recipe, BASE + "optim: {learning_rate: fast}\nseed: -1\n")
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(ConfigError) as caught:
        load(recipe, BASE + "lr: 1\nwat: 2\n")
    assert len(str(caught.value).splitlines()) == 2


def test_files_that_are_not_there(recipe: Path, tmp_path: Path) -> None:
    load(recipe, BASE)
    with pytest.raises(ConfigError, match=r"s.yaml: no such file. Did you mean '.*r.yaml'"):
        read_yaml(tmp_path / "s.yaml")
    with pytest.raises(ConfigError, match="is a directory, expected a YAML file"):
        read_yaml(tmp_path)
    recipe.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(recipe)


def test_every_key_has_a_sentence_of_help() -> None:
    assert {"optim.learning_rate", "data.generate.prompts", "sft.train.max_steps", "schema"} <= keys().keys()

    def check(section: Any, prefix: str) -> None:
        for name, info in section.model_fields.items():
            assert info.description, f"{prefix}{name} has no docstring"

    check(RunConfig, "")
    for key, section in keys().items():
        if section is not None:
            check(section, f"{key}.")


def test_the_resolved_dump_is_plain_yaml(recipe: Path) -> None:
    plain = yaml.safe_load(dump_yaml(load(recipe, BASE)))
    assert plain["schema"] == 1 and plain["algorithm"] == {"name": "dpo", "beta": 0.2} and plain["lora"] is None


PROFILE = {"data": {"path": "x.jsonl"}, "profile": "oxrl"}


def test_oxrls_names_and_profile(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("algorithm: {name: CPO-SimPO, beta: 3.0}\ndata: {path: x.jsonl}\n", encoding="utf-8")
    notes: list[str] = []
    config = load_run_config(path, notice=notes.append)
    assert config.algorithm.name == "cpo_simpo" and config.profile == "paper"
    assert notes[0].startswith(f"note: {path}: 'CPO-SimPO' is oxRL's name of `cpo_simpo`; oxRL: beta 2")
    assert config == load_run_config(path, ["algorithm.name=cpo_simpo"], notice=notes.append)
    shared = load_run_config(path, ["algorithm.name=DPOP", "profile=oxrl"], notice=notes.append)
    assert shared.algorithm.hyperparameters == {"beta": 0.1, "lam": 5.0} and shared.profile == "oxrl"
    given = load_run_config(path, ["algorithm.name=dpop", "algorithm.lam=9", "profile=oxrl"], notice=notes.append)
    assert given.algorithm.hyperparameters == {"beta": 0.1, "lam": 9.0}
    assert notes[-1] == "note: `dpop`: profile oxrl sets lam 5.0; the recipe gives lam 9.0, which wins"
    said = len(notes)
    assert load_run_config(shared.model_dump(mode="json"), notice=notes.append) == shared and len(notes) == said
    load_run_config({"algorithm": {"name": "simpo", "beta": 2.0, "gamma": 1.0}, **PROFILE}, notice=notes.append)
    ours, theirs = "the recipe gives beta 2.0, gamma 1.0, which win", "profile oxrl sets beta 0.1 and gamma 0.5"
    assert notes[said:] == [f"note: `simpo`: {theirs}; {ours}"]
    with pytest.raises(ConfigError, match="--profile: unknown value 'oxlr'.* Did you mean 'oxrl'"):
        load_run_config(path, ["profile=oxlr"])
