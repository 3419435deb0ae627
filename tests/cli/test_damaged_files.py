"""Files that were cut off, overwritten or exchanged: each command names the file, and ends without a traceback."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from otdml import cli
from otdml.dml import EmbeddingIndex, ProxyDML

RUNS = 90


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: int(len(content) * chance.choice([0.0, 0.01, 0.3, 0.6]))]


def overwritten(content: bytes, chance: random.Random) -> bytes:
    """A tenth of it, from its beginning: what is in the middle may be pixels or weights, which nothing tells apart."""
    length = max(1, len(content) // 10)
    return bytes(chance.randrange(256) for _ in range(length)) + content[length:]


def exchanged(content: bytes, chance: random.Random) -> bytes:
    pages = [
        b"<html>404</html>",
        b"PK\x03\x04",
        b"[]",
        b"null",
        b'{"a": 1}',
        bytes(4096),
        b"\xff\xfe\x00",
        b"\x80\x02.",
    ]
    return chance.choice(pages)


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [cut, overwritten, exchanged]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run, images and an index."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("a/1.png", "a/2.jpg", "b/3.png"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), 60 * int(Path(name).stem)).save(folder / "photos" / name)
    module = ProxyDML(5, backbone_options={"widths": (4, 8)}, dim=8, seed=0)
    (folder / "run").mkdir()
    torch.save({"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}, folder / "run/last.ckpt")
    run = {"dataset": "digits", "data": {}, "model": {}, "training": {}}
    (folder / "run/config.json").write_text(json.dumps({"fingerprint": "", "run": run}))
    assert invoked(["embed", folder / "run", folder / "photos", "--out", folder / "index"]).exit_code == 0
    return folder


def invoked(words):
    return CliRunner(env={"COLUMNS": "10000", "TERM": "dumb"}).invoke(cli.app, [str(word) for word in words])


def commands(folder: Path) -> dict[str, list[list[str | Path]]]:
    run, photos, index = folder / "run", folder / "photos", folder / "index"
    weights: list[list[str | Path]] = [
        ["evaluate", run, "--images", photos],
        ["evaluate", run],
        ["embed", run, photos, "--out", folder / "new"],
        ["export", run, "--out", folder / "model.safetensors"],
    ]
    return {
        "run/last.ckpt": [*weights, ["search", index, photos / "a/1.png"]],
        "run/config.json": weights[:3],
        "photos/a/2.jpg": [weights[0], weights[2], ["search", index, photos / "a/2.jpg"]],
        "photos/b/3.png": [weights[0], weights[2], ["search", index, photos / "b/3.png"]],
        "index/index.faiss": [["search", index, photos / "a/1.png"]],
        "index/items.json": [["search", index, photos / "a/1.png"]],
    }


@pytest.mark.parametrize("number", range(RUNS))
def test_a_damaged_file_is_named(number, whole, tmp_path):
    chance = random.Random(number)
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    # The index names its checkpoint by its whole path.
    index = EmbeddingIndex.load(folder / "index")
    about = index.about | {"checkpoint": str(folder / "run/last.ckpt")}
    EmbeddingIndex(index.z, index.paths, about).save(folder / "index")
    file = chance.choice(list(commands(folder)))
    words = chance.choice(commands(folder)[file])
    damage = DAMAGES[number % len(DAMAGES)]
    (folder / file).write_bytes(damage((folder / file).read_bytes(), chance))
    before = sorted(os.listdir(folder))
    result = invoked(words)
    assert result.exit_code != 0, f"taken: {file}, {damage.__name__}, {words}"
    assert isinstance(result.exception, (SystemExit, *cli.FAILURES)), f"a traceback: {result.exception!r}"
    said = result.output if isinstance(result.exception, SystemExit) else str(result.exception)
    assert Path(file).name in said, said
    assert "Traceback" not in said
    assert sorted(os.listdir(folder)) == before


def test_whole_files_are_taken(whole, tmp_path):
    """Else the damaged ones could be refused for another reason."""
    shutil.copytree(whole, tmp_path / "copy")
    for words in (words for entries in commands(tmp_path / "copy").values() for words in entries):
        if words[0] != "export":
            assert invoked(words).exit_code == 0, words
