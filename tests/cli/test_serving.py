"""The command that serves a page: its words, what it says at the start, and its errors with their remedies."""

import importlib.util
import shutil

import pytest
import torch
from typer.testing import CliRunner

from otdml import cli
from otdml.dml import EmbeddingIndex

for library in ("starlette", "uvicorn"):
    pytest.importorskip(library, reason="the page of an index is the extra `serve`")


@pytest.fixture
def serve(monkeypatch):
    """The command as a function of its words; it ends where it would answer requests."""
    started = []
    monkeypatch.setattr("otdml.server.launch.run", lambda *given: started.append(given))
    monkeypatch.setattr("otdml.server.launch.can_show", lambda: True)
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})

    def invoke(*words):
        result = runner.invoke(cli.app, ["serve", *map(str, words)])
        result.started = list(started)
        return result

    return invoke


@pytest.fixture
def own(tmp_path):
    """An index of one's own embeddings: it names no checkpoint."""
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    EmbeddingIndex(torch.eye(3), paths).save(tmp_path / "own.index")
    return tmp_path / "own.index"


def test_it_prints_an_address_with_a_key_and_opens_it(serve, own):
    result = serve(own, "--port", "0")
    assert result.exit_code == 0, result.output
    ((_, _, opened),) = result.started
    assert opened.startswith("http://127.0.0.1:")
    assert len(opened.partition("?key=")[2]) >= 32
    assert f"3 images on {opened}" in result.output
    assert "Ctrl+C stops it." in result.output
    assert "images of your own cannot be searched. The index does not say" in result.output
    assert "Name a checkpoint with --checkpoint" in result.output


def test_no_browser_is_opened_where_none_is_wanted(serve, own):
    ((_, _, opened),) = serve(own, "--port", "0", "--no-browser").started
    assert opened is None


def test_images_that_moved_are_told_and_an_index_of_none_is_refused(serve, own, tmp_path):
    (tmp_path / "1.png").unlink()
    result = serve(own, "--port", "0")
    assert result.exit_code == 0
    assert f"1 of 3 images that were looked at cannot be shown, such as {tmp_path}/1.png: there is" in result.output
    assert "Move them back, or make the index again with `otdml embed`." in result.output
    for i in (0, 2):
        (tmp_path / f"{i}.png").unlink()
    result = serve(own, "--port", "0")
    assert "3 of 3 images" in str(result.exception)
    assert "make the index again with `otdml embed`" in str(result.exception)
    assert len(result.started) == 1


def test_an_index_that_is_not_there_or_none(serve, tmp_path):
    assert "Make one with `otdml embed`" in str(serve(tmp_path / "gone").exception)
    assert "is no index" in str(serve(tmp_path, "--port", "0").exception)


def test_a_checkpoint_that_is_not_there(serve, own, tmp_path):
    assert "there is no checkpoint" in str(serve(own, "--checkpoint", tmp_path / "gone.ckpt").exception)


def test_a_port_that_is_taken(serve, own):
    from otdml.server.launch import listening

    with listening(0) as listener:
        port = listener.getsockname()[1]
        said = str(serve(own, "--port", port).exception)
    assert (
        said == f"port {port} is taken by another program. Name another with --port, or --port 0 for one that is free."
    )


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none(serve, own, port):
    assert serve(own, "--port", port).exit_code == 2


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_package_that_is_absent_is_named_with_what_to_install(serve, own, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr("otdml.cli.serving.find_spec", lambda name: None if name == package else find(name))
    said = str(serve(own).exception)
    assert said == f"a page is served by {package}, which is not installed: pip install 'otdml[serve]'"


def test_a_damaged_index_is_refused(serve, own):
    (own / "items.json").write_text("{")
    assert "is damaged" in str(serve(own, "--port", "0").exception)
    shutil.rmtree(own)
    assert serve(own).exit_code == 1
