"""Find a place in the source by the name of what encloses it and a run of tokens, wherever the file and the line are.

`Tree(root).find("Lstm::backward", "carry = dc * f")` is the one place in the sources where these tokens stand in a
function of that name. White space, line breaks, comments and trailing commas do not count, so that the place is still
found after the file was formatted anew or the function moved to another one.

Python is parsed with `ast`, C++ with tree-sitter: a maintained library that knows templates, constructors and operators
and recovers from syntax errors, which a short scanner of our own would not. libclang would need the compiler's options,
and it drops the branches of `#if` that are not compiled here. tree-sitter does not expand macros, and it misreads an
`#if` inside an initializer. So macros that stand for attributes and the lines of `#if` and `#else` are blanked out
before parsing. Tokens come from one regular expression per language, because fragments have to be read by the same
rules as files.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import tree_sitter
import tree_sitter_cpp

SOURCES = ("csrc/**/*.h", "csrc/**/*.c", "csrc/**/*.cpp", "src/hotloop/**/*.py", "tools/*.py")

_PYTHON = re.compile(
    r"(?P<comment>\#[^\n]*)"
    r"|(?i:[rbfu]{0,2})(?:'''(?s:\\.|.)*?'''|\"\"\"(?s:\\.|.)*?\"\"\"|'(?s:\\.|[^'\\\n])*'|\"(?s:\\.|[^\"\\\n])*\")"
    r"|0[xX][\da-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?\w*|\w+"
    r"|\*\*=|//=|>>=|<<=|\.\.\.|->|:=|[-+*/%&|^=<>!@]=|\*\*|//|<<|>>|[^\s\\]"
)
# `>` is a token of its own, so that the end of a template's arguments is never half of `>>`.
_CPP = re.compile(
    r"(?P<comment>//[^\n]*|/\*(?s:.)*?\*/)"
    r"|(?:u8|[uUL])?(?:R\"(?P<mark>[^(\s]*)\((?s:.)*?\)(?P=mark)\"|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+')"
    r"|\.?\d(?:[eEpP][+-]|'?\w|\.)*|\w+"
    r"|<=>|<<=|->\*|\.\.\.|->|\+\+|--|<<|<=|>=|==|!=|&&|\|\||::|\#\#|[-+*/%&|^]=|[^\s\\]"
)
_CLOSING = (")", "]", "}")
_MERGING = re.compile(r"\w[\w'\"]|\d\.|\.\d|[^\w\s()\[\]{},;'\"]{2}")  # such two characters may become one token

_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(?:if|ifdef|ifndef|elif|else|endif)\b(?:\\\n|[^\n])*", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^#define[ \t]+(\w+)[ \t]+(?:inline[ \t]+)?__attribute__\b", re.MULTILINE)
_PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_cpp.language()))
_TYPES = ("class_specifier", "struct_specifier", "union_specifier", "enum_specifier")
_MACROS = ("preproc_def", "preproc_function_def")


class AnchorError(Exception):
    """A place was not found, or is more than one."""


class Token(NamedTuple):
    """What stands from `start` to `stop`."""

    text: str
    start: int
    stop: int


class Place(NamedTuple):
    """The characters from `start` to `stop` of a file, which is named from the root."""

    file: str
    start: int
    stop: int
    line: int


class Scope(NamedTuple):
    """A function, class or macro: its name with those of what encloses it, and where it stands."""

    name: str
    start: int
    stop: int


def lex(text: str, python: bool) -> list[Token]:
    """The tokens of a file or a fragment, without comments and trailing commas."""
    tokens: list[Token] = []
    for match in (_PYTHON if python else _CPP).finditer(text):
        if match["comment"] is not None:
            continue
        if match[0] in _CLOSING and tokens and tokens[-1].text == ",":
            tokens.pop()
        tokens.append(Token(match[0], *match.span()))
    return tokens


def replace(text: str, start: int, stop: int, new: str) -> str:
    """The text with other tokens from `start` to `stop`, none of which merges with one beside it."""
    before, after = text[:start], text[stop:]
    if not new and (not before or before[-1].isspace()):
        after = after.lstrip(" ")  # a statement's indentation stays what it was
    for part in (new, after):
        if part:
            before += (" " if _MERGING.fullmatch(before[-1:] + part[0]) else "") + part
    return before


def _to_characters(text: str) -> Callable[[int], int]:
    """From a position in UTF-8 to one in the text."""
    if text.isascii():
        return lambda position: position
    data = text.encode()
    return lambda position: len(data[:position].decode())


def _python_scopes(text: str, file: str) -> Iterator[Scope]:
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)

    def position(line: int, column: int) -> int:
        return starts[line - 1] + _to_characters(lines[line - 1])(column)

    def visit(node: ast.AST, path: tuple[str, ...]) -> Iterator[Scope]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            path = (*path, node.name)
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            yield Scope(".".join(path), starts[first - 1], position(node.end_lineno, node.end_col_offset))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, path)

    yield from visit(ast.parse(text, file), ())


def _cpp_name(node: tree_sitter.Node) -> str:
    """The name that a declarator declares, such as `start`, `Pool::start`, `~Pool` or `operator[]`."""
    while True:
        inner = node.child_by_field_name("declarator")
        if inner is None and node.type == "reference_declarator":
            inner = node.named_children[-1]
        if inner is None:
            break
        node = inner
    if node.type in ("template_function", "template_type", "template_method"):
        return _cpp_name(node.child_by_field_name("name") or node)
    if node.type == "qualified_identifier":
        scope, name = node.child_by_field_name("scope"), node.child_by_field_name("name")
        return "::".join(_cpp_name(part) for part in (scope, name) if part is not None)
    return "".join((node.text or b"").decode().split())


def _cpp_scopes(text: str, attributes: re.Pattern[str] | None) -> Iterator[Scope]:
    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", lambda character: " " * len(character[0].encode()), match[0])

    place = _to_characters(text)
    parsed = _DIRECTIVE.sub(blank, text)
    if attributes is not None:
        parsed = attributes.sub(blank, parsed)

    def visit(node: tree_sitter.Node, path: tuple[str, ...]) -> Iterator[Scope]:
        named = None
        if node.type == "function_definition":
            named = node.child_by_field_name("declarator")
        elif node.type in _MACROS or (node.type in _TYPES and node.child_by_field_name("body") is not None):
            named = node.child_by_field_name("name")
        if named is not None:
            path = (*path, _cpp_name(named)) if node.type not in _MACROS else (_cpp_name(named),)
            whole = node.parent if node.parent is not None and node.parent.type == "template_declaration" else node
            yield Scope("::".join(path), place(whole.start_byte), place(whole.end_byte))
        for child in node.children:
            yield from visit(child, path)

    yield from visit(_PARSER.parse(parsed.encode()).root_node, ())


@dataclass
class Source:
    """A file: its tokens, and of each the index of the innermost scope in which it stands."""

    file: str
    text: str
    tokens: list[Token]
    scopes: list[Scope]
    owners: list[int]
    where: dict[str, list[int]] = field(default_factory=dict)  # the indices of a token by its text

    @property
    def python(self) -> bool:
        """Whether it is Python, and not C++."""
        return self.file.endswith(".py")

    def line(self, position: int) -> int:
        """The number of a position's line."""
        return self.text.count("\n", 0, position) + 1


def read_source(file: str, text: str, attributes: re.Pattern[str] | None = None) -> Source:
    """A file that was read; `attributes` are macros of C++ to leave out."""
    python = file.endswith(".py")
    scopes = [Scope("", 0, len(text))]  # the module
    scopes += sorted(
        _python_scopes(text, file) if python else _cpp_scopes(text, attributes), key=lambda s: (s.start, -s.stop)
    )
    tokens, owners, open_ = lex(text, python), [], [0]
    following = 1
    where: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        while following < len(scopes) and scopes[following].start <= token.start:
            open_.append(following)
            following += 1
        while scopes[open_[-1]].stop <= token.start and len(open_) > 1:
            open_.pop()
        owners.append(open_[-1])
        where.setdefault(token.text, []).append(index)
    return Source(file, text, tokens, scopes, owners, where)


class Tree:
    """All sources below a root."""

    def __init__(self, root: Path, patterns: tuple[str, ...] = SOURCES) -> None:
        files = sorted({path for pattern in patterns for path in root.glob(pattern)})
        texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in files}
        names = {name for text in texts.values() for name in _ATTRIBUTE.findall(text)}
        attributes = re.compile(rf"(?<!#define )\b(?:{'|'.join(sorted(names))})\b") if names else None
        self.sources = {file: read_source(file, text, attributes) for file, text in texts.items()}

    def scopes(self, within: str) -> list[tuple[Source, Scope]]:
        """Those of a name, which may be qualified."""
        return [
            (source, scope)
            for source in self.sources.values()
            for scope in source.scopes[1:]
            if _is_named(scope.name, within)
        ]

    def find(self, within: str | None, old: str) -> Place:
        """The one place of these tokens in all that bears the name; None is what is in no function, class or macro."""
        runs = list(self._runs(old))
        found = [place for name, place in runs if (_is_named(name, within) if within else not name)]
        if len(found) == 1:
            return found[0]
        bodies = self.scopes(within) if within else []
        if within and not bodies:
            message = f"the anchor was not found: no function, class or macro is named {within}"
        elif within:
            where = _some([f"{source.file}:{source.line(scope.start)}" for source, scope in bodies])
            message = f"`{old}` occurs {len(found)} times in {within} ({where})"
        else:
            message = f"`{old}` occurs {len(found)} times outside of functions, classes and macros"
        if found:
            message += ": " + _some([f"{place.file}:{place.line}" for place in found])
        elif runs:
            others = [f"{name or 'no function'} ({place.file}:{place.line})" for name, place in runs]
            message += f"; these tokens stand in {_some(others)}"
        raise AnchorError(message)

    def _runs(self, old: str) -> Iterator[tuple[str, Place]]:
        """Where the tokens stand, all in one scope, and the name of that."""
        patterns = {python: _pattern(old, python) for python in (True, False)}
        for source in self.sources.values():
            pattern = patterns[source.python]
            if not pattern:
                continue
            count = len(pattern)
            for first in source.where.get(pattern[0], ()):
                if [token.text for token in source.tokens[first : first + count]] != pattern:
                    continue
                if len(set(source.owners[first : first + count])) == 1:
                    start, stop = source.tokens[first].start, source.tokens[first + count - 1].stop
                    place = Place(source.file, start, stop, source.line(start))
                    yield source.scopes[source.owners[first]].name, place

    def changed(self, place: Place, new: str) -> str:
        """The text of the place's file with other tokens there. Further lines are indented like the place's own."""
        text = self.sources[place.file].text
        line = text[text.rfind("\n", 0, place.start) + 1 :]
        new = new.replace("\n", "\n" + line[: len(line) - len(line.lstrip(" "))])
        return replace(text, place.start, place.stop, new)


def _pattern(old: str, python: bool) -> list[str]:
    """The tokens to look for; none in a language in which `old` would be a comment, as Python's `//` in C++."""
    if any(match["comment"] is not None for match in (_PYTHON if python else _CPP).finditer(old)):
        return []
    return [token.text for token in lex(old, python)]


def _is_named(name: str, within: str) -> bool:
    return name == within or name.endswith(("." + within, "::" + within))


def _some(words: list[str]) -> str:
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
