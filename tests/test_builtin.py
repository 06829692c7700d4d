"""The embedded default: splits, tasks, tokenizer, ladder and how its bases are made."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from steelyard.builtin import arithmetic, author, corpus, facts, ladder, pretrain, splits
from steelyard.builtin import tokenizer as tokenizers
from steelyard.builtin.command import list_command, train_command
from steelyard.builtin.tasks import SIZES, STEPS
from steelyard.errors import ConfigError, ModelError
from steelyard.evals.tasks import get_task
from steelyard.rundir import sha256_file

SPLITS = ("train", "selection", "test")


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.build()


def all_items(name: str):
    task = get_task(name)
    return [item for split in SPLITS for item in task.load(split)]


# --- tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_splits_have_their_sizes_and_share_no_canonical_form(name: str) -> None:
    task = get_task(name)
    forms = {}
    for split in SPLITS:
        items = task.load(split)
        assert len(items) == SIZES[name][split]
        assert len({item.id for item in items}) == len(items)
        forms[split] = [item.columns["canonical"] for item in items]
    for split in ("selection", "test"):
        assert len(set(forms[split])) == len(forms[split])
    for one, other in combinations(SPLITS, 2):
        assert not set(forms[one]) & set(forms[other])


@pytest.mark.parametrize("name", STEPS)
def test_corpus_shares_no_canonical_form_with_any_split(name: str) -> None:
    source = arithmetic.problems(name, "pretrain", STEPS[name], seed=0)
    told = {next(source).canonical for _ in range(1000)}
    assert not told & {item.columns["canonical"] for item in all_items(name)}


def test_buckets_do_not_depend_on_the_process() -> None:
    assert splits.bucket("arithmetic", "2 + 1") == "selection"
    assert splits.bucket("arithmetic", "3 + 1") == "pretrain"
    assert splits.bucket("arithmetic", "4 + 1") == "train"
    item = get_task("arithmetic").load("train")[0]
    assert item.prompt == "rosa has 42 books . rosa sells 9 . how many books does rosa have ?"


@pytest.mark.parametrize("name", STEPS)
def test_every_gold_completion_is_right_and_in_range(name: str) -> None:
    task = get_task(name)
    assert task.verify is not None
    for item in all_items(name):
        assert task.verify(item.completion, item).strict is True
        assert task.verify(item.completion.replace("####", "so"), item).strict is not True
        assert item.columns["steps"] in STEPS[name]
        numbers = [int(word) for word in f"{item.prompt} {item.completion}".split() if word.isdigit()]
        assert all(0 <= number <= arithmetic.LARGEST for number in numbers)


@pytest.mark.parametrize("name", STEPS)
def test_any_prefix_of_a_split_is_balanced_in_steps(name: str) -> None:
    steps = [item.columns["steps"] for item in get_task(name).load("selection")[: 10 * len(STEPS[name])]]
    assert all(steps.count(count) == 10 for count in STEPS[name])


def test_a_division_is_exact_and_a_chain_is_what_it_says() -> None:
    for item in all_items("chains"):
        *lines, last = item.completion.split(" . ")
        for line in lines:
            left, operator, right, equals, result = line.split()
            assert equals == "=" and arithmetic.apply(int(left), operator, int(right)) == int(result)
            assert operator != "/" or int(left) % int(right) == 0
        assert last == f"#### {item.answer}" and lines[-1].endswith(f"= {item.answer}")


def test_facts_are_multiple_choice_about_one_world() -> None:
    assert len(facts.world()) == SIZES["facts"]["selection"] + SIZES["facts"]["test"]
    for item in all_items("facts"):
        assert len(set(item.choices)) == facts.CHOICES and item.answer in item.choices
    places = [item.choices.index(item.answer) for item in all_items("facts")]
    assert all(80 < places.count(place) < 210 for place in range(facts.CHOICES))


def test_unseen_tasks_may_only_be_reported() -> None:
    for name in ("chains", "facts"):
        task = get_task(name)
        with pytest.raises(ConfigError, match="unseen"):
            task.items("train", purpose="train")
        with pytest.raises(ConfigError, match="unseen"):
            task.items("selection", purpose="select")
        assert len(task.items("test", purpose="report", limit=5)) == 5
    with pytest.raises(ConfigError, match="test split"):
        get_task("arithmetic").items("test", purpose="select")


# --- the author --------------------------------------------------------------------------------------------


def test_the_author_errs_in_the_same_way_about_half_of_the_time() -> None:
    source = arithmetic.problems("arithmetic", "pretrain", STEPS["arithmetic"], seed=1)
    random_ = splits.stream("test")
    told = [next(source) for _ in range(2000)]
    right = sum(author.answer(problem, random_) == arithmetic.solution(problem)[0] for problem in told)
    assert 0.45 < right / len(told) < 0.65
    verb = next(verb for verb in arithmetic.VERBS if verb.word == "doubles")
    habits = {author.misreads(name, verb) for name in arithmetic.NAMES}
    assert min(habits) < 0.1 and max(habits) > 0.5
    assert all(word in {verb.word for verb in arithmetic.VERBS} for word in author.MISREADINGS)


def test_a_misread_verb_changes_the_operator_of_its_line() -> None:
    lends = next(verb for verb in arithmetic.VERBS if verb.word == "lends")
    name = next(name for name in arithmetic.NAMES if name not in author.exceptions("lends"))
    problem = arithmetic.Problem(name, "pens", 9, ((lends, 4),))
    random_ = splits.stream("misread")
    answers = {author.answer(problem, random_) for _ in range(200)}
    assert {"9 + 4 = 13 . #### 13", "9 - 4 = 5 . #### 5"} <= answers


# --- tokenizer ---------------------------------------------------------------------------------------------


def test_text_survives_the_tokenizer_and_a_number_is_one_token(tokenizer) -> None:
    for name in SIZES:
        for item in all_items(name)[::7]:
            for text in (item.prompt, item.completion, *item.choices):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.decode(ids) == text
                assert len(ids) == len(text.split()) and tokenizer.unk_token_id not in ids
    for number in (0, 7, 42, arithmetic.LARGEST):
        assert len(tokenizer(str(number), add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer("####", add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_template_ends_an_answer_with_eos_and_keeps_prefixes(tokenizer) -> None:
    turns = [
        {"role": "system", "content": "be short ."},
        {"role": "user", "content": "tom has 5 pens ."},
        {"role": "assistant", "content": "5 + 3 = 8 ."},
        {"role": "user", "content": "thanks !"},
        {"role": "assistant", "content": "#### 8"},
    ]

    def ids(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]

    whole = ids(turns)
    for count in range(1, len(turns)):
        assert whole[: len(ids(turns[:count]))] == ids(turns[:count])
    prompt = ids(turns[:2], add_generation_prompt=True)
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == tokenizer.eos_token_id and whole.count(tokenizer.bos_token_id) == 1
    masked = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)[
        "assistant_masks"
    ]
    assert sum(masked) == 6 + 1 + 2 + 1


def test_building_the_tokenizer_twice_gives_the_same_files(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "a")
    tokenizers.build().save_pretrained(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert sha256_file(file) == sha256_file(tmp_path / "b" / file.name)


# --- ladder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "low", "high"), [("0.1m", 0.1, 0.15), ("0.5m", 0.45, 0.6), ("1.8m", 1.7, 2.0), ("6m", 5.7, 6.5)]
)
def test_a_size_has_about_its_number_of_parameters(size: str, low: float, high: float) -> None:
    config = ladder.config(size)
    with torch.device("meta"):
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM(config)
    millions = sum(value.numel() for value in model.parameters()) / 1e6
    assert low <= millions <= high
    assert config.head_dim in (32, 64) and config.tie_word_embeddings
    assert config.num_attention_heads * config.head_dim == config.hidden_size
    assert config.max_position_embeddings >= 512


@pytest.mark.parametrize("size", ["0.1m", "0.5m"])
def test_a_shipped_base_loads_as_an_ordinary_model(size: str, tokenizer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = ladder.path(size)
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert model.config.hidden_size == ladder.shape(size).hidden and model.config.head_dim == 32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    loaded = AutoTokenizer.from_pretrained(directory)
    assert loaded.get_vocab() == tokenizers.vocabulary() and loaded.chat_template == tokenizers.CHAT_TEMPLATE
    assert (directory / "chat_template.jinja").is_file()


def test_unknown_and_unshipped_sizes_say_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"Did you mean '0\.5m'"):
        ladder.path("0.5mm")
    missing = [size for size in ladder.LADDER if size not in ladder.shipped()]
    for size in missing:
        with pytest.raises(ModelError, match=f"steelyard builtin train --size {size}"):
            ladder.path(size)


# --- pretraining -------------------------------------------------------------------------------------------


def test_a_corpus_batch_is_mixed_and_depends_on_the_seed_alone() -> None:
    first, again, other = (next(corpus.batches(seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == sum(corpus.MIXTURE.values()) == 64


def test_pretraining_twice_gives_the_same_bits(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        losses: list[float] = []
        out = pretrain.train(
            "0.1m",
            tmp_path / name,
            seed=seed,
            steps=4,
            threads=1,
            progress=lambda _, loss, losses=losses: losses.append(loss),
        )
        digests.append(sha256_file(out / "model.safetensors"))
        assert losses[-1] < losses[0]
    assert digests[0] == digests[1] != digests[2]
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_training_does_not_overwrite_a_directory(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(ModelError, match="exists already"):
        train_command("0.1m", tmp_path)


def test_the_commands_print_what_there_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    list_command()
    printed = capsys.readouterr().out
    assert "0.1m" in printed and "arithmetic" in printed and "unseen" in printed


@pytest.mark.slow
def test_half_a_pretraining_learns_to_count(tmp_path: Path) -> None:
    from steelyard.builtin.measure import measure

    out = pretrain.train("0.1m", tmp_path / "base", steps=500)
    found = measure(out, limit=100)
    assert found["arithmetic"] > 0.1 and found["facts"] > 0.3
    assert found["arithmetic/pass@8"] > found["arithmetic"]
