"""The seeded faults: the list stays true as the code moves, a sample of it is caught, and how a place is found."""

from __future__ import annotations

import datetime
import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parents[1]


def load_tool():
    spec = importlib.util.spec_from_file_location("anchors", ROOT / "tools" / "anchors.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["anchors"] = module
    spec.loader.exec_module(module)
    return module


anchors = load_tool()


@pytest.fixture(scope="module")
def sources():
    return anchors.Tree(ROOT)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_applies(sources, mutant):
    """Its tokens occur once in its anchor, no others change, Python still parses, and the tests it names exist."""
    try:
        place = sources.find(mutant.within, mutant.old)
    except anchors.AnchorError as error:
        pytest.fail(str(error), pytrace=False)
    source, changed = sources.sources[place.file], sources.changed(place, mutant.new)
    old, new, before, after = (
        [token.text for token in anchors.lex(text, source.python)]
        for text in (mutant.old, mutant.new, source.text[: place.start], source.text[place.stop :])
    )
    assert old != new
    assert [token.text for token in anchors.lex(changed, source.python)] == without_trailing_commas(
        before + new + after
    )
    if source.python:
        compile(changed, place.file, "exec")
    files = [word for word in shlex.split(mutant.tests) if word.startswith("tests/")]
    assert files
    assert all((ROOT / file).is_file() for file in files)


def without_trailing_commas(tokens):
    following = [*tokens[1:], ""]
    return [
        token for token, after in zip(tokens, following, strict=True) if token != "," or after not in (")", "]", "}")
    ]


def test_the_list():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.long
def test_a_sample_is_caught():
    """Ten mutants, others every week; the whole list is `python tools/run_mutants.py`."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("there is no C++ compiler")
    seed = datetime.date.today().toordinal() // 7
    command = [sys.executable, ROOT / "tools" / "run_mutants.py", "--sample", "10", "--seed", str(seed)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"--seed {seed}\n{done.stdout}\n{done.stderr}"


CPP = """
#define HOT inline __attribute__((always_inline))
#define SQUARE(x) ((x) * (x))
constexpr int kMost = 4;
template <class T>
struct Cell {
  T state{};
  HOT explicit Cell(T first) : state(first + 1) {}
  template <class V>
  HOT V forward(V a, V b) const {
#if defined(WIDE)
    return wide(a, b) + 1;
#else
    return a * b + 1;  // carry
#endif
  }
  T& operator[](int i) { return data[i]; }
};
void Pool::start(int count) {
  each([&](int i) HOT { work(i + 1, count); });
}
int forward(int a) { return a - 1; }
"""
PYTHON = '''
MOST = 4


class Kept:
    def holds(self, tensor):
        """Whether it does."""
        return tensor is not None and tensor.is_cpu

    @property
    def most(self):
        return max(self.least, MOST)


def holds(one, other):
    def inner(value):
        return value + 1

    if one is None:
        return f"{other} // {one}"
    return inner(one // other)
'''


@pytest.fixture
def tree(tmp_path):
    """Builds one from the texts of files."""

    def build(**texts):
        for folder, suffix in (("csrc", "h"), ("src/hotloop", "py")):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for file in (tmp_path / folder).iterdir():
                file.unlink()
            for name, text in texts.items():
                if name.startswith("cpp" if suffix == "h" else "python"):
                    (tmp_path / folder / f"{name}.{suffix}").write_text(text, encoding="utf-8")
        return anchors.Tree(tmp_path)

    return build


def found(tree, within, old):
    place = tree.find(within, old)
    return tree.sources[place.file].text[place.start : place.stop]


@pytest.mark.parametrize(
    ("within", "old"),
    [
        (None, "kMost = 4"), ("SQUARE", "(x) * (x)"), ("Cell", "T state"), ("Cell::Cell", "first + 1"),
        ("Cell::forward", "a * b + 1"), ("forward", "wide(a, b)"), ("operator[]", "data[i]"), ("Pool::start", "i + 1"),
        ("start", "int count"), (None, "MOST = 4"), ("Kept", "class Kept"), ("Kept.holds", "tensor is not None"),
        ("most", "@property"), ("most", "self.least"), ("inner", "value + 1"), ("holds.inner", "value + 1"),
        ("holds", "one is None"), ("holds", "one // other"), ("holds", 'f"{other} // {one}"'),
    ],
)  # fmt: skip
def test_a_place_is_found(tree, within, old):
    assert found(tree(cpp=CPP, python=PYTHON), within, old) == old


@pytest.mark.parametrize(
    ("within", "old", "written"),
    [
        ("f", "call(a, b + c)", "call( a,b+c )"),
        ("f", "call(a, b + c)", "call(\n    a,\n    b\n    + c,\n  )"),
        ("f", "call(a, b + c)", "call(a, COMMENT\n   b + c)"),
        ("f", "call(a, b + c,)", "call(a, b + c)"),
        ("f", "a  +\nb", "a + b"),
    ],
    ids=["white space", "line breaks and a trailing comma", "a comment", "a trailing comma in the entry", "the entry"],
)
def test_what_does_not_count(tree, within, old, written):
    cpp = f"int f(int a) {{\n  return {written};\n}}\n".replace("COMMENT", "/* b */ // as b")
    python = f"def f(a):\n    return ({written})\n".replace("COMMENT", "# as b")
    for texts in ({"cpp": cpp}, {"python": python}):
        one = tree(**texts)
        place = one.find(within, old)
        assert anchors.lex(one.changed(place, "0"), "python" in texts) == anchors.lex(
            next(iter(texts.values())).replace(found(one, within, old), "0"), "python" in texts
        )


def test_only_whole_tokens_count(tree):
    one = tree(python="def f(a, ab):\n    return a == ab, 'a = ab', a_b <= 1.5\n")
    for old in ("a = ab", "a < 1", "b", "1", "5"):
        with pytest.raises(anchors.AnchorError, match="occurs 0 times"):
            one.find("f", old)
    assert found(one, "f", "a_b") == "a_b"


def test_functions_that_move_to_another_file(tree):
    cut = CPP.index("int forward")
    for texts in ({"cpp": CPP}, {"cpp_a": CPP[:cut], "cpp_z": CPP[cut:]}, {"cpp_a": CPP[cut:], "cpp_z": CPP[:cut]}):
        one = tree(**texts)
        assert found(one, "forward", "a - 1") == "a - 1"
        assert found(one, "Cell::forward", "a * b") == "a * b"


def test_what_is_not_found(tree):
    one = tree(cpp=CPP, python=PYTHON)
    with pytest.raises(anchors.AnchorError, match="no function, class or macro is named Kept::holds"):
        one.find("Kept::holds", "tensor.is_cpu")
    with pytest.raises(anchors.AnchorError, match=r"was not found.*gone; .* Kept.holds \(src/hotloop/python.py:8\)"):
        one.find("gone", "tensor.is_cpu")
    with pytest.raises(
        anchors.AnchorError, match=r"`a - 1` occurs 0 times in Pool::start \(csrc/cpp.h:19\); .* forward"
    ):
        one.find("Pool::start", "a - 1")
    with pytest.raises(anchors.AnchorError, match=r"occurs 0 times outside of functions.* Kept.most \(.*:12\)"):
        one.find(None, "self.least")
    with pytest.raises(anchors.AnchorError, match="occurs 0 times in holds"):  # it stands in a function in that one
        one.find("holds", "value + 1")


def test_what_is_ambiguous(tree):
    one = tree(cpp=CPP, python=PYTHON)
    with pytest.raises(anchors.AnchorError, match=r"`\+ 1` occurs 2 times in Cell::forward .*: csrc/cpp.h:12, .*:14$"):
        one.find("Cell::forward", "+ 1")
    with pytest.raises(anchors.AnchorError, match=r"`return` occurs 3 times in holds"):
        one.find("holds", "return")
    # Two functions of one name are told apart by what stands in them.
    two = tree(python_a=PYTHON, python_b=PYTHON.replace("MOST", "least").replace("one // other", "other // one"))
    assert two.find("holds", "one // other").file == "src/hotloop/python_a.py"
    assert two.find("holds", "other // one").file == "src/hotloop/python_b.py"
    with pytest.raises(anchors.AnchorError, match=r"occurs 2 times in Kept\.holds"):
        two.find("Kept.holds", "tensor.is_cpu")


@pytest.mark.parametrize(
    ("text", "old", "new", "expected"),
    [
        ("def f():\n    x = 1\n    y = 2\n", "x = 1", "", "def f():\n    \n    y = 2\n"),
        ("def f():\n    x = g()\n", "x =", "", "def f():\n    g()\n"),
        ("def f():\n    return a\n", "a", "b if c else d", "def f():\n    return b if c else d\n"),
        ("def f(a):\n    return -a\n", "a)", "*b)", "def f(*b)\n"),
        ("def f():\n    return[1]\n", "[1]", "b", "def f():\n    return b\n"),
        ("def f():\n    return a - 1\n", "1", "-1", "def f():\n    return a - -1\n"),
        ("def f():\n    return a-1\n", "1", "-1", "def f():\n    return a- -1\n"),
        (
            "def f():\n    a = 1\n    b = 2\n",
            "a = 1",
            "if c:\n    a = 1",
            "def f():\n    if c:\n        a = 1\n    b = 2\n",
        ),
    ],
)
def test_what_replaces_it(tree, text, old, new, expected):
    one = tree(python=text)
    changed = one.changed(one.find("f", old), new)
    assert changed.startswith(expected.rstrip("\n"))


def test_check_names_what_does_not_apply(tmp_path):
    """`--check` of a list with one entry that applies and one that does not."""
    for name in ("tools/run_mutants.py", "tools/anchors.py", "tests/mutants.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "cells.h").write_text(
        "struct Lstm {\n  struct Update {\n    void backward() { carry = dc * f; }\n  };\n};\n"
    )
    command = [sys.executable, tmp_path / "tools" / "run_mutants.py", "--check", "--only"]

    def check(*names):
        return subprocess.run([*map(str, command), *names], capture_output=True, text=True, check=False)

    good, bad = check("lstm-dc-not-gated"), check("lstm-dc-not-gated", "lstm-da-g", "gru-dx-n")
    assert (good.returncode, good.stdout) == (0, "1 mutants apply to the sources, 0 do not\n")
    assert bad.returncode == 1
    assert "lstm-da-g: `fnma(g, g, one)` occurs 0 times in Lstm::Update::backward (csrc/cells.h:3)\n" in bad.stdout
    missing = "gru-dx-n: the anchor was not found: no function, class or macro is named Gru::Update::backward\n"
    assert missing in bad.stdout
    assert bad.stdout.endswith("1 mutants apply to the sources, 2 do not\n")
