"""Names that are imported on first use."""

import subprocess
import sys

import pytest

import otdml.benchmarks
import otdml.data
import otdml.dml
from otdml._exports import exports

PACKAGES = (otdml.benchmarks, otdml.data, otdml.dml)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_leads_to_its_object(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name, None) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_lists_those_there_are(package):
    with pytest.raises(AttributeError, match=f"has no attribute 'nothing'; it has .*{package.__all__[-1]}"):
        package.nothing  # noqa: B018


def test_a_package_loads_none_of_its_modules():
    program = "import sys, otdml.benchmarks, otdml.data, otdml.dml; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_what_a_module_lacks_is_an_extra_of_the_library(monkeypatch, tmp_path):
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "a_module.py").write_text("import no_such_library.part")
    monkeypatch.syspath_prepend(tmp_path)
    homes = {"thing": "a_module"}
    with pytest.raises(ModuleNotFoundError, match=r"^thing needs no_such_library: pip install 'otdml\[train\]'$"):
        exports("a_package", homes, extra="train")[0]("thing")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library'"):
        exports("a_package", homes)[0]("thing")
    # A module of the library that is missing is a fault of the library.
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'otdml\.dml\.absent'"):
        exports("otdml.dml", {"thing": "absent"}, extra="train")[0]("thing")
