"""The command line: what it prints, what it writes, and how it fails."""

import json
import sys

import pytest
from typer.testing import CliRunner

import otdml
from otdml import cli

PRESET = """
title = "a tiny benchmark"
dataset = "digits"
compare = ["proxy-anchor", "proxy-nca"]
seeds = 1
[model]
backbone = "conv4"
dim = 8
lr = { backbone = 1e-3, proxies = 1e-2 }
[training]
epochs = 1
classes_per_batch = 3
samples_per_class = 4
batches_per_epoch = 2
"""


@pytest.fixture
def otdml_():
    """The command line as a function of its words."""
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    return lambda *words: runner.invoke(cli.app, [str(word) for word in words])


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(PRESET)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, preset):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    words = ["train", "--preset", str(preset), "-m", "proxy-anchor+nir", "--out", str(folder)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    return folder


def test_version(otdml_):
    result = otdml_("--version")
    assert (result.exit_code, result.output.strip()) == (0, f"otdml {otdml.__version__}")


@pytest.mark.parametrize(
    "command", ["benchmark", "train", "evaluate", "embed", "search", "serve", "speed", "doctor", "data check"]
)
def test_help_has_an_example_that_begins_with_the_command(otdml_, command):
    result = otdml_(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"otdml {command}" in result.output.split("Examples")[1]


def test_list_names_benchmarks_and_methods(otdml_):
    output = otdml_("benchmark", "--list").output
    for name in ("digits", "omniglot-small", "proxy-anchor+nir-control", "soft-triple"):
        assert name in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("benchmark", "-d", "digit"), "Did you mean 'digits'"),
        (("benchmark", "-m", "proxy-ancor"), "Did you mean 'proxy-anchor'"),
        (("benchmark", "-d", "omniglot"), "say which with --protocol"),
        (("benchmark", "--seeds", "0"), "Invalid value for '--seeds': must be from 1 to 10000, got 0."),
        (("train", "-d", "digits", "-m", "triplet"), "Known: proxy-anchor, "),
        (("train", "-m", "proxy-anchor"), "name a data set with --dataset, or a file with --preset"),
        (("train", "--preset", "x.toml", "-p", "small"), "--protocol belongs to --dataset"),
        (("evaluate", "x.ckpt", "-p", "full"), "--protocol needs --dataset"),
        (("benchmark", "-d", "cub"), "pass --weights FILE; or --weights none"),
        (("benchmark", "-d", "cub", "--weights", "gone.pth"), "there is no file gone.pth"),
        (("benchmark", "-d", "digits", "--weights", "none.pth"), "--weights is not for it"),
        (("benchmark", "-d", "cub", "-p", "r50"), "unknown protocol of cub 'r50'. Did you mean 'r50-128'"),
        (("benchmark", "-d", "cub_"), "Did you mean 'cub'"),
        (("train", "-d", "digits", "--set", "training.epoch=3"), "unknown setting of training 'epoch'"),
        (("train", "-d", "digits", "--set", "modle.dim=3"), "Did you mean 'model'"),
        (("train", "-d", "digits", "--set", "epochs=3"), "--set must be KEY=VALUE, such as training.epochs=3"),
        (("speed", "sinkorn"), "Did you mean 'sinkhorn'"),
        (("doctor", "kepos"), "Did you mean 'keops'"),
        (("data", "check", "cubs"), "Did you mean 'cub'"),
        (("evaluate", "x.ckpt", "--ks", "1,two"), "integers separated by commas"),
        (("bench",), "No such command"),
        (("train", "-d", "digits", "--set", "training.devices=2", "--devices", 1), "devices: give one of them."),
        (
            ("benchmark", "-d", "digits", "-m", "multi-similarity", "--dispersion", "koleo:0.1@proxies"),
            "`model.dispersion` koleo:0.1@proxies is of proxies, and multi-similarity has none: leave out @proxies.",
        ),
        (("train", "-d", "digits", "--out", f"{__file__}/run"), f"nothing can be written in {__file__}."),
        (("benchmark", "-d", "digits", "--out", f"{__file__}/runs"), f"nothing can be written in {__file__}."),
    ],
)
def test_wrong_arguments_exit_with_2_and_a_hint(otdml_, words, message):
    result = otdml_(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_training_leaves_a_run_and_prints_its_metrics(trained):
    assert {path.name for path in trained.iterdir()} >= {"config.json", "curve.csv", "metrics.json", "last.ckpt"}
    metrics = json.loads((trained / "metrics.json").read_text())
    assert 0 < metrics["last"]["recall@1"] <= 1
    assert metrics["best"] is None


def test_evaluate_repeats_the_metrics_of_the_run(otdml_, trained):
    result = otdml_("evaluate", trained, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == pytest.approx(json.loads((trained / "metrics.json").read_text())["last"])


def test_evaluate_takes_no_folder_for_a_set_that_is_in_none(otdml_, trained):
    result = otdml_("evaluate", trained, "--root", "/nowhere")
    assert str(result.exception) == "--root /nowhere: digits come with scikit-learn, and are in no folder."


def test_evaluate_on_a_named_set_without_a_configuration(otdml_, trained, tmp_path):
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((trained / "last.ckpt").read_bytes())
    assert "Name a set with --dataset" in str(otdml_("evaluate", alone).exception)
    (tmp_path / "config.json").write_text('{"architectures": ["of another tool"]}')
    assert "Name a set with --dataset" in str(otdml_("evaluate", alone).exception)
    result = otdml_("evaluate", alone, "-d", "digits", "--ks", "1")
    assert "R@1" in result.output
    assert "R@2" not in result.output


@pytest.fixture
def images(tmp_path):
    """A folder with a dark image, a light one, and a file that is none."""
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for name, shade in (("dark.png", 10), ("light.png", 240)):
        image = Image.new("L", (20, 30), shade)
        image.paste(255 - shade, (0, 0, 10, 30))
        image.save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_embed_then_search_finds_the_image_itself_first(otdml_, trained, images, tmp_path):
    index, page = tmp_path / "index", tmp_path / "pages" / "near.html"
    result = otdml_("embed", trained, images, "--out", index, "--skip-corrupt")
    assert result.exit_code == 0, result.output
    assert "left out" in result.output
    assert "2 embeddings" in result.output
    result = otdml_("search", index, images / "light.png", "--html", page)
    assert result.exit_code == 0, result.output
    first, second = result.output.splitlines()[:2]
    assert first.startswith("1.0000  ")
    assert first.endswith("light.png")
    assert second.endswith("dark.png")
    text = page.read_text()
    assert text.count('src="data:') == 3
    assert "http" not in text
    said = str(otdml_("search", index, images / "broken.png").exception)
    assert "broken.png cannot be read as an image" in said
    assert "--skip-corrupt" not in said


def test_embed_names_an_image_that_cannot_be_read_and_writes_nothing(otdml_, trained, images, tmp_path):
    result = otdml_("embed", trained, images, "--out", tmp_path / "index")
    assert "broken.png" in str(result.exception)
    assert not (tmp_path / "index").exists()
    assert "is no image file" in str(otdml_("embed", trained, images / "absent.png").exception)


def test_evaluate_on_a_folder_of_folders(otdml_, trained, tmp_path):
    """Four digits of each class as pictures of paper: the metrics are those of their pixels as a set in memory."""
    from PIL import Image

    from otdml.benchmarks.models import load_checkpoint
    from otdml.data import Digits
    from otdml.dml import embed, retrieval_metrics

    digits = Digits(split="test")
    rows = [i for c in range(5) for i in (digits.labels == c).nonzero()[:4, 0].tolist()]
    for place, i in enumerate(rows):
        path = tmp_path / "own" / digits.classes[digits.labels[i]] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - digits.images[i, 0].numpy()).save(path)
    result = otdml_("evaluate", trained, "--images", tmp_path / "own", "--ks", "1,4", "--json")
    assert result.exit_code == 0, result.output
    z = embed(load_checkpoint(trained), digits)[rows]
    expected = retrieval_metrics(z, digits.labels[rows], ks=(1, 4))
    assert json.loads(result.output) == pytest.approx(expected)
    (tmp_path / "own" / "5" / "broken.png").write_bytes(b"no image")
    assert "broken.png" in str(otdml_("evaluate", trained, "--images", tmp_path / "own").exception)
    result = otdml_("evaluate", trained, "--images", tmp_path / "own", "--skip-corrupt")
    assert "left out" in result.output
    assert "R@8" in result.output
    one = otdml_("evaluate", trained, "--images", tmp_path / "own" / "6")
    assert "two classes or more" in str(one.exception)
    both = otdml_("evaluate", trained, "--images", tmp_path / "own", "-d", "digits")
    assert both.exit_code == 2
    for words in (("--size", "14"), ("--skip-corrupt",)):
        assert otdml_("evaluate", trained, *words).exit_code == 2


def test_networks_of_libraries_that_are_absent_are_refused_at_once(otdml_, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    words = ("--root", tmp_path, "--weights", "none", "--out", tmp_path / "runs")
    for command in ("benchmark", "train"):
        result = otdml_(command, "-d", "cub", "-p", "vit-s", *words)
        assert "needs timm, which does not import" in str(result.exception)
        assert "pip install timm, or use a network of otdml such as resnet50" in str(result.exception)
    assert not (tmp_path / "runs").exists()


def test_search_in_an_index_that_does_not_name_its_checkpoint(otdml_, trained, images, tmp_path):
    import torch

    from otdml.dml import EmbeddingIndex

    EmbeddingIndex(torch.eye(8)[:2], ["a.png", "b.png"]).save(tmp_path / "own")
    words = ("search", tmp_path / "own", images / "dark.png")
    assert "Name that with --checkpoint" in str(otdml_(*words).exception)
    assert ".png" in otdml_(*words, "--checkpoint", trained, "--count", "1").output


def test_search_in_an_index_of_other_weights_is_refused(otdml_, trained, images, tmp_path):
    """The vectors have as many features, and would be compared without a word."""
    import torch

    from otdml.benchmarks.runs import checkpoint_file

    otdml_("embed", trained, images, "--out", tmp_path / "index", "--skip-corrupt")
    content = torch.load(checkpoint_file(trained), weights_only=True)
    content["state_dict"]["head.linear.bias"] += 0.1
    torch.save(content, tmp_path / "other.ckpt")
    (tmp_path / "config.json").write_bytes((checkpoint_file(trained).parent / "config.json").read_bytes())
    words = ("search", tmp_path / "index", images / "dark.png")
    assert "other weights or images made it" in str(otdml_(*words, "--checkpoint", tmp_path / "other.ckpt").exception)
    assert otdml_(*words).exit_code == 0
    # The same weights, where nothing says that drawings are inverted.
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "last.ckpt").write_bytes(checkpoint_file(trained).read_bytes())
    assert "other weights or images" in str(otdml_(*words, "--checkpoint", tmp_path / "alone").exception)


def test_a_page_is_written_where_an_image_has_moved(otdml_, trained, images, tmp_path):
    otdml_("embed", trained, images, "--out", tmp_path / "index", "--skip-corrupt")
    (images / "light.png").rename(tmp_path / "elsewhere.png")
    result = otdml_("search", tmp_path / "index", images / "dark.png", "--html", tmp_path / "near.html")
    assert result.exit_code == 0, result.output
    assert "not shown" in result.output
    text = (tmp_path / "near.html").read_text()
    assert text.count('src="data:') == 2
    assert text.count("This image has moved") == 1


def test_what_cannot_be_written_is_said_before_anything_is_read(otdml_, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/dev/full")
    assert "--out" in str(otdml_("embed", "x", "y", "--out", tmp_path / "file").exception)
    for place in ("/dev/full", tmp_path / "link", tmp_path):
        assert f"--html {place}" in str(otdml_("search", "x", "y", "--html", place).exception)


def test_names_of_files_give_a_terminal_no_commands(otdml_, trained, images, tmp_path):
    import os

    (images / "broken.png").unlink()
    names = ["\x1b[31mred.png", "\x9b2J.png", "\u202egnp.png", os.fsdecode(b"\xff.png"), "[bold]b.png", "c\nd.png"]
    for name in names:
        (images / name).write_bytes((images / "light.png").read_bytes())
    assert otdml_("embed", trained, images, "--out", tmp_path / "index").exit_code == 0
    result = otdml_("search", tmp_path / "index", images / "light.png", "--html", tmp_path / "\x1b[2J.html")
    assert result.exit_code == 0, result.output
    assert not {"\x1b", "\x9b", "\u202e", "\udcff"} & set(result.output)
    for shown in (r"\x1b[31mred.png", r"\x9b2J.png", r"\u202egnp.png", r"\udcff.png", "[bold]b.png", r"c\nd.png"):
        assert shown in result.output
    (images / names[0]).write_bytes(b"no image")
    result = otdml_("embed", trained, images, "--out", tmp_path / "index", "--skip-corrupt")
    assert "\x1b" not in result.output


def test_a_checkpoint_that_names_code_of_others_needs_a_word(otdml_, trained, images, tmp_path):
    import torch

    from otdml.benchmarks.runs import checkpoint_file

    content = torch.load(checkpoint_file(trained), weights_only=True)
    options = {"backbone": "hf/somebody/net", "backbone_options": {"trust_remote_code": True}}
    torch.save(content | {"hyper_parameters": content["hyper_parameters"] | options}, tmp_path / "bad.ckpt")
    otdml_("embed", trained, images, "--out", tmp_path / "index", "--skip-corrupt")
    for words in (
        ("evaluate", tmp_path / "bad.ckpt", "-d", "digits"),
        ("evaluate", tmp_path / "bad.ckpt", "--images", images),
        ("embed", tmp_path / "bad.ckpt", images, "--out", tmp_path / "new"),
        ("export", tmp_path / "bad.ckpt", "--out", tmp_path / "model.safetensors"),
        ("search", tmp_path / "index", images / "dark.png", "--checkpoint", tmp_path / "bad.ckpt"),
    ):
        said = str(otdml_(*words).exception)
        assert "bad.ckpt names the network 'hf/somebody/net'" in said
        assert "Pass --trust" in said


def test_a_mistyped_checkpoint_looks_at_a_few_hundred_names(tmp_path, monkeypatch):
    import os

    from otdml.benchmarks.runs import checkpoint_file

    for i in range(30):
        (tmp_path / f"{i:02d}" / "deep").mkdir(parents=True)
        for j in range(40):
            (tmp_path / f"{i:02d}" / "deep" / f"{j}.txt").touch()
    (tmp_path / "00" / "last.ckpt").touch()
    opened, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scan(path))
    with pytest.raises(FileNotFoundError, match=r"Near it: .*00/last\.ckpt"):
        checkpoint_file(tmp_path / "lats.ckpt")
    assert len(opened) < 50


def test_search_in_what_is_no_index(otdml_, images):
    assert "is no index" in str(otdml_("search", images, images / "dark.png").exception)


def test_a_file_that_is_no_checkpoint_is_named(otdml_, tmp_path):
    import torch

    assert "there is no checkpoint" in str(otdml_("evaluate", tmp_path).exception)
    # Each of these fails differently: as pickle, at its end, beyond its end, as text, as a number.
    for content in (b"no checkpoint", b"", b"U", b"X\x01\x00\x00\x00\xff", b"G1"):
        (tmp_path / "last.ckpt").write_bytes(content)
        message = f"{tmp_path / 'last.ckpt'} is no checkpoint that can be read"
        assert message in str(otdml_("evaluate", tmp_path).exception), content
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert "a checkpoint of another model" in str(otdml_("evaluate", tmp_path).exception)
    torch.save({"state_dict": {}, "hyper_parameters": None}, tmp_path / "last.ckpt")
    assert "a checkpoint of another model" in str(otdml_("evaluate", tmp_path).exception)
    other = {"pytorch-lightning_version": "2.4.0", "hyper_parameters": {"num_classes": 3}, "state_dict": {}}
    torch.save(other, tmp_path / "last.ckpt")
    assert "another model: its weights do not fit" in str(otdml_("evaluate", tmp_path).exception)


def test_benchmark_from_start_to_report_and_again_without_training(otdml_, preset, tmp_path):
    words = ("benchmark", "--preset", preset, "--out", tmp_path, "--jobs", "1")
    result = otdml_(*words)
    assert result.exit_code == 0, result.output
    assert "Report:" in result.output
    assert {path.name for path in tmp_path.iterdir()} >= {"report.html", "results.csv", "runs.csv", "results.json"}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")}
    assert len(times) == 2
    assert otdml_(*words).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")} == times
    changed = otdml_(*words, "--epochs", "2", "-m", "soft-triple")
    assert changed.exit_code == 2
    assert "training.epochs: 1 there, 2 here" in " ".join(changed.output.split())


def test_dispersion_is_an_arm_beside_the_method_without_it(otdml_, preset, tmp_path):
    words = ("benchmark", "--preset", preset, "--out", tmp_path, "--jobs", "1", "-m", "proxy-anchor")
    result = otdml_(*words, "--dispersion", "koleo:0.10", "--dispersion", "uniformity:1@proxies")
    assert result.exit_code == 0, result.output
    names = {"proxy-anchor", "proxy-anchor+koleo:0.1", "proxy-anchor+uniformity:1@proxies"}
    assert {run["method"] for run in json.loads((tmp_path / "results.json").read_text())["runs"]} == names
    assert all(name in (tmp_path / "report.html").read_text() for name in names)
    run = json.loads((tmp_path / "proxy-anchor+koleo:0.1" / "seed-0" / "config.json").read_text())["run"]
    assert run["model"]["dispersion"] == "koleo:0.1"
    # What is there is known again, and evaluates as any run.
    assert otdml_(*words).exit_code == 0
    assert otdml_("evaluate", tmp_path / "proxy-anchor+koleo:0.1" / "seed-0").exit_code == 0


def test_dispersion_of_one_run(otdml_, preset, tmp_path):
    words = ("train", "--preset", preset, "--dispersion")
    wrong = otdml_(*words, "koleo")
    assert wrong.exit_code == 2
    assert "NAME:WEIGHT" in wrong.output
    result = otdml_(*words, "max-cosine:0.5@proxies", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "config.json").read_text())["run"]["method"] == "proxy-anchor+max-cosine:0.5@proxies"


def test_a_failure_is_one_message_and_exit_code_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["otdml", "evaluate", str(tmp_path / "none.ckpt")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert "Error: there is no checkpoint" in shown
    assert "Traceback" not in shown


def test_a_diverged_loss_is_a_message_too(monkeypatch, capsys):
    def diverged():
        raise FloatingPointError("the loss of epoch 0 is not finite")

    monkeypatch.setattr(cli, "app", diverged)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "Error: the loss of epoch 0 is not finite" in capsys.readouterr().err


def test_traceback_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv(cli.DEBUG, "1")
    monkeypatch.setattr(sys, "argv", ["otdml", "evaluate", str(tmp_path / "none.ckpt")])
    with pytest.raises(FileNotFoundError):
        cli.main()


def test_doctor_reports_what_works(otdml_):
    result = otdml_("doctor", "pillow")
    assert result.exit_code == 0
    assert "✓ Pillow" in result.output


def test_doctor_fails_when_a_necessary_engine_is_absent(otdml_, monkeypatch):
    from otdml.doctor import ENGINES, Engine

    monkeypatch.setitem(ENGINES, "pot", Engine("POT", "a_module_that_is_not", "x", "pip install it", True))
    result = otdml_("doctor", "pot")
    assert result.exit_code == 1
    assert "absent" in result.output


def test_speed_lists_its_tables(otdml_):
    assert "sinkhorn" in otdml_("speed").output


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "model"])
def test_export_writes_what_its_name_says(otdml_, trained, tmp_path, name):
    for library in ("onnxruntime", "onnxscript", "safetensors"):
        pytest.importorskip(library)
    result = otdml_("export", trained, "--out", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).exists()
    assert ("of 8 pixels" in result.output) == name.endswith(".onnx")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "model.pt"), "must end in .onnx or .safetensors"),
        (("--out", "model.safetensors", "--size", "8"), "--size is of an ONNX graph"),
    ],
)
def test_export_refuses_what_it_cannot_write(otdml_, trained, words, message):
    result = otdml_("export", trained, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
