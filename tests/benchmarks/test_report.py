"""The report: complete, self-contained, and with the numbers of the tables."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from otdml.benchmarks.exhibits import exhibits, save_exhibits
from otdml.benchmarks.finished import collect
from otdml.benchmarks.presets import Published, Weights, preset
from otdml.benchmarks.report import caveats, metric_title, percent, write_report
from otdml.benchmarks.results import Figure

VOID = {"meta", "link", "img", "br", "path", "circle", "rect", "image"}


class Page(HTMLParser):
    """Tags with their attributes, the text of table cells, and whether every tag that opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.cells, self.open, self.balanced = [], [], [], True
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            self.balanced = self.balanced and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data


@pytest.fixture
def text(finished, digits):
    path = finished / "report.html"
    write_report(path, digits, collect(finished), ["otdml", "benchmark", "--root", "my data"])
    return path.read_text()


def test_self_contained_and_well_formed(text):
    page = Page(text)
    assert page.balanced
    assert page.open == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:", "#")), f"{tag} loads {value}"
    assert "@import" not in text
    assert "url(" not in text
    assert "<script" not in text


def test_numbers_are_those_of_the_runs(text):
    cells = [cell.strip() for cell in Page(text).cells]
    assert "71.0 ± 1.0" in cells
    assert "74.0 ± 2.0" in cells
    assert cells.count("72.00") == 2
    assert any(
        cell.startswith("+3.00 points of R@1 over 3 seeds, 95% interval +0.52 to +5.48: better") for cell in cells
    )
    assert any("no difference shown" in cell for cell in cells)


def test_nothing_is_marked_where_all_are_equal(tmp_path, write_run, digits):
    for method in ("proxy-anchor", "proxy-nca"):
        write_run(tmp_path, method, 0, 0.5)
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    assert 'class="best"' not in (tmp_path / "report.html").read_text()


def test_the_best_mean_of_each_column_is_marked(text):
    page = Page(text)
    assert sum(tag == "td" and attributes.get("class") == "best" for tag, attributes in page.tags) == 2


def test_right_and_wrong_are_told_by_frame_and_symbol(text):
    page = Page(text)
    kinds = [attributes.get("class") for tag, attributes in page.tags if tag == "figure"]
    right, wrong = kinds.count("tile right"), kinds.count("tile wrong")
    assert right
    assert wrong
    assert text.count('<span class="sign">✓</span>') == right
    assert text.count('<span class="sign">✕</span>') == wrong


def test_names_are_escaped_and_the_command_can_be_pasted(text):
    assert "<Alpha>" not in text
    assert "&lt;Alpha&gt;" in text
    assert "otdml benchmark --root &#39;my data&#39;" in text


def test_says_configuration_environment_and_both_colour_schemes(text):
    for part in ("training.epochs", "model.lr.proxies", "python", "prefers-color-scheme: dark", "t-SNE"):
        assert part in text


def test_one_seed_claims_no_spread(tmp_path, digits, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.5)
    write_run(tmp_path, "proxy-anchor+nir", 0, 0.6)
    write_report(
        tmp_path / "report.html", digits, collect(tmp_path), ["otdml"], [f"soft-triple, seed 0: <full> disk{chr(27)}"]
    )
    text = (tmp_path / "report.html").read_text()
    assert "disk\\x1b" in text
    assert "one seed, so no spread is known" in text
    assert "no statement without more seeds" in text
    assert "1 of the runs failed" in text
    assert "&lt;full&gt; disk" in text
    assert "nan" not in text.replace("otdml", "").lower()


def test_methods_of_one_seed_beside_others_of_two_are_said_to_have_no_spread(tmp_path, digits, write_run):
    for method, seed in (("proxy-anchor", 0), ("proxy-anchor", 1), ("soft-triple", 0), ("soft-triple", 1)):
        write_run(tmp_path, method, seed, 0.5)
    said = {}
    for method in (None, "proxy-nca"):
        if method:
            write_run(tmp_path, method, 0, 0.5)
        write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
        said[method] = "over 2 seeds, without ± where there is one" in (tmp_path / "report.html").read_text()
    assert said == {None: False, "proxy-nca": True}


def test_each_method_says_of_how_many_seeds_it_is(tmp_path, digits, write_run):
    for method, seeds in (("proxy-anchor", 5), ("soft-triple", 2)):
        for seed in range(seeds):
            write_run(tmp_path, method, seed, 0.5 + 0.01 * seed)
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    text = (tmp_path / "report.html").read_text()
    assert "mean ± standard deviation over 2 to 5 seeds." in text
    cells = [cell.strip() for cell in Page(text).cells]
    for method, seeds in (("proxy-anchor", "5"), ("soft-triple", "2")):
        assert cells[cells.index(method) + 4] == seeds


def test_methods_without_a_common_seed_are_not_compared(tmp_path, digits, write_run):
    for method, seeds in (("proxy-anchor", (0, 1)), ("proxy-anchor+nir", (2, 3))):
        for seed in seeds:
            write_run(tmp_path, method, seed, 0.5 + 0.01 * seed)
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    text = (tmp_path / "report.html").read_text()
    assert "The two have no seed in common: no statement on R@1." in text
    assert '"nan"' not in text
    assert "nan points" not in text
    assert text.count('class="whisker"') == 0


def test_a_metric_that_one_run_lacks_is_an_empty_cell(tmp_path, digits, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.7)
    other = write_run(tmp_path, "soft-triple", 0, 0.8)
    content = json.loads((other.path / "metrics.json").read_text())
    del content["last"]["map@r"]
    (other.path / "metrics.json").write_text(json.dumps(content))
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    cells = [cell.strip() for cell in Page((tmp_path / "report.html").read_text()).cells]
    place = cells.index("soft-triple")
    assert cells[place + 2 : place + 5] == ["80.0", "", "1"]
    other.path.joinpath("metrics.json").write_text(json.dumps(content | {"last": {"map@r": 0.5}}))
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    cells = [cell.strip() for cell in Page((tmp_path / "report.html").read_text()).cells]
    place = cells.index("soft-triple")
    assert cells[place + 2 : place + 5] == ["", "50.0", "1"]


def test_photographs_are_shown_large_and_drawings_small(tmp_path, digits, write_run):
    folder = write_run(tmp_path, "proxy-anchor", 0, 0.5)
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    assert 'class="galleries grey"' in (tmp_path / "report.html").read_text()
    labels = torch.arange(12) % 3
    photos = exhibits(torch.eye(3)[labels], labels, ["a", "b", "c"], lambda i: np.full((96, 96, 3), i, dtype=np.uint8))
    save_exhibits(folder.path / "exhibits.npz", photos)
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    assert 'class="galleries photos"' in (tmp_path / "report.html").read_text()


def test_report_needs_neither_curves_nor_exhibits(tmp_path, digits, write_run):
    folder = write_run(tmp_path, "proxy-anchor", 0, 0.5, best=0.6)
    (folder.path / "curve.csv").unlink()
    (folder.path / "exhibits.npz").unlink()
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    page = Page((tmp_path / "report.html").read_text())
    assert page.balanced
    assert "60.00" in [cell.strip() for cell in page.cells]


def test_a_metric_of_one_epoch_gets_no_empty_chart(tmp_path, digits, write_run):
    folder = write_run(tmp_path, "proxy-anchor", 0, 0.5)
    (folder.path / "curve.csv").write_text("epoch,proxy,test/recall@1\n0,3,\n1,2,0.5\n")
    write_report(tmp_path / "report.html", digits, collect(tmp_path), ["otdml"])
    text = (tmp_path / "report.html").read_text()
    assert "proxy term of the training loss" in text
    assert "R@1 on unseen classes" not in text


def test_published_figures_stand_beside_ours_with_their_source(tmp_path, digits, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.5)
    figures = (
        Published("proxy-anchor", "recall@1", 0.697, "Doe 2020"),
        Published("Their method", "recall@1", 0.8, "Roe 2021 <book>", second_hand=True),
    )
    preset = replace(digits, published=figures, weights=Weights("a net trained on X", "https://x.org"))
    write_report(tmp_path / "report.html", preset, collect(tmp_path), ["otdml"])
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.balanced
    cells = [" ".join(cell.split()) for cell in page.cells]
    first, second = cells.index("proxy-anchor", 3), cells.index("Their method")
    assert cells[first : first + 5] == ["proxy-anchor", "R@1", "published 69.7", "here 50.0", "Doe 2020"]
    assert cells[second + 2 : second + 4] == ["published 80.0", "here not run"]
    assert cells[second + 4] == "Roe 2021 <book> (second-hand: not read in the work of its authors)"
    assert "Not all networks started from a net trained on X" in text
    assert "<h2>Beside the literature</h2>" in text
    write_report(tmp_path / "report.html", replace(preset, published=()), collect(tmp_path), ["otdml"])
    assert "<h2>Caveats</h2>" in (tmp_path / "report.html").read_text()


def test_caveats_tell_what_is_not_as_published(tmp_path, digits, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.5)
    runs = collect(tmp_path)
    assert caveats(digits, runs) == []
    path = runs[0].folder.path / "config.json"
    path.write_text(path.read_text().replace('"rotations": true', '"allow_partial": true, "on_corrupt": "skip"'))
    assert caveats(digits, runs)[1:] == ["Images that could not be read were left out."]
    whole = [replace(run, left_out={}) for run in runs]
    assert [said.split()[0] for said in caveats(digits, whole)] == ["The"]
    some = [replace(run, left_out={"test": {f"{run.seed}.png": "damaged", "all.png": "damaged"}}) for run in runs]
    said = "Images that could not be read were left out: 2 of test; metrics.json of a run names them."
    assert caveats(digits, some)[1:] == [said]


def test_figures_of_fewer_training_classes_are_not_beside_published_ones_without_a_word(tmp_path, digits, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.5)
    runs = collect(tmp_path)
    path = runs[0].folder.path / "config.json"
    path.write_text(path.read_text().replace('"hold_out": false', '"hold_out": true'))
    figures = (Published("proxy-anchor", "recall@1", 0.697, "Doe 2020"),)
    assert caveats(replace(digits, published=figures), runs) == [
        "Trained without the classes held out for validation, on which published methods were trained."
    ]
    assert caveats(digits, runs) == []


def test_published_figures_belong_to_the_settings_of_their_preset(tmp_path, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.5)
    runs = collect(tmp_path)
    own = tmp_path / "own.toml"
    start = 'extends = "cub"\ntitle = "CUB with a larger batch"\nseeds = 5\n'
    own.write_text(start)
    assert caveats(preset(own), runs)[:-1] == caveats(preset("cub"), runs)[:-1] == []
    own.write_text(f"{start}[training]\nclasses_per_batch = 50\n")
    said, _ = caveats(preset(own), runs)
    assert said == "The published figures belong to other settings than those here: training.classes_per_batch = 50."
    # Each setting is named once.
    changed, said, _ = caveats(preset(own, ["training.epochs=3"]), runs)
    assert (
        changed.endswith("preset: training.epochs = 3."),
        said.endswith("here: training.classes_per_batch = 50."),
    ) == (
        True,
        True,
    )
    own.write_text(f"{own.read_text()}[[published]]\nmethod = 'x'\nmetric = 'recall@1'\nvalue = 0.5\nsource = 'y'\n")
    assert len(caveats(preset(own), runs)) == 1


@pytest.mark.parametrize(
    ("name", "title"), [("recall@10", "R@10"), ("map@r", "MAP@R"), ("r_precision", "R-precision"), ("new", "new")]
)
def test_metric_titles(name, title):
    assert metric_title(name) == title


def test_percent():
    assert percent(Figure(0.5, 0.0125, 2)) == "50.0 ± 1.2"
    assert percent(Figure(0.5, float("nan"), 1)) == "50.0"


def test_a_dispersion_loss_has_its_row_and_its_colour(finished, digits, write_run):
    for seed in range(3):
        write_run(finished, "proxy-anchor+koleo:0.1", seed, 0.8)
    write_report(finished / "report.html", digits, collect(finished), ["otdml"])
    text = (finished / "report.html").read_text()
    cells = [cell.strip() for cell in Page(text).cells]
    assert "proxy-anchor+koleo:0.1" in cells
    assert '<span class="swatch dispersed"></span>proxy-anchor+koleo:0.1' in text
    assert any(cell.startswith("+9.00 points of R@1 over 3 seeds") for cell in cells)
