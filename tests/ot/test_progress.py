"""The line that long solves show."""

import io
import re

import torch

from otdml.ot import _progress as progress
from otdml.ot import sinkhorn


class Terminal(io.StringIO):
    def isatty(self):
        return True


def solve():
    x = torch.linspace(0, 1, 20)[:, None]
    sinkhorn(x, x.square() + 1, eps=0.01)


def test_long_solves_say_how_far_they_are_and_clean_up(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "LONG", -1.0)
    solve()
    lines = terminal.getvalue().split("\r\x1b[K")
    assert re.match("Sinkhorn: iteration [0-9]+ of at most", lines[1])
    assert "to be 1e-03" in lines[1]
    assert lines[-1] == ""


def test_short_solves_and_files_show_nothing(monkeypatch):
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    solve()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setattr(progress, "LONG", -1.0)
    solve()
    assert terminal.getvalue() == file.getvalue() == ""
