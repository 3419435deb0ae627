"""What the site is built with: formulas that browsers draw, links that lead somewhere, readable speed tables."""

import importlib
import json
import math
import re
from pathlib import Path

import pytest

from otdml.benchmarks.speed import TABLES
from otdml.benchmarks.speed.harness import Measurement, save

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("no site beside an installed package", allow_module_level=True)
for library in ("sphinx", "math_core"):
    pytest.importorskip(library, reason="what the site is built with is the extra `docs`")


@pytest.fixture
def extension(monkeypatch):
    """The module of the site's own extensions with a name."""
    monkeypatch.syspath_prepend(DOCS)
    return lambda name: importlib.import_module(f"extensions.{name}")


def test_the_gallery_begins_with_transport_and_ends_with_what_has_no_place(extension):
    order = extension("gallery").Order("examples")
    files = ["plot_a_new_one.py", "plot_tammes.py", "plot_bias.py", "plot_plan_and_map.py"]
    assert sorted(files, key=order) == files[::-1]


def formulas() -> list[tuple[str, bool]]:
    """Every formula of the library, its pages and examples, and whether it stands on a line of its own."""
    found = []
    for path in [*(ROOT / "otdml").rglob("*.py"), *(ROOT / "examples").glob("*.py"), *DOCS.glob("*.rst")]:
        text = path.read_text(encoding="utf-8")
        found += [(formula, False) for formula in re.findall(r":math:`([^`]+)`", text)]
        blocks = re.finditer(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*|\s*$))*)", text, re.MULTILINE)
        found += [(block[2].strip(), True) for block in blocks]
    return found


def test_every_formula_can_be_drawn(extension):
    mathml, found = extension("mathml").mathml, formulas()
    assert len(found) > 200
    for formula, block in found:
        assert mathml(formula, block=block).startswith("<math"), formula


def test_formulas_keep_their_structure(extension):
    mathml = extension("mathml").mathml
    assert mathml("x^2") == "<math><msup><mi>x</mi><mn>2</mn></msup></math>"
    assert "<munder>" in mathml(r"\min_x f", block=True)
    assert mathml(r"a \\ b", block=True).count("<mtr>") == mathml("a\n\nb", block=True).count("<mtr>") == 2


def test_unknown_commands_of_formulas_are_errors(extension):
    with pytest.raises(importlib.import_module("math_core").LatexError, match="foo"):
        extension("mathml").mathml(r"\foo x")


def test_links_that_lead_nowhere_are_found(extension, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<p id="here"><a href="#here">1</a><a href="#gone">2</a></p>')
    (tmp_path / "dot.png").write_text("")
    (tmp_path / "index.html").write_text(
        '<a href="a/#here">1</a> <a href="a/index.html#not">2</a> <a href="https://example.org/">3</a>'
        '<img src="dot.png" srcset="dot.png, dot%20two.png 2x"><script src="https://example.org/x.js"></script>'
    )
    found = extension("links").dead_links(tmp_path)
    assert found == [
        ("a/index.html", "#gone"),
        ("index.html", "a/index.html#not"),
        ("index.html", "dot%20two.png"),
        ("index.html", "https://example.org/x.js"),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.2345e-5, "0.0123 ms"), (9.876e-4, "0.988 ms"), (0.01, "10.0 ms"), (0.12345, "123 ms"), (1.5, "1.50 s")],
)
def test_durations_have_three_digits(extension, seconds, text):
    assert extension("speed_tables").duration(seconds) == text


def measured() -> list[Measurement]:
    """Two cases: on one a peer is twice as fast; on the other that peer is wrong, and the next is 8 times slower."""
    small, large = {"n": 10, "gradient": False}, {"n": 100, "gradient": True}
    return [
        Measurement(small, "otdml", 0.002, 3.0, 1e-4, True),
        Measurement(small, "pot sinkhorn_log", 0.001, 2.0, 1e-4, True),
        Measurement(small, "ott", 0.004, 5.0, 1e-4, True),
        Measurement(large, "otdml", 0.1, 2048.0, 1e-4, True),
        Measurement(large, "pot sinkhorn_log", 0.01, 0.1, 0.97, False),
        Measurement(large, "ott", 0.8, 5.0, 1e-4, True),
        Measurement(
            large, "geomloss", math.nan, math.nan, math.nan, False, "RuntimeError: no <room> for *all*\nat all"
        ),
        Measurement(large, "keops", math.nan, math.nan, math.nan, False, "left out: some 40 s"),
    ]


def test_speed_tables_say_who_is_faster_and_who_took_no_part(extension, tmp_path):
    save(tmp_path / "sinkhorn.json", measured())
    text = extension("speed_tables").report(tmp_path)
    assert "takes **2.00 ×** our time, in the geometric mean of 2 ratios. We are faster in 1 of 2." in text
    assert "0.50: n = 10, gradient = no, pot sinkhorn_log" in text
    assert "* pot sinkhorn_log: not correct (1)" in text
    assert "* keops: expected to take too long, not run (1)" in text
    assert r"* geomloss: RuntimeError: no \<room\> for \*all\* (1)" in text
    assert f"torch {importlib.import_module('torch').__version__}" in text
    assert "$ otdml speed sinkhorn --out docs/figures/speed/sinkhorn.json" in text
    assert "Not measured here: ``otdml speed alignment``" in text


def test_every_case_is_a_row_with_its_ratio_first(extension):
    table = extension("speed_tables").full_table(measured())
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in table.split("<tr>")[1:]]
    assert rows[0] == ["n", "gradient", "ratio", "otdml", "pot sinkhorn_log", "ott", "geomloss", "keops"]
    ours = "2.00 ms<small>3 MiB</small>"
    assert rows[1] == ["10", "no", "0.50", ours, "<strong>1.00 ms</strong><small>2 MiB</small>", rows[1][5], "", ""]
    assert rows[2][2:5] == [
        "8.00",
        "<strong>100 ms</strong><small>2.0 GiB</small>",
        "10.0 ms<small>not correct: 0.97</small>",
    ]
    assert rows[2][6] == "–<small>RuntimeError: no &lt;room&gt; for *all*</small>"
    assert rows[2][7] == "–<small>some 40 s</small>"


def test_pieces_say_where_each_was_measured(extension, tmp_path):
    """Two pieces of one machine are one place; a third with other threads is another."""
    file, rows = tmp_path / "sinkhorn.json", measured()
    save(file, rows[:3])
    save(file, rows[3:], merge=True)
    assert "Measured on " in extension("speed_tables").report(tmp_path)
    content = json.loads(file.read_text())
    content["pieces"][1]["environment"]["threads"] = "many"
    file.write_text(json.dumps(content))
    text = extension("speed_tables").report(tmp_path)
    assert "#. 1 case: " in text
    assert ", many threads, " in text
    table = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    assert [re.findall(r"<t[dh]>(.*?)</t[dh]>", row)[0] for row in table] == ["piece", "1", "2"]
    assert "Measured in pieces" in parsed(text)


def test_tables_of_several_problems_are_parted(extension):
    other = Measurement({"width": 4}, "otdml", 1.0, 1.0, 0.0, True)
    assert extension("speed_tables").full_table([*measured(), other]).count("<table") == 2


def parsed(text: str) -> str:
    """The text of reStructuredText in which docutils finds nothing to complain of."""
    core = importlib.import_module("docutils.core")
    return core.publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 2}).astext()


def test_speed_tables_are_sound_markup(extension, tmp_path):
    save(tmp_path / "sinkhorn.json", measured())
    save(tmp_path / "mmd.json", measured()[:1])
    assert "no <room> for *all*" in parsed(extension("speed_tables").report(tmp_path))


def test_committed_speed_tables_have_names_and_can_be_read(extension):
    files = {path.stem for path in (DOCS / "figures" / "speed").glob("*.json")}
    assert files <= {*TABLES}
    text = parsed(extension("speed_tables").report(DOCS / "figures" / "speed"))
    assert all(f"$ otdml speed {name} --out" in text for name in files)


def results(folder, name: str, values: dict[str, list[float]], baselines: dict[str, float]) -> None:
    """A file as ``otdml benchmark`` leaves it."""
    metrics = ("recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r")
    runs = [
        {"method": method, "seed": seed, "checkpoint": "last", **dict.fromkeys(metrics, value), "seconds": 60.0}
        for method, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    made = [{"runs": ["all"], "environment": {"processor": "a processor", "threads": "1", "code": "abc"}}]
    untrained = {key: dict.fromkeys(metrics, value) for key, value in baselines.items()}
    content = {"runs": runs, "baselines": untrained, "environments": made}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_benchmarks_come_from_the_files_of_their_command(extension, tmp_path):
    """A row for each method, differences with intervals, and what NIR does, from numbers known by hand."""
    tables = extension("benchmark_tables")
    values = {
        "proxy-anchor": [0.70, 0.72, 0.71],
        "proxy-anchor+nir": [0.69, 0.71, 0.70],
        "proxy-anchor+nir-control": [0.70, 0.72, 0.74],
        "soft-triple": [0.705],
    }
    results(tmp_path, "cars-lite0", values, {"raw pixels, no network": 0.12, "pretrained features, untrained": 0.52})
    found = tables.found(["cars-lite0", "cub-lite0"], tmp_path)
    assert list(found) == ["cars-lite0"]
    text = parsed(tables.section(found["cars-lite0"], "otdml benchmark -d cars")).replace("\N{NO-BREAK SPACE}", " ")
    assert "10 of 27 runs" in text
    assert "71.0 ± 1.0" in text
    assert "$ otdml benchmark -d cars" in text
    assert "a processor, 1 threads" in text
    # By hand: -1 each; and -1, -1, -4, whose mean is -2 ± 4.303 · 1.732 / 1.732.
    assert "proxy-anchor+nir minus proxy-anchor\n\n3\n\n-1.00 (-1.00 to -1.00)" in text
    assert "-2.00 (-6.30 to +2.30)" in text
    said = tables.finding(list(found.values()))
    assert "better than its control arm in 0 of 2 comparisons" in said
    assert "in 2 no difference is shown" in said
    assert "minus its control arm: R@1 -2.00 (-6.30 to +2.30)" in said


def test_one_seed_says_nothing_of_nir(extension, tmp_path):
    tables = extension("benchmark_tables")
    values = {"proxy-nca": [0.5], "proxy-nca+nir": [0.6], "proxy-nca+nir-control": [0.4]}
    results(tmp_path, "cub-lite0", values, {})
    (one,) = tables.found(["cub-lite0"], tmp_path).values()
    assert tables.finding([one]) == "Nothing can be said of one seed.\n\n"
    assert "+20.00" in tables.section(one, "otdml")


def test_the_readme_says_of_benchmarks_what_the_files_say(extension):
    tables = extension("benchmark_tables")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.rewritten(readme) == readme
    for name in tables.MARKED:
        assert "| `proxy-anchor` |" in readme.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]


def test_findings_come_from_the_files_of_studies(extension, tmp_path):
    """A sentence and a figure for what was run; a name alone for what was not."""
    from otdml import studies
    from otdml.studies.finished import Finished
    from otdml.studies.report import report
    from otdml.studies.report import save as save_report

    page, findings = extension("study_reports").page, extension("study_reports").findings
    assert page(tmp_path).startswith("Not run yet")
    assert findings(tmp_path) == ""
    study = studies.named("sprites-base")
    values = {"beta 1": (0.1, 0.2, 0.15), "beta 8": (0.4, 0.52, 0.46)}
    runs = [
        Finished(arm, seed, dict.fromkeys((s.name for s in study.scores), value), [], 360.0, 180.0, {"torch": "2.13"})
        for arm, of_seeds in values.items()
        for seed, value in zip(study.seeds, of_seeds, strict=True)
    ]
    save_report(tmp_path / "sprites-base.json", report(study, runs))
    text = page(tmp_path)
    assert "* beta 8: DCI-D is higher than with beta 1 (+0.310, 95% interval +0.285 to +0.335, 3 seeds)." in text
    assert "0.460 ± 0.149" in text
    assert "Running: 6 of 30 cells; 0.60 hours one after the other, 0.30 hours of a processor" in text
    assert "All 6 cells together worked 0.30 hours on one processor core, 0.15 on two." in text
    assert "). Not run yet: beta 2, beta 4, " in text
    assert "* - beta 4" not in text
    assert "``scenes-base``" in text.rpartition("Not run yet")[2]
    assert "``sprites-base``" not in text.rpartition("Not run yet")[2]
    # The sentence stands under the topic, and leads to the section.
    topic, sentence = findings(tmp_path).strip().split("\n\n")
    assert topic == ".. rubric:: The Gromov-Monge gap and disentanglement"
    assert sentence.startswith(f":ref:`sprites-base <study-sprites-base>`. {study.question} ")
    assert "DCI-D is higher with beta 8 (+0.310, +0.285 to +0.335) than with beta 1 (running: " in sentence
    assert f".. _study-sprites-base:\n\n{study.question}" in text


def test_the_table_of_features_has_the_times_of_who_is_right(extension, tmp_path):
    features = extension("feature_table")
    case = {"n": 10, "gradient": False}
    row = features.Row("a thing", "``ours``", "closed forms", {"POT": "``theirs``", "OTT": "``other``"}, "mmd", case)
    untimed = features.Row("another", "``ours``", "closed forms", {"torchcfm": "``its``"}, "mmd", {"n": 11})
    wrong = Measurement(case, "ott", 0.001, 2.0, 1.0, False)
    save(tmp_path / "mmd.json", [*measured()[:2], Measurement(case, "pot slow", 1.0, 2.0, 1e-4, True), wrong])
    found = [line.strip() for line in features.table(tmp_path, [row, untimed]).splitlines()]
    start = found.index("* - a thing")
    assert found[start + 1 : start + 8] == [
        *("- ``ours``; **2.00 ms**; 3 MiB", "- ``theirs``; **1.00 ms**; 2 MiB", "- ``other``; not correct"),
        *("- –", "- –", "- closed forms", "- n = 10, gradient = no"),
    ]
    assert found[start + 9 :] == ["- ``ours``", "- –", "- –", "- ``its``", "- –", "- closed forms", "-"]


def test_every_row_of_features_is_a_case_of_its_table(extension):
    rows = [row for row in extension("feature_table").ROWS if row.table]
    cases: dict[str, list] = {}
    for name in {row.table for row in rows}:
        module = importlib.import_module(TABLES[name])
        list(module.measurements(False, lambda case, name=name: cases.setdefault(name, []).append(case) or False))
    assert not [row.name for row in rows if dict(row.case) not in cases[row.table]]


def test_every_test_that_a_row_of_features_names_exists(extension):
    for row in extension("feature_table").ROWS:
        for path in re.findall(r"tests/[\w/]+\.py", row.tested):
            assert (ROOT / path).is_file(), row.name
