"""Text whose tokens are known."""

import sys

import pytest
import torch

from otdml.language import corpus, docstrings, manual


def test_docstrings_are_read_without_running_the_files(tmp_path, monkeypatch):
    package = tmp_path / "documented"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text('"""First."""\nraise RuntimeError\n')
    (package / "a.py").write_text('class A:\n    """Second."""\n    def f(self):\n        """Third."""\n    x = "no"\n')
    (package / "b.py").write_text("x = 1\n")
    (package / "old.py").write_text("print 'Python 2'\n")
    (package / "tests" / "c.py").write_text('"""Not this."""\n')
    (package / "test_d.py").write_text('"""Nor this."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert docstrings("documented") == ["First.", "Second.\n\nThird."]
    assert "documented" not in sys.modules
    with pytest.raises(ValueError, match="`package` must be installed"):
        docstrings("not_installed_here")


@pytest.mark.filterwarnings("error")
def test_a_text_does_not_depend_on_what_becomes_of_warnings(tmp_path, monkeypatch):
    (tmp_path / "escaping").mkdir()
    (tmp_path / "escaping" / "__init__.py").write_text('"""One."""\nx = "\\d"\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert docstrings("escaping") == ["One."]


def test_the_manual_is_english():
    assert "statement" in " ".join(manual())


def test_held_out_texts_are_of_their_own_and_their_rare_words_unknown():
    found = corpus(["x y\n\nz z z", "y y y x x w", "y  Y\ty x x w.\n\nx y"], 3, every=3)
    assert found.words == ("y", "x", "<unknown>")
    # "z" is in the held-out text alone, and "x y" has been seen there, so that it is not trained on.
    assert found.test.tolist() == [1, 0, 2, 2, 2]
    assert found.train.tolist() == [0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 1, 2, 2]
    assert found.train.dtype == torch.long


def test_what_is_no_package_is_named():
    for package in ("nosuch", "nosuch.sub", ".x", "__main__", 3):
        with pytest.raises(ValueError, match="`package` must be installed, and be a folder"):
            docstrings(package)


def test_texts_have_words_in_both_parts():
    for texts in ([], ["a b c"], ["", "a b"], ["a b", ""]):
        with pytest.raises(ValueError, match="`texts` must hold words of both parts"):
            corpus(texts, 3)
    with pytest.raises(TypeError, match="`texts` must be several texts"):
        corpus("a b c", 3)
    with pytest.raises(ValueError, match="`every` must be"):
        corpus(["a", "b"], 3, every=1)
