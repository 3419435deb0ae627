"""Runs: killed and resumed ones end alike, a full disk loses nothing, bad folders are refused."""

import csv
import errno
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from otdml.benchmarks.settings import PRECISIONS
from otdml.data import Digits, Distort, TensorImages
from otdml.dml import (
    CrossBatchMemory,
    ProxyDML,
    TrainingConfig,
    TripletMargin,
    embed,
    evaluate,
    fit,
    retrieval_metrics,
)
from otdml.dml.record import RunRecord

CONFIG = TrainingConfig(
    epochs=2, classes_per_batch=3, samples_per_class=6, batches_per_epoch=3, accelerator="cpu", ks=(1, 2)
)


def module(**options) -> ProxyDML:
    return ProxyDML(3, backbone_options={"widths": (8, 16)}, dim=8, lr=1e-2, seed=0, **options)


def run(folder: Path, *, config: TrainingConfig = CONFIG, **options):
    trained = options.pop("module", None) or module()
    return trained, fit(trained, Digits(split="train"), folder=folder, config=config, progress=False, **options)


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open(newline="") as lines:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(lines)]


def test_an_interrupt_and_sigterm_do_not_pass_for_the_end_of_a_training(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "interrupted", on_epoch=interrupt)
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "terminated", on_epoch=lambda *_: signal.raise_signal(signal.SIGTERM))
    assert end.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("data", ["batches", "items"])
def test_killed_run_goes_on_to_the_same_numbers(tmp_path, data):
    """Killed at random steps and while writing; every weight and every metric is then that of the run left alone."""
    steps = random.Random(data).sample(range(1, 12), 2)
    writes = ["before:best.ckpt", "before:last.ckpt", "after:last.ckpt"] if data == "batches" else []
    check_kills(tmp_path, data, [*(f"step:{step}" for step in steps), *writes])


@pytest.mark.slow
@pytest.mark.parametrize("data", ["batches", "items"])
def test_a_kill_between_any_two_steps_changes_no_number(tmp_path, data):
    check_kills(tmp_path, data, [f"step:{step}" for step in range(12)])


def check_kills(tmp_path: Path, data: str, moments: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(Path(__file__).with_name("killed_run.py")), str(tmp_path), data, "never", *moments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    signals = json.loads(done.stdout)
    assert signals[0] == [0, 0]
    # Validation may not improve twice: then there is no second best.ckpt to be killed at.
    assert [first for first, _ in signals[1:] if first != signal.SIGKILL] in ([], [0])
    assert all(second == 0 for _, second in signals)
    alone = torch.load(tmp_path / "never" / "weights.pt")
    assert json.loads((tmp_path / "never" / "found.json").read_text())[1]
    for moment in moments:
        folder = tmp_path / moment
        weights = torch.load(folder / "weights.pt")
        assert weights.keys() == alone.keys()
        assert all(torch.equal(weights[name], alone[name]) for name in alone), moment
        assert (folder / "found.json").read_text() == (tmp_path / "never" / "found.json").read_text(), moment
        assert curve(folder) == curve(tmp_path / "never"), moment
        assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "never").iterdir()}


def test_run_leaves_curve_and_checkpoints(tmp_path):
    trained, found = run(tmp_path, val=Digits(split="val"), test=Digits(split="test"))
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".embeddings"}
    assert left == {"best.ckpt", "curve.csv", "last.ckpt"}
    rows = curve(tmp_path)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert [row["step"] for row in rows] == ["3", "6"]
    assert float(rows[1]["lr"]) == 0.0
    assert rows[0]["val/recall@1"]
    assert not rows[0]["test/recall@1"]
    expected = retrieval_metrics(embed(trained, Digits(split="test")), Digits(split="test").labels, ks=(1, 2))
    assert {name.removeprefix("test/"): value for name, value in found.last.items() if "test" in name} == expected
    scores = [float(row["val/map@r"]) for row in rows]
    assert found.best_epoch == scores.index(max(scores))
    assert found.best["val/map@r"] == max(scores)


def test_fit_equals_a_loop_written_out(tmp_path):
    """The same batches through ``losses`` and AdamW, one after the other, give the same weights."""
    trained, _ = run(tmp_path)
    plain, digits = module(), Digits(split="train")
    from otdml.dml import ClassBalancedBatchSampler
    from otdml.dml.optim import param_groups, schedule

    parts = {"backbone": plain.backbone, "head": plain.head, "proxies": plain.loss, "flow": None}
    groups = param_groups(parts, lr=plain.lr, weight_decay=plain.weight_decay)
    optimizer, rate = torch.optim.AdamW(groups, fused=True), schedule("cosine", 6)
    sampler, step = ClassBalancedBatchSampler(digits.labels, 3, 6, batches=3), 0
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in sampler:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * rate(step)
            optimizer.zero_grad()
            plain.losses(digits.images[batch].float() / 255, digits.labels[batch])["loss"].backward()
            optimizer.step()
            step += 1
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), plain.parameters(), strict=True))


def test_run_leaves_global_random_states(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    run(tmp_path, augment=Distort())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


def test_finished_run_is_only_evaluated(tmp_path):
    _, first = run(tmp_path, val=Digits(split="val"))
    stamp = (tmp_path / "last.ckpt").stat().st_mtime_ns
    other = module()
    _, again = run(tmp_path, val=Digits(split="val"), module=other)
    assert (again.last, again.best, again.seconds) == (first.last, first.best, first.seconds)
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == stamp
    assert evaluate(other, Digits(split="val"), ks=(1, 2))["map@r"] == first.last["val/map@r"]


class KilledError(Exception):
    """A run that ends before its time."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("crops", [0, 1])
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_run_in_another_precision_ends_alike_killed_or_finished(tmp_path, precision, crops):
    """Weights of a checkpoint are not rounded on their way, nor evaluated in another precision than they had."""
    settings = {"precision": precision, "crops": crops, "maps": str(tmp_path / "maps"), "select": "recall@1"}
    config = TrainingConfig(epochs=3, batches_per_epoch=1, classes_per_batch=3, accelerator="cpu", ks=(1,), **settings)
    sets = {"val": Digits(split="val"), "test": Digits(split="test")}

    def ran(name, **options):
        return run(
            tmp_path / name, config=config, module=module(frozen="layers.2" if crops else None), **sets, **options
        )

    def kill(epoch, _):
        if epoch == 0:
            raise KilledError

    whole, expected = ran("whole")
    assert torch.equal(expected.test_embeddings, embed(whole, sets["test"]))
    with pytest.raises(KilledError):
        ran("killed", on_epoch=kill)
    for trained, found in (ran("killed"), ran("whole")):
        assert (found.last, found.best) == (expected.last, expected.best)
        assert torch.equal(found.test_embeddings, expected.test_embeddings)
        for name, value in whole.state_dict().items():
            assert value.dtype == trained.state_dict()[name].dtype
            assert torch.equal(value, trained.state_dict()[name]), name


def test_a_module_in_evaluation_is_trained_like_any_other(tmp_path):
    trained, found = run(tmp_path / "training", test=Digits(split="test"))
    other, again = run(tmp_path / "evaluation", test=Digits(split="test"), module=module().eval())
    assert again.last == found.last
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert not any(part.training for part in other.modules())


def test_checkpoint_rebuilds_the_module(tmp_path):
    trained, _ = run(tmp_path, module=module(nir_weight=0.1, loss="soft-triple", loss_options={"centres": 2}))
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert any(name.startswith("nir.flow") for name in content["state_dict"])
    assert content["state_dict"]["loss.proxies"].shape == (3, 2, 8)
    rebuilt = ProxyDML.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), rebuilt.state_dict().values(), strict=True)
    )


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    short = CONFIG.__class__(**{**vars(CONFIG), "epochs": 3})
    write = os.fsync

    def full_after_two(descriptor: int) -> None:
        writes.append(descriptor)
        # Each epoch writes last.ckpt and curve.csv; the second epoch's checkpoint finds the disk full.
        if len(writes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    writes = []
    monkeypatch.setattr(os, "fsync", full_after_two)
    with pytest.raises(OSError, match=r"last\.ckpt: No space left on device"):
        run(tmp_path, config=short)
    monkeypatch.undo()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.csv", "last.ckpt"]
    resumed, _ = run(tmp_path, config=short)
    alone, _ = run(tmp_path / "alone", config=short)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), alone.parameters(), strict=True))


def test_folder_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"`folder` must hold a run of this configuration, got dim 8 there, 4 here"):
        run(tmp_path, module=ProxyDML(3, backbone_options={"widths": (8, 16)}, dim=4, lr=1e-2, seed=0))
    with pytest.raises(ValueError, match=r"got epochs 2 there, 5 here"):
        run(tmp_path, config=TrainingConfig(**{**vars(CONFIG), "epochs": 5}))
    with pytest.raises(ValueError, match="hold no run yet"):
        run(tmp_path, resume=False)


def test_unseen_images_without_a_pair_are_refused_before_training(tmp_path):
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    alone = TensorImages(images, torch.arange(4), list("abcd"))
    # Pairs there are, but no query has its class among the rest.
    asked = TensorImages(images, torch.tensor([0, 0, 1, 1]), ["a", "b"])
    asked.is_query = torch.tensor([True, True, False, False])
    for name, wrong in (("val", alone), ("test", alone), ("val", asked)):
        with pytest.raises(ValueError, match=rf"`{name}` must hold some class with another item to find"):
            run(tmp_path / "new", **{name: wrong})
    assert not (tmp_path / "new").exists()


def test_run_on_other_data_or_augmentation_is_refused(tmp_path):
    run(tmp_path, augment=Distort(degrees=5))
    with pytest.raises(ValueError, match=r"got augment 'Distort\(degrees=5.*there, 'Distort\(degrees=6.*here"):
        run(tmp_path, augment=Distort(degrees=6))
    with pytest.raises(ValueError, match=r"augment .* there, 'None' here"):
        run(tmp_path)
    with pytest.raises(ValueError, match=r"got val 0 there, 364 here"):
        run(tmp_path, augment=Distort(degrees=5), val=Digits(split="val"))


def test_run_goes_on_with_other_means(tmp_path):
    """What does not change the numbers may change: here the workers, and what the curve is shown with."""
    first, _ = run(tmp_path)
    again, _ = run(tmp_path, config=TrainingConfig(**{**vars(CONFIG), "workers": 3, "devices": "auto"}))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_folder_is_held_while_training(tmp_path):
    locks = []
    run(tmp_path, on_epoch=lambda *_: locks.append((tmp_path / ".lock").exists()))
    assert locks == [True, True]
    assert not (tmp_path / ".lock").exists()


def test_backbone_is_compiled(tmp_path, monkeypatch):
    """One graph is compiled and gives the same weights; the backend that writes code is left out for its time."""
    eager, _ = run(tmp_path / "eager")
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, _ = run(tmp_path / "compiled", config=TrainingConfig(**{**vars(CONFIG), "compile": True}))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_mixed_precision_reaches_the_backbone_and_not_the_weights(tmp_path):
    seen, losses = {}, {}
    for precision in ("32-true", "bf16-mixed"):
        trained = module()

        def look(part, images, maps, name=precision):
            seen[name, part.training] = maps.dtype

        trained.backbone.register_forward_hook(look)
        config = TrainingConfig(**{**vars(CONFIG), "precision": precision, "epochs": 1})
        row = {}
        run(tmp_path / precision, module=trained, config=config, on_epoch=lambda _, r, row=row: row.update(r))
        losses[precision] = row["loss"]
        assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert seen["32-true", True] == torch.float32
    assert seen["bf16-mixed", True] == torch.bfloat16
    # bfloat16 keeps eight bits.
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=2e-2)
    assert losses["bf16-mixed"] != losses["32-true"]


def test_tensorboard_shows_the_curve_or_is_missed_by_name(tmp_path):
    config = TrainingConfig(**{**vars(CONFIG), "tensorboard": True})
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        with pytest.raises(
            ModuleNotFoundError, match=r"needs TensorBoard: pip install tensorboard, or read curve\.csv"
        ):
            run(tmp_path / "new", config=config)
        assert not (tmp_path / "new").exists()
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, config=config, val=Digits(split="val"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "val/map@r"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-6)) for row in curve(tmp_path)]


def test_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="a checkpoint that `fit` did not write"):
        run(tmp_path)
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        run(tmp_path)


def test_diverged_loss_is_named(tmp_path):
    images = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    train = TensorImages(images, torch.arange(12) % 3, ["a", "b", "c"])
    config = TrainingConfig(epochs=1, classes_per_batch=3, samples_per_class=2, accelerator="cpu")
    with pytest.raises(FloatingPointError, match=r"epoch 0 is not finite \(loss nan, proxy nan\)"):
        fit(module(), train, folder=tmp_path, config=config, augment=lambda x, _: x + float("nan"), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_wrong_number_of_classes_is_named(tmp_path):
    with pytest.raises(ValueError, match="have the module's 3 classes, got 5"):
        fit(module(), Digits(split="trainval"), folder=tmp_path / "new", config=CONFIG, progress=False)
    assert not (tmp_path / "new").exists()


def test_embedding_keeps_training_modes():
    trained = module()
    trained.train()
    trained.backbone.layers[1].eval()
    before = [part.training for part in trained.modules()]
    z = embed(trained, Digits(split="test"), batch_size=100)
    assert [part.training for part in trained.modules()] == before
    torch.testing.assert_close(z, embed(trained.eval(), Digits(split="test"), batch_size=7))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(896))


def test_workers_do_not_change_the_numbers(tmp_path):
    """Items through two worker processes: the same images in the same order as through none."""

    class Items:
        def __init__(self, split):
            self.digits = Digits(split=split)
            self.labels, self.classes = self.digits.labels, self.digits.classes

        def __len__(self):
            return len(self.digits)

        def __getitem__(self, index):
            return self.digits[index]

    found = []
    for workers in (0, 2):
        config = TrainingConfig(**{**vars(CONFIG), "workers": workers, "epochs": 1})
        trained = module()
        fit(trained, Items("train"), val=Items("val"), folder=tmp_path / str(workers), config=config, progress=False)
        found.append(trained)
    assert all(torch.equal(a, b) for a, b in zip(*(trained.parameters() for trained in found), strict=True))


def test_progress_and_epochs_are_reported(tmp_path, capsys):
    epochs = []
    fit(
        module(),
        Digits(split="train"),
        val=Digits(split="val"),
        folder=tmp_path,
        config=CONFIG,
        on_epoch=lambda epoch, row: epochs.append((epoch, row["val/recall@1"])),
    )
    assert [epoch for epoch, _ in epochs] == [0, 1]
    assert f"val/recall@1 {epochs[-1][1]:.3f}" in " ".join(capsys.readouterr().out.split())


def test_queries_search_their_gallery():
    digits = Digits(split="test")
    digits.is_query = torch.arange(len(digits)) % 3 == 0
    trained = module()
    z, ask = embed(trained, digits), digits.is_query
    expected = retrieval_metrics(
        z[ask], digits.labels[ask], gallery=z[~ask], gallery_labels=digits.labels[~ask], ks=(1,)
    )
    assert evaluate(trained, digits, ks=(1,)) == expected


def test_an_evaluation_that_cannot_be_is_refused_before_images_are_embedded(monkeypatch):
    alone = TensorImages(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3), list("abc"))
    trained = module()
    monkeypatch.setattr(type(trained), "forward", None)
    with pytest.raises(ValueError, match="`dataset` must hold some class with another item to find, got 3 images"):
        evaluate(trained, alone)
    with pytest.raises(ValueError, match="`ks` must be an integer >= 1, got 0"):
        evaluate(trained, Digits(split="test"), ks=(0,))


def test_last_epoch_is_always_evaluated(tmp_path):
    config = TrainingConfig(**{**vars(CONFIG), "epochs": 3, "val_every": 2, "test_every": 1})
    run(tmp_path, config=config, val=Digits(split="val"), test=Digits(split="test"))
    rows = curve(tmp_path)
    assert [bool(row["val/map@r"]) for row in rows] == [False, True, True]
    assert [bool(row["test/map@r"]) for row in rows] == [True, True, True]


def test_bad_budgets_are_named():
    for name in ("epochs", "classes_per_batch", "samples_per_class", "eval_batch_size", "batches_per_epoch"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1, got 0"):
            TrainingConfig(**{name: 0})
    with pytest.raises(ValueError, match="`ks` must be an integer >= 1, got 0"):
        TrainingConfig(ks=(1, 0))
    with pytest.raises(ValueError, match=r"unknown metric to select by 'recall@3'.*recall@8"):
        TrainingConfig(select="recall@3")


def test_record_holds_plain_types(tmp_path):
    record = RunRecord(
        module(), tmp_path, CONFIG, train=Digits(), val=None, test=None, augment=Distort(), on_epoch=None
    )
    assert json.loads(json.dumps(record.identity())) == record.identity()


@pytest.mark.parametrize("changed", ["train", "val", "test"])
def test_a_run_on_as_many_other_images_is_refused(changed, tmp_path):
    """A finished run would otherwise return the figure of the earlier images."""
    sets = {"val": Digits(split="val"), "test": Digits(split="test")}
    run(tmp_path, **sets)
    sets |= {"train": Digits()}
    sets[changed].images[0, 0, 3, 3] ^= 1
    train = sets.pop("train")
    with pytest.raises(ValueError, match=f"{changed} images '[0-9a-f]+' there, '[0-9a-f]+' here"):
        fit(module(), train, folder=tmp_path, config=CONFIG, progress=False, **sets)


def test_the_result_holds_the_embeddings_of_the_test_set(tmp_path):
    """After training, and of a finished run that is only evaluated."""
    test = Digits(split="test")
    trained, found = run(tmp_path, test=test)
    assert torch.equal(found.test_embeddings, embed(trained, test))
    _, again = run(tmp_path, test=test)
    assert torch.equal(again.test_embeddings, found.test_embeddings)
    (tmp_path / "last-test.embeddings").unlink()
    assert torch.equal(run(tmp_path, test=test)[1].test_embeddings, found.test_embeddings)
    assert run(tmp_path / "without")[1].test_embeddings is None


def test_a_loss_with_a_memory_is_trained_to_the_end_and_is_part_of_the_run(tmp_path):
    def trained(loss):
        module = ProxyDML(3, loss=loss, dim=8, seed=0, lr=0.5, backbone_options={"widths": (4, 8)})
        config = TrainingConfig(epochs=3, classes_per_batch=3, batches_per_epoch=1, accelerator="cpu", ks=(1,))
        return fit(module, Digits(), val=Digits(split="val"), folder=tmp_path, config=config, progress=False)

    assert trained(CrossBatchMemory(TripletMargin(), 8, size=64)).best is not None
    with pytest.raises(ValueError, match="hold a run of this configuration"):
        trained(CrossBatchMemory(TripletMargin(), 8, size=32))


# Lightning's, of its older names, and of float16 on a processor, where nothing is scaled.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name not in ("auto", "32-true")])
@pytest.mark.parametrize("crops", [0, 2])
def test_an_epoch_under_each_precision_that_settings_allow(tmp_path, precision, crops):
    """Whatever the network computes in, it is evaluated like one of single precision, and nearly as good."""
    if precision.startswith("transformer-engine"):
        pytest.importorskip("transformer_engine")
    found = []
    for name in (precision, "32-true"):
        trained = module(frozen="layers.2" if crops else None)
        settings = {"precision": name, "accelerator": "cpu", "crops": crops, "maps": str(tmp_path / "maps")}
        config = TrainingConfig(epochs=1, batches_per_epoch=2, classes_per_batch=3, ks=(1,), **settings)
        data = {"test": Digits(split="test"), "augment": Distort()}
        found.append(run(tmp_path / name, config=config, module=trained, **data)[1])
    assert found[0].test_embeddings.dtype == torch.float32
    assert found[0].last["test/recall@1"] == pytest.approx(found[1].last["test/recall@1"], abs=0.03)
