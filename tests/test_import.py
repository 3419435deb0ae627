"""What importing costs and brings along, and the layers: a package imports only from those above it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import otdml

PACKAGE = Path(otdml.__file__).parent
HEAVY = (
    *("lightning", "pytorch_lightning", "pykeops", "geomloss", "matplotlib", "faiss", "ot", "sklearn", "zuko", "PIL"),
    *("jax", "ott", "pandas", "typer", "rich", "jinja2", "transformers", "torchvision", "timm", "torchmetrics"),
    *("starlette", "uvicorn", "anyio"),
)


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


def layers() -> list[str]:
    """Packages and modules in the order of the architecture page, top first."""
    page = PACKAGE.parent / "docs" / "architecture.rst"
    if not page.exists():
        pytest.skip("no architecture page beside an installed package")
    block = page.read_text().split("   otdml/\n", 1)[1].split("\n\n", 1)[0]
    lines = [re.split(r"\s{2,}", line.strip())[0] for line in block.splitlines()]
    names = [re.findall(r"[\w]+(?=/|\.py)", line) for line in lines]
    return [name for line in names for name in line]


def imported(path: Path) -> set[str]:
    """Parts of this package that a file imports, at its top or within functions; not what only type checkers see."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "otdml":
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("otdml.")}
    return names


def test_every_part_is_on_the_architecture_page_and_every_part_of_the_page_is_there():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(layers())


def test_a_package_imports_only_from_those_above_it():
    order = layers()
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in order:
            below = {name for name in imported(path) if name in order and order.index(name) > order.index(part)}
            assert not below, f"{path.relative_to(PACKAGE)} imports from {', '.join(below)}, which lies below {part}"


def test_every_module_says_what_is_public():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "__all__" in text or len(ast.parse(text).body) <= 2, f"{path.relative_to(PACKAGE)} has no __all__"
