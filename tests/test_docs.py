"""Examples are run: those of the docstrings, and the Python blocks of README.md."""

from __future__ import annotations

import doctest
import importlib
import inspect
import itertools
import re
from pathlib import Path

import pytest

import hotloop

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(
    r"^(?P<mark><!-- not run -->\n+)?(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL
)


def docstring_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = "functional", "_backends.choice", "_core.settings", "_core.types", "layers"
    modules = [importlib.import_module(f"hotloop.{name}") for name in names]
    for test in itertools.chain(*map(finder.find, modules)):
        if test.examples:
            yield pytest.param(test, id=test.name)


def torch_examples():
    """Of hotloop.torch; its classes say that they are at home there."""
    torch = importlib.import_module("hotloop.torch")
    for name in ("__init__", *torch.__all__):
        one = torch if name == "__init__" else getattr(torch, name)
        for test in doctest.DocTestFinder(exclude_empty=True, recurse=False).find(one, f"hotloop.torch.{name}"):
            yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("example", list(docstring_examples()))
def test_docstring(example, variant):
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


@pytest.mark.parametrize("example", list(torch_examples()))
def test_docstring_of_torch(example):
    assert example.examples or example.name.endswith("Replaced")
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


PUBLIC = [name for name in hotloop.__all__ if inspect.isfunction(getattr(hotloop, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented(name):
    """An example, the parameters by name, what comes back and what is raised."""
    function = getattr(hotloop, name)
    text = inspect.getdoc(function)
    assert ">>> " in text
    if name.endswith("_vjp"):
        assert f"Equations, parameters and errors are those of `{name.removesuffix('_vjp')}`, without `out`." in text
        return
    parameters = list(inspect.signature(function).parameters)
    for parameter in parameters:
        assert re.search(rf"\b{parameter}\b", text.split("Parameters\n")[1]), parameter
    if parameters:
        assert "Raises\n" in text


def readme_sections():
    """The Python blocks under each heading, as (line, code)."""
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    sections = {}
    for match in BLOCK.finditer(text):
        if not match["mark"]:
            heading = re.findall(r"^##+ (.*)$", text[: match.start()], re.MULTILINE)[-1]
            line = text[: match.start("code")].count("\n") + 1
            sections.setdefault(heading, []).append((line, match["code"]))
    return sections


def test_readme_has_examples():
    assert README.exists(), "README.md is missing"
    assert readme_sections(), "README.md has no ```python block"


@pytest.mark.parametrize("heading", readme_sections())
def test_readme(heading, tmp_path, monkeypatch):
    """The blocks of a section run one after the other, as a reader would paste them, and with nothing from other
    sections. `<!-- not run -->` before a block leaves it out.
    """
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in readme_sections()[heading]:
        if ">>> " in code:
            example = doctest.DocTestParser().get_doctest(code, namespace, f"README.md:{line}", str(README), line)
            assert doctest.DocTestRunner(verbose=False).run(example, clear_globs=False).failed == 0
            namespace = example.globs
        else:  # the blank lines make a traceback show the line of README.md
            exec(compile("\n" * (line - 1) + code, str(README), "exec"), namespace)
