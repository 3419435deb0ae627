"""Two processes train as one: the same losses, weights and metrics; a killed one goes on; one process writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """How the processes of each run ended, and the folder of what they left."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(HERE / "distributed_run.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUIET, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder, done.stderr


def found(folder: Path, name: str, rank: int = 0):
    """Rows of the curve as ``on_epoch`` saw them, metrics of the last and the best epoch, and the weights."""
    rows, last, best = json.loads((folder / f"{name}-{rank}.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return rows, last, best, torch.load(folder / f"{name}-{rank}.pt")


@pytest.mark.parametrize("kind", ["plain", "items"])
def test_two_processes_train_as_one(runs, kind):
    """Also where each image's transform is random, and while the backbone stands still."""
    ends, folder, errors = runs
    assert (ends[f"{kind}1"], ends[f"{kind}2"]) == ([0], [0, 0]), errors
    rows, last, best, weights = found(folder, f"{kind}1")
    ours, *metrics, shared = found(folder, f"{kind}2")
    assert metrics == [last, best]
    for expected, actual in zip(rows, ours, strict=True):
        assert actual == pytest.approx(expected, rel=1e-10)
    assert rows[0]["loss"] != rows[1]["loss"]
    for name, value in weights.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-8, atol=1e-10)


def test_two_processes_train_as_one_on_kept_maps(runs):
    """One of them computes the maps and the other waits; in single precision, so to fewer digits."""
    ends, folder, errors = runs
    assert (ends["maps1"], ends["maps2"]) == ([0], [0, 0]), errors
    rows, *_, weights = found(folder, "maps1")
    ours, *_, shared = found(folder, "maps2")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in rows], rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-2, atol=1e-3)
    assert len(list((folder / "maps2-maps").glob("*-half/*.npy"))) == 2


def test_all_processes_end_alike_and_the_first_one_reports(runs):
    _, folder, _ = runs
    rows, *metrics, weights = found(folder, "plain2")
    others, *theirs, copies = found(folder, "plain2", rank=1)
    assert theirs == metrics
    assert all(torch.equal(copies[name], value) for name, value in weights.items())
    assert (len(rows), others) == (3, [])
    left = [{path.name for path in (folder / name).iterdir()} for name in ("plain1", "plain2")]
    assert left[0] == left[1] >= {"best.ckpt", "curve.csv", "last.ckpt", "last-test.embeddings"}


def test_killed_process_ends_the_run_which_goes_on_to_the_same_numbers(runs):
    ends, folder, errors = runs
    assert (ends["alone"], ends["killed"], ends["resumed"]) == ([0, 0], [-1, 9], [0, 0]), errors
    alone, *metrics, weights = found(folder, "alone")
    rest, *theirs, resumed = found(folder, "killed")
    # The first of three epochs was over when it was killed.
    assert rest == alone[1:]
    assert theirs == metrics
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())


def test_any_trainer_in_two_processes_validates_as_in_one(runs):
    """An odd number of images, of which the sampler repeats one; and a set with queries, spread over the processes."""
    ends, folder, errors = runs
    assert (ends["any1"], ends["any2"]) == ([0], [0, 0]), errors
    alone, *shared = [json.loads((folder / f"{name}.json").read_text()) for name in ("any1-0", "any2-0", "any2-1")]
    assert alone[0] != alone[1]
    assert all(each == pytest.approx(one) for process in shared for each, one in zip(process, alone, strict=True))


SCRIPT = """
import json, os, sys, torch
sys.path.insert(0, {here!r})
from distributed_run import Exact, Digits, ProxyDML, TrainingConfig, fit

if __name__ == "__main__":
    torch.set_num_threads(1)
    module = ProxyDML(3, backbone=Exact(), dim=8, lr=1e-2, freeze_bn=True, seed=0).double()
    config = TrainingConfig(
        epochs=1, classes_per_batch=3, samples_per_class=6, batches_per_epoch=3, accelerator="cpu", **{options!r}
    )
    found = fit(module, Digits(), val=Digits(split="val"), folder={folder!r}, config=config, progress=False)
    rank = os.environ.get("LOCAL_RANK", "0")
    with open({folder!r} + f"-{{rank}}.json", "w") as file:
        json.dump([found.last, found.best, float(module.loss.proxies.sum())], file)
"""


@pytest.mark.slow
def test_every_way_to_start_processes_gives_the_same_run(tmp_path):
    """Torchrun, Lightning running the script again, and processes spawned; beside one process."""
    ways = {
        "one": ({}, [sys.executable]),
        "lightning": ({"devices": 2}, [sys.executable]),
        "spawn": ({"devices": 2, "strategy": "ddp_spawn"}, [sys.executable]),
        "torchrun": ({}, [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]),
    }
    results = {}
    for name, (options, command) in ways.items():
        script = tmp_path / f"run_{name}.py"
        script.write_text(SCRIPT.format(here=str(HERE), folder=str(tmp_path / name), options=options))
        subprocess.run([*command, str(script)], check=True, env=os.environ | QUIET, timeout=300)
        results[name] = [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"{name}-?.json"))]
    assert {name: len(copies) for name, copies in results.items()} == {
        "one": 1,
        "lightning": 2,
        "spawn": 1,
        "torchrun": 2,
    }
    last, best, proxies = results["one"][0]
    for copies in results.values():
        for copy in copies:
            assert copy[:2] == [last, best]
            assert copy[2] == pytest.approx(proxies, rel=1e-10)
