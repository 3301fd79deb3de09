"""The report as Markdown, for a pull request or a terminal: what sections.py says, without figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from . import sections
from .joined import Part
from .layout import Section, Table

LIMIT = 60_000  # characters; a comment on GitHub may have 65,536


def render(parts: Sequence[Part], limit: int = LIMIT) -> str:
    """Return the report as Markdown. Long tables are folded away, and left out, longest first, until it fits."""
    lines = _lines(parts)
    while sum(len(line) + 1 for line in lines) > limit and any(map(_is_folded, lines)):
        longest = max(filter(_is_folded, lines), key=len)
        (name,) = re.findall("<summary>(.*)</summary>", longest)
        count = longest.count("\n| ") - 1
        lines[lines.index(longest)] = f"({name}: {count} lines left out here for length; the page has them)\n"
    return "\n".join(lines).rstrip() + "\n"


def _is_folded(text: str) -> bool:
    return text.startswith("<details>")


def _lines(parts: Sequence[Part]) -> list[str]:
    """Write it line by line; a folded table is one of them."""
    several = len(parts) > 1
    lines = ["# hotloop against other libraries", ""]
    for text in sections.apart(parts):
        lines += [f"**{escape(text)}**", ""]
    for part in parts:
        if several:
            lines += [f"## {escape(sections.title(part))}", ""]
        lines += [f"{escape(sections.where(part))}", ""]
        for section in sections.sections(part):
            lines += _section(section, "###" if several else "##")
    return lines


LONG = 16  # lines, above which a table is folded


def _section(section: Section, heading: str) -> list[str]:
    lines = [f"{heading} {escape(section.title)}", ""]
    for text in section.lead:
        lines += [f"**{escape(text)}**", ""]
    for text in section.warnings:
        lines += [f"> {escape(text)}", ""]
    for text in section.text:
        lines += [escape(text), ""]
    for text, table in section.tables:
        lines += [escape(text), ""] if text else []
        lines += _table(table, table.folded or (f"{len(table.lines)} lines" if len(table.lines) > LONG else ""))
    for chart in section.charts:
        lines += _table(chart.table, chart.title)
    lines += [f"- {escape(text)}" for text in section.bullets]
    for term, text in section.terms:
        lines.append(f"- **{escape(term)}**: " + "<br>".join(escape(one) for one in text.split("\n")))
    return [*lines, ""] if lines[-1] else lines


def _table(table: Table, folded: str) -> list[str]:
    lines = [
        "| " + " | ".join(map(escape, table.heads)) + " |",
        "|---" + "|---:" * (len(table.heads) - 1) + "|",
    ]
    for number, cells in enumerate(table.lines):
        first = f"**{escape(cells[0])}**" if number in table.marked else escape(cells[0])
        lines.append("| " + " | ".join((first, *map(escape, cells[1:]))) + " |")
    if folded:
        return ["\n".join([f"<details><summary>{escape(folded)}</summary>", "", *lines, "", "</details>", ""])]
    return [*lines, ""]


def literal(text: str) -> str:
    """A name that comes from outside, so that it shows as it is and nothing in it is markup."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`")):
        text = text.replace(sign, safe)
    return text.replace("](", "]\\(").replace("\n", " ")


def escape(text: str) -> str:
    """Write text so that Markdown shows it as it is; code between backticks stays code."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(sign, safe)
    return text.replace("\n", " ")
