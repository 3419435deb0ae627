"""What importing costs and brings along, and the layers: a package imports only from those above it."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import otdml

PACKAGE = Path(otdml.__file__).parent
HEAVY = (
    *("lightning", "pytorch_lightning", "pykeops", "geomloss", "matplotlib", "faiss", "ot", "sklearn", "zuko", "PIL"),
    *("jax", "ott", "pandas", "typer", "rich", "jinja2", "transformers", "torchvision", "timm", "torchmetrics"),
    *("starlette", "uvicorn", "anyio"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


@functools.cache
def homes(package: str) -> dict[str, str]:
    """The modules in which the names are defined that a package imports on first use."""
    there = "_HOMES" in MODULES[package].read_text() and vars(import_module(package)).get("_HOMES")
    return {name: f"{package}.{home}" for name, home in (there or {}).items()}


@functools.cache
def imports(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """Modules that a module imports at its top, and within functions; not what only type checkers see."""
    top, within = set(), set()

    def read(node: ast.AST, found: set[str]) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            wholes = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            known = homes(node.module) if node.module in MODULES else {}
            found.update(whole if whole in MODULES else known.get(one, node.module) for one, whole in wholes.items())
        inner = within if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else found
        for child in ast.iter_child_nodes(node):
            read(child, inner)

    read(ast.parse(MODULES[name].read_text()), top)
    return frozenset(top), frozenset(within)


@functools.cache
def brought(name: str) -> frozenset[str]:
    """Libraries of others that are imported with a module of this package."""
    found, seen, waiting = set(), set(), [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in MODULES:
            # Packages are imported before what lies in them.
            waiting += [*imports(module)[0], module.rpartition(".")[0]]
        elif module:
            found.add(module.partition(".")[0])
    return frozenset(found - sys.stdlib_module_names)


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after ``statement`` and not after importing torch alone."""
    script = f"import sys, torch; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import otdml", "import otdml.ot", "import otdml.losses", "import otdml.dml", "import otdml.data"]
)
def test_import_brings_nothing_heavy(statement):
    found = modules_after(statement)
    assert not {name for name in found if name.partition(".")[0] in HEAVY}
    assert "scipy.stats" not in found
    assert "scipy.optimize" not in found


def test_help_waits_for_nothing_it_does_not_need():
    found = modules_after("import otdml.cli")
    assert not {name for name in found if name.partition(".")[0] in set(HEAVY) - {"typer", "rich"}}
    script = "import sys, otdml.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def architecture() -> str:
    """The text of the architecture page."""
    page = PACKAGE.parent / "docs" / "architecture.rst"
    if not page.exists():
        pytest.skip("no architecture page beside an installed package")
    return page.read_text()


def layers() -> list[str]:
    """Packages and modules in the order of the architecture page, top first."""
    block = architecture().split("   otdml/\n", 1)[1].split("\n\n", 1)[0]
    lines = [re.split(r"\s{2,}", line.strip())[0] for line in block.splitlines()]
    names = [re.findall(r"[\w]+(?=/|\.py)", line) for line in lines]
    return [name for line in names for name in line]


def test_every_part_is_on_the_architecture_page_and_every_part_of_the_page_is_there():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(layers())


def test_files_of_the_architecture_page_are_there_and_it_names_all_of_transport_and_alignment():
    named = {name for name in re.findall(r"``([\w/]+(?:\.py|/))``", architecture()) if "NAME" not in name}
    roots = (PACKAGE, PACKAGE.parent)
    assert not {name for name in named if not any((root / name).exists() or [*root.rglob(name)] for root in roots)}
    for folder in ("ot", "losses/alignment"):
        there = {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}
        there |= {f"{path.parent.name}/" for path in (PACKAGE / folder).glob("*/__init__.py")}
        assert there <= named, folder


def test_a_package_imports_only_from_those_above_it():
    place = {part: i for i, part in enumerate(layers())}
    for name in MODULES.keys() - {"otdml"}:
        part = name.split(".")[1]
        parts = {other.split(".")[1] for found in imports(name) for other in found if other.startswith("otdml.")}
        below = {other for other in parts if place[other] > place[part]}
        assert not below, f"{name} imports from {', '.join(below)}, which lies below {part}"


def test_no_modules_import_each_other():
    graph = {name: {other for found in imports(name) for other in found if other in MODULES} for name in MODULES}

    # It raises an error that shows the circle.
    graphlib.TopologicalSorter(graph).prepare()
    for name, others in graph.items():
        around = {other for other in others - {"otdml"} if name.startswith(f"{other}.")}
        assert not around, f"{name} imports from {', '.join(around)}, which it is a part of"


def test_an_import_within_a_function_saves_one_of_a_library():
    # The command line saves others, too, so that help is quick.
    for name in (name for name in MODULES if not name.startswith("otdml.cli")):
        for other in imports(name)[1] & MODULES.keys():
            assert brought(other) - brought(name), f"{name} imports {other} within a function"


def test_every_module_says_what_is_public():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "__all__" in text or len(ast.parse(text).body) <= 2, f"{path.relative_to(PACKAGE)} has no __all__"
