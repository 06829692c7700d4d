"""The command line: verbs, flags, exit codes, and one clear sentence for every wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import steelyard
from steelyard import cli
from steelyard.algorithms import catalogue
from steelyard.algorithms import load as load_algorithms
from steelyard.algorithms.core import algorithms
from steelyard.cli import VERBS, main
from steelyard.configfile import dump_yaml, find_recipe, load_run_config
from steelyard.errors import ConfigError
from steelyard.rewards.core import get_reward, rewards
from steelyard.rundir import RunDir

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = """\
model: builtin:0.1m
algorithm: sft
data: {path: rows.jsonl, max_length: 64}
train: {max_steps: 2, prompts_per_step: 2}
optim: {learning_rate: 1e-3}
"""
ROWS = [
    {"prompt": f"{who} has 2 coins . {who} finds 3 more . how many ?", "completion": "2 + 3 = 5 . #### 5"}
    for who in ("anna", "eva")
]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a small recipe and its rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEELYARD_DEBUG", raising=False)
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    write_rows(ROWS)
    return tmp_path


def write_rows(rows: list[Any], name: str = "rows.jsonl") -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fails(capsys: Capture, *words: str, code: int = 2) -> str:
    """The error of a command that must fail: no traceback, nothing on stdout."""
    capsys.readouterr()
    assert main(words) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err and not said.out
    lines = [line for line in said.err.splitlines() if line.startswith("steelyard: error: ")]
    assert lines, said.err
    return "\n".join(line.removeprefix("steelyard: error: ") for line in lines)


def succeeds(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    code = main(words)
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


# --------------------------------------------------------------------------------------------------
# Verbs and flags


def test_help_is_instant_and_names_every_verb() -> None:
    program = (
        "import sys; from steelyard.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'rich', 'yaml', 'scipy', 'argparse'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(steelyard.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", [*VERBS, "data inspect", "study status", "study select", "builtin train"])
def test_every_verb_has_help(verb: str, capsys: Capture) -> None:
    try:
        assert main([*verb.split(), "--help"]) == 0
    except SystemExit as left:  # argparse leaves when it has printed its help
        assert left.code == 0
    assert "usage: steelyard" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian x", "unknown verb 'trian'; choices: train, eval,"),
        ("trian x", "Did you mean `steelyard train`?"),
        ("sweep", "Did you mean `steelyard study`?"),
        ("dpo rows.jsonl", "Did you mean `steelyard train RECIPE --algorithm.name dpo`?"),
        ("--verbose", "unknown flag '--verbose'; the verb comes first"),
        ("data inspekt x", "unknown verb 'inspekt'; choices: inspect. Did you mean 'inspect'?"),
        ("builtin lst", "unknown verb 'lst'; choices: list, train. Did you mean 'list'?"),
        ("algorithms shw", "unknown verb or algorithm 'shw'"),
        ("algorithms show dpoo", "unknown algorithm 'dpoo'"),
        ("train", "train: name a recipe"),
        ("train smal.yaml", "smal.yaml: no such file. Did you mean 'small.yaml'?"),
        ("train dop", "unknown recipe 'dop'; choices: alpha_dpo, alphapo,"),
        ("train small.yaml --jsn", "--jsn: unknown flag. Did you mean '--json'?"),
        ("train small.yaml --out", "--out: expected a value"),
        ("train small.yaml --seed", "--seed: expected a value"),
        ("train small.yaml --lr 1", "--lr: unknown key 'lr'. Did you mean 'optim.learning_rate'?"),
        ("train small.yaml --optim.lerning-rate 1", "--optim.lerning_rate: unknown key 'lerning_rate' in `optim`"),
        ("train small.yaml --optim.learning_rate fast", "--optim.learning_rate: expected a number, got 'fast'"),
        ("train small.yaml --algorithm.name dpoo", "unknown algorithm 'dpoo'"),
        ("train small.yaml --eval.tasks arithmetik", "eval.tasks: unknown task 'arithmetik'; choices: arithmetic"),
        ("train small.yaml --eval.tasks facts --eval.split selection", "task 'facts' is unseen"),
        ("train small.yaml --algorithm grpo --rewards anwser", "unknown reward 'anwser'"),
        ("train small.yaml --model builtin:7b", "unknown ladder size '7b'; choices: 0.1m,"),
        ("train small.yaml --plugin nothing.py", "--plugin: nothing.py: expected a Python file"),
        ("data inspect rows.jsonl --roows 3", "unknown flag '--roows'"),
        ("data inspect rows.jsonl --overlong cut", "unknown value 'cut'; choices: drop, error, truncate."),
        ("data inspect rows.jsonl --max-length 0", "expected a whole number above zero, got '0'"),
        ("data inspect rows.jsonl --columns prompt", "expected OURS=THEIRS"),
        ("data inspect rows.jsonl --family pears", "--family: unknown family 'pears'"),
        ("data inspect rows.jsonl --chat-template t.jinja", "--chat-template needs --model or --tokenizer"),
        ("data inspect", "the following arguments are required: file"),
        ("generate builtin:0.1m", "give exactly one of --prompt TEXT, --prompts FILE and --task NAME"),
        ("generate builtin:0.1m --prompt hi --n 2", "--n above 1 needs a --temperature above 0"),
        ("eval builtin:0.1m", "eval: name what to measure"),
        ("compare nowhere", "nowhere: not a run directory"),
        ("study qick", "unknown study 'qick'"),
    ],
)
def test_wrong_words(words: str, message: str, capsys: Capture) -> None:
    assert message in fails(capsys, *words.split())
    assert not Path("runs").exists(), "nothing is left behind"


def test_directories_that_hold_no_study(capsys: Capture) -> None:
    for words in (("study", "status", "."), ("report", "."), ("study", "select", ".", "--out", "r.json")):
        assert "no study.json" in fails(capsys, *words, code=4)


def test_kebab_case_and_snake_case_are_the_same(capsys: Capture) -> None:
    texts = [
        succeeds(capsys, "train", "small.yaml", "--dry-run", flag, "1e-5", "--seed=3")
        for flag in ("--optim.learning_rate", "--optim.learning-rate")
    ]
    assert texts[0] == texts[1]
    plain = yaml.safe_load(texts[0])
    assert float(plain["optim"]["learning_rate"]) == 1e-5 and plain["seed"] == 3
    assert succeeds(capsys, "train", "small.yaml", "--dry_run") == succeeds(capsys, "train", "small.yaml", "--dry-run")


def test_a_dry_run_prints_the_resolved_recipe_and_does_nothing(capsys: Capture) -> None:
    words = ["train", str(RECIPES / "dpo.yaml"), "--train.gradient-checkpointing", "--dry-run"]
    text = succeeds(capsys, *words)
    resolved = load_run_config(RECIPES / "dpo.yaml", ["train.gradient_checkpointing=true"])
    assert text.rstrip() == dump_yaml(resolved).rstrip()
    assert json.loads(succeeds(capsys, *words, "--json")) == resolved.model_dump(mode="json")
    main(words)
    assert "generate -> pairs -> reference -> train; would write to runs" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_help_shows_the_knobs_of_the_recipes_algorithm(capsys: Capture) -> None:
    text = succeeds(capsys, "train", str(RECIPES / "simpo.yaml"), "--help")
    assert "--algorithm.gamma" in text and "target margin" in text and "0.0003" in text
    assert "--algorithm.desirable_weight" not in text
    other = succeeds(capsys, "train", str(RECIPES / "simpo.yaml"), "--algorithm.name", "kto", "--help")
    assert "--algorithm.desirable_weight" in other and "--algorithm.gamma" not in other
    assert "--optim.learning_rate" in succeeds(capsys, "train", "--help")


def test_the_catalogue_and_the_environment(capsys: Capture) -> None:
    assert "Direct Preference Optimization" in succeeds(capsys, "algorithms")
    assert json.loads(succeeds(capsys, "algorithms", "list", "--json"))["dpo"]["family"] == "Pairs"
    shown = succeeds(capsys, "algorithms", "show", "dpo")
    assert shown == succeeds(capsys, "algorithms", "dpo")
    assert "https://arxiv.org/abs/2305.18290" in shown and "--algorithm.beta float > 0  (default 0.1)" in shown
    assert json.loads(succeeds(capsys, "algorithms", "show", "kto", "--json"))["name"] == "kto"
    assert json.loads(succeeds(capsys, "env", "--json"))["versions"]["torch"]
    assert "torch" in succeeds(capsys, "env")
    assert succeeds(capsys, "version") == succeeds(capsys, "--version")
    assert "builtin:0.1m" in succeeds(capsys, "builtin")


# --------------------------------------------------------------------------------------------------
# Errors of other kinds


def test_tracebacks_are_shown_only_on_request(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("STEELYARD_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["trian"])
    monkeypatch.setenv("STEELYARD_DEBUG", "0")
    assert "trian" in fails(capsys, "trian")


def test_an_interrupt_says_how_to_continue(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert main(["train", "my recipe.yaml"]) == 130
    assert "same command again: steelyard train 'my recipe.yaml'" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def denied(words: list[str]) -> int:
        raise PermissionError(13, "Permission denied", "out")

    monkeypatch.setattr(cli, "_dispatch", denied)
    assert fails(capsys, "env").startswith("out: this place may not be read or written")


def test_a_place_that_is_no_directory(capsys: Capture) -> None:
    Path("taken").write_text("", encoding="utf-8")
    assert "taken is a file, where a directory is expected" in fails(capsys, "train", "small.yaml", "--out", "taken")
    assert "taken is a file, where a directory is expected" in fails(capsys, "study", "quick", "--out", "taken/x")
    for verb in (["report"], ["study", "status"]):
        assert fails(capsys, *verb, "nowhere") == "nowhere: no such directory"


def test_an_interrupted_training_says_where_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from steelyard.trainer import loop, run

    whole, one = loop.Loop._one, ["train", "small.yaml", "--out", "run", "--cache", "cache"]

    def interrupted(self: Any) -> Any:
        if self.step == 1:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(loop.Loop, "_one", interrupted)
    assert main([*one, "--restart"]) == 130
    said = capsys.readouterr().err
    assert "starts the training again, as there is no checkpoint (train.save_steps is not set): steelyard train" in said
    assert "--restart" not in said
    other = [*one[:2], "--out", "saved", "--cache", "cache", "--train.save_steps", "1"]
    assert main(other) == 130
    assert "interrupted; the same command continues from step 1: steelyard train small.yaml" in capsys.readouterr().err
    monkeypatch.setattr(loop.Loop, "_one", whole)
    assert main(other) == 0 and "continues from step 1 of 2" in capsys.readouterr().err
    assert run.RunDir.open("saved").facts()["steps"] == 2


def test_a_policy_has_no_quality_report(capsys: Capture) -> None:
    write_rows([{"prompt": "a", "chosen": "b", "rejected": "c"}], "pairs.jsonl")
    said = fails(capsys, "eval", "builtin:0.1m", "--quality", "pairs.jsonl", "--out", "quality")
    assert "builtin:0.1m is a policy, which has no scores" in said and "--preferences FILE" in said
    assert not Path("quality").exists()


def test_sigterm_stops_a_command_like_ctrl_c() -> None:
    program = (
        "import os, signal, sys\n"
        "from steelyard import cli\n"
        "cli._dispatch = lambda words: os.kill(os.getpid(), signal.SIGTERM) or signal.pause()\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == cli.TERMINATED and "interrupted" in done.stderr and "Traceback" not in done.stderr


def test_recipes_that_come_with_the_package(capsys: Capture) -> None:
    assert find_recipe("sft").samefile(RECIPES / "sft.yaml")
    assert find_recipe("recipes/hh-dpo.yaml").samefile(RECIPES / "hh-dpo.yaml")
    assert "trained tokens" in succeeds(capsys, "data", "inspect", "sft", "--rows", "0")


def test_online_rows_need_an_answer(capsys: Capture) -> None:
    message = fails(capsys, "train", "small.yaml", "--algorithm", "grpo")
    assert "rows.jsonl: the reward 'answer' (the default) compares with a column 'answer'" in message


def test_a_damaged_run(capsys: Capture) -> None:
    Path("damaged").mkdir()
    Path("damaged/run.json").write_text("{", encoding="utf-8")
    assert "damaged/run.json: damaged" in fails(capsys, "train", "small.yaml", "--out", "damaged")


# --------------------------------------------------------------------------------------------------
# Bad rows and models, all the way through `train`


def pair(chosen: Any = "a", rejected: Any = "b", **more: Any) -> dict[str, Any]:
    return {"prompt": "how many ?", "chosen": chosen, "rejected": rejected, **more}


@pytest.mark.parametrize(
    ("algorithm", "rows", "message"),
    [
        ("sft", [{"question": "a", "answer": "b"}], "data.columns: {prompt: question, completion: answer}"),
        (
            "dpo",
            [{"prompt": "a", "chosen": "b", "rejectd": "c"}],
            "preference rows need prompt, chosen, rejected; 'rejected' is missing",
        ),
        ("dpo", ROWS, "need preference rows, got prompt-completion rows"),
        (
            "dpo",
            [pair("a", "a"), pair("4", "4")],
            "no row is left to train on: 2 rows of 2 dropped: chosen and rejected are",
        ),
        ("dpo", [pair(), pair("", "b")] * 1 + [pair("", "")], "2 of 3 rows would be dropped or truncated"),
        (
            "dpo",
            [pair(), pair(3)],
            "rows.jsonl:2: column 'chosen': expected a string or a list of messages, got a number",
        ),
        ("sft", [{"prompt": "how many " * 40, "completion": "4"}], "the prompt alone reaches max_length"),
        ("sft", [{"prompt": "how many ?", "completion": " "}], "a completion is empty"),
    ],
)
def test_bad_rows(algorithm: str, rows: list[Any], message: str, capsys: Capture) -> None:
    write_rows(rows)
    assert message in fails(capsys, "train", "small.yaml", "--algorithm", algorithm, "--out", "run")
    assert not (Path("run") / "run.json").is_file() or RunDir.open("run").status == "failed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.jsonl: the file is empty"),
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": \n',
            "rows.jsonl:2: malformed JSON at column",
        ),
    ],
)
def test_bad_files(text: str, message: str, capsys: Capture) -> None:
    Path("rows.jsonl").write_text(text, encoding="utf-8")
    assert message in fails(capsys, "train", "small.yaml", "--out", "run")
    Path("rows.jsonl").unlink()
    assert "rows.jsonl: no such file" in fails(capsys, "train", "small.yaml", "--out", "run")
    assert not (Path("run") / "run.json").is_file() or RunDir.open("run").status == "failed"


def test_bad_models(model_directory: Path, capsys: Capture) -> None:
    words = ["train", "small.yaml", "--model", str(model_directory), "--out"]
    for file in model_directory.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer" in fails(capsys, *words, "a")
    (model_directory / "config.json").unlink()
    assert "no config.json" in fails(capsys, *words, "b")
    assert "nowhere" in fails(capsys, "train", "small.yaml", "--model", "./nowhere")
    for name in ("a", "b"):
        assert not Path(name).exists() or RunDir.open(name).status == "failed"


# --------------------------------------------------------------------------------------------------
# Looking at data


def test_inspecting_files_and_recipes(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = succeeds(capsys, "data", "inspect", "rows.jsonl", "--rows", "1")
    assert "trained on these rows" in text and "rows.jsonl:1" in text and "rows.jsonl:2" not in text
    assert "\x1b[" not in text and "trained  completion" in text
    with_model = succeeds(capsys, "data", "inspect", "rows.jsonl", "--model", "builtin:0.1m")
    assert "builtin:0.1m" in with_model and "'<|end|>'" in with_model
    found = json.loads(succeeds(capsys, "data", "inspect", "small.yaml", "--json"))
    assert (found["rows"], found["kept"], found["family"], found["max_length"]) == (2, 2, "Tokens", 64)
    assert any(token["trained"] for token in found["shown"][0]["completions"]["completion"])
    gold = json.loads(succeeds(capsys, "data", "inspect", str(RECIPES / "dpo.yaml"), "--json", "--rows", "1"))
    assert gold["rows"] == 4000 and gold["problems"] == []
    write_rows([{"q": "a", "a": "b"}], "qa.jsonl")
    renamed = succeeds(capsys, "data", "inspect", "qa.jsonl", "--columns", "prompt=q,completion=a")
    assert "prompt-completion" in renamed
    write_rows([pair("a", "a")], "same.jsonl")
    assert main(["data", "inspect", "same.jsonl", "--family", "dpo"]) == 2, "nothing could be trained on"


# --------------------------------------------------------------------------------------------------
# From training to comparison

PLUGIN = '''
from steelyard import algorithm, reward
from steelyard.types import Tokens

@algorithm(paper="none", data="gold")
def half(tokens: Tokens, *, scale: float = 0.5):
    """Half of the supervised loss.

    Args:
        scale: factor of the loss.
    """
    return -scale * tokens.completions.token_logp

@reward("short")
def short(prompts, completions, completion_ids, **columns):
    return [-float(len(ids)) for ids in completion_ids]
'''


@pytest.fixture
def forgotten_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What plugins register is gone after the test."""
    load_algorithms()
    get_reward("answer")
    for registry in (algorithms, rewards):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(catalogue, "_plugins", {})


@pytest.mark.usefixtures("forgotten_plugins")
def test_train_eval_generate_compare(capsys: Capture) -> None:
    Path("mine.py").write_text(PLUGIN, encoding="utf-8")
    evaluation = ["--eval.tasks", "arithmetic", "--eval.limit", "10", "--eval.split", "selection"]
    text = succeeds(capsys, "train", "small.yaml", "--out", "a", *evaluation)
    assert "arithmetic" in text and "finished: a" in text
    facts = json.loads(succeeds(capsys, "train", "small.yaml", "--out", "a", *evaluation, "--json"))
    assert facts["status"] == "finished" and facts["steps"] == 2, "a finished run is returned, not done again"
    assert fails(capsys, "train", "small.yaml", "--out", "a", "--seed", "1").startswith("a: holds the finished run")
    plugin = ["--plugin", "mine.py", "--algorithm.name", "half"]
    assert "--algorithm.scale" in succeeds(capsys, "train", "small.yaml", *plugin, "--help")
    succeeds(capsys, "train", "small.yaml", "--out", "b", *plugin, *evaluation)
    assert RunDir.open("b").facts()["identity"]["plugins"].keys() == {"mine"}
    rows = json.loads(succeeds(capsys, "compare", "a", "b", "--json"))
    assert {row["arm"] for row in rows} == {"sft", "half"} and rows[0]["task"] == "arithmetic"
    assert "baseline" in succeeds(capsys, "compare", "a", "b", "--baseline", "half")
    assert "unknown arm 'hafl'" in fails(capsys, "compare", "a", "b", "--baseline", "hafl")
    assert "at least two arms" in fails(capsys, "compare", "a")

    measured = ["eval", "a", "--tasks", "arithmetic", "--limit", "10", "--split", "selection", "--out", "c"]
    assert "a/model" in succeeds(capsys, *measured)
    again, first = RunDir.open("c").facts(), RunDir.open("a").facts()
    assert again["metrics"] == first["metrics"], "the model on disk is the model that was trained"
    lines = succeeds(capsys, "generate", "a", "--task", "arithmetic", "--limit", "2", "--json").splitlines()
    assert [json.loads(line)["sample"] for line in lines] == [0, 0] and "strict" in json.loads(lines[0])
    succeeds(capsys, "generate", "a", "--prompts", "rows.jsonl", "--n", "2", "--temperature", "1", "--out", "g.jsonl")
    assert len(Path("g.jsonl").read_text().splitlines()) == 4
    assert "exists already" in fails(capsys, "generate", "a", "--prompt", "hi", "--out", "g.jsonl")
    assert "how many" in succeeds(capsys, "generate", "a", "--prompt", "how many ?")


def test_the_python_interface() -> None:
    assert set(steelyard.__all__) <= set(dir(steelyard))
    run = steelyard.train("small.yaml", out="run", **{"train.max_steps": 1})
    assert run.finished and run.facts()["steps"] == 1
    other = steelyard.evaluate("builtin:0.1m", ["arithmetic"], split="selection", limit=5, out="base")
    assert other.facts()["metrics"]["eval/arithmetic/n"] == 5
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        steelyard.trian  # noqa: B018
    with pytest.raises(ConfigError, match="at least two arms"):
        steelyard.compare("base")


@pytest.mark.usefixtures("forgotten_plugins")
def test_plugins_that_fail(capsys: Capture) -> None:
    Path("broken.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    words = ["train", "small.yaml", "--dry-run", "--plugin"]
    assert "broken.py: ModuleNotFoundError" in fails(capsys, *words, "broken.py")
    Path("taken.py").write_text(PLUGIN.replace("def half", "def sft").replace('"short"', '"shorter"'))
    assert "algorithm 'sft' is registered twice" in fails(capsys, *words, "taken.py")
