"""The measuring code of this hotloop on top of another one: `python overlay.py PREFIX CANDIDATE THREADS`.

A comparison measures two packages with one ruler. So a worker imports `hotloop` from PREFIX ("-": wherever its
interpreter finds it), and `hotloop.bench` from the folder of this file. Run as a file, since the package is not there
before.
"""

import sys

sys.path.pop(0)  # the folder of this file, whose modules are none of the top level

import importlib
import importlib.util
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from types import ModuleType


def load(prefix: str) -> None:
    """Import hotloop from there, and its `bench` from here."""
    if prefix != "-":
        # An editable installation of hotloop would come first, wherever PREFIX stands in the path.
        sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
        sys.path.insert(0, prefix)
    package = importlib.import_module("hotloop")
    here = Path(__file__).parent
    package.bench = _module("hotloop.bench", here / "__init__.py", [str(here)])  # type: ignore[attr-defined]
    for name in NEEDED:
        lend(name, here.parent)


# What `bench` imports of the package beside what is public: constants and functions without a state.
NEEDED = "_core.types", "_backends.cells"


def lend(name: str, root: Path) -> None:
    """Where a revision from before this layout does not have `hotloop.<name>`, import that of this one in its place."""
    folder, _, _ = name.partition(".")
    if importlib.util.find_spec(f"hotloop.{folder}") is None:
        _module(f"hotloop.{folder}", root / folder / "__init__.py", [])
    if importlib.util.find_spec(f"hotloop.{name}") is None:
        _module(f"hotloop.{name}", root.joinpath(*name.split(".")).with_suffix(".py"), None)


def _module(name: str, file: Path, folders: list[str] | None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    load(sys.argv.pop(1))
    from hotloop.bench.worker import main

    main()
