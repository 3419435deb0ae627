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
    monkeypatch.setitem(ENGINES, "made-up", Engine("Made up", ("otdml",), "nothing", "pip install made-up"))


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
    monkeypatch.setitem(ENGINES, "none", Engine("None", ("a-distribution-that-is-not",), "nothing", "pip install it"))
    (found,) = examine(["none"])
    assert (found.status, found.version, found.detail) == ("absent", "", "pip install it")


def test_nothing_of_the_current_folder_is_run(tmp_path, monkeypatch):
    for name in ("random", "PIL", "otdml", "json"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('ran').touch(); raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    (found,) = examine(["pillow"])
    assert found.status == "works"
    assert not (tmp_path / "ran").exists()
