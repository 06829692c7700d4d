"""The report: self-contained, deterministic, hedged as far as the statistics; looked at in a real browser."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from steelyard.errors import StudyError
from steelyard.report import build, figures, text
from steelyard.report import numbers as n
from steelyard.report.assemble import Report, assemble
from steelyard.report.html import render
from steelyard.report.terminal import print_ranking
from study_factory import PREFERENCES, TASKS, edit_json, make_study

VOID = {"meta", "link", "br", "img", "hr", "input", "use", "path", "rect"}


class Page(HTMLParser):
    """Checks nesting and collects what a page refers to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.targets: set[str] = set()
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.attributes.append((tag, found))
        if "id" in found:
            self.ids[found["id"]] += 1
        for value in found.values():
            self.targets |= set(re.findall(r"url\(#([^)]+)\)", value))
        if found.get("href", "").startswith("#"):
            self.targets.add(found["href"][1:])
        for name in ("aria-labelledby",):
            if name in found:
                self.targets.add(found[name])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"), failed=[("simpo", "builtin:0.5m", 2)])


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    return build(study).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(study: Path) -> Report:
    return assemble(study, resamples=0)


def plain(page: str) -> str:
    """The page's words, without style and figures."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


# --------------------------------------------------------------------------------------------------
# The page


def test_the_page_is_well_formed_and_every_reference_resolves(page: str):
    found = Page(page)
    assert [name for name, count in found.ids.items() if count > 1] == []
    assert found.targets <= set(found.ids)


def test_the_page_refers_to_nothing_outside_itself(page: str):
    for tag, attributes in Page(page).attributes:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
    assert "<script" not in page and "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert re.findall(r"https?://[^\s\"<]+", page) == []


def test_every_figure_says_in_words_what_it_shows(page: str):
    drawings = [found for tag, found in Page(page).attributes if tag == "svg"]
    named = [found["aria-label"] for found in drawings if found.get("role") == "img"]
    assert all(found.get("role") == "img" or found.get("aria-hidden") == "true" for found in drawings)
    assert len(named) == 6 + 3 + 4 + 1 + 1 + 2 + 2  # forests, scales, curves of five metrics
    assert any(
        label.startswith("arithmetic at 0.1m: means with 95 % intervals, best first: sft 66.4 %") for label in named
    )
    assert any("loss of dpo over 6 runs" in label for label in named)


def test_figures_take_their_colours_from_the_page(page: str):
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    assert used <= set(re.findall(r"(--[\w-]+):", light))
    arms = {f"--arm-{i}" for i in range(figures.SERIES)}
    assert arms <= set(re.findall(r"(--[\w-]+):", light)) & set(re.findall(r"(--[\w-]+):", dark))


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_sufficient_in_light_and_dark(page: str):
    for block in re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL):
        colors = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", block))
        for name, color in colors.items():
            wanted = 4.5 if name in ("--ink", "--muted", "--link", "--good", "--bad") else 3.0 if "arm" in name else 0.0
            for ground in ("--paper", "--soft") if wanted == 4.5 else ("--paper",):
                a, b = sorted([luminance(color), luminance(colors[ground])])
                assert (b + 0.05) / (a + 0.05) >= wanted, (name, color, ground)


def test_equal_evidence_gives_equal_bytes(study: Path, page: str):
    numbers = (study / "results.json").read_bytes()
    assert build(study).read_text(encoding="utf-8") == page
    assert (study / "results.json").read_bytes() == numbers


def test_the_page_says_what_was_compared_what_failed_and_how_to_repeat_it(page: str):
    words = plain(page)
    for expected in (
        "4 methods against dpo on 0.1m and 0.5m, 2 to 3 seeds per arm",
        "25 of 26 runs finished",
        "gold answers",
        "prompts, verifier, online samples",
        "quick-select.record.json",
        "edge of the grid",
        "loss is nan at step 7",
        "steelyard study toy --out",
        "torch 2.13.0",
        "Example CPU",
        "▲ above",
        "not resolved",
        "Power for a true effect of d = 0.8: 12 % at α = 0.05",
        "Detectable with 80 % power",
    ):
        assert expected in words, expected


def test_nothing_is_ever_called_equal_tied_or_insignificant(page: str, report: Report):
    words = plain(page).lower()
    for word in (
        "insignificant",
        "no significant difference",
        "tied",
        "equivalent",
        "statistically equal",
        "identical",
    ):
        assert word not in words, word
    sentences = [*text.summary(report).findings, *text.summary(report).best, *text.conclusions(report)]
    assert not any(re.search(r"\bequals?\b", sentence) for sentence in sentences)
    assert any("equal" in sentence for sentence in text.cautions(report))  # said only to be denied


def test_foreign_text_cannot_become_markup(tmp_path: Path):
    path = make_study(tmp_path, algorithms=["dpo"], models=["builtin:0.1m"])
    edit_json(path / "study.json", description="<script>alert(1)</script>", name="a<b")
    for run in (path / "runs").iterdir():
        for file in (run / "eval").iterdir():
            file.write_text(file.read_text().replace("Mia has", "<img src=x> & Mia has"))
    page = build(path).read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page
    assert "&lt;img src=x&gt; &amp; Mia has" in page


# --------------------------------------------------------------------------------------------------
# Sentences


def test_findings_follow_the_verdicts(report: Report):
    sentences = text.summary(report).findings
    assert len(sentences) == len(report.analysis.tables)
    for table, sentence in zip(report.analysis.tables, sentences, strict=True):
        above = sentence.partition("above dpo:")[2].partition(";")[0]
        for comparison in table.comparisons:
            assert (f" {comparison.arm} (" in above) == (comparison.verdict == "higher")
    assert "every table" in next(s for s in text.conclusions(report) if s.startswith("sft:"))


def test_a_fixed_baseline_is_explained(tmp_path: Path):
    found = assemble(make_study(tmp_path, baseline="base", models=["builtin:0.1m"]), resamples=0)
    assert any("one untrained model" in sentence for sentence in text.cautions(found))
    assert "one-sample t against the fixed baseline" in text.design_line(found.analysis.tables[0])
    assert "fixed" in plain(render(found))


def test_differences_that_are_mostly_format_are_pointed_out(tmp_path: Path):
    path = make_study(
        tmp_path,
        models=["builtin:0.1m"],
        algorithms=["sft", "dpo"],
        skill={"base": 0.0, "sft": 1.8, "dpo": 1.2},
        unformatted={"dpo": 0.7},
    )
    found = assemble(path, resamples=0)
    sentences = text.conclusions(found)
    assert any(s.startswith("The difference of sft on arithmetic at 0.1m is mostly format") for s in sentences)
    assert "right, not in the asked form" in plain(render(found))


def test_without_a_selection_record_the_page_says_so(tmp_path: Path):
    path = make_study(tmp_path, models=["builtin:0.1m"])
    edit_json(path / "study.json", selection=None)
    found = assemble(path, resamples=0)
    assert any("no selection record" in sentence for sentence in text.cautions(found))
    assert "there is no selection record" in plain(render(found))


# --------------------------------------------------------------------------------------------------
# Other shapes of studies


def test_a_study_of_preferences(tmp_path: Path):
    path = make_study(tmp_path, algorithms=["sft", "dpo", "rm"], models=["builtin:0.1m"], tasks=PREFERENCES)
    edit_json(path / "study.json", selection=None)
    words = plain(build(path).read_text(encoding="utf-8"))
    assert "held-out preference accuracy by log-ratio to the start" in words
    assert "preferences by reward head at 0.1m (held-out): the baseline has no result here" in " ".join(
        json.loads((path / "results.json").read_text())["summary"]["findings"]
    )
    assert "No result here: rm" in words
    assert "Answers side by side" not in words


def test_a_study_of_one_run_per_arm_and_nothing_trained(tmp_path: Path):
    single = make_study(tmp_path / "single", seeds=[0], models=["builtin:0.1m"], include_base=False)
    words = plain(build(single).read_text(encoding="utf-8"))
    assert "Nothing here can be tested" in words and "Every arm has one seed" in words
    bare = make_study(tmp_path / "bare", algorithms=[], models=["builtin:0.1m"], baseline=None)
    words = plain(build(bare).read_text(encoding="utf-8"))
    assert (
        "No run logged more than one training step" in words
        and "No comparison with the baseline could be tested" in words
    )


def test_further_axes_are_conditions_of_their_own(tmp_path: Path):
    path = make_study(tmp_path, algorithms=["sft", "dpo"], include_base=False)
    study = json.loads((path / "study.json").read_text())
    for cell in study["cells"]:
        cell["cell"]["lora.r"] = 8 if cell["cell"]["model"].endswith("0.5m") else 16
        cell["cell"]["model"] = "some/where/tiny-llama"
    edit_json(path / "study.json", cells=study["cells"], axes={**study["axes"], "model": ["some/where/tiny-llama"]})
    found = assemble(path, resamples=0)
    assert found.scale_axis == "lora.r"
    assert "tiny-llama · r=16" in plain(render(found))


def test_degenerate_evidence_gets_no_report(tmp_path: Path):
    path = make_study(tmp_path, include_base=False)
    for entry in json.loads((path / "study.json").read_text())["cells"][:2]:
        edit_json(path / entry["path"] / "run.json", weights_sha256="same")
    with pytest.raises(StudyError, match="identical weights"):
        build(path)
    assert not (path / "report.html").exists() and not (path / "results.json").exists()


# --------------------------------------------------------------------------------------------------
# Numbers for machines and for the terminal


def test_results_json_is_strict_and_holds_every_number(study: Path, page: str, report: Report):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((study / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["schema"] == 1 and found["baseline"] == "dpo"
    assert len(found["tables"]) == 6 and len(found["rows"]) == 75 and len(found["gaps"]) == 1
    table, analysed = found["tables"][0], report.analysis.tables[0]
    assert [arm["arm"] for arm in table["arms"]] == [arm.name for arm in analysed.arms]
    assert table["comparisons"][0]["p"] == analysed.comparisons[0].test.p
    assert table["comparisons"][0]["p_holm_study"] is not None
    assert table["arms"][0]["interval_seeds_and_items"]["over"] == "seeds and items"
    assert table["design"]["detectable"] > 0 and table["design"]["power"] == pytest.approx(0.1193, abs=1e-4)
    assert found["statistics"]["sd"] == "ddof=1"


def test_the_terminal_ranks_and_explains(study: Path):
    out = io.StringIO()
    print_ranking(study, Console(file=out, width=100))
    shown = out.getvalue()
    assert re.search(r"arithmetic \(development\): strict exact match", shown)
    assert re.search(r"sft .* 66\.4 ± 12\.0 +a", shown)
    assert "dpo (baseline)" in shown
    assert "share a letter are not resolved (which is not equality)" in shown
    assert "failed: simpo · builtin:0.5m · seed 2: NumericalError: loss is nan at step 7" in shown


def test_numbers_are_written_one_way():
    assert [n.score(0.6636), n.score(0.6636, False), n.score(None)] == ["66.4", "0.664", "–"]
    assert [n.difference(x) for x in (0.123, -0.123, 0.0, -0.0001, None)] == ["+12.3", "−12.3", "0.0", "0.0", "–"]
    assert n.span(-0.02, 0.3, signed=True) == "−2.0 to +30.0" and n.span(None, 1.0) == "–"
    assert [n.p_value(x) for x in (0.0001, 0.0134, 0.0996, 0.5, 1.0, None)] == [
        "<0.001",
        "0.013",
        "0.10",
        "0.50",
        "1.00",
        "–",
    ]
    assert [n.effect(x) for x in (1.234, -120.4, 0.0)] == ["+1.23", "−120", "0.00"]
    assert [n.share(x) for x in (0.0, 0.004, 0.3, None)] == ["0 %", "0.4 %", "30 %", "–"]
    assert [n.power(x) for x in (0.0202, 0.2007)] == ["2.0 %", "20 %"]
    assert [n.rate(x) for x in (3e-4, 1.5e-5, 0.0, None)] == ["3e-4", "1.5e-5", "0", "–"]
    assert [n.setting(x) for x in (3e-4, 0.1, "cosine", 16)] == ["3e-4", "0.1", "cosine", "16"]
    assert [n.seconds(x) for x in (9.16, 200, 7500, None)] == ["9.2 s", "3 min 20 s", "2 h 05 min", "–"]
    assert [n.memory(x) for x in (410.2, 3277)] == ["410 MiB", "3.2 GiB"]
    assert n.amount(180000) == "180\u2009000"
    assert [n.listing(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert [n.count(1, "run"), n.count(0, "run"), n.count(2, "study", "studies")] == ["1 run", "0 runs", "2 studies"]
    assert [n.detectable(0.129), n.detectable(3.7), n.detectable(3.7, False)] == [
        "12.9 points",
        "more than 100 points (that is, none)",
        "3.700",
    ]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.1, 20))
def test_names_beside_lines_keep_their_order_and_distance(values: list[float], step: float):
    placed = figures.spread(sorted(values), step)
    gaps = [b - a for a, b in zip(placed, placed[1:], strict=False)]
    assert all(gap >= step * (1 - 1e-6) - 1e-9 for gap in gaps)
    assert sum(placed) == pytest.approx(sum(values), abs=1e-6)  # least squares keeps the mean


# --------------------------------------------------------------------------------------------------
# In a browser

PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".scroll, pre, .symbols") && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.tagName);
  parent.postMessage({
    width: innerWidth, dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor, page: document.documentElement.scrollWidth, wide,
    fetched: performance.getEntriesByType("resource").map(r => r.name),
    drawn: [...document.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().width < 100).length,
  }, "*");
});</script>
"""
"""Appended to the page: measures it and tells the frame around it."""

FRAME = """<!doctype html><title>nothing</title>
<script>addEventListener("message", e => { document.title = JSON.stringify(e.data); });</script>
<iframe src="probe.html" style="width: %dpx; height: 900px; border: 0"></iframe>
"""
"""Chromium's window is never narrower than 500 pixels; a frame is as narrow as a phone."""


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        message = "chromium is missing (apt-get install chromium): the page was not looked at in a browser"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_phone_and_desk_and_asks_for_nothing(page: str, tmp_path: Path, width: int, scheme: str):
    browser = chromium()
    (tmp_path / "probe.html").write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME % width, encoding="utf-8")
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--dump-dom"),
        "--virtual-time-budget=10000",
        *(["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
        frame.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    found = json.loads(title[1].replace("&amp;", "&"))
    assert found["width"] == width
    assert found["dark"] == (scheme == "dark")
    assert found["paper"] == ("rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert found["page"] <= width and found["wide"] == []
    assert found["fetched"] == [] and found["drawn"] == 0


@pytest.mark.slow
def test_a_report_of_fifty_six_runs_is_quick(tmp_path: Path):
    names = ["sft", "rft", "dpo", "ipo", "simpo", "kto", "orpo", "dpop", "grpo"]
    path = make_study(tmp_path, algorithms=names)
    before = time.process_time()
    build(path)
    assert time.process_time() - before < 6


# --------------------------------------------------------------------------------------------------
# What became of the data, and what a display may not hide


def test_lost_rows_are_shown_and_a_leaked_held_out_file_is_a_loud_warning(tmp_path: Path):
    path = make_study(tmp_path, algorithms=["sft", "dpo"], models=["builtin:0.1m"], seeds=[0, 1])
    for file in (path / "runs").glob("*/run.json"):
        facts = json.loads(file.read_text())
        lost = facts["algorithm"] == "dpo"
        rows = {"source": "/some/where/train.jsonl", "rows": 1865, "kept": 1732 if lost else 1865}
        problems = ["133 rows of 1865 dropped: a completion is empty"] if lost else []
        if facts["algorithm"] != "base":
            edit_json(file, rows={**rows, "problems": problems})
        data = {"data.path": "da" * 32, "eval.preference_path": "da" * 32}
        edit_json(file, identity={**facts["identity"], "data": data})
        held = {"source": "test.jsonl", "rows": 9, "kept": 8, "problems": ["1 row of 9 dropped: too long"]}
        (file.parent / "held_out.json").write_text(json.dumps(held))
    page = build(path).read_text(encoding="utf-8")
    words = plain(page)
    assert "training (sft): all 1,865 rows of train.jsonl kept" in words and "/some/where" not in page
    assert "training (dpo): 1,732 of 1,865 rows of train.jsonl kept: 133 rows of 1865 dropped" in words
    assert "held-out: 8 of 9 rows of test.jsonl kept: 1 row of 9 dropped: too long" in words
    assert "Warning: The held-out preference file" in words
    notes = json.loads((path / "results.json").read_text())["notes"]
    assert sum("133 rows of 1865 dropped" in note for note in notes) == 1
    assert any("are not held out" in note for note in notes)
    out = io.StringIO()
    print_ranking(path, Console(file=out, width=100))
    assert "data, training (dpo): 1,732 of 1,865 rows of train.jsonl kept; held-out: 8 of 9" in out.getvalue()
    assert "WARNING: The held-out preference file" in out.getvalue()


def test_arms_without_variation_and_intervals_of_impossible_shares_are_marked(tmp_path: Path):
    path = make_study(tmp_path, models=["builtin:0.1m"], algorithms=["sft", "dpo"], spread=0.0, baseline="base")
    for file in (path / "runs").glob("*/run.json"):
        facts = json.loads(file.read_text())
        shutil.rmtree(file.parent / "eval")
        score = {"sft": 0.95, "dpo": (0.99, 0.8, 0.9)[facts["seed"]], "base": 0.5}[facts["algorithm"]]
        edit_json(file, metrics={"eval/arithmetic/score": score, "eval/arithmetic/n": 100})
    found = assemble(path, resamples=0)
    words = plain(render(found))
    assert f"to 100.0{n.CUT}" in words and text.CUT_NOTE in words and text.STILL_NOTE in words
    assert "(not testable)" in words
    interval = found.analysis.tables[0].arm("dpo").interval
    assert interval and interval.high > 1  # only the display is cut
    out = io.StringIO()
    print_ranking(found, Console(file=out, width=100))
    assert text.STILL_NOTE in out.getvalue() and "beyond 0 to 100 %" in out.getvalue()


def test_the_abstract_says_when_no_two_methods_are_resolved_and_what_could_be_found(tmp_path: Path):
    path = make_study(tmp_path, algorithms=["dpo", "simpo"], baseline="base", models=["builtin:0.1m"], spread=0.3)
    short = text.summary(assemble(path, resamples=0))
    assert short.resolution.startswith("No two methods are resolved from each other on any task")
    assert re.search(r"Resolved from base: (all|none|\d) ", short.resolution)
    assert re.search(
        r"smallest detectable difference from base (is|ranges from) [\d.]+ points \(\w+ at 0\.1m\)", short.sight
    )
    one = make_study(tmp_path / "one", algorithms=["sft"], tasks={"facts": TASKS["facts"]}, models=["builtin:0.1m"])
    edit_json(one / "study.json", baseline={"algorithm": "base"})
    short = text.summary(assemble(one, resamples=0))
    assert short.resolution == "" and "ranges" not in short.sight and "(facts at 0.1m)" in short.sight


def test_cells_that_could_not_be_tested_are_named_and_not_counted_as_unresolved(report: Report):
    table = report.analysis.tables[0]
    verdicts = ("higher", "not testable", "not resolved")
    tables = tuple(
        replace(t, comparisons=tuple(replace(c, verdict=v) for c in t.comparisons[:1]))
        for t, v in zip(report.analysis.tables, verdicts, strict=False)
    )
    name = table.comparisons[0].arm
    tables = tuple(replace(t, comparisons=tuple(replace(c, arm=name) for c in t.comparisons)) for t in tables)
    changed = replace(report, analysis=replace(report.analysis, tables=tables))
    line = next(s for s in text.conclusions(changed) if s.startswith(f"{name}:"))
    assert "not resolved in 1 of 2 that could be tested; not testable on " in line
