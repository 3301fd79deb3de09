"""The report: its figures are those of the record, in HTML and Markdown, and the page needs nothing from elsewhere."""

import functools
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the figures need it")

from bench_records import grid_record, modules_record, page, stored_record

from hotloop import cli
from hotloop.bench import attention, charts, figures, joined, latency, markdown, report, results, run, sections, stats
from hotloop.bench import problems as problem_table
from hotloop.bench.peers import OURS, missing_modules
from hotloop.bench.problems import Problem
from hotloop.bench.rounds import Effort

MEASURED = Path(__file__).parents[1] / "benchmarks" / "measured"
STORED = MEASURED / "2026-11-21-zen5-headline.json"


class Page(HTMLParser):
    """A page taken apart: its tags are balanced, or it is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []
        self.tables = []  # name of the section, and lines of cells
        self.section, self.cell = "", None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        if tag in ("h2", "h3"):
            self.section = found["id"]
        self.links += [value for key, value in attributes if key == "href"]
        if tag == "table":
            self.tables.append((self.section, []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.cell = ""
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if "id" in dict(attributes):
            self.ids.append(dict(attributes)["id"])
        self.links += [value for key, value in attributes if key == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def table(self, section, number=0):
        """Head and lines of a table of a section."""
        head, *lines = [lines for name, lines in self.tables if name == section][number]
        return head, lines


def full_record():
    """A record with something in every section."""
    record = grid_record()
    rng = np.random.default_rng(5)
    for case in record["cases"]:
        for one in case["candidates"]:
            middle = one["rounds"][0][0]
            one["rounds"] = [[middle * factor for factor in 1 + 0.02 * rng.random(3)] for _ in range(5)]
    longer = json.loads(json.dumps(record["cases"][0]))
    longer["problem"] |= {"seq_len": 400, "name": "lstm-inference-T400-B16-I128-H128"}
    longer["flops"] *= 4
    for one in longer["candidates"]:
        one["rounds"] = [[4.1 * sample for sample in samples] for samples in one["rounds"]]
    record["cases"].append(longer)
    record["cases"][3]["memory"]["torch"] = {
        "threads": 2, "runs": [{"seq_len": 1000, "peak": 30 << 20}, {"seq_len": 2000, "peak": 57 << 20}],
    }  # fmt: skip
    times = {OURS: [2e-6] * 989 + [5e-6] * 10 + [90e-6], "torch": [10e-6] * 950 + [20e-6] * 50}
    record["latency"] = [
        {
            "problem": problem_table.LATENCY[0].as_dict(),
            "candidates": [
                {"name": name, "threads": 1, "status": "ok", "detail": "", **latency.summarize(seconds)}
                for name, seconds in times.items()
            ]
            + [{"name": "jax", "threads": 1, "status": "wrong", "detail": "output: relative error 1"}],
        }
    ]
    record["attention"] = {
        "width": 256,
        "heads": 4,
        "steps": [
            {"name": name, "step": step, "module": module, "context": context, "status": "ok", "detail": "",
             "rounds": [[seconds], [1.1 * seconds], [0.9 * seconds]]}
            for name, step, module, context, seconds in (
                (OURS, "lstm", "", None, 20e-6), (OURS, "lstm", "cell", None, 60e-6),
                ("torch", "lstm", "cell", None, 40e-6),
                ("torch", "attention", "", 64, 30e-6), ("torch", "attention", "", 128, 50e-6),
                ("torch", "attention", "", 256, 100e-6),
            )
        ],
    }  # fmt: skip
    return json.loads(json.dumps(record))


@functools.cache
def full_page():
    """The page of it: drawing takes a second."""
    return page(full_record())


def gate_record(record):
    """What `hotloop compare --json` would have written on the machine of a record."""
    environment = {key: record["environment"][key] for key in ("lscpu", "platform", "load")}
    return {
        "schema_version": 1, "kind": "hotloop", "date": record["date"], "rounds": [],
        "noise": {"median": 0.011, "largest": 0.037},
        "environment": {**environment, "processors": results.processors(record)},
        "base": {"name": "a", "about": {"info": record["environment"]["hotloop"]}},
    }  # fmt: skip


def medians(case, name, threads):
    """The median of every round, straight from the record."""
    (found,) = [c["rounds"] for c in case["candidates"] if (c["name"], c["threads"]) == (name, threads)]
    return np.array([np.median(samples) for samples in found])


# Figures


def test_the_summary_says_what_the_samples_say():
    record = full_record()
    best = {}
    for case in record["cases"]:
        problem = Problem.from_dict(case["problem"])
        if problem.is_judged:
            timed = {(c["name"], c["threads"]): medians(case, c["name"], c["threads"]) for c in case["candidates"]}
            us = min((key for key in timed if key[0] == OURS), key=lambda key: np.median(timed[key]))
            them = min((key for key in timed if key[0] != OURS), key=lambda key: np.median(timed[key]))
            best[problem] = np.median(timed[them] / timed[us])
    html = Page(page(record))
    _, lines = html.table("summary")
    wanted = {
        "all problems": lambda problem: True,
        "inference": lambda problem: problem.mode == "inference",
        "training": lambda problem: problem.mode == "training",
        "LSTM": lambda problem: problem.cell == "lstm",
        "GRU": lambda problem: problem.cell == "gru",
        "RNN (tanh)": lambda problem: problem.cell == "rnn",
    }
    assert [line[0] for line in lines] == list(wanted)
    for name, mean, ahead, least, most in lines:
        ratios = [ratio for problem, ratio in best.items() if wanted[name](problem)]
        value, low, high = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+)-([\d.]+)\)", mean).groups())
        assert f"{np.exp(np.mean(np.log(ratios))):.2f}" == f"{value:.2f}"
        assert low <= value <= high
        assert ahead == f"{sum(ratio >= 1 for ratio in ratios)} of {len(ratios)}"
        assert (least, most) == (f"{min(ratios):.2f}", f"{max(ratios):.2f}")
    _, behind = html.table("summary", 1)
    losses = sorted((ratio, charts.name_of(problem)) for problem, ratio in best.items() if ratio < 1)
    assert [(line[0], line[1][:4]) for line in behind] == [(name, f"{ratio:.2f}") for ratio, name in losses]
    assert [float(line[2].split()[0]) for line in behind] == pytest.approx(
        [100 * (1 / ratio - 1) for ratio, _ in losses], rel=5e-3
    )


def test_the_heat_map_has_every_judged_ratio_with_its_colour():
    record = full_record()
    text = full_page()
    head, lines = Page(text).table("grid")
    assert head == ["shape", "LSTM, inference", "GRU, training", "RNN (tanh), training"]
    found = {(line[0], column): cell for line in lines for column, cell in zip(head[1:], line[1:], strict=True) if cell}
    ratios = {
        (" ".join(one.problem.words), f"{charts.LABELS[one.problem.cell]}, {one.problem.mode}"): one.ratio
        for one in results.compare(results.judged(record))
    }
    assert {key: float(cell.rstrip("?")) for key, cell in found.items()} == {
        key: round(ratio.value, 2) for key, ratio in ratios.items()
    }
    assert all(found[key].endswith("?") == (ratio.low <= 1 <= ratio.high) for key, ratio in ratios.items())
    for key, ratio in ratios.items():
        assert f"<td class=t{sections.tone(ratio.value)}>{found[key]}</td>" in text


def test_tones():
    assert [sections.tone(ratio) for ratio in (0.1, 0.3, 0.5, 0.8, 0.96, 1.04, 1.06, 2, 3, 50)] == [
        -4, -3, -2, -1, 0, 0, 1, 2, 3, 4,
    ]  # fmt: skip


def test_throughput_is_drawn_and_written_as_measured():
    record = full_record()
    chart, *_ = charts.throughput(record["cases"])
    cases = [
        case
        for case in record["cases"]
        if case["problem"]["seq_len"] in (100, 400) and case["problem"]["cell"] == "lstm"
    ]
    assert len(chart.series) == 4  # two libraries on one and two threads
    for series in chart.series:
        name, threads = series.style, int(series.dash_name[0])
        for number, case in enumerate(cases):
            flops = 2 * case["problem"]["seq_len"] * 16 * 4 * 128 * 256
            time = np.median(medians(case, name, threads))
            assert series.x[number] == case["problem"]["seq_len"]
            assert series.y[number] == pytest.approx(flops / time / 1e9)
            assert series.low[number] < series.y[number] < series.high[number]
    _, lines = Page(full_page()).table("throughput")
    points = {(line[0], line[1], line[2]): line for line in lines}
    assert len(points) == 8
    for series in chart.series:
        for x, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True):
            line = points[str(x), series.name, series.dash_name[0]]
            assert line[4] == f"{y:.3g} ({low:.3g}-{high:.3g})"
            assert line[5] == results.format_count(y * 1e9 * 100 / (2 * 100 * 16 * 4 * 128 * 256))


def test_a_line_is_drawn_where_its_figures_are():
    record = full_record()
    chart, *_ = charts.throughput(record["cases"])
    svg = ElementTree.fromstring(figures.draw(chart, "p-"))
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == chart.alternative
    drawn = {}
    for one in svg.iter("path"):
        style = one.get("style") or ""
        for name in (OURS, "torch"):
            if f"stroke: var(--c-{name})" in style and "fill: none" in style and one.get("d").count("L") == 1:
                drawn.setdefault(name, []).append([float(n) for n in re.findall(r"-?[\d.]+", one.get("d"))])
    # Two lines each, and their entries in the legend, which are level.
    lines = {name: [one for one in found if one[1] != one[3]] for name, found in drawn.items()}
    assert {name: len(found) for name, found in lines.items()} == {OURS: 2, "torch": 2}
    pairs = [(one[1], y) for name in lines for one, y in zip(
        lines[name], [series.y[0] for series in chart.series if series.style == name], strict=True)]  # fmt: skip
    heights, rates = np.array([height for height, _ in pairs]), np.log([rate for _, rate in pairs])
    slope, offset = np.polyfit(rates, heights, 1)
    assert slope < 0  # SVG counts downwards
    np.testing.assert_allclose(slope * rates + offset, heights, atol=0.01)


@pytest.mark.parametrize("path", sorted(MEASURED.glob("*.json")), ids=lambda path: path.stem)
def test_a_page_has_every_time_of_a_record(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    html = Page(page(record))
    head, lines = html.table("candidates")
    assert head[:3] == ["problem", "candidate", "time"]
    wanted = [
        (
            charts.name_of(Problem.from_dict(case["problem"])),
            f"{one['name']} {one['threads']}t",
            results.format_seconds(np.median([np.median(samples) for samples in one["rounds"]]))
            if one["rounds"]
            else "-",
            str(len(one["rounds"])),
        )
        for case in record["cases"]
        for one in case["candidates"]
    ]
    assert [(line[0], line[1], line[2], line[5]) for line in lines] == wanted
    assert len(wanted) > 40


def test_memory_and_threads_are_those_of_the_record():
    record = full_record()
    html = Page(full_page())
    case = record["cases"][3]
    head, lines = html.table("memory")
    assert head == ["T", "kept, computed", "peak, measured", "torch's peak, measured"]
    assert [(line[0], line[2], line[3]) for line in lines] == [
        (str(ours["seq_len"]), results.format_bytes(ours["peak"]), results.format_bytes(torch["peak"]))
        for ours, torch in zip(case["memory"]["runs"], case["memory"]["torch"]["runs"], strict=True)
    ]
    assert lines[1][3] == "57 MiB"
    head, lines = html.table("threads")
    assert head == ["problem", "hotloop", "hotloop (numpy)", "torch", "openvino", "jax"]
    for line, case in zip(lines, record["cases"], strict=True):
        ratio = np.median(medians(case, OURS, 1) / medians(case, OURS, 2))
        assert line[0] == charts.name_of(results.problem_of(case))
        assert line[1].startswith(f"{ratio:.2f} ")


def test_latency_and_attention_are_those_of_the_record():
    record = full_record()
    html = Page(full_page())
    head, lines = html.table("latency")
    assert head == ["library", "p50", "p90", "p99", "p99.9", "max", "calls"]
    assert lines == [
        ["hotloop", "2 us", "2 us", "5 us", "5 us", "90 us", "1000"],
        ["torch", "10 us", "10 us", "20 us", "20 us", "20 us", "1000"],
    ]
    head, lines = html.table("attention")
    assert [(line[0], line[1], line[2].split(" (")[0]) for line in lines] == [
        ("hotloop.LSTM", "any", "20 us"), ("LSTMCell on hotloop.torch", "any", "60 us"),
        ("LSTMCell of torch", "any", "40 us"), ("attention (torch)", "64", "30 us"),
        ("attention (torch)", "128", "50 us"), ("attention (torch)", "256", "100 us"),
    ]  # fmt: skip
    assert charts.crossings(record["attention"]) == [
        "hotloop.LSTM 20 us: attention costs more from 64 tokens on, the fewest measured; at 256 tokens 5 times as "
        "much",
        "LSTMCell on hotloop.torch 60 us: attention costs more from 256 tokens on; at 256 tokens 1.67 times as much",
        "LSTMCell of torch 40 us: attention costs more from 128 tokens on; at 256 tokens 2.5 times as much",
    ]
    record["attention"]["steps"][0]["rounds"] = [[1e-3]]
    assert "attention costs less up to 256 tokens, the most measured" in charts.crossings(record["attention"])[0]


def test_the_terminal_has_latency_and_attention_too(capsys):
    rich = pytest.importorskip("rich.console")
    from hotloop.bench.table import print_results

    print_results(full_record(), rich.Console(width=160))
    text = " ".join(capsys.readouterr().out.split())
    for line in ("single calls, lstm-inference-T1-B1-I40-H128", "torch 10 us 10 us 20 us 20 us 20 us 1000",
                 "One step at width 256, batch 1, one thread", "attention (torch)"):  # fmt: skip
        assert line in text
    print_results(stored_record(), rich.Console(width=160))
    assert "single calls" not in capsys.readouterr().out


def test_what_was_not_measured_says_how_to():
    text = page(stored_record())
    for option in ("--latency", "--attention", "--memory", "compare HEAD HEAD"):
        assert option in text
    assert "--latency" not in full_page()


def test_markdown_and_html_have_the_same_tables():
    for record in (full_record(), modules_record(), json.loads(STORED.read_text(encoding="utf-8"))):
        parts = joined.join([record])
        html = {tuple(map(tuple, lines)) for _, lines in Page(report.render(parts)).tables}
        found, lines = set(), []
        for line in [*markdown.render(parts).split("\n"), ""]:
            if line.startswith("|"):
                cells = [plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                if not cells[0].startswith("---"):
                    lines.append(tuple(cells))
            elif lines:
                found.add(tuple(lines))
                lines = []
        assert found == html
        assert len(found) > 4


def test_markdown_fits_a_comment():
    parts = joined.join([full_record()])
    whole = markdown.render(parts)
    assert "left out" not in whole
    for limit in (len(whole) - 100, len(whole) // 2, 100):
        text = markdown.render(parts, limit)
        assert len(text) < limit or "<details>" not in text
        assert "## Summary" in text
        assert "lines left out here for length; the page has them)" in text
    # Longest first: the table of all candidates has 22 lines.
    assert re.findall(r"\((.*?): (\d+) lines left out", markdown.render(parts, len(whole) - 100)) == [
        ("Every library on every problem", str(sum(len(case["candidates"]) for case in full_record()["cases"])))
    ]


def test_many_problems_of_one_length_are_not_drawn():
    record = stored_record()
    record["cases"] = record["cases"][1:] * sections.FEW_BARS
    for number, case in enumerate(record["cases"]):
        case = record["cases"][number] = json.loads(json.dumps(case))
        case["problem"] |= {"hidden_size": number + 1, "name": f"{number}"}
    text = page(record)
    assert "16 problems have one length each: too many to draw" in text
    assert Page(text).tables[-1][0] == "candidates"
    assert "LSTM, inference" not in "".join(re.findall("<summary>Table: (.*?)</summary>", text))


def plain(cell):
    """A cell of Markdown as it is read."""
    cell = re.sub(r"\\([|*_])", r"\1", re.sub(r"^\*\*(.*)\*\*$", r"\1", cell.strip()))
    return cell.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


# The page


@pytest.mark.parametrize("record", [stored_record, full_record, modules_record])
def test_a_page_is_whole_and_needs_nothing_from_elsewhere(record):
    other = record()
    other["environment"]["hotloop"]["processor"] = "another <one>"
    for records in ([record()], [record(), other]):
        text = page(*records)
        html = Page(text)
        assert len(html.ids) == len(set(html.ids))
        assert all(link.startswith("#") and link[1:] in html.ids for link in html.links)
        for forbidden in ("<script", "<link", "<img", "<iframe", "http:", "https:", "@import", "url(h", "<CPU>",
                          "javascript", " onload", " onclick", "src="):  # fmt: skip
            assert forbidden not in text, forbidden
        assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
        for tag, attributes in html.tags:
            if tag == "svg":
                assert attributes["aria-label"]
        drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
        for drawing in drawings:
            ElementTree.fromstring(drawing)
            assert not re.search("#[0-9a-f]{6}", drawing)  # every colour is the page's
        assert len(drawings) == text.count("<figure>") == text.count("<summary>Table: ")
        heads = [name for name in html.ids if re.fullmatch(r"[a-z]+(-[12])?", name)]
        assert [
            link[1:] for link in html.links if re.fullmatch(r"#[a-z]+(-[12])?", link) and "machine" not in link
        ] == [name for name in heads if "machine" not in name]


def luminance(colour):
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrasts_are_those_of_wcag_aa(dark):
    light_text, dark_text = report.STYLE.split("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", dark_text if dark else light_text))
    colours = {
        name: colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
        for name, colour in colours.items()
    }
    for ground in ("paper", "head", "behind", *(f"t{tone}" for tone in range(-4, 5))):
        assert contrast(colours["ink"], colours[ground]) >= 4.5, ground
    for text in ("soft", "link"):
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
    for name in figures.STYLES:
        assert contrast(colours[f"c-{name}"], colours["paper"]) >= 3, name


def test_colours_in_drawings_stand_for_one_style_each():
    light = [colours[0] for colours in figures.STYLES.values()]
    assert len(set(light)) == len(light)


def test_report_holds_the_figures():
    record = json.loads(json.dumps(stored_record()))
    text = page(record)
    assert "<title>hotloop 9.8.7 on Test &lt;CPU&gt;</title>" in text
    for figure in ("10 us", "8 us", "3.00 (3.00-3.00)", "2.50 (2.50-2.50) torch 2t", "0.50 (0.50-0.50)", "123 us",
                   "2.5e-07", "wrong: x: relative error inf", "jax: not installed", "--shape &lt;odd&gt;",
                   "torch 1.2.3", "minute: 2.5, on 2 processors", "2 January 2025, 03:04 UTC", "on 1 of 2 problems",
                   "L2 cache"):  # fmt: skip
        assert figure in text, figure
    # Lines over two lengths, bars for the lone problem, the roof, and threads.
    found = [chart for part in joined.join([record]) for section in sections.sections(part) for chart in section.charts]
    assert [chart.kind for chart in found] == ["lines", "bars", "points", "points"]


def test_two_minutes_come_first():
    text = full_page()
    first = text[: text.index("<nav")]
    for said in ("Faster than the fastest of the other libraries on 3 of 6 problems: 1.4", "Behind on 3, at worst 25",
                 "Where it is not faster", "rounds of ours scatter by"):  # fmt: skip
        assert said in first
    assert re.findall('id="([a-z]+)"', first) == ["summary"]


def test_report_links_to_every_section_and_explains_its_words():
    html = Page(page(stored_record()))
    names = ["summary", "grid", "throughput", "roof", "latency", "memory", "threads", "attention", "noise", "cases",
             "candidates", "words", "environment", "remarks", "method"]  # fmt: skip
    assert [link[1:] for link in html.links if re.fullmatch("#[a-z]+", link)] == names
    assert set(results.MEANINGS) <= set(results.COLUMNS)
    head, _ = html.table("cases")
    assert head.index("speed-up") < head.index("GF/s")
    words = page(stored_record()).split('id="words"')[1]
    for word in ("sequence length", "2t: on two", "time steps of the whole batch", "floating-point operations a second",
                 "least time that the machine"):  # fmt: skip
        assert word in words


def test_captions_say_what_is_drawn():
    record = stored_record()
    assert "both axes logarithmic" in page(record)
    assert "linear axis" in page(record)
    record["cases"] = record["cases"][:1]
    assert "both axes logarithmic" not in page(record)
    record = stored_record()
    record["cases"] = record["cases"][:2]
    assert "linear axis" not in page(record)


def test_dashes_of_memory_say_what_fills_them():
    record = grid_record()
    assert "bench --memory" in page(record)
    record["cases"] = record["cases"][3:4]
    record["cases"][0]["memory"]["torch"] = {"runs": [{"seq_len": steps, "peak": 1 << 22} for steps in (1000, 2000)]}
    assert "bench --memory" not in page(record)


def test_report_is_reproducible():
    full_page.cache_clear()
    assert page(full_record()) == full_page()


def test_length_ticks_do_not_overlap():
    assert figures._length_ticks([1000, 1, 4, 1024, 4, 4096]) == (
        [1, 4, 1000, 1024, 4096],
        ["1", "4", "1000", "", "4096"],
    )
    assert figures._length_ticks([64 << n for n in range(9)])[1][:5] == ["64", "", "256", "", "1024"]


# Statistics


def test_geometric_mean_and_its_interval():
    value, low, high = stats.geometric_mean([[2.0] * 5, [8.0] * 3])
    assert (value, low, high) == pytest.approx((4, 4, 4))
    rng = np.random.default_rng(0)
    few, many = (
        stats.geometric_mean([np.exp(rng.normal(1, 0.2, count)) for _ in range(6)]) for count in (5, 100)
    )  # fmt: skip
    for found in (few, many):
        assert found.low < found.value < found.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert np.isnan(stats.geometric_mean([[2.0], [3.0]]).low)
    assert stats.geometric_mean([[2.0], [3.0]]).value == pytest.approx(6**0.5)


def test_the_interval_of_a_geometric_mean_holds_the_truth():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        found = stats.geometric_mean([np.exp(rng.normal(0.5, 0.1, 15)) for _ in range(4)], resamples=300)
        held += found.low <= np.exp(0.5) <= found.high
    assert held >= 88


def test_scatter():
    assert stats.scatter([[1.0], [2.0], [3.0], [4.0], [5.0]]) == pytest.approx(1 / 3)
    assert stats.scatter([[2.0, 2.0, 9.0]] * 4) == 0


# New measurements


def test_single_calls_are_summed_up():
    seconds = [1e-6] * 500 + [2e-6] * 400 + [3e-6] * 98 + [1e-3, 2e-3]
    found = latency.summarize(seconds)
    assert found["quantiles"] == {"p50": 1e-6, "p90": 2e-6, "p99": 3e-6, "p99.9": 1e-3, "max": 2e-3}
    assert sum(found["counts"]) == found["calls"] == 1000
    assert found["counts"] == [500, 400, 98, 1, 1]
    for end, time in zip(latency.bin_ends(found), (1e-6, 2e-6, 3e-6, 1e-3, 2e-3), strict=True):
        assert time * 0.999999 < end <= time * latency.GROWTH * 1.000001
    assert latency.slower(found)[1] == pytest.approx([0.5, 0.1, 0.002, 0.001, 0])
    assert latency.summarize([]) == {}
    assert latency.summarize([0.0])["calls"] == 1  # a clock that stood still


needs_torch = pytest.mark.skipif(bool(missing_modules("torch")), reason="torch is not installed")
FAST = Effort(sample_seconds=1e-4, samples=1, min_rounds=2, max_seconds=0.0)


def test_latencies_are_measured_in_fresh_processes(monkeypatch):
    monkeypatch.setenv("HOTLOOP_BACKEND", "numpy")
    settings = run.Settings(
        peers=["numpy"], effort=FAST, latency=problem_table.LATENCY_SMOKE, latency_calls=latency.Calls(2, 30)
    )
    record = json.loads(json.dumps(run.run([], settings), allow_nan=False))
    (entry,) = record["latency"]
    assert Problem.from_dict(entry["problem"]) == problem_table.LATENCY_SMOKE[0]
    assert [(one["name"], one["threads"], one["status"], one["calls"]) for one in entry["candidates"]] == [
        (OURS, 1, "ok", 60),
        ("numpy", 1, "ok", 60),
    ]
    for one in entry["candidates"]:
        times = list(one["quantiles"].values())
        assert times[0] > 0
        assert times == sorted(times)
        assert sum(one["counts"]) == 60
    assert Page(page(record)).table("latency")[1][0][-1] == "60"


@needs_torch
def test_the_cost_of_a_step_is_measured_in_fresh_processes():
    record = json.loads(json.dumps(run.run([], run.Settings(peers=[], attention=attention.SMALL)), allow_nan=False))
    found = record["attention"]
    assert [(one["name"], one["step"], one["module"], one["context"]) for one in found["steps"]] == [
        (OURS, "lstm", "", None), (OURS, "lstm", "cell", None), ("torch", "lstm", "cell", None),
        (OURS, "gru", "", None), (OURS, "gru", "cell", None), ("torch", "gru", "cell", None),
        ("torch", "attention", "", 4), ("torch", "attention", "", 8),
    ]  # fmt: skip
    assert all((one["status"], len(one["rounds"])) == ("ok", 2) for one in found["steps"]), found["steps"]
    assert len(Page(page(record)).table("attention")[1]) == 8
    assert attention.failed(record) is None


@needs_torch
def test_a_step_of_attention_is_the_formula(monkeypatch):
    import torch

    for context in (1, 5):
        step, error = attention.prepare(12, 3, context)
        assert error < 1e-6
        assert step().shape == (1, 1, 12)
    functional = torch.nn.functional
    right = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda q, k, v: right(q, k[:, :, 1:], v[:, :, 1:]))
    assert not attention.is_right(attention.prepare(12, 3, 5)[1])


def test_what_failed_is_a_remark():
    record = full_record()
    assert attention.failed(record) is None
    record["attention"]["steps"][3] |= {"status": "failed", "detail": "killed", "rounds": []}
    assert "the cost of a step of attention was not measured: attention (torch): killed" in results.remarks(record)
    assert len(Page(page(record)).table("attention")[1]) == 5
    record["attention"] = {"error": "torch does not start"}
    assert any("torch does not start" in line for line in results.remarks(record))
    assert "Not measured" in page(record)
    record["cases"][3]["memory"]["torch"] = {"error": "no clear_refs"}
    assert "torch's memory was not measured: no clear_refs" in results.remarks(record)


# Several runs


def later(record, **changes):
    record = json.loads(json.dumps(record))
    return {**record, "date": "2025-01-03T03:04:05+00:00", **changes}


def test_runs_of_one_machine_are_joined_and_the_newest_counts():
    old, new = stored_record(), later(stored_record(), commit={"id": "f" * 40, "date": "", "changed": False})
    new["cases"] = [new["cases"][0]]
    for one in new["cases"][0]["candidates"]:
        one["rounds"] = [[2 * sample for sample in samples] for samples in one["rounds"]]
    new["environment"]["versions"]["torch"]["torch"] = "1.3.0"
    new["environment"]["not_installed"] = []
    (part,) = joined.join([new, old])  # in any order
    assert [run["date"] for run in part.runs] == [old["date"], new["date"]]
    assert len(part.record["cases"]) == 3
    assert part.record["cases"][0] == new["cases"][0]
    assert len(part.record["cases"][0]["candidates"][0]["rounds"]) == 4  # not pooled
    assert part.record["cases"][1:] == old["cases"][1:]
    (repeat,) = part.repeats
    assert repeat.seconds == pytest.approx({1: 8e-6, 2: 16e-6})
    assert repeat.spread == pytest.approx(1)
    assert part.differences == [f"commits: unknown, {'f' * 12}", "torch: 1.2.3, 1.3.0"]
    assert "jax: not installed" in results.remarks(part.record)
    html = Page(report.render([part]))
    _, lines = html.table("runs", 1)
    name = old["cases"][0]["problem"]["name"]
    assert lines == [[name, "8 us, 2.50 (2.50-2.50)", "16 us, 2.50 (2.50-2.50)", "100 %"]]
    assert html.table("noise")[1][-1][0] == "between runs, which differ (see there): slowest over fastest, less one"
    text = markdown.render([part])
    assert "2 of 2 runs, the worst being this" in text
    assert "Samples are not pooled" in text


def test_what_only_older_runs_have_is_kept():
    old, new = full_record(), later(stored_record())
    new["environment"] = old["environment"]
    (part,) = joined.join([old, new])
    assert part.record["latency"] == old["latency"]
    assert part.record["attention"] == old["attention"]


def test_different_machines_are_kept_apart():
    other = stored_record()
    other["environment"]["hotloop"]["variant"] = "avx2"
    parts = joined.join([stored_record(), other])
    assert [part.machine["variant"] for part in parts] == ["avx512", "avx2"]
    for text in (report.render(parts), markdown.render(parts)):
        assert "Runs of 2 machines (or instruction sets), kept apart: their figures do not compare. 3 problems" in text
    html = Page(report.render(parts))
    assert {"summary-1", "summary-2", "cases-2"} <= set(html.ids)
    assert html.table("cases-1") == html.table("cases-2")


def test_noise_of_equal_sides_is_shown():
    record = full_record()
    (part,) = joined.join([record, gate_record(record)])
    html = Page(report.render([part]))
    lines = {line[0]: line for line in html.table("noise")[1]}
    assert lines["A/A of hotloop compare, 2 January 2025, 03:04 UTC"][1:3] == ["1.1 %", "3.7 %"]
    assert "equal sides in turn (A/A) differ by 1.1 %, at most 3.7 %" in markdown.render([part])
    scatters = [stats.scatter(us["rounds"]) for case in record["cases"] if (us := results.ours(case))]
    assert lines["rounds of ours: half the interquartile range"][1:3] == [
        sections._share(np.median(scatters)), sections._share(max(scatters)),
    ]  # fmt: skip


# The command


def command(*arguments):
    return cli.main(["report", *map(str, arguments)])


def write(path, record):
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_the_command_writes_what_it_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "run.json", full_record())
    assert command(data) == 0
    assert Path("report.html").read_text(encoding="utf-8") == full_page()
    Path("report.html").unlink()
    assert command(data, "--markdown", "a.md") == 0
    assert not Path("report.html").exists()
    assert (
        command(data, write(tmp_path / "aa.json", gate_record(full_record())), "--out", "b.html", "--markdown", "b.md")
        == 0
    )
    assert capsys.readouterr().out.endswith("b.html  b.md\n")
    assert "A/A of hotloop compare" in Path("b.html").read_text(encoding="utf-8")
    other = full_record()
    other["environment"]["hotloop"]["processor"] = "another"
    assert command(data, write(tmp_path / "other.json", other), "--markdown", "c.md") == 0
    assert "2 machines: their figures are kept apart" in capsys.readouterr().err


def with_rounds(rounds):
    record = json.loads(json.dumps(stored_record()))
    record["cases"][0]["candidates"][0]["rounds"] = rounds
    return record


def damaged():
    record = full_record()
    del record["cases"][0]["problem"]["cell"]
    return record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "is not JSON (Expecting"),
        (b"\xff\xfe\x00", "is not text"),
        ([1], "is no run of hotloop bench: it has no schema_version"),
        ({"schema_version": 2}, "has schema_version 2, and this hotloop reads up to 1: a newer one wrote it"),
        ({"schema_version": 1}, "is no run of hotloop bench, or one that was damaged (KeyError: 'environment')"),
        ({**stored_record(), "schema_version": 0}, "schema_version has to be an integer >= 1, got 0"),
        ({**stored_record(), "schema_version": -1}, "schema_version has to be an integer >= 1, got -1"),
        ({**stored_record(), "schema_version": True}, "schema_version has to be an integer >= 1, got True"),
        ({**stored_record(), "date": "yesterday"}, "or one that was damaged (ValueError:"),
        ({**stored_record(), "date": None}, "a date has to be text, got None"),
        (with_rounds([[float("nan")]]), "a time has to be a finite number > 0, got nan"),
        (with_rounds([[float("inf")]]), "a time has to be a finite number > 0, got inf"),
        (with_rounds([[0.0]]), "a time has to be a finite number > 0, got 0.0"),
        (with_rounds([[1e-3], []]), "there are no times"),
        ("[" * 100_000, "too many brackets"),
        ({**stored_record(), "latency": 7}, "no report can be made of that (TypeError:"),
        (damaged(), "or one that was damaged (TypeError:"),
        ({**stored_record(), "cases": []}, "has no cases"),
        (gate_record(stored_record()), "and no run of hotloop bench is"),
        ({**gate_record(stored_record()), "kind": "pytest-benchmark"}, "of benchmarks of another project"),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_the_rule(content, message, tmp_path, capsys):
    path = tmp_path / "run.json"
    if isinstance(content, (str, bytes)):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    elif content is not None:
        write(path, content)
    with pytest.raises(SystemExit) as stopped:
        command(path, "--out", tmp_path / "report.html")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("hotloop report: error: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("text", ["2026-01-02T03:04:05", "2026-01-02T03:04:05Z", "2026-01-02T05:04:05+02:00"])
def test_dates_are_told_in_utc(text):
    assert results.format_date(text) == "2 January 2026, 03:04 UTC"


def test_places_that_do_not_do_are_named(tmp_path, capsys):
    data = write(tmp_path / "run.json", stored_record())
    for arguments, message in (
        (("--out", tmp_path / "no" / "a.html"), "there is no folder"),
        (("--markdown", data), "is one of the files that are read, which would be lost"),
        (("--out", tmp_path), "it is a folder"),
        (("--out", tmp_path / ("x" * 300)), "too long"),
        ((tmp_path / ("x" * 300), "--markdown", tmp_path / "r.md"), "too long"),
        (("--out", tmp_path / "r.md", "--markdown", tmp_path / "." / "r.md"), "r.md is the file of --out, too"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(data, *arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert json.loads(data.read_text(encoding="utf-8")) == stored_record()
    assert list(tmp_path.iterdir()) == [data]
    data.write_bytes(b"\xef\xbb\xbf" + data.read_bytes())
    assert joined.read(data) == stored_record()


def test_without_matplotlib_markdown_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    data = write(tmp_path / "run.json", stored_record())
    assert command(data, "--out", tmp_path / "a.html") == 2
    assert 'install the extra "bench"' in capsys.readouterr().err
    assert command(data, "--markdown", tmp_path / "a.md") == 0
    assert "## Summary" in (tmp_path / "a.md").read_text(encoding="utf-8")


# A real browser


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_complaint(width, dark, tmp_path):
    """In a frame of that width nothing sticks out, the colours follow the system, and the console stays empty."""
    other = full_record()
    other["environment"]["hotloop"]["processor"] = "another"
    (tmp_path / "report.html").write_text(page(full_record(), other), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f"""<!DOCTYPE html><iframe src="report.html" style="width:{width}px;height:800px;border:0"></iframe>
        <pre id=said></pre>
        <script>onload = () => {{
          const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
          for (const one of page.querySelectorAll("details")) one.open = true;
          const wide = [...page.querySelectorAll("body *")].filter(one => !one.closest(".scroll > *")
            && !one.closest("svg > *") && one.getBoundingClientRect().right > root.clientWidth + 1);
          said.textContent = JSON.stringify({{width: root.clientWidth, needed: root.scrollWidth,
            wide: wide.map(one => one.outerHTML.slice(0, 80)), figures: page.querySelectorAll("svg").length,
            ground: getComputedStyle(page.body).backgroundColor}});
        }}</script>""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            "--enable-logging=stderr", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=5000",
            "--dump-dom", (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    said = json.loads(unescape(re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert said["wide"] == []
    assert said["needed"] <= said["width"] <= width
    assert said["figures"] == full_page().count("<svg") * 2
    assert said["ground"] == ("rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")
