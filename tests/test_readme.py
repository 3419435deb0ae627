"""What a newcomer types from the README and the pages: every example runs, and every command in small."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import otdml.dml
import otdml.losses

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("no site beside an installed package", allow_module_level=True)

README = (ROOT / "README.md").read_text(encoding="utf-8")
# What makes minutes of training seconds, by command. Options that are given twice count the second time.
SMALL = {
    "benchmark": "--epochs 1 --set training.batches_per_epoch=2 --seeds 1 --jobs 1 -m proxy-nca",
    "doctor": "pillow",
    "speed": "--only K=10",
    "serve": "--port 0 --no-browser",
}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def test_the_example_prints_what_stands_below_it():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.random.fork_rng():
        exec(compile(blocks("python")[0], "README.md", "exec"), {})
    said, found = ([float(number) for number in text.split()] for text in (blocks("text")[0], printed.getvalue()))
    # What other processors round otherwise moves the points a little.
    assert found == pytest.approx(said, abs=2e-3)


def printed_commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(line[2:], comments=True) for line in lines]


def recipe(target: str) -> list[str]:
    """The last command of a target of the Makefile, without the path of its program."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # As in a shell of its own, even where this test is run by make, whose variables would be passed on.
    alone = {"PATH": os.environ["PATH"]}
    shown = subprocess.run(["make", "-n", target], cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    program, *words = shlex.split(shown.stdout.splitlines()[-1])
    return [Path(program).name, *words]


def test_every_command_runs_in_small(tmp_path, monkeypatch):
    """In the order of the README, in one folder, as later ones use what earlier ones left."""
    from PIL import Image

    from otdml.cli import app

    if find_spec("uvicorn"):
        # What a user ends by Ctrl+C ends at once.
        monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "DATA"):
        (tmp_path / folder).mkdir()
    for name, shade in (("one", 30), ("two", 220)):
        Image.new("L", (9, 9), shade).save(tmp_path / "photos" / f"{name}.png")
    commands = [recipe(words[1]) if words[0] == "make" else words for words in printed_commands()]
    for program, *words in commands:
        if program == "python":
            assert words[:2] == ["-m", "pytest"]
        elif program == "pip":
            assert_installable(words)
        elif words[0] == "serve" and not find_spec("uvicorn"):
            continue
        elif "--root" in words:
            # One folder is empty, in the other there are no classes: what is missing is said.
            failed = CliRunner().invoke(app, words)
            said = {"folder": "a folder of its own", "omniglot": "images_background_small1"}
            said |= {"cars": "cars_annos.mat", "cub": "images.txt"}
            (missing,) = (text for dataset, text in said.items() if dataset in words)
            assert missing in f"{failed.output} {failed.exception}", words
        else:
            small = [] if "--list" in words else shlex.split(SMALL.get(words[0], ""))
            result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, [*words, *small])
            assert result.exit_code == 0, f"{words}: {result.output} {result.exception!r}"
            if words[0] == "benchmark" and small:
                header = next(line for line in result.output.splitlines() if line.startswith("method "))
                assert header.split() == blocks("text")[1].split("\n\n")[1].splitlines()[0].split()
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


def assert_installable(words: list[str]) -> None:
    """``pip install -c FILE -e .[EXTRAS]`` with a file and extras that exist."""
    assert words[:2] == ["install", "-c"]
    assert (ROOT / words[2]).is_file()
    extras = re.search(r"\[(.*)\]", words[-1])[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= set(project["optional-dependencies"])


def test_every_loss_is_in_the_table_and_every_name_of_the_table_is_there():
    public = {*otdml.losses.__all__, *otdml.dml.__all__}
    table = README.split("## Losses")[1].split("\n\n")[1]
    named = {name for name in re.findall(r"`(\w+)`", table) if name != "rho"}
    assert named <= public
    losses = {name for name in otdml.losses.__all__ if name[0].isupper()} - {"ScaledCost"}
    assert losses | {"ProxyAnchor", "ProxyNCA", "SoftTriple", "NIR"} <= named


def test_every_paper_of_the_table_is_in_the_bibliography():
    library = (DOCS / "references.bib").read_text(encoding="utf-8")
    known = {
        (re.sub(r"[{}\\'\"]", "", author[1]).lower(), year[1])
        for entry in library.split("\n@")
        if (author := re.search(r"author = \{(.+?),", entry)) and (year := re.search(r"year = \{(\d+)\}", entry))
    }
    table = README.split("## Losses")[1].split("\n\n")[1]
    papers = re.findall(r"((?:van den )?[A-ZÀ-Ý]\S+)(?: et al\.| and \w+)? \((\d{4})\)", table)
    assert len(papers) > 15
    assert {(name.lower().replace("é", "e"), year) for name, year in papers} <= known


# ---- the examples of the pages

# What stands for minutes of training, and for several processes, in examples that are run here.
QUICK = {
    "epochs=20": "epochs=1",
    "epochs=30": "epochs=1, batches_per_epoch=2",
    "workers=4": "workers=0",
    "workers=8, devices=4": "workers=0",
    "(224)": "(32)",
    'fit(module, train, val=val, folder="runs/photos", config=TrainingConfig(epochs=1, workers=0))\n\n': "",
}


def snippets(page: str) -> list[str]:
    text = (DOCS / f"{page}.rst").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. code-block:: python\n\n((?:   .*\n|\s*\n)+)", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def run_snippets(page: str, names: dict, only: Callable[[str], bool] = lambda block: True) -> dict:
    for block in filter(only, snippets(page)):
        for slow, quick in QUICK.items():
            block = block.replace(slow, quick)
        exec(compile(block, f"{page}.rst", "exec"), names)
    return names


def test_the_example_of_the_start_page():
    names = run_snippets("index", {})
    assert names["x"].grad.isfinite().all()


def test_the_examples_of_the_guide_to_metric_learning(tmp_path, monkeypatch, capsys):
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for c in range(3 if part == "train" else 2):
            folder = tmp_path / "photos" / part / f"{part}-{c}"
            folder.mkdir(parents=True)
            for i in range(4 if part == "train" else 2):
                Image.fromarray(noise.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    names = run_snippets("metric_learning", {"torch": torch})
    assert "recall@1" in capsys.readouterr().out
    assert names["Patches"]()(torch.zeros(2, 3, 16, 16)).shape == (2, 32, 2, 2)


def test_the_example_of_the_architecture_page(tmp_path):
    from otdml.data import Digits
    from otdml.dml import ProxyDML, TrainingConfig, fit

    sets = {split: Digits(split=split) for split in ("train", "val", "test")}
    names = {"ProxyDML": ProxyDML, "TrainingConfig": TrainingConfig, "fit": fit, "folder": tmp_path, "augment": None}
    names = run_snippets("architecture", names | sets)
    assert names["result"].last["test/recall@1"] > 0


def test_the_loss_of_the_page_on_contributing():
    names = run_snippets("contributing", {}, lambda block: "class MeanGap" in block)
    x, y = torch.zeros(4, 2), torch.ones(3, 2)
    assert float(names["MeanGap"](scale=2.0)(x, y)) == 0.5
    with pytest.raises(ValueError, match="scale"):
        names["MeanGap"](scale=0.0)
