"""The site and the README against the library: names, links, commands and sources that they mention exist."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("no site beside an installed package", allow_module_level=True)

PAGES = [ROOT / "README.md", *(page for page in DOCS.rglob("*.rst") if not {"gallery", "api"} & {*page.parts})]
# Names that a package repeats from the one that documents them.
DOCUMENTED_BY = {"otdml.losses.alignment": "otdml.losses", "otdml.losses.dispersion": "otdml.losses"}
PUBLIC = (
    *("otdml.ot", "otdml.losses", "otdml.losses.alignment", "otdml.losses.dispersion", "otdml.dml", "otdml.data"),
    *("otdml.benchmarks", "otdml.benchmarks.speed", "otdml.benchmarks.speed.harness", "otdml.dml.backbones"),
    *("otdml.costs", "otdml.kernels", "otdml.kernel_sums", "otdml.sphere", "otdml.neighbors", "otdml.kmeans"),
    *("otdml.distributed", "otdml.measures", "otdml.plot", "otdml.doctor"),
    *("otdml.disentanglement", "otdml.contrast", "otdml.language", "otdml.studies"),
)


def documented() -> set[tuple[str, str]]:
    """Module and name of everything on the API page: what autosummary lists, and data."""
    found, module = set(), ""
    for line in (DOCS / "api.rst").read_text(encoding="utf-8").splitlines():
        if named := re.match(r"\.\. (?:current)?module:: (\S+)", line):
            module = named[1]
        elif name := re.fullmatch(r"(?:   |\.\. py:data:: )([A-Za-z_]\w*)", line):
            found.add((module, name[1]))
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_on_the_api_page(module):
    public = set(importlib.import_module(module).__all__)
    there = {name for home, name in documented() if home in (module, DOCUMENTED_BY.get(module))}
    assert not public - there


def test_every_name_on_the_api_page_is_public():
    assert not [(module, name) for module, name in documented() if name not in importlib.import_module(module).__all__]


def test_every_public_function_and_class_says_what_it_is():
    found = {(module, name): getattr(importlib.import_module(module), name) for module, name in documented()}
    assert not [key for key, thing in found.items() if callable(thing) and not thing.__doc__]


def test_every_link_leads_to_a_page():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        linked = [(r"{}.rst", name) for name in re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", text)]
        linked += [("{}", name) for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)]
        linked += [("{}", name) for name in re.findall(r"\.\. (?:include|image|figure):: (\S+)", text)]
        for form, name in linked:
            where = page.parent / form.format(name)
            # The gallery is made of the examples, and its start page of theirs.
            if where.parent == DOCS / "gallery":
                example = "README.rst" if where.stem == "index" else f"{where.stem}.py"
                where = ROOT / "examples" / example
            assert where.exists(), f"{page.name} links to {name}"


def test_every_file_of_the_project_that_a_page_names_exists():
    for page in PAGES:
        named = re.findall(r"``?((?:tests|otdml|docs|examples)/[\w/]+\.\w+)``?", page.read_text(encoding="utf-8"))
        # NAME stands for a file that a reader would write.
        gone = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
        assert not gone, f"{page.name} names {', '.join(gone)}"


def test_every_page_of_the_site_is_in_its_contents():
    contents = (DOCS / "index.rst").read_text(encoding="utf-8")
    for page in DOCS.glob("*.rst"):
        named = re.search(rf"^   {page.stem}$", contents, re.MULTILINE)
        assert page.stem in ("index", "sg_execution_times") or named, page.name


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Page and arguments of every call of ``program`` that the pages print."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        # The first word of the last cannot be a file or a plain word, such as "otdml is".
        printed = re.findall(rf"^\s*\$ {program} (.*)$", text, re.MULTILINE)
        printed += re.findall(rf"(?<!`)`{{1,2}}{program} ([^`]+)`{{1,2}}(?!`)", text)
        for line in printed:
            yield page.name, shlex.split(re.split(r"\s+#|\s+\.\.\.", line)[0])


def test_every_printed_command_exists_with_its_options():
    found = list(commands("otdml"))
    assert len(found) > 10
    for page, words in found:
        command, path = get_command(importlib.import_module("otdml.cli").app), "otdml"
        while words and words[0] in getattr(command, "commands", {}):
            path, command = f"{path} {words[0]}", command.commands[words.pop(0)]
        where = f"{page}: {path} {' '.join(words)}"
        options = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
        assert not getattr(command, "commands", {}) or words[:1] in ([], ["--help"], ["COMMAND"]), where
        assert {word for word in words if word.startswith("-")} <= options, where


def test_every_printed_line_of_the_command_line_is_read():
    """Lines after a prompt have all arguments, of the right kind."""
    group = get_command(importlib.import_module("otdml.cli").app)
    for page in PAGES:
        for line in re.findall(r"^\s*\$ otdml (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            command, words = group, shlex.split(line, comments=True)
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            assert command.make_context("otdml", words), line


def test_every_printed_target_of_make_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    found = list(commands("make"))
    assert len(found) > 5
    for page, words in found:
        assert words[0] in targets, f"{page}: make {words[0]}"


def test_every_speed_table_is_on_its_page():
    page = (DOCS / "performance.rst").read_text(encoding="utf-8")
    tables = importlib.import_module("otdml.benchmarks.speed").TABLES
    assert not [name for name in tables if f"otdml speed {name}" not in page]


def test_examples_are_short_and_end_in_one_picture():
    examples = sorted((ROOT / "examples").glob("plot_*.py"))
    assert len(examples) > 8
    for example in examples:
        text = example.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 80, example.name
        assert text.count("plt.show()") == 1, example.name
        assert text.startswith(('r"""', '"""')), example.name


def guide(section: str) -> str:
    """The first table of a section of the guide to metric learning."""
    page = (DOCS / "metric_learning.rst").read_text(encoding="utf-8")
    return re.split(rf"^{section}\n[-~]+\n", page, flags=re.MULTILINE)[1].split("list-table::")[1].split("\n\n", 2)[1]


def test_published_figures_of_the_guide_are_those_of_the_recipes():
    presets = importlib.import_module("otdml.benchmarks.presets")
    known = {f"{100 * one.value:.1f}" for name in presets.preset_files() for one in presets.preset(name).published}
    said = {figure for row in guide("Recipes").split("   * - ") for figure in re.findall(r"\b\d\d\.\d\b", row)}
    assert len(said) > 15
    assert said <= known


def test_counts_of_the_guide_are_those_that_data_are_held_to():
    modules = [importlib.import_module(f"otdml.data.{name}") for name in ("cars", "cub", "inshop", "sop")]
    protocols = [thing for module in modules for thing in vars(module).values() if hasattr(thing, "counts")]
    known = {f"{images:,}" for protocol in protocols for images, _ in protocol.counts.values()}
    said = set(re.findall(r"(\d+,\d+) (?:images|queries|of 1)", guide("Layouts of the published sets")))
    assert len(said) > 5
    assert said <= known


def cited() -> set[str]:
    """Keys of all sources that docstrings, pages and examples cite."""
    files = [*(ROOT / "otdml").rglob("*.py"), *(ROOT / "examples").glob("*.py"), *PAGES]
    found = [re.findall(r":cite:[pt]:`([^`]+)`", file.read_text(encoding="utf-8")) for file in files]
    return {key.strip() for keys in found for group in keys for key in group.split(",")}


def test_every_cited_source_is_in_the_bibliography_once():
    kept = re.findall(r"^@\w+\{([^,]+),", (DOCS / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(kept) == sorted(set(kept))
    assert not cited() - set(kept)
