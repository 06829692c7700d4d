"""Reading tables, recognising schemas, and errors that name file, line, column and the nearest choice."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from steelyard.config import DataConfig
from steelyard.data.numbers import as_number, check_numbers
from steelyard.data.rows import Table, read_table
from steelyard.data.schemas import (
    as_label,
    detect_schema,
    schema_for,
    step_labels,
    validate,
)
from steelyard.data.sides import split_conversation, split_pair
from steelyard.data.sources import load_table, read_source, resolve_path, row_texts, shipped
from steelyard.errors import DataError

ROWS = [{"prompt": "a b", "completion": "c"}, {"prompt": "d\u2028e", "completion": "f"}]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def jsonl(path: Path, rows: list[Any]) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# --------------------------------------------------------------------------------------------------
# Reading


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / "a.jsonl", ROWS), write(tmp_path / "a.json", json.dumps(ROWS))]
    files.append(write(tmp_path / "a.csv", "prompt,completion\na b,c\nd\u2028e,f\n"))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = tmp_path / "a.parquet"
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    for path in (*files, packed, parquet):
        table = read_table(path)
        assert table.rows == ROWS, path
        assert table.source == str(path) and table.columns == ["prompt", "completion"] and len(table) == 2
        assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_lines_count_blank_lines_and_the_csv_header(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.jsonl", '{"text": "a"}\n\n\n{"text": "b"}\n'))
    assert table.lines == [1, 4] and table.where(1).endswith("a.jsonl:4")
    assert read_table(write(tmp_path / "a.csv", 'text\n"two\nlines"\nb\n')).lines == [3, 4]


def test_limit_and_renames(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"question": "q", "answer": "1", "prompt": "old"}] * 3)
    table = read_table(path, columns={"prompt": "question"}, limit=2)
    assert table.rows == [{"prompt": "q", "answer": "1"}] * 2
    swapped = read_table(path, columns={"prompt": "answer", "answer": "prompt"}).rows[0]
    assert swapped == {"question": "q", "prompt": "1", "answer": "old"}
    with pytest.raises(DataError, match=r"maps 'prompt' to the column 'questoin'.*Did you mean 'question'"):
        read_table(path, columns={"prompt": "questoin"})
    with pytest.raises(DataError, match="two of our columns to one column"):
        read_table(path, columns={"prompt": "question", "completion": "question"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl: the file is empty"),
        ("a.jsonl", "\n \n", "a.jsonl: the file is empty"),
        ("a.json", "", "a.json: the file is empty"),
        ("a.json", "[]", "a.json: the file is empty"),
        ("a.csv", "prompt,completion\n", "a.csv: the file is empty"),
        ("a.jsonl", '{"text": "a"}\n{"text": }\n', r"a.jsonl:2: malformed JSON at column 10"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', r"a.jsonl:2: expected a JSON object, got a list"),
        ("a.json", '[\n{"text": "a"},\n{"text" "b"}]', r"a.json:3: malformed JSON at column 9"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', r"malformed JSON.*one object per line is called .jsonl"),
        ("a.json", '{"text": "a"}', "expected a JSON list of objects, got an object"),
        ("a.json", "[1]", "a.json:1: expected a JSON object, got a number"),
        ("a.csv", "prompt,completion\na\n", "a.csv:2: expected 2 columns"),
        ("a.csv", "prompt,completion\na,b,c\n", "a.csv:2: expected 2 columns"),
        ("a.txt", "text", "unknown format '.txt'; expected .jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / name, text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:2: not UTF-8 text"):
        read_table(path)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "abc"}\n')[:-6])
    with pytest.raises(DataError, match="not a complete gzip file"):
        read_table(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="Parquet"):
        read_table(tmp_path / "a.parquet")


def test_sources_by_path_and_by_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", ROWS)
    assert load_table(DataConfig(path=str(path), limit=1)).rows == ROWS[:1]
    with pytest.raises(DataError, match=r"no such file. Did you mean '.*train.jsonl'"):
        resolve_path(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="a directory, where a file"):
        resolve_path(tmp_path)
    with pytest.raises(DataError, match="unknown shipped data set 'hh'"):
        resolve_path("data:hh")
    table = read_source("data:hh_harmless_base_test")
    assert "hh_harmless_base_train" in shipped()
    assert table.source == "data:hh_harmless_base_test" and len(table) == 447


def test_texts_of_rows() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    table = Table.from_rows([{"messages": messages, "text": "c", "label": True}], "x")
    assert [text for text in row_texts(table) if text in "abc"] == ["a", "b", "c"]


# --------------------------------------------------------------------------------------------------
# Schemas


@pytest.mark.parametrize(
    ("columns", "schema"),
    [
        ("text", "text"),
        ("messages", "messages"),
        ("prompt", "prompt-only"),
        ("prompt answer", "prompt-only"),
        ("prompt completion", "prompt-completion"),
        ("prompt chosen rejected", "preference"),
        ("chosen rejected", "preference"),
        ("prompt completion label", "unpaired"),
        ("messages label", "unpaired"),
        ("prompt completion text", "prompt-completion"),
        ("prompt completions scores", "ranked"),
        ("prompt completions ranks", "ranked"),
        ("prompt completions labels", "stepwise"),
        ("prompt steps mistake_index answer", "first-mistake"),
    ],
)
def test_the_most_specific_schema_is_found(columns: str, schema: str) -> None:
    assert detect_schema(Table.from_rows([dict.fromkeys(columns.split(), "x")], "x")) == schema


def test_unknown_columns_suggest_a_rename() -> None:
    table = Table.from_rows([{"question": "q", "answer": "a"}], "gsm.jsonl")
    with pytest.raises(DataError) as caught:
        detect_schema(table)
    assert "gsm.jsonl: the columns 'answer', 'question' fit no known schema" in str(caught.value)
    assert "data.columns: {prompt: question, completion: answer}" in str(caught.value)


def test_a_missing_column_names_the_nearest() -> None:
    table = Table.from_rows([{"prompt": "q", "choosen": "a", "rejected": "b"}], "p.jsonl")
    with pytest.raises(DataError, match=r"'chosen' is missing.*\{chosen: choosen\}"):
        validate(table, "preference")
    with pytest.raises(DataError, match="unknown schema 'pairs'"):
        validate(table, "pairs")


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 3}, r"x.jsonl:2: column 'text': expected a string, got a number"),
        ({"text": None}, r"x.jsonl:2: column 'text' is null; expected a string"),
        ({"prompt": {}, "completion": "a"}, r"column 'prompt': expected a string or a list of messages, got an object"),
        ({"prompt": "a"}, r"x.jsonl:2: column 'completion' is missing in this row"),
        ({"messages": []}, r"expected a non-empty list of messages, got an empty list"),
        ({"messages": ["hi"]}, r"message 1: expected an object with 'role' and 'content', got a string"),
        (
            {"messages": [USER, {"role": "asistant", "content": "a"}]},
            r"message 2: unknown role 'asistant'.*'assistant'",
        ),
        ({"messages": [{"from": "human", "value": "a"}]}, r"expected 'role' and 'content'.*ShareGPT"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"only text blocks.*'image'"),
        ({"messages": [{"role": "user", "content": 1}]}, r"expected 'content' to be a string, got a number"),
        ({"prompt": "a", "completion": "b", "label": "yes"}, r"column 'label': expected true or false, got 'yes'"),
        ({"text": "a", "images": ["x.png"]}, r"images are not supported"),
        ({"text": "a", "tools": "{"}, r"column 'tools': malformed JSON"),
        ({"text": "a", "tools": {"a": 1}}, r"column 'tools': expected a list of JSON schemas, got an object"),
        ({"text": "a", "chat_template_kwargs": 1}, r"'chat_template_kwargs': expected an object"),
    ],
)
def test_values_of_the_wrong_type(row: dict[str, Any], message: str) -> None:
    good = {"text": "t", "messages": [USER], "prompt": "p", "completion": "c", "label": True}
    first = {key: good[key] for key in row if key in good}
    if "prompt" in row:
        first["completion"] = "c"
    table = Table([first, row], "x.jsonl", "", [1, 2])
    with pytest.raises(DataError, match=message):
        validate(table, detect_schema(table))


LISTS = {
    "ranked": {"prompt": "p", "completions": ["a", "b"], "scores": [1, 0]},
    "stepwise": {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
    "first-mistake": {"prompt": "p", "steps": ["a", "b"], "mistake_index": 1},
}


@pytest.mark.parametrize(
    ("schema", "change", "message"),
    [
        ("ranked", {"scores": [1]}, r"x.jsonl:2: column 'scores': expected one for each of the 2 completions, got 1"),
        ("ranked", {"scores": [1, None]}, r"column 'scores', item 2: expected a finite number, got None"),
        ("ranked", {"scores": [1, float("inf")]}, r"item 2: expected a finite number, got inf"),
        ("ranked", {"scores": "1 2"}, r"column 'scores': expected a non-empty list, got a string"),
        ("ranked", {"completions": ["a"], "scores": [1]}, r"column 'completions': expected at least two, got one"),
        (
            "ranked",
            {"completions": ["a", 2]},
            r"'completions', item 2: expected a string or a list of messages, got a n",
        ),
        (
            "stepwise",
            {"labels": [True, 2]},
            r"'labels', item 2: expected true, false, a share between 0 and 1, or null",
        ),
        ("stepwise", {"completions": ["a", ["b"]]}, r"'completions', item 2: expected the text of a step, got a list"),
        ("stepwise", {"completions": []}, r"'completions': expected a non-empty list, got an empty list"),
        ("first-mistake", {"mistake_index": 2}, r"column 'mistake_index': expected 0 to 1 or null, got 2"),
        ("first-mistake", {"mistake_index": "1"}, r"expected the place of a step \(from 0\) or null, got a string"),
    ],
)
def test_lists_that_do_not_fit(schema: str, change: dict[str, Any], message: str) -> None:
    good = LISTS[schema]
    table = Table([good, {**good, **change}], "x.jsonl", "", [1, 2])
    assert detect_schema(table) == schema
    with pytest.raises(DataError, match=message):
        validate(table, schema)


def test_what_is_said_about_steps() -> None:
    def labels(**row: Any) -> list[float | None]:
        schema = "stepwise" if "labels" in row else "first-mistake"
        return [None if math.isnan(label) else label for label in step_labels(row, schema)]

    assert labels(completions=["a", "b", "c"], labels=[True, 0.25, None]) == [1, 0.25, None]
    steps = ["a", "b", "c"]
    assert labels(steps=steps, mistake_index=None) == [1, 1, 1]
    assert labels(steps=steps, mistake_index=1) == [1, 0, None], "what follows from a mistake is not judged"
    assert labels(steps=steps, mistake_index=0) == [0, None, None]


def test_numbers_that_an_algorithm_declares() -> None:
    table = Table([{"margin": "0.5", "p_chosen": 0.7}, {"margin": -2, "p_chosen": 1.2}], "x.csv", "", [2, 3])
    check_numbers(table, ["margin"])
    with pytest.raises(DataError, match=r"x.csv:3: column 'p_chosen': expected a probability, got 1.2"):
        check_numbers(table, ["p_chosen"])
    with pytest.raises(DataError, match=r"x.csv: `m` needs a finite number in a column 'margn'.*\{margn: margin\}"):
        check_numbers(table, ["margn"], "`m`")
    for wrong in (True, None, "high", math.nan, "inf", [1]):
        with pytest.raises(ValueError, match="not"):
            as_number(wrong)


def test_the_missing_column_of_lists_is_named() -> None:
    table = Table.from_rows([{"input": "p", "steps": ["a"], "mistake_index": 0}], "m.jsonl")
    with pytest.raises(DataError, match=r"'prompt' is missing.*\{prompt: input\}.*Process reward models"):
        schema_for(table, "StepLabels")
    both = Table.from_rows([{**LISTS["ranked"], "chosen": "a", "rejected": "b"}], "b.jsonl")
    assert (schema_for(both, "Pairs"), schema_for(both, "Ranked")) == ("preference", "ranked")


@pytest.mark.parametrize("value", [True, 1, 1.0, "true", "True", " 1 "])
def test_labels(value: Any) -> None:
    assert as_label(value) is True
    for wrong in (2, "y", None, [True]):
        with pytest.raises(ValueError, match="not a label"):
            as_label(wrong)


# --------------------------------------------------------------------------------------------------
# Prompts that are implicit


def test_the_common_beginning_of_a_pair_is_its_prompt() -> None:
    start = "\n\nHuman: hi\n\nAssistant: I see\n\nHuman: so?\n\nAssistant:"
    assert split_pair(f"{start} I am", f"{start} I was") == (start, " I am", " I was")
    assert split_pair("one two three", "one two four") == ("one two ", "three", "four")
    assert split_pair("tree", "trek") == ("", "tree", "trek"), "no word is divided"


def test_the_common_messages_of_a_pair_are_its_prompt() -> None:
    def says(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]

    assert split_pair(says("q", "a", "r", "x"), says("q", "a", "r", "y")) == (
        says("q", "a", "r"),
        says("q", "x")[1:],
        says("q", "y")[1:],
    )
    prompt, chosen, rejected = split_pair(says("q", "a"), says("q", "a", "r", "b"))
    assert prompt == says("q") and [len(chosen), len(rejected)] == [1, 3]


def test_a_conversation_is_split_at_its_first_answer() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "tool", "assistant", "user")]
    prompt, completion = split_conversation(turns)
    assert [m["role"] for m in prompt] == ["system", "user"]
    assert [m["role"] for m in completion] == ["assistant", "tool", "assistant"]
    assert split_conversation([USER]) == ([USER], [])
