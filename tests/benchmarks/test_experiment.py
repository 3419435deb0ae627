"""Runs and grids of runs: complete, repeatable, resumable, and one failure does not stop the rest."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from otdml.benchmarks import experiment
from otdml.benchmarks.exhibits import load_exhibits
from otdml.benchmarks.experiment import _check_finished, _recorded, execute, load_split, run_grid
from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.presets import Preset
from otdml.benchmarks.runs import Run, RunFolder
from otdml.dml.backbones import backbone

# One thread and few steps: what is tested is the bookkeeping.
TINY = Preset(
    name="tiny",
    title="tiny",
    dataset="digits",
    model={"dim": 8, "lr": {"backbone": 1e-3, "proxies": 1e-2}},
    training={"epochs": 2, "classes_per_batch": 3, "samples_per_class": 4, "batches_per_epoch": 3, "ks": [1, 2]},
    compare=("proxy-anchor",),
    augment={"degrees": 5.0},
)


def tiny(method="proxy-anchor", seed=0, **settings):
    return Run.of(TINY, METHODS[method], seed, **settings)


def test_a_run_leaves_everything_a_report_needs(tmp_path):
    execute(tiny("proxy-anchor+nir"), tmp_path)
    folder = RunFolder(tmp_path)
    metrics = folder.metrics()
    assert set(metrics["last"]) >= {"recall@1", "recall@2", "map@r", "r_precision"}
    assert metrics["best"] is None
    assert metrics["seconds"] > 0
    assert [row["epoch"] for row in folder.curve()] == [0, 1]
    assert folder.curve()[-1]["test/recall@1"] == metrics["last"]["recall@1"]
    shown = load_exhibits(tmp_path / "exhibits.npz")
    assert set(shown["map_class"].tolist()) == {0, 1, 2, 3, 4}
    # Ink is dark on light paper.
    assert shown["query"].mean() > 127


def test_the_same_run_has_the_same_numbers_and_another_seed_others(tmp_path):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        execute(tiny(seed=seed), tmp_path / name)
        found.append(RunFolder(tmp_path / name).metrics()["last"])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_finished_run_is_not_repeated(tmp_path):
    execute(tiny(), tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"last": {"recall@1": 0.125}}))
    execute(tiny(), tmp_path)
    assert RunFolder(tmp_path).metrics() == {"last": {"recall@1": 0.125}}


def test_a_run_stopped_before_its_metrics_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    execute(tiny(), tmp_path / "whole")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("otdml.benchmarks.experiment.save_exhibits", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(tiny(), tmp_path / "stopped")
    assert not RunFolder(tmp_path / "stopped").finished
    execute(tiny(), tmp_path / "stopped")
    whole, stopped = (RunFolder(tmp_path / name).metrics() for name in ("whole", "stopped"))
    assert whole["last"] == stopped["last"]


def test_held_out_classes_select_an_epoch(tmp_path):
    execute(tiny(hold_out=True), tmp_path)
    metrics = RunFolder(tmp_path).metrics()
    assert metrics["best_epoch"] in (0, 1)
    assert metrics["best"].keys() == metrics["last"].keys()
    assert "val/recall@1" in RunFolder(tmp_path).curve()[0]


def test_another_configuration_is_refused_before_anything_runs(tmp_path):
    execute(tiny(), tmp_path / "proxy-anchor" / "seed-0")
    with pytest.raises(ValueError, match=r"training.epochs: 2 there, 3 here"):
        next(run_grid(tmp_path, [tiny("soft-triple"), tiny(epochs=3)]))
    assert not (tmp_path / "soft-triple").exists()


def test_grid_finishes_the_sound_runs_and_reports_the_others(tmp_path):
    sound, unsound = tiny(), tiny("soft-triple", classes_per_batch=99)
    *_, last = run_grid(tmp_path, [unsound, sound], poll=0.1)
    failed, finished = last
    assert (failed.status, finished.status) == ("failed", "finished")
    assert "classes_per_batch" in failed.message
    assert "Traceback" in (failed.folder.path / "error.log").read_text()
    assert finished.latest["epoch"] == 1
    # The numbers do not depend on the process, but for its threads: a worker has one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    execute(sound, tmp_path / "here")
    torch.set_num_threads(threads)
    assert RunFolder(tmp_path / "here").metrics()["last"] == finished.folder.metrics()["last"]


def test_a_run_holds_its_folder_until_its_metrics_are_written(tmp_path, monkeypatch):
    held = []
    finish = RunFolder.finish
    monkeypatch.setattr(
        RunFolder, "finish", lambda *found: (held.append((tmp_path / ".lock").exists()), finish(*found))
    )
    execute(tiny(), tmp_path)
    assert held == [True]
    assert not (tmp_path / ".lock").exists()


def test_a_run_that_succeeds_leaves_no_error_of_an_earlier_attempt(tmp_path, monkeypatch):
    *_, (failed,) = run_grid(tmp_path, [tiny("soft-triple", classes_per_batch=99)], poll=0.1)
    assert (failed.folder.path / "error.log").exists()
    *_, (finished,) = run_grid(tmp_path, [tiny("soft-triple")], poll=0.1)
    assert finished.status == "finished"
    assert not (finished.folder.path / "error.log").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_closing_a_grid_stops_its_processes(tmp_path):
    import multiprocessing

    earlier = multiprocessing.active_children()
    with closing(run_grid(tmp_path, [tiny(epochs=100_000)], poll=0.1)) as states:
        assert next(states)[0].status == "running"
    assert [child for child in multiprocessing.active_children() if child not in earlier] == []


@pytest.mark.slow
def test_a_benchmark_killed_at_once_leaves_no_process_and_goes_on_to_the_same_numbers(tmp_path):
    script = (
        "from pathlib import Path; from otdml.benchmarks.experiment import run_grid; "
        "from otdml.benchmarks.runs import Run; "
        f"run = Run(**{tiny(epochs=40).config()!r}); "
        f"list(run_grid(Path({str(tmp_path / 'killed')!r}), [run]))"
    )
    curve = tmp_path / "killed" / "proxy-anchor" / "seed-0" / "curve.csv"
    # The guard is what a module that spawns processes needs.
    program = tmp_path / "program.py"
    program.write_text(f"if __name__ == '__main__':\n    {script}\n")
    parent = subprocess.Popen([sys.executable, str(program)])
    while not curve.exists():
        assert parent.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    assert not RunFolder(curve.parent).finished
    *_, last = run_grid(tmp_path / "killed", [tiny(epochs=40)])
    *_, whole = run_grid(tmp_path / "whole", [tiny(epochs=40)])
    assert last[0].folder.metrics()["last"] == whole[0].folder.metrics()["last"]


def test_a_killed_process_costs_its_own_run_alone(tmp_path):
    import multiprocessing

    runs = [tiny(name) for name in ("proxy-anchor", "proxy-nca", "soft-triple")]
    killed = False
    for last in run_grid(tmp_path, runs, jobs=1, poll=0.1):
        children = multiprocessing.active_children()
        if not killed and children and last[0].status == "running":
            children[0].kill()
            killed = True
    assert [state.status for state in last] == ["failed", "finished", "finished"]
    assert last[0].message.startswith("its process, or one beside it, was killed")


def test_every_run_is_seen_before_it_has_ended(tmp_path):
    execute(tiny("soft-triple"), tmp_path / "soft-triple" / "seed-0")
    seen = [[state.status for state in states] for states in run_grid(tmp_path, [tiny("soft-triple"), tiny()], poll=60)]
    assert seen == [["finished", "running"], ["finished", "finished"]]


def test_a_killed_process_is_explained(tmp_path):
    assert "fewer --jobs" in _recorded(tmp_path, BrokenProcessPool())
    assert "told to end (SIGTERM)" in _recorded(tmp_path, SystemExit(143))


def test_a_full_disk_is_reported_even_if_its_traceback_cannot_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("full")

    monkeypatch.setattr("otdml.benchmarks.experiment.write_text", full)
    assert _recorded(tmp_path, OSError("cannot write curve.csv: No space left on device")).startswith("cannot write")


def test_unknown_data_set_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown data set 'digit'. Did you mean 'digits'\?"):
        load_split("digit", None, "test", {})


def test_unknown_option_of_a_data_set_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown option of digits 'on_corrupt'. .*rotations"):
        load_split("digits", None, "test", {"on_corrupt": "skip"})
    assert len(load_split("digits", None, "test", {"rotations": True})) == 896


def test_a_run_on_other_images_is_refused_finished_or_not(tmp_path, monkeypatch):
    """As many images as before, one of which has another pixel; or of the test set alone."""
    execute(tiny(), tmp_path / "a/proxy-anchor/seed-0")
    load = experiment.load_split

    def changed(dataset, root, split, options):
        found = load(dataset, root, split, options)
        if split == "test":
            found.images[0, 0, 3, 3] ^= 1
        return found

    monkeypatch.setattr(experiment, "load_split", changed)
    with pytest.raises(ValueError, match="another state of the data set: test holds other images or labels now"):
        execute(tiny(), tmp_path / "a/proxy-anchor/seed-0")
    with pytest.raises(ValueError, match="another state of the data set"):
        list(run_grid(tmp_path / "a", [tiny()]))
    (tmp_path / "a/proxy-anchor/seed-0/metrics.json").unlink()
    with pytest.raises(ValueError, match="another state of the data set"):
        execute(tiny(), tmp_path / "a/proxy-anchor/seed-0")


def test_a_run_from_other_weights_in_the_same_file_is_refused(tmp_path):
    """Seeds of one table start from the same numbers, which a path does not say."""
    small = {"in_channels": 1, "depths": [1, 1], "widths": [4, 4]}
    first, second = (backbone("resnet", small).state_dict() for _ in range(2))
    file, out = tmp_path / "weights.pth", tmp_path / "out"
    torch.save(first, file)
    options = {"backbone": "resnet", "backbone_options": {**small, "weights": str(file)}}
    runs = [replace(tiny(seed=seed), model={**tiny().model, **options}) for seed in (0, 1)]
    execute(runs[0], out / runs[0].place)
    execute(runs[0], out / runs[0].place)
    torch.save(second, file)
    with pytest.raises(ValueError, match=r"seed-0 holds a run from other weights: their file has changed since"):
        list(run_grid(out, runs[1:]))
    with pytest.raises(ValueError, match="other weights"):
        execute(runs[0], out / runs[0].place)
    torch.save(first, file)
    _check_finished(out, {out / run.place: run for run in runs}, None)
