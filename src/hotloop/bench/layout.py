"""What a report is made of, as data: sections with paragraphs, tables and charts. HTML and Markdown write the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Lines of cells.

    Attributes
    ----------
    heads : sequence of str
    lines : sequence of sequences of str
    marked : set of int
        Lines to stand out.
    tones : mapping
        From (line, column) to -4 .. 4: the colour of a heat map, 0 in the middle.
    folded : str
        Where not empty the table is folded away under this title.
    """

    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    tones: Mapping[tuple[int, int], int] = field(default_factory=dict)
    folded: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes
    ----------
    name : str
        For the legend; series of one name share their entry.
    style : str
        Colour and marker, a key of `figures.STYLES`.
    x, y : sequence of float
        Of bars one each; x does not matter there.
    low, high : sequence of float
        Of the confidence band, NaN where nothing is known; empty for none.
    dash : int
        Which kind of line, 0 being solid; of bars whether they are hatched.
    dash_name : str
        For the legend, where series of one name differ by their lines.
    strong, hollow : bool
        A thick line; a marker that is not filled.
    text : str
        Beside a bar.
    """

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dash: int = 0
    dash_name: str = ""
    strong: bool = False
    hollow: bool = False
    text: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing, what it says in words, and its figures as a table.

    Attributes
    ----------
    kind : {"lines", "points", "steps", "bars"}
    x_format, y_format : callable
        Writes a tick.
    x_ticks : sequence of float
        Where to put ticks; empty to choose.
    y_base : {10, 2}
        Whose powers have ticks.
    log_y : bool
        The x axis is logarithmic except for bars.
    right : (float, str, callable) or None
        A second scale: how many times the first one, its name, and how to write a tick.
    levels : sequence of (float, str)
        Horizontal lines.
    """

    title: str
    kind: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    alternative: str
    table: Table
    x_format: Callable[[float], str] = "{:g}".format
    y_format: Callable[[float], str] = "{:g}".format
    x_ticks: Sequence[float] = ()
    y_base: int = 10
    log_y: bool = True
    right: tuple[float, str, Callable[[float], str]] | None = None
    levels: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page with a title of its own.

    Attributes
    ----------
    name : str
        What links go to.
    title : str
    lead : sequence of str
        Paragraphs that stand out.
    warnings : sequence of str
        Paragraphs that must not be overlooked.
    text : sequence of str
        Paragraphs; what stands between backticks is code.
    terms : sequence of (str, str)
        Terms and what is said of them.
    tables : sequence of (str, Table)
        Each with a paragraph before it, which may be empty.
    charts : sequence of Chart
    bullets : sequence of str
    """

    name: str
    title: str
    lead: Sequence[str] = ()
    warnings: Sequence[str] = ()
    text: Sequence[str] = ()
    terms: Sequence[tuple[str, str]] = ()
    tables: Sequence[tuple[str, Table]] = ()
    charts: Sequence[Chart] = ()
    bullets: Sequence[str] = ()
