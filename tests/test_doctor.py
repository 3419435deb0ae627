"""The doctor finds what works, what is absent and what is broken."""

import subprocess

import pytest

from otdml import doctor
from otdml.doctor import ENGINES, Engine, examine, probe

GEOMLOSS = pytest.param("geomloss", marks=[pytest.mark.keops, pytest.mark.xdist_group("keops")])


@pytest.mark.parametrize("name", ["torch", "pot", GEOMLOSS, "faiss", "zuko", "sklearn", "matplotlib", "pillow"])
def test_probes_of_present_engines_say_what_worked(name):
    pytest.importorskip({"sklearn": "sklearn", "pot": "ot", "pillow": "PIL"}.get(name, name))
    assert probe(name)


def test_every_engine_has_a_probe():
    assert doctor._PROBES.keys() == ENGINES.keys()


def test_present_engine_works_in_a_process_of_its_own():
    (found,) = examine(["pillow"])
    assert (found.status, found.engine.name) == ("works", "Pillow")
    assert found.version
    assert "resized" in found.detail


@pytest.fixture
def engine(monkeypatch):
    """An engine that no one has, installed as the distribution of this library."""
    monkeypatch.setitem(ENGINES, "made-up", Engine("Made up", "otdml", "nothing", "pip install made-up"))


def test_engine_without_a_working_call_is_broken(engine):
    (found,) = examine(["made-up"])
    assert found.status == "broken"
    assert "KeyError" in found.detail


def test_engine_that_hangs_is_given_up(engine, monkeypatch):
    def hang(call, **options):
        raise subprocess.TimeoutExpired(call, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    (found,) = examine(["made-up"], timeout=3)
    assert (found.status, found.detail) == ("too slow", "no answer in 3 s; try --timeout 12")


def test_absent_engine_comes_with_its_remedy(monkeypatch):
    monkeypatch.setitem(ENGINES, "none", Engine("None", "a_module_that_is_not", "nothing", "pip install it"))
    (found,) = examine(["none"])
    assert (found.status, found.version, found.detail) == ("absent", "", "pip install it")


def test_nothing_of_the_current_folder_is_run(tmp_path, monkeypatch):
    for name in ("random", "PIL", "otdml", "json"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('ran').touch(); raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    (found,) = examine(["pillow"])
    assert found.status == "works"
    assert not (tmp_path / "ran").exists()


def test_what_is_imported_counts_and_not_the_name_of_its_distribution(monkeypatch):
    pytest.importorskip("faiss")
    there = dict(doctor._providers())
    monkeypatch.setattr(doctor, "_providers", lambda: there | {"faiss": ["torch"]})
    (found,) = examine(["faiss"])
    assert (found.status, found.version) == ("works", doctor._version("torch"))
    # Some package managers keep no record.
    monkeypatch.setattr(doctor, "_providers", dict)
    (found,) = examine(["faiss"])
    assert (found.status, found.version) == ("works", "unknown")


def test_a_wrong_result_is_broken_however_python_is_started(engine, monkeypatch):
    def wrong(call, **options):
        assert "PYTHONOPTIMIZE" not in options["env"]
        return subprocess.CompletedProcess(call, 1, "", "Traceback\nAssertionError\n")

    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    monkeypatch.setattr(subprocess, "run", wrong)
    (found,) = examine(["made-up"])
    assert (found.status, found.detail) == ("broken", "it ran, and its result is wrong")


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="unknown engine 'kepos'"):
        list(examine(["kepos"]))
    with pytest.raises(ValueError, match="`jobs` must be"):
        list(examine(jobs=0))
