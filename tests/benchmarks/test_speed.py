"""The speed table of entropic transport: that contenders are judged by what they return, and on equal terms."""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from otdml.benchmarks.speed import TABLES, harness
from otdml.benchmarks.speed import sinkhorn as table
from otdml.ot import sinkhorn


def test_marginal_error_is_that_of_the_plan():
    x, y, eps = table.problem(30, 3, 0.05)
    result = sinkhorn(x, y, eps=eps, tol=1e-2)
    rows, columns = (float((m - 1 / 30).abs().sum()) for m in result.marginals)
    assert table.marginal_error(x, y, (result.f, result.g), eps) == pytest.approx(max(rows, columns), rel=1e-2)
    assert table.marginal_error(x, y, (result.f, result.g + 0.1 * eps), eps) == pytest.approx(0.105, abs=1e-2)
    assert table.marginal_error(x, y, (result.f, result.g * math.nan), eps) == math.inf


@pytest.mark.parametrize("name", ["otdml", "pot sinkhorn", "pot sinkhorn_log", "pot solve_sample", "ott"])
@pytest.mark.filterwarnings("ignore")
def test_contenders_return_potentials_of_one_convention(name):
    contenders = {"otdml": ("otdml", table._otdml)} | table.PEERS
    module, contender = contenders[name]
    pytest.importorskip(module)
    x, y, eps = table.problem(40, 3, 0.2)
    for gradient in (False, True):
        found = next(contender(x, y, eps, gradient))()
        found = found() if callable(found) else found
        assert table.marginal_error(x, y, tuple(torch.as_tensor(h) for h in found), eps) < 1e-2


@pytest.fixture
def patient(monkeypatch):
    """Time enough, whatever else the machine does."""
    monkeypatch.setattr(table, "PATIENCE", math.inf)


@pytest.mark.usefixtures("patient")
def test_a_contender_that_misses_the_tolerance_does_not_count():
    case = {"n": 20, "d": 2, "eps": 0.2, "gradient": False}

    def contender(*settings):
        return lambda x, y, eps, gradient: iter([lambda f=f: f(x, y, eps) for f in settings])

    def good(x, y, eps):
        found = sinkhorn(x, y, eps=eps, tol=1e-4)
        return found.f, found.g

    def wrong(x, y, eps):
        f, g = good(x, y, eps)
        return f + eps, g

    def secretive(x, y, eps):
        return lambda: good(x, y, eps)

    assert table._contend(case, "peer", contender(wrong, good)).correct
    assert table._contend(case, "peer", contender(secretive)).correct
    result = table._contend(case, "peer", contender(wrong))
    assert not result.correct
    assert result.quality > 0.1


@pytest.mark.usefixtures("patient")
def test_a_peer_that_would_take_too_long_is_left_out(monkeypatch):
    case = {"n": 200, "d": 2, "eps": 0.2, "gradient": False}
    monkeypatch.setattr(table, "LARGE", 100)
    sizes = []

    def peer(x, y, eps, gradient):
        def solve():
            sizes.append(len(x))
            found = sinkhorn(x, y, eps=eps, tol=1e-4)
            return found.f, found.g

        yield solve

    assert table._contend(case, "peer", peer).correct
    assert set(sizes) == {50, 200}
    monkeypatch.setattr(table, "PATIENCE", 1e-9)
    sizes.clear()
    result = table._contend(case, "peer", peer)
    assert result.note.startswith("left out")
    assert set(sizes) == {50}
    assert table._contend(case, "otdml", peer).correct


def test_the_gradient_of_a_peer_that_misses_the_tolerance_is_left_out(monkeypatch):
    settings = []

    def peer(x, y, eps, gradient):
        settings.append((len(x), x.shape[1], gradient))
        yield lambda: (x.new_zeros(len(x)), y.new_zeros(len(y)))

    monkeypatch.setattr(table, "PEERS", {"peer": ("torch", peer)})
    found = [m for m in table.measurements(True, harness.only(["n=128,d=2,eps=0.05"])) if m.contender == "peer"]
    assert settings == [(128, 2, False)]
    assert [m.correct for m in found] == [False, False]
    assert found[0].quality > 0.1
    assert found[1].note.endswith("without gradient")


def test_disturbed_runs_are_repeated_and_said(monkeypatch):
    runs = []

    def notes(seconds):
        # CPU seconds of others before and after each round of repetitions.
        runs.clear()
        readings = iter(seconds)
        monkeypatch.setattr(harness, "_elsewhere", lambda: next(readings))
        return harness.measure({}, "otdml", lambda: runs.append(1), judge=lambda _: 0.0, repeats=4).note

    assert (notes([5.0, 5.0]), len(runs)) == ("", 5)
    assert (notes([5.0, 9.0, 9.0, 9.0]), len(runs)) == ("", 9)
    assert notes([0.0, 9.0, 9.0, 18.0, 18.0, 27.0]).startswith("disturbed: other processes used")
    assert len(runs) == 13
    assert notes([math.nan, math.nan]) == ""


def test_other_processes_are_seen():
    before = harness._elsewhere()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert harness._elsewhere() > before + 0.02


def test_short_runs_are_repeated_more_often(monkeypatch):
    monkeypatch.setattr(harness, "_elsewhere", lambda: 0.0)
    runs = []
    harness.measure({}, "otdml", lambda: runs.append(1), judge=lambda _: 0.0, repeats=3, least=0.05)
    assert len(runs) > 100
    runs.clear()
    harness.measure({}, "otdml", lambda: runs.append(1), judge=lambda _: 0.0, repeats=3)
    assert len(runs) == 4


@pytest.mark.filterwarnings("ignore")
def test_geomloss_with_gradient_is_judged_by_its_potentials():
    x, y, eps = table.problem(30, 64, 0.2)
    *_, slowest = table.PEERS["geomloss tensorized"][1](x, y, eps, True)
    potentials = slowest()()
    assert table.marginal_error(x, y, potentials, eps) < 2e-3


def test_pieces_of_a_table_are_merged(tmp_path):
    def measured(n, seconds, contender="otdml"):
        return harness.Measurement({"n": n}, contender, seconds, 1.0, 0.0, True)

    path = tmp_path / "new" / "table.json"
    harness.save(path, [measured(4096, 3.0), measured(128, 1.0)], merge=True)
    merged = harness.save(path, [measured(4096, 2.0), measured(4096, 8.0, "peer")], merge=True)
    assert merged == [measured(128, 1.0), measured(4096, 2.0), measured(4096, 8.0, "peer")]
    content = json.loads(path.read_text())
    assert [harness.Measurement(**row) for row in content["measurements"]] == merged
    assert [piece["cases"] for piece in content["pieces"]] == [[{"n": 128}], [{"n": 4096}]]
    assert content["pieces"][0]["environment"] == content["environment"]
    assert content["geometric_mean_ratio"] == pytest.approx(4.0)
    # Without merging the file is a new one.
    assert harness.save(path, [measured(512, 1.0)]) == [measured(512, 1.0)]
    assert json.loads(path.read_text())["measurements"] == [asdict(measured(512, 1.0))]


def test_what_failed_is_null_in_the_file_and_no_number_when_it_is_read(tmp_path):
    path = tmp_path / "table.json"
    failed = harness.Measurement({"n": 1}, "peer", math.nan, math.nan, math.nan, False, "ImportError: x")
    harness.save(path, [failed], table="mmd")
    assert "NaN" not in path.read_text()
    assert json.loads(path.read_text())["measurements"][0]["seconds"] is None
    (found,) = harness.save(path, [], table="mmd", merge=True)
    assert (found.case, found.note, math.isnan(found.seconds), math.isnan(found.quality)) == (
        {"n": 1},
        "ImportError: x",
        True,
        True,
    )


def test_measurements_of_one_table_are_not_added_to_those_of_another(tmp_path):
    path = tmp_path / "table.json"
    one = harness.Measurement({"n": 1}, "otdml", 1.0, 1.0, 0.0, True)
    harness.save(path, [one], table="sinkhorn")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"table.json holds measurements of the table sinkhorn. Choose another file"):
        harness.save(path, [one], table="mmd", merge=True)
    assert path.read_bytes() == before
    assert harness.save(path, [one], table="sinkhorn", merge=True) == [one]
    # A file of before does not say of which table it is.
    harness.save(path, [one])
    assert harness.earlier(path, "mmd")["measurements"] == [asdict(one)]


def test_selections_must_name_parameters():
    assert harness.only([])({"n": 8})
    assert harness.only(["gradient=False"])({"n": 8, "gradient": False})
    assert not harness.only(["d=2"])({"n": 8})
    with pytest.raises(ValueError, match="`only` must be of the form key=value,key=value, got 'n'"):
        harness.only(["n"])


@pytest.mark.parametrize("name", TABLES)
def test_tables_measure_nothing_that_is_not_wanted(name):
    module = importlib.import_module(TABLES[name])
    assert list(module.measurements(False, harness.only(["no=case"]))) == []


def test_what_is_wrong_is_run_once():
    runs = []
    result = harness.measure({}, "otdml", lambda: runs.append(1), judge=lambda _: 2.0, accept=lambda q: q < 1)
    assert (len(runs), result.quality, result.correct) == (1, 2.0, False)


def cases(quick, wanted):
    """A table of three cases that counts how often one is measured."""
    for n in (8,) if quick else (8, 16, 32):
        if wanted({"n": n, "d": 2}):
            yield harness.measure({"n": n, "d": 2}, "otdml", lambda: 0.0)


@pytest.mark.parametrize("selection", ["zz=3", "n=9", "n=8,d=3", "d=2,zz=3"])
def test_a_selection_that_no_case_agrees_with_is_refused_before_anything_is_measured(selection):
    with pytest.raises(ValueError, match=f"got '{selection}'. There are n = 8, 16, 32; d = 2."):
        harness.check_only(["n=16", selection], cases, quick=False)
    harness.check_only(["n=16", "d=2"], cases, quick=False)
    with pytest.raises(ValueError, match="agree with a quick case of the table, got 'n=16'"):
        harness.check_only(["n=16"], cases, quick=True)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_asks_before_it_measures(name):
    module = importlib.import_module(TABLES[name])
    with pytest.raises(ValueError, match="There are "):
        harness.check_only(["zz=3"], module.measurements, quick=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"measurements": [{"n": 3}], "pieces": []}', '{"measurements": []}'])
def test_a_file_without_measurements_is_named_before_anything_is_measured(tmp_path, content):
    (tmp_path / "speed.json").write_text(content)
    with pytest.raises(ValueError, match=r"speed\.json holds no measurements to add to"):
        harness.earlier(tmp_path / "speed.json")
