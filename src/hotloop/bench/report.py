"""The report as HTML: one file without scripts or links to elsewhere, made from records alone.

What it says is in sections.py, which markdown.py writes too; here is only how it looks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import figures, joined, sections
from .joined import Part
from .layout import Chart, Section, Table
from .sections import TONES


def write_report(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the report of records. Raises joined.RunError."""
    path.write_text(render(joined.join(records)), encoding="utf-8")


def render(parts: Sequence[Part]) -> str:
    """Return the report as a string of HTML."""
    several = len(parts) > 1
    title = sections.title(parts[0]) if not several else f"hotloop on {len(parts)} machines"
    body = ["<h1>hotloop against other libraries</h1>"]
    body += [f'<p class="warning">{escape(text)}</p>' for text in sections.apart(parts)]
    if several:
        links = "".join(f'<li><a href="#machine-{number}">{escape(sections.where(part))}</a></li>'
                        for number, part in enumerate(parts, 1))  # fmt: skip
        body.append(f'<nav aria-label="machines"><ul class="plain">{links}</ul></nav>')
    for number, part in enumerate(parts, 1):
        body.append(_part(part, number, several))
    text = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{text}\n</main>\n</body>\n</html>\n"
    )


def _part(part: Part, number: int, several: bool) -> str:
    """One machine; where there are several, it has a heading of its own and its sections are one level lower."""
    found, suffix = sections.sections(part), f"-{number}" if several else ""
    links = "".join(f'<li><a href="#{one.name}{suffix}">{escape(one.title)}</a></li>' for one in found)
    head = f'<h2 id="machine-{number}">{escape(sections.title(part))}</h2>\n' if several else ""
    name = f"sections of machine {number}" if several else "sections"
    where = f'<p class="where">{escape(sections.where(part))}</p>'
    first, *rest = (_section(one, suffix, "h3" if several else "h2") for one in found)
    menu = f'<nav aria-label="{name}"><ul>{links}</ul></nav>'
    return "\n".join((head + where, first, menu, *rest))


def _section(section: Section, suffix: str, heading: str) -> str:
    name = section.name + suffix
    lines = [f'<section aria-labelledby="{name}">', f'<{heading} id="{name}">{escape(section.title)}</{heading}>']
    lines += [f'<p class="lead">{escape(text)}</p>' for text in section.lead]
    lines += [f'<p class="warning busy">{escape(text)}</p>' for text in section.warnings]
    lines += [f"<p>{_code(text)}</p>" for text in section.text]
    if section.name == "grid":
        lines.append(_key())
    plots = [_figure(chart, f"{name}-{number}-") for number, chart in enumerate(section.charts, 1)]
    if plots:
        lines.append(f'<div class="plots">{"".join(plots)}</div>')
    if section.bullets:
        lines.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in section.bullets) + "</ul>")
    for text, table in section.tables:
        if text:
            lines.append(f"<p>{escape(text)}</p>")
        lines.append(_table(table, section.title))
    if section.terms:
        lines.append(_list(section.terms))
    return "\n".join((*lines, "</section>"))


def _code(text: str) -> str:
    """Write a paragraph: what stands between backticks is code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def _list(items: Iterable[tuple[str, str]]) -> str:
    """Write terms and what is said of them; lines stay lines."""
    lines = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text).replace(chr(10), '<br>')}</dd>" for term, text in items)
    return f"<dl>{lines}</dl>"


def _figure(chart: Chart, prefix: str) -> str:
    table = _plain_table(chart.table, chart.title)
    return (
        f"<figure>{figures.draw(chart, prefix)}<figcaption><details><summary>Table: {escape(chart.title)}</summary>"
        f"{table}</details></figcaption></figure>"
    )


def _table(table: Table, name: str) -> str:
    plain = _plain_table(table, table.folded or name)
    return f"<details><summary>{escape(table.folded)}</summary>{plain}</details>" if table.folded else plain


def _plain_table(table: Table, name: str) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.heads)
    lines = []
    for number, cells in enumerate(table.lines):
        row = [f'<th scope="row">{escape(cells[0])}</th>']
        for column, cell in enumerate(cells[1:], 1):
            tone = table.tones.get((number, column))
            row.append(f"<td{'' if tone is None else f' class=t{tone}'}>{escape(cell)}</td>")
        lines.append(f"<tr{' class=behind' if number in table.marked else ''}>{''.join(row)}</tr>")
    body = "\n".join(lines)
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{whole}</div>'


def _key() -> str:
    """What the colours of the heat map mean."""
    edges = [*(f"below {1 / edge:.2f}" for edge in reversed(TONES)), "even", *(f"from {edge:g}" for edge in TONES)]
    cells = "".join(f"<span class=t{tone}>{text}</span>" for tone, text in zip(range(-4, 5), edges, strict=True))
    return f'<p class="key">{cells}</p>'


# Of the heat map, from -4 to 4: orange to blue, which the colour-blind tell apart. The text on them has a contrast of
# 4.5 or more.
_LIGHT = ("#e9924a", "#f5b478", "#fad3ad", "#fdeadb", "#f1f1f1", "#e3effa", "#bcd9f3", "#8bbde9", "#5d9fdb")
_DARK = ("#96540c", "#774510", "#55350f", "#38260f", "#2a2d31", "#16293c", "#1c4163", "#245b8d", "#2b6ca8")


def _tones(colours: Sequence[str]) -> str:
    return " ".join(f"--t{tone}: {colour};" for tone, colour in zip(range(-4, 5), colours, strict=True))


STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --paper: #fff; --line: #c9c9c9; --grid: #dcdcdc;
  --head: #f3f3f3; --link: #00527f; --behind: #fff1e6; --warn: #a04800; {figures.palette(False)} {_tones(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #ececec; --soft: #b4b4b4; --paper: #15181b; --line: #454a50;
  --grid: #33383d; --head: #23272b; --link: #7cc4f5; --behind: #3a2614; --warn: #ff9a4d; {figures.palette(True)}
  {_tones(_DARK)} }} }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
main {{ max-width: 82rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }}
h2, h3 {{ font-size: 1.25rem; line-height: 1.3; margin: 2rem 0 .5rem; }}
h2[id^=machine] {{ font-size: 1.5rem; border-top: .2rem solid var(--line); padding-top: 1.5rem; margin-top: 3rem; }}
p, li {{ max-width: 46rem; overflow-wrap: break-word; }}
p.lead {{ font-size: 1.15rem; font-weight: 600; line-height: 1.4; }}
p.where {{ color: var(--soft); }}
a {{ color: var(--link); }}
code {{ font-size: .9em; overflow-wrap: anywhere; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0 .4rem; list-style: none; padding: 0; margin: 1.5rem 0 0;
  border-block: 1px solid var(--line); }}
nav ul.plain {{ display: block; }}
nav a {{ display: inline-block; padding: .4rem .3rem; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem 1rem; }}
figure {{ margin: 0; min-width: 0; max-width: 34rem; }}
figure svg {{ width: 100%; height: auto; display: block; }}
svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
summary {{ cursor: pointer; padding: .4rem 0; }}
.scroll {{ overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; width: fit-content;
  max-width: 100%; }}
table {{ border-spacing: 0; font-size: .85rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }}
thead th {{ background: var(--head); vertical-align: bottom; white-space: normal; }}
tbody th {{ font-weight: 400; background: var(--paper); }}
th:first-child {{ text-align: left; position: sticky; left: 0; }}
tr:last-child > * {{ border-bottom: 0; }}
tr.behind > * {{ background: var(--behind); }}
.key {{ display: flex; flex-wrap: wrap; font-size: .85rem; gap: 1px; }}
.key span {{ padding: .15rem .5rem; }}
{" ".join(f".t{tone} {{ background: var(--t{tone}); }}" for tone in range(-4, 5))}
dl {{ display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem; font-size: .9rem; }}
dt {{ font-weight: 600; max-width: 18rem; }} dd {{ margin: 0; overflow-wrap: anywhere; max-width: 60rem; }}
.warning {{ border-left: .3rem solid var(--warn); padding-left: .7rem; }}
@media (max-width: 40rem) {{ th:first-child {{ white-space: normal; min-width: 7rem; max-width: 9rem; }}
  dl {{ grid-template-columns: 1fr; }} dd {{ margin-bottom: .4rem; }} }}
"""
