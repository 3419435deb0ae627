"""An index of small photographs of three classes, its network, and visitors with and without the key."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# The page of an index is the extra `serve`.
collect_ignore_glob = [] if all(map(find_spec, ("starlette", "uvicorn", "httpx2"))) else ["test_*.py"]

KEY = "the-key"


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """A checkpoint of a network that was not trained."""
    from otdml.dml import ProxyDML

    path = tmp_path_factory.mktemp("network") / "last.ckpt"
    options = {"widths": (4, 4, 8), "in_channels": 3}
    model = ProxyDML(3, backbone="conv4", backbone_options=options, dim=8, seed=0)
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, path)
    return path


def _photos(folder: Path) -> Path:
    from PIL import Image

    for color, name in enumerate(("bird", "cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            shade = [30, 30, 30]
            shade[color] = 140 + 25 * i
            Image.new("RGB", (48, 32), tuple(shade)).save(folder / name / f"{name} {i}.png")
    return folder


def _index(network: Path, photos: Path) -> Path:
    from otdml.benchmarks.models import embedded

    folder = photos.with_name("photos.index")
    embedded(network, [photos], folder, size=16)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve photographs of cats, dogs and birds, whose colours tell their classes."""
    return _photos(tmp_path / "photos")


@pytest.fixture
def index(network, photos) -> Path:
    """The folder of the index of the photographs."""
    return _index(network, photos)


@pytest.fixture(scope="session")
def kept_index(network, tmp_path_factory) -> Path:
    """Such an index, for tests that change nothing."""
    return _index(network, _photos(tmp_path_factory.mktemp("kept") / "photos"))


@pytest.fixture(scope="session")
def site(kept_index):
    from otdml.server.site import Site

    return Site(kept_index, count=6)


@pytest.fixture
def stranger(site):
    """A client that has no key, and that follows no redirection."""
    from starlette.testclient import TestClient

    from otdml.server.application import application

    app = application(site, KEY)
    return TestClient(app, base_url="http://127.0.0.1:8765", follow_redirects=False)


@pytest.fixture
def visitor(stranger):
    """A client that has opened the address with the key."""
    assert stranger.get(f"/?key={KEY}").status_code == 303
    return stranger


@pytest.fixture(scope="session")
def content(kept_index) -> bytes:
    return (kept_index.with_name("photos") / "cat" / "cat 2.png").read_bytes()


@pytest.fixture
def upload(visitor, content) -> Callable:
    """Send a file as the page's script does, with other headers where they are given."""

    def send(body=content, name="mine.png", **headers):
        own = {"content-type": "application/octet-stream", "origin": "http://127.0.0.1:8765"}
        own |= {key.replace("_", "-"): value for key, value in headers.items()}
        kept = {key: value for key, value in own.items() if value is not None}
        return visitor.post("/queries", params={"name": name}, content=body, headers=kept)

    return send
