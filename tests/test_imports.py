"""The arrows of the package: imports point one way, and heavy things load late."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vizrobust

ROOT = Path(vizrobust.__file__).parent
LAYERS = [
    {"parallel"},
    {"lifeline", "rng", "intervals", "legacy"},
    {"spec"},
    {"plugins", "requests"},
    {"results"},
    {"compute", "trackers"},
    {"data", "runs"},
    {"models"},
    {"session", "attacks"},
    {"robustness", "features", "attribution"},
    {"training"},
    {"clarity"},
    {"testing"},
    {"experiments"},
    {"study"},
    {"report"},
    {"commands"},
    {"api", "cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Third-party packages that have one home each.
HOMES = {
    "click": ["cli/"],
    "matplotlib": ["report/"],
    "jinja2": ["report/"],
    "accelerate": ["compute.py", "parallel.py", "trackers.py"],
}
WRITERS = ("runs.py", "models/checkpoints.py", "report/")
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
ENTRANCES = ("__init__.py", "__main__.py")


def parsed(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


SOURCES = {path: (ROOT / path).read_text() for path in MODULES}


@cache
def nodes(path: str) -> list[ast.AST]:
    """Each file is parsed once, whatever is then asked of it."""
    return parsed(SOURCES[path])


def imported(path: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Every absolute module that a file imports, anywhere in it, also inside functions."""
    package = ["vizrobust", *Path(path).parts[:-1]]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            # `from vizrobust import spec` imports the module vizrobust.spec.
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == "vizrobust" else (base,)


def wrong_arrows(path: str, nodes: Iterable[ast.AST]) -> list[str]:
    own = Path(path).parts[0].removesuffix(".py")
    targets = {name: name.split(".")[1] for name in imported(path, nodes) if name.startswith("vizrobust.")}
    return [name for name, target in targets.items() if target != own and RANK.get(target, 99) >= RANK[own]]


def name_of(path: str) -> str:
    return ".".join(["vizrobust", *Path(path).with_suffix("").parts]).removesuffix(".__init__")


def modules_named(nodes: Iterable[ast.AST], path: str) -> set[str]:
    """The modules of vizrobust that the imports of a file name, also under `if TYPE_CHECKING` and in functions.

    ``from package import name`` is the module package.name where that is one, and else the package.
    """
    package, found = ["vizrobust", *Path(path).parts[:-1]], set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {name if (name := f"{base}.{alias.name}") in NAMES else base for alias in node.names}
    return found & set(NAMES) - {name_of(path), "vizrobust"}


NAMES = {name_of(path): path for path in MODULES}


def circle(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """The names along one circle of arrows, the first again at the end; [] where there is none."""
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        return list(error.args[1])[::-1]
    return []


@cache
def arrows() -> dict[str, set[str]]:
    """Who imports whom."""
    return {name: modules_named(nodes(path), path) for name, path in NAMES.items()}


def test_there_is_no_import_circle_also_none_for_types() -> None:
    assert circle(arrows()) == []


@pytest.mark.parametrize("line", ["from vizrobust.training.recipe import METHODS", "from . import methods", "import {}.loop"])
@pytest.mark.parametrize("place", ["{}", "if TYPE_CHECKING:\n    {}", "def f():\n    {}"])
def test_an_import_circle_would_be_seen(line: str, place: str) -> None:
    source = place.format(line.format("vizrobust.training"))
    added = modules_named(parsed(source), "training/train_state.py")
    assert len(added) == 1
    name = "vizrobust.training.train_state"
    assert name in circle({**arrows(), name: arrows()[name] | added})


def is_home(path: str, homes: list[str]) -> bool:
    return any(path == home or (home.endswith("/") and path.startswith(home)) for home in homes)


def strangers(path: str, nodes: Iterable[ast.AST]) -> list[str]:
    """Third-party packages that this file imports although their home is elsewhere."""
    tops = {name.split(".")[0] for name in imported(path, nodes)}
    return sorted(top for top in tops & set(HOMES) if not is_home(path, HOMES[top]))


def writes(nodes: Iterable[ast.AST]) -> list[str]:
    """Calls that write a file past `runs`: open for writing, Path.write_*, savefig and the like."""
    found = []
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        own = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "runs"
        if name == "open":
            # open(file, mode), but path.open(mode).
            mode = [*node.args[0 if is_method else 1 :][:1], *(key.value for key in node.keywords if key.arg == "mode")]
            is_write = any(
                isinstance(m, ast.Constant) and set(str(m.value)) & set("wax+") and len(str(m.value)) <= 3 for m in mode
            )
        else:
            is_write = is_method and not own and name in ("write_text", "write_bytes", "savefig", "savetxt", "imsave")
        if is_write:
            found.append(ast.unparse(node))
    return found


def faults(path: str, source: str) -> list[str]:
    """What is wrong with a file's name, first line and length."""
    first = source.partition("\n")[0]
    checks = {
        "its first line is no docstring": first.startswith('"""'),
        "its docstring's first line is no sentence": first.endswith(('."""', ".")),
        "it has more than 400 lines": len(source.splitlines()) <= 400,
        "its name says nothing": Path(path).name not in ("utils.py", "helpers.py", "base.py", "common.py"),
    }
    return [fault for fault, fine in checks.items() if not fine]


def test_imports_point_one_way() -> None:
    inner = [path for path in MODULES if path not in ENTRANCES]
    assert len(inner) > 100, "the files were found"
    assert [path for path in inner if Path(path).parts[0].removesuffix(".py") not in RANK] == [], "these belong to no layer"
    assert {path: wrong for path in inner if (wrong := wrong_arrows(path, nodes(path)))} == {}
    for source in (
        "import vizrobust.cli",
        "from vizrobust import report",
        "from ..training import loop",
        "def f():\n    from vizrobust.features.render import render",
    ):
        assert wrong_arrows("attacks/balls.py", parsed(source)), f"this would not be seen: {source}"
    for source in ("from vizrobust.models import layer", "from . import fit", "from ..spec import parse"):
        assert not wrong_arrows("attacks/balls.py", parsed(source)), source


def test_third_parties_stay_in_their_home() -> None:
    assert {path: found for path in MODULES if (found := strangers(path, nodes(path)))} == {}
    assert strangers("attacks/balls.py", parsed("def f():\n    import click, matplotlib.pyplot")) == ["click", "matplotlib"]


def test_files_are_written_in_three_places() -> None:
    elsewhere = [path for path in MODULES if not is_home(path, list(WRITERS))]
    assert {path: found for path in elsewhere if (found := writes(nodes(path)))} == {}
    for source in ("open('b', 'w')", "path.open(mode='ab')", "Path('a').write_text('b')", "figure.savefig(path)"):
        assert writes(parsed(source)), f"this would not be seen: {source}"
    assert not writes(parsed("open('wax')\nimage.open()\nruns.write_text(p, 'a')\nwrite_text(p, 'a')"))


def test_a_module_says_what_it_is_for() -> None:
    assert {path: found for path, source in SOURCES.items() if (found := faults(path, source))} == {}
    assert len(faults("features/utils.py", "import os\n" * 401)) == 4


# Nothing that takes a second to load may be behind `import vizrobust` or `vizrobust --help`.
SLOW = ("torch", "torchvision", "matplotlib", "scipy", "sklearn", "skimage", "accelerate", "mlxtend")


# Each takes between .1 and 2 seconds; commands that need none of them ought not to wait for them.
LATE = ("torchvision", "torch._dynamo", "scipy.stats", "scipy.signal", "scipy.ndimage", "sklearn", "skimage", "mlxtend")


def test_light_imports_stay_light() -> None:
    """One process imports one module after another and says what each has brought with it."""
    light = ["vizrobust", "vizrobust.spec", "vizrobust.runs", "vizrobust.cli"]
    code = f"""
import importlib, sys
for module in {light!r}:
    importlib.import_module(module)
    print(module, *sorted({{name.partition('.')[0] for name in sys.modules}} & set({SLOW!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == light, "each name stands alone in its line"


@pytest.mark.slow  # torch alone takes 4 s to import, 9 s beside another process
def test_a_command_imports_libraries_of_parts_that_it_does_not_use_when_it_uses_them() -> None:
    modules = ["vizrobust.session", *(f"vizrobust.commands.{command}" for command in ("neurons", "attack", "train"))]
    code = f"import sys, {', '.join(modules)}; print(*sorted({set(LATE)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


def test_what_is_imported_is_declared() -> None:
    """Trackers are the user's own; a package's name is not always that of its module."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    declared = {re.split("[<>=]", text)[0] for text in wanted}
    modules = {name for path in MODULES for whole in imported(path, nodes(path)) if (name := whole.partition(".")[0])}
    foreign = modules - set(sys.stdlib_module_names) - {"vizrobust"}
    packages = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn"}
    assert {name for name in foreign if packages.get(name, name) not in declared} == set()


def test_scripts_of_the_gallery_import_what_there_is() -> None:
    """They run for hours and so in no test; what they import moves nonetheless."""
    for path in sorted((ROOT.parent / "gallery").glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vizrobust"):
                module = importlib.import_module(str(node.module))
                assert [one.name for one in node.names if not hasattr(module, one.name)] == [], path
