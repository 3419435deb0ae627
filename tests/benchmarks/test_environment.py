"""What is written down of a machine."""

import os

from otdml.benchmarks.environment import cores


def test_cores_where_processes_are_not_bound(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
