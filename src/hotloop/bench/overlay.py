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


def load(prefix: str) -> None:
    """Import hotloop from there, and its `bench` from here."""
    if prefix != "-":
        # An editable installation of hotloop would come first, wherever PREFIX stands in the path.
        sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
        sys.path.insert(0, prefix)
    package = importlib.import_module("hotloop")
    here = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(
        "hotloop.bench", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules["hotloop.bench"] = bench
    spec.loader.exec_module(bench)
    package.bench = bench  # type: ignore[attr-defined]


if __name__ == "__main__":
    load(sys.argv.pop(1))
    from hotloop.bench.worker import main

    main()
