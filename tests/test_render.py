"""Tokens and masks of rows against hand-made expectations; truncation, lint, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import build_tokenizer
from steelyard.builtin.tokenizer import build as build_builtin
from steelyard.config import DataConfig
from steelyard.data.bpe import train_bpe
from steelyard.data.inspect import inspect_table, show
from steelyard.data.render import Renderer, completion_ids, completion_text, prompt_ids, stop_ids
from steelyard.data.rows import Table, read_table
from steelyard.data.sources import read_source, row_texts
from steelyard.data.steps import step_ends
from steelyard.errors import DataError, ModelError

WORDS = ["[", "]", "system", "user", "assistant", "tool", "\n", "be", "good", "hi", "there", "ok", "bye", "now", "x"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} [ {{ m.role }} ] {{ m.content }}"
    "{% if m.role == 'assistant' %} {{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %} [ assistant ]{% endif %}"
)
"""Every turn ends in a separator behind EOS, as Qwen's and Gemma's turns end in a newline."""
SHARED = Path(os.environ.get("STEELYARD_SHARED") or Path(__file__).parents[2] / "shared")


@pytest.fixture
def chat() -> PreTrainedTokenizerFast:
    """Word-level with a token for the newline, and with a chat template."""
    tokenizer = build_tokenizer(WORDS, template=TEMPLATE)
    split = pre_tokenizers.Split(Regex(r"\n|\S+"), behavior="removed", invert=True)
    tokenizer.backend_tokenizer.pre_tokenizer = split  # type: ignore[assignment]
    return tokenizer


@pytest.fixture
def plain() -> PreTrainedTokenizerFast:
    """Word-level, without a chat template."""
    return build_tokenizer(WORDS)


def words(tokenizer: PreTrainedTokenizerFast, ids: Any) -> str:
    """Tokens with spaces between them; a newline is written ``/``."""
    return " ".join(tokenizer.convert_ids_to_tokens([int(i) for i in ids])).replace("\n", "/")


def says(*turns: str) -> list[dict[str, str]]:
    """``"user: hi"`` as messages."""
    return [dict(zip(("role", "content"), turn.split(": "), strict=True)) for turn in turns]


def only(tokenizer: PreTrainedTokenizerFast, row: Mapping[str, Any], family: str, **settings: Any) -> Any:
    """The one group of one row."""
    result = Renderer(tokenizer, **settings).render([row], family)  # type: ignore[arg-type]
    assert len(result.groups) == 1
    return result.groups[0]


# --------------------------------------------------------------------------------------------------
# Ids and masks by hand


def test_a_string_prompt_is_one_user_message(chat: PreTrainedTokenizerFast) -> None:
    group = only(chat, {"prompt": "hi there", "completion": "ok"}, "Tokens")
    assert words(chat, group.prompt) == "<bos> [ user ] hi there / [ assistant ]"
    assert words(chat, group.completions[0]) == "ok <eos>", "the separator behind EOS is nobody's to sample"
    assert group.masks[0].tolist() == [True, True]
    assert group.prompt.dtype == np.int32 and group.completions[0].dtype == np.int32
    as_messages = {"prompt": says("user: hi there"), "completion": says("assistant: ok")}
    other = only(chat, as_messages, "Tokens")
    assert other.prompt.tolist() == group.prompt.tolist()
    assert other.completions[0].tolist() == group.completions[0].tolist()


def test_without_a_template_text_stays_text(plain: PreTrainedTokenizerFast) -> None:
    group = only(plain, {"prompt": "hi there", "completion": "ok"}, "Tokens")
    assert words(plain, group.prompt) == "hi there"
    assert words(plain, group.completions[0]) == "ok <eos>"
    with pytest.raises(DataError, match=r"rows:1: messages need a chat template"):
        only(plain, {"messages": says("user: hi", "assistant: ok")}, "Tokens")


def test_every_assistant_turn_is_trained_and_nothing_between(chat: PreTrainedTokenizerFast) -> None:
    turns = says("system: be good", "user: hi", "assistant: ok", "tool: x", "assistant: bye now", "user: there")
    group = only(chat, {"messages": turns}, "Tokens")
    assert words(chat, group.prompt) == "<bos> [ system ] be good / [ user ] hi / [ assistant ]"
    assert words(chat, group.completions[0]) == "ok <eos> / [ tool ] x / [ assistant ] bye now <eos>"
    assert words(chat, group.completions[0][group.masks[0]]) == "ok <eos> bye now <eos>"


def test_documents_start_at_bos_and_ignore_the_template(chat: PreTrainedTokenizerFast) -> None:
    group = only(chat, {"text": "hi there"}, "Tokens")
    assert words(chat, group.prompt) == "<bos>" and words(chat, group.completions[0]) == "hi there <eos>"
    chat.bos_token = None  # type: ignore[assignment]
    assert words(chat, only(chat, {"text": "hi"}, "Tokens").prompt) == "<eos>"


def test_an_empty_prompt_is_bos(plain: PreTrainedTokenizerFast) -> None:
    assert words(plain, prompt_ids(plain, "")) == "<bos>"
    assert words(plain, only(plain, {"prompt": "", "completion": "hi"}, "Tokens").completions[0]) == "hi <eos>"


def test_training_on_prompts_too(chat: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "hi", "completion": "ok"}
    group = only(chat, row, "Tokens", completion_only_loss=False)
    assert words(chat, group.prompt) == "<bos>"
    assert words(chat, group.completions[0]) == "[ user ] hi / [ assistant ] ok <eos>" and group.masks[0].all()
    pair = {"prompt": "hi", "chosen": "ok", "rejected": "bye"}
    assert len(only(chat, pair, "Pairs", completion_only_loss=False).prompt) > 1, "only supervised methods"


def test_preference_rows_for_every_family(chat: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "hi", "chosen": "ok", "rejected": "bye now", "score_chosen": 2.0, "score_rejected": 1.0, "id": 7}
    pair = only(chat, row, "Pairs")
    assert [words(chat, ids) for ids in pair.completions] == ["ok <eos>", "bye now <eos>"]
    assert pair.columns == {"score_chosen": 2.0, "score_rejected": 1.0, "id": 7} and pair.key == "rows:1"
    assert pair.completion_columns["score"].tolist() == [2.0, 1.0]
    assert only(chat, row, "Scores").k == 2
    assert only(chat, row, "Unpaired").completion_columns["label"].tolist() == [True, False]
    assert [words(chat, ids) for ids in only(chat, row, "Tokens").completions] == ["ok <eos>"]
    rollout = only(chat, row, "Rollouts")
    assert rollout.k == 0 and rollout.columns == row, "rewards see the whole row"


def test_a_conversation_that_repeats_its_prompt(chat: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "hi", "chosen": says("user: hi", "assistant: ok"), "rejected": says("user: hi", "assistant: bye")}
    expected = only(chat, {"prompt": "hi", "chosen": "ok", "rejected": "bye"}, "Pairs")
    for given in (row, {key: row[key] for key in ("chosen", "rejected")}):
        group = only(chat, given, "Pairs")
        assert group.prompt.tolist() == expected.prompt.tolist()
        assert [ids.tolist() for ids in group.completions] == [ids.tolist() for ids in expected.completions]


def test_labelled_rows(chat: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "hi", "completion": "ok", "label": True}, {"prompt": "hi", "completion": "x", "label": "false"}]
    groups = Renderer(chat).render(rows, "Unpaired").groups
    assert [g.completion_columns["label"].tolist() for g in groups] == [[True], [False]]
    conversation = {"messages": says("user: hi", "assistant: ok"), "label": 1}
    assert only(chat, conversation, "Unpaired").prompt.tolist() == groups[0].prompt.tolist()


def test_lists(chat: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "hi", "completions": ["bye", "ok now", says("assistant: x")], "scores": [1, 2.5, "0"], "id": 7}
    group = only(chat, row, "Ranked")
    assert [words(chat, ids) for ids in group.completions] == ["bye <eos>", "ok now <eos>", "x <eos>"]
    assert group.completion_columns["score"].tolist() == [1.0, 2.5, 0.0] and group.columns == {"id": 7}
    ranks = {key: value for key, value in row.items() if key != "scores"} | {"ranks": [2, 1, 3]}
    assert only(chat, ranks, "Ranked").completion_columns["score"].tolist() == [-2, -1, -3], "1 is the best"
    rows = [row, {**row, "scores": [1, 1, 1]}, {**row, "completions": ["ok", "ok", "ok"]}]
    report = Renderer(chat, max_dropped=1.0).render(rows, "Ranked").report
    assert report.dropped == {"equal_scores": 1, "identical_pair": 1} and report.kept == 1


def test_labelled_steps_end_at_line_breaks(chat: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "hi", "completions": ["be good", "ok\nnow", "bye"], "labels": [True, 0.25, None]}
    group = only(chat, row, "StepLabels")
    assert words(chat, group.completions[0]) == "be good / ok now / bye <eos>", "a step is one line"
    column = group.token_columns["step_label"][0]
    assert column.dtype == np.float32 and group.masks[0].all()
    assert {int(i): float(column[i]) for i in np.flatnonzero(~np.isnan(column))} == {2: 1.0, 5: 0.25}
    mistake = {"prompt": "hi", "steps": ["be good", "ok", "bye"], "mistake_index": 1}
    column = only(chat, mistake, "StepLabels").token_columns["step_label"][0]
    assert {int(i): float(column[i]) for i in np.flatnonzero(~np.isnan(column))} == {2: 1.0, 4: 0.0}
    whole = only(chat, {**mistake, "mistake_index": None}, "StepLabels").token_columns["step_label"][0]
    assert np.flatnonzero(~np.isnan(whole)).tolist() == [2, 4, 6], "the last step ends with the end token"


def test_the_ends_of_steps_are_where_scoring_looks(chat: PreTrainedTokenizerFast) -> None:
    group = only(chat, {"prompt": "hi", "completions": ["be good", "bye"], "labels": [True, True]}, "StepLabels")
    labelled = np.flatnonzero(~np.isnan(group.token_columns["step_label"][0]))
    assert step_ends(group.completions[0].tolist(), lambda ids: completion_text(chat, ids)) == labelled.tolist()


def test_steps_that_cannot_be_labelled(chat: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "hi", "completions": ["be good", "bye"], "labels": [True, False]}
    rows = [row, {**row, "completions": ["ok", " "]}, {**row, "labels": [None, None]}]
    report = Renderer(chat, max_dropped=1.0).render(rows, "StepLabels").report
    assert report.dropped == {"empty_step": 1, "no_step_label": 1}
    assert report.labels == {True: 1, False: 1}
    with pytest.raises(DataError, match=r"cannot be told apart.*2 steps, but 1 can be told apart"):
        Renderer(plain).render([row], "StepLabels")  # it has no token for a line break
    with pytest.raises(DataError, match=r"no line break; end each step with a full stop that stands alone \(`.* \.`\)"):
        Renderer(plain).render([row], "StepLabels")
    cut = Renderer(chat, max_length=12, overlong="truncate", max_dropped=1.0).render([row, row], "StepLabels")
    (column,) = cut.groups[0].token_columns["step_label"]
    assert len(column) == len(cut.groups[0].completions[0]) == 3 and column[2] == 1.0
    gone = Renderer(chat, max_length=11, overlong="truncate").render([row], "StepLabels", strict=False).report
    assert gone.dropped == {"truncated_to_nothing": 1}, "a cut that leaves no label"


def test_numbers_become_columns(chat: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "hi", "chosen": "ok", "rejected": "bye", "margin": "2", "score_chosen": "?", "score_rejected": 0}
    group = Renderer(chat).render([row], "Pairs", columns=("margin",)).groups[0]
    assert group.columns["margin"] == 2.0 and "score" not in group.completion_columns, "nobody asked for the others"
    with pytest.raises(DataError, match=r"rows:1: column 'score_chosen': expected a finite number"):
        Renderer(chat).render([row], "Pairs", columns=("score_chosen", "score_rejected"))


def test_verdicts_and_teachers(chat: PreTrainedTokenizerFast) -> None:
    labelled = {"prompt": "hi", "completion": "ok", "label": False}
    assert only(chat, labelled, "TokenScores").completion_columns["label"].tolist() == [False]
    pair = {"prompt": "hi", "chosen": "ok", "rejected": "bye"}
    assert only(chat, pair, "TokenScores").completion_columns["label"].tolist() == [True, False]
    assert [words(chat, ids) for ids in only(chat, pair, "Distill").completions] == ["ok <eos>"]


def test_human_labelled_steps_of_big_bench_mistake() -> None:
    path = SHARED / "data" / "step_labels" / "big_bench_mistake.jsonl.gz"
    if not path.is_file():
        pytest.skip("needs the shared data")
    table = read_source(path, columns={"prompt": "input"}, limit=150)
    renderer = Renderer(train_bpe(row_texts(table), 1024), max_length=4096)
    result = renderer.render(table, "StepLabels")
    assert result.report.kept == 150 and result.report.schema == "first-mistake"
    for row, group in zip(table.rows, result.groups, strict=True):
        column = group.token_columns["step_label"][0]
        places = np.flatnonzero(~np.isnan(column))
        first = row["mistake_index"]
        assert len(places) == (len(row["steps"]) if first is None else first + 1)
        assert column[places].tolist() == [1.0] * len(places) if first is None else [1.0] * first + [0.0]
        text = completion_text(renderer.tokenizer, group.completions[0][: places[-1] + 1])
        assert text.rstrip("\n") == "\n".join(" ".join(step.split()) for step in row["steps"][: len(places)])


def test_helpers_give_what_the_renderer_gives(chat: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast) -> None:
    for tokenizer in (chat, plain):
        group = only(tokenizer, {"prompt": "hi", "completion": "ok now"}, "Tokens")
        assert prompt_ids(tokenizer, "hi").tolist() == group.prompt.tolist()
        assert completion_ids(tokenizer, "hi", "ok now").tolist() == group.completions[0].tolist()
        assert words(tokenizer, completion_ids(tokenizer, "hi", "ok now", eos=False)) == "ok now"
        assert completion_text(tokenizer, group.completions[0]) == "ok now"
        assert stop_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_masks_agree_with_transformers_own() -> None:
    tokenizer = build_builtin()
    turns = says("system: be good", "user: how many ?", "assistant: 4", "tool: 5", "assistant: the answer is 5")
    expected = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    group = only(tokenizer, {"messages": turns}, "Tokens")
    assert [*group.prompt, *group.completions[0]] == expected["input_ids"]
    assert [False] * len(group.prompt) + group.masks[0].tolist() == [m == 1 for m in expected["assistant_masks"]]


# --------------------------------------------------------------------------------------------------
# Templates in the wild


def test_the_end_of_a_turn_may_be_another_token(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = TEMPLATE.replace("{{ eos_token }}", "<end_of_turn>")
    chat.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    assert [words(chat, [i]) for i in stop_ids(chat)] == ["<eos>", "<end_of_turn>"]
    result = Renderer(chat).render([{"prompt": "hi", "completion": "ok"}], "Tokens")
    assert words(chat, result.groups[0].completions[0]) == "ok <end_of_turn>"
    assert result.report.without_trained_eos == 0 and result.report.eos_appended == 0


def test_a_template_without_an_end_gets_eos(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = TEMPLATE.replace("{{ eos_token }}", "").replace("{{ '\\n' }}", "")
    result = Renderer(chat).render([{"prompt": "hi", "completion": "ok"}], "Tokens")
    assert words(chat, result.groups[0].completions[0]) == "ok <eos>"
    assert result.report.eos_appended == 1


def test_a_template_that_rewrites_earlier_turns_is_refused(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "{{ messages | length }} " + TEMPLATE
    with pytest.raises(
        DataError, match=r"f.jsonl:4: the chat template does not preserve prefixes.*model.chat_template"
    ):
        Renderer(chat).render(Table([{"prompt": "hi", "completion": "ok"}], "d/f.jsonl", "", [4]), "Tokens")


def test_a_template_may_refuse_a_conversation(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(DataError, match=r"rows:1: the chat template refuses the conversation \(user\): no system"):
        only(chat, {"prompt": "hi", "completion": "ok"}, "Tokens")


def test_a_template_may_not_lose_what_is_said(chat: PreTrainedTokenizerFast) -> None:
    blocks = TEMPLATE.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")
    chat.chat_template = blocks
    with pytest.raises(DataError, match="leaves out what the user says"):
        only(chat, {"prompt": "hi"}, "Rollouts")
    chat.chat_template = TEMPLATE.replace("{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% endif %}")
    with pytest.raises(DataError, match="rows:1: the chat template leaves out what the assistant says"):
        only(chat, {"prompt": "hi", "completion": "ok"}, "Tokens")


def test_a_template_may_fail_in_any_way(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "{{ messages[3].content }}"
    with pytest.raises(DataError, match="the chat template refuses the conversation"):
        only(chat, {"prompt": "hi", "completion": "ok"}, "Tokens")


@pytest.mark.parametrize("name", ["gemma3", "llama3", "qwen2_5", "qwen3", "phi3", "lfm2", "gemma4"])
def test_real_templates(name: str) -> None:
    """Templates of real models (as TRL ships them): one trained answer with its end, nothing lost."""
    trl = pytest.importorskip("trl", reason="the templates come with TRL")
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this TRL has no {file.name}")
    tokenizer = train_bpe(["hello there"], 280)
    ends = {"gemma3": "<end_of_turn>", "llama3": "<|eot_id|>", "phi3": "<eos>", "gemma4": "<turn|>"}
    end = ends.get(name, "<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", *ends.values()]})
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    group = only(tokenizer, {"prompt": "hello", "completion": "there"}, "Tokens")
    assert tokenizer.decode(group.completions[0]).endswith(end) and group.masks[0].all()
    assert "there" in completion_text(tokenizer, group.completions[0])
    assert tokenizer.decode(group.prompt).count("hello") == 1
    assert group.prompt.tolist().count(tokenizer.bos_token_id) <= 1


def test_options_of_a_row_reach_the_template(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "{% if tools %}now {% endif %}{% if terse %}x {% endif %}" + TEMPLATE
    row = {"prompt": "hi", "completion": "ok", "tools": '[{"name": "f"}]', "chat_template_kwargs": {"terse": True}}
    group = only(chat, row, "Tokens")
    assert words(chat, group.prompt).startswith("now x <bos> [ user ] hi")
    options = {"tools": [{"name": "f"}], "terse": True}
    assert prompt_ids(chat, "hi", **options).tolist() == group.prompt.tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": says("user: hi", "assistant: ok"), "completion": "x"}, "the prompt ends with an assistant message"),
        ({"prompt": "hi", "completion": says("user: x")}, "the completion starts with a 'user' message"),
        ({"prompt": "hi", "completion": says("assistant: x", "assistant: x")}, "two assistant messages follow"),
        ({"messages": says("assistant: x")}, "no message before its first assistant turn"),
    ],
)
def test_conversations_that_make_no_sense(chat: PreTrainedTokenizerFast, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        only(chat, row, "Tokens")


def test_a_tokenizer_without_eos_is_refused(plain: PreTrainedTokenizerFast) -> None:
    plain.eos_token = None  # type: ignore[assignment]
    with pytest.raises(ModelError, match="no EOS token"):
        Renderer(plain)


# --------------------------------------------------------------------------------------------------
# Losses of rows, counted


def test_long_rows_are_dropped_cut_or_refused(chat: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "hi", "completion": "ok"},
        {"prompt": "hi", "completion": "ok ok ok ok ok"},
        {"prompt": "hi there hi there hi there", "completion": "ok"},
    ]
    renderer = Renderer(chat, max_length=12, max_dropped=1.0)
    assert len(prompt_ids(chat, "hi")) == 9
    dropped = renderer.render(rows, "Tokens")
    assert [g.key for g in dropped.groups] == ["rows:1"]
    assert dropped.report.dropped == {"too_long": 1, "prompt_too_long": 1}
    assert [(lost.key, lost.reason) for lost in dropped.report.lost] == [
        ("rows:2", "too_long"),
        ("rows:3", "prompt_too_long"),
    ]
    renderer.overlong = "truncate"
    cut = renderer.render(rows, "Tokens")
    assert [words(chat, g.completions[0]) for g in cut.groups] == ["ok <eos>", "ok ok ok"]
    assert (cut.report.truncated, cut.report.without_trained_eos, cut.report.dropped.total()) == (1, 1, 1)
    assert cut.report.lengths()["completion"]["max"] == 6, "lengths are those before the cut"
    renderer.overlong = "error"
    with pytest.raises(DataError, match=r"rows:2: 9 prompt \+ 6 completion tokens, but data.max_length is 12"):
        renderer.render(rows, "Tokens")


def test_prompts_without_answers_are_only_dropped_when_no_token_fits(chat: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "hi"}, {"prompt": "hi hi hi hi"}]
    result = Renderer(chat, max_length=10).render(rows, "Rollouts")
    assert [g.key for g in result.groups] == ["rows:1"] and result.report.dropped == {"prompt_too_long": 1}


def test_what_cannot_be_learned_from_is_dropped_and_counted(chat: PreTrainedTokenizerFast) -> None:
    pairs = [
        {"prompt": "hi", "chosen": "ok", "rejected": "bye"},
        {"prompt": "hi", "chosen": "ok", "rejected": "ok"},
        {"prompt": "hi", "chosen": "", "rejected": "ok"},
        {"prompt": "hi", "chosen": "ok ok x", "rejected": "ok ok now"},
        {"prompt": None, "chosen": "hi", "rejected": "ok"},
    ]
    result = Renderer(chat, max_length=11, overlong="truncate", max_dropped=1.0).render(pairs, "Pairs")
    assert [g.key for g in result.groups] == ["rows:1"]
    assert result.report.dropped == {
        "identical_pair": 1,
        "empty_completion": 1,
        "identical_after_truncation": 1,
        "no_common_prompt": 1,
    }
    assert result.report.to_dict()["dropped"]["identical_pair"] == 1
    silent = Renderer(chat, max_dropped=1.0).render(
        [{"messages": says("user: hi")}, {"messages": says("user: hi", "assistant: ok")}], "Tokens"
    )
    assert silent.report.dropped == {"no_trained_token": 1}
    multi = {"messages": says("user: hi", "assistant: ok", "user: x x x x x x", "assistant: ok")}
    assert only(chat, multi, "Tokens", max_length=14, overlong="truncate", max_dropped=1.0).masks[0].sum() == 2


def test_losing_too_much_stops(chat: PreTrainedTokenizerFast) -> None:
    same = {"prompt": "hi", "chosen": "ok", "rejected": "ok"}
    with pytest.raises(DataError, match=r"no row is left to train on: 2 rows of 2 dropped: chosen and rejected"):
        Renderer(chat).render([same, same], "Pairs")
    with pytest.raises(DataError, match=r"2 of 3 rows would be dropped or truncated, more than data.max_dropped=0.5"):
        Renderer(chat).render([same, same, {**same, "rejected": "bye"}], "Pairs")
    assert Renderer(chat).render([same], "Pairs", strict=False).groups == []
    with pytest.raises(DataError, match="rows: there are no rows"):
        Renderer(chat).render([], "Pairs")


def test_rows_of_another_schema_are_refused(chat: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"need preference rows, got prompt-completion rows"):
        Renderer(chat).render([{"prompt": "hi", "completion": "ok"}], "Pairs")
    with pytest.raises(DataError, match="unknown family 'Pair'.*'Pairs'"):
        Renderer(chat).render([{"prompt": "hi"}], "Pair")  # type: ignore[arg-type]


def test_labels_without_contrast(chat: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "hi", "completion": "ok", "label": True}]
    assert "every label is true" in Renderer(chat).render(rows, "Unpaired").report.problems()[-1]


def test_lint(chat: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast) -> None:
    clean = Renderer(chat).render([{"prompt": "hi", "completion": "ok"}], "Tokens").report
    assert clean.problems() == [] and clean.double_bos == 0
    unknown = Renderer(chat).render([{"prompt": "hello", "completion": "ok"}], "Tokens").report
    assert unknown.unknown == 1 and "words that the tokenizer does not know" in unknown.problems()[0]
    doubled = Renderer(chat).render([{"prompt": "hi", "completion": "ok"}], "Tokens")
    assert doubled.report.double_bos == 0, "the template's BOS is the only one"
    text = Renderer(plain).render([{"text": "<bos> hi"}], "Tokens").report
    assert text.double_bos == 1 and "two BOS" in text.problems()[0]
    assert any("prompt tokens" in line for line in clean.lines())


def test_renderer_from_a_recipe(chat: PreTrainedTokenizerFast) -> None:
    data = DataConfig(task="arithmetic", max_length=7, overlong="truncate", max_dropped=0.1, completion_only_loss=False)
    made = Renderer.from_config(chat, data)
    assert (made.max_length, made.overlong, made.max_dropped, made.completion_only_loss) == (7, "truncate", 0.1, False)


# --------------------------------------------------------------------------------------------------
# Byte-level BPE


def test_bpe_is_deterministic_and_loses_nothing() -> None:
    texts = ["the cat sat on the mat\n", "the dog – ünïcode 🙂", "", "42 + 1 = 43"]
    first, second = train_bpe(texts, 280), train_bpe(texts[::-1], 280)
    assert first.get_vocab() == second.get_vocab() and len(first) == 280
    assert (first.pad_token_id, first.bos_token_id, first.eos_token_id) == (0, 1, 2)
    assert first.chat_template is None
    strange = "  never seen:\t\x00 漢字\n\n"
    assert completion_text(first, first(strange, add_special_tokens=False)["input_ids"]) == strange
    assert prompt_ids(first, "the cat")[0] == first.bos_token_id
    assert words(first, completion_ids(first, "the cat", " sat")).endswith("<eos>")
    with pytest.raises(DataError, match="without any text"):
        train_bpe([""])
    with pytest.raises(DataError, match="must be at least 259"):
        train_bpe(["a"], 100)


def test_a_token_that_straddles_the_boundary_is_split() -> None:
    tokenizer = train_bpe(["abcd abcd abcd"], 280)
    row = {"prompt": "ab", "completion": "cd"}
    assert len(tokenizer("abcd", add_special_tokens=False)["input_ids"]) == 1
    result = Renderer(tokenizer).render([row], "Tokens")
    group = result.groups[0]
    assert group.prompt.tolist() == prompt_ids(tokenizer, "ab").tolist()
    assert completion_text(tokenizer, [*group.prompt, *group.completions[0]]) == "abcd"
    assert result.report.split_apart == 1


@pytest.mark.parametrize("template", [None, "{{ bos_token }}" + TEMPLATE.partition("}}")[2]])
def test_gsm8k_renders_and_decodes_back(template: str | None) -> None:
    folder = SHARED / "gsm8k" if (SHARED / "gsm8k").is_dir() else SHARED / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip(f"needs GSM8K in {folder} (set STEELYARD_SHARED)")
    tokenizer: PreTrainedTokenizerFast | None = None
    for split in ("train", "test"):
        columns = {"prompt": "question", "completion": "answer"}
        table = read_table(folder / f"{split}.jsonl.gz", columns=columns)
        if tokenizer is None:
            tokenizer = train_bpe([row["prompt"] + row["completion"] for row in table.rows[:2000]], 1024)
            tokenizer.chat_template = template
        every = 1 if template is None else 10  # the template costs time and changes nothing about the text
        table = Table(table.rows[::every], table.source, table.sha256, table.lines[::every])
        result = Renderer(tokenizer, max_length=1024).render(table, "Tokens")
        assert result.report.kept == len(table) and result.report.without_trained_eos == 0
        for group, row in zip(result.groups, table.rows, strict=True):
            assert completion_text(tokenizer, group.completions[0]).strip(" ") == row["completion"]
            assert group.completions[0][-1] == tokenizer.eos_token_id and group.masks[0].all()


def test_the_shipped_preferences_render() -> None:
    table = read_source("data:hh_harmless_base_test")
    tokenizer = train_bpe([row["chosen"] for row in table.rows], 512)
    report = Renderer(tokenizer, max_length=4096).render(table, "Pairs").report
    assert (report.rows, report.kept, report.dropped["empty_completion"]) == (447, 446, 1)


# --------------------------------------------------------------------------------------------------
# Looking at rows


def test_inspection_shows_roles_masks_and_losses(chat: PreTrainedTokenizerFast) -> None:
    rows = [
        {"messages": says("system: be good", "user: hi", "assistant: ok", "user: hi", "assistant: bye")},
        {"messages": says("user: " + "hi " * 20, "assistant: ok")},
    ]
    found = inspect_table(Table.from_rows(rows, "rows.jsonl"), chat, label="tiny", max_length=28)
    first, second = found.rows
    assert [t.role for t in first.prompt] == ["system"] * 7 + ["user"] * 5 + ["assistant"] * 3
    tokens = dict(first.completions)["completion"]
    assert [(t.text, t.trained) for t in tokens][:3] == [("ok", True), ("<eos>", True), ("\n", False)]
    assert [t.role for t in tokens] == ["assistant"] * 3 + ["user"] * 5 + ["assistant"] * 5
    assert not first.note and second.note.startswith("prompt_too_long")
    assert second.prompt, "a lost row is shown too"
    assert found.to_dict()["shown"][0]["completions"]["completion"][0]["text"] == "ok"
    for settings in ({"force_terminal": True, "color_system": "truecolor"}, {"no_color": True}):
        console = Console(record=True, width=100, file=open(os.devnull, "w"), **settings)  # noqa: SIM115
        show(found, console)
        text = console.export_text()
        assert "tiny" in text and "rows.jsonl:2" in text and "max_length" in text


def test_inspection_without_a_tokenizer_says_so() -> None:
    table = Table.from_rows([{"messages": says("user: hi", "assistant: ok")}, {"messages": says("user: a")}], "c.jsonl")
    found = inspect_table(table)
    assert "trained on these rows" in found.tokenizer and "template" in found.tokenizer
    assert found.report.dropped == {"no_trained_token": 1} and found.rows[1].note.startswith("no_trained_token")
    pairs = inspect_table(Table.from_rows([{"prompt": "q", "chosen": "a", "rejected": "b"}], "p"))
    assert [name for name, _ in pairs.rows[0].completions] == ["chosen", "rejected"]
    kto = inspect_table(Table.from_rows([{"prompt": "q", "completion": "a", "label": False}], "u"))
    assert [name for name, _ in kto.rows[0].completions] == ["undesirable"]
