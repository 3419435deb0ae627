"""What every test shares: one thread and one cache of compiled formulas per worker, and fixed seeds."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    # KeOps has no lock on its cache: one worker would read what another has half written.
    _cache = Path(os.environ.get("KEOPS_CACHE_FOLDER", Path.home() / ".cache"))
    _own = _cache / f"keops-{os.environ['PYTEST_XDIST_WORKER']}"
    _own.mkdir(parents=True, exist_ok=True)
    os.environ["KEOPS_CACHE_FOLDER"] = str(_own)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that lies beside a checkout, or that OTDML_DATA names."""
    folder = Path(os.environ.get("OTDML_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set OTDML_DATA to a folder that holds it")
    return folder


def _photograph(path: Path, color: int, seed: int) -> None:
    """A small JPEG whose colour tells its class, so that even an untrained network can retrieve."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (40, 56, 3))
    base = np.random.default_rng(1000 + color).integers(30, 225, 3)
    Image.fromarray((base + noise).astype(np.uint8)).save(path, quality=90)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _numbered(classes: list[int], images: int) -> Iterator[tuple[int, int, int]]:
    """Class, image of the class, and running number from one."""
    pairs = ((c, i) for c in classes for i in range(images))
    return ((c, i, number) for number, (c, i) in enumerate(pairs, 1))


def _cub(root: Path, classes: list[int], images: int) -> Path:
    home = root / "CUB_200_2011"
    rows = [(n, c, f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}_{n}.jpg") for c, i, n in _numbered(classes, images)]
    for number, c, path in rows:
        _photograph(home / "images" / path, c, number)
    _write(home / "images.txt", [f"{n} {path}" for n, _, path in rows])
    _write(home / "image_class_labels.txt", [f"{n} {c}" for n, c, _ in rows])
    _write(home / "classes.txt", [f"{c} {c:03d}.Bird_{c}" for c in range(1, 201)])
    _write(home / "train_test_split.txt", [f"{n} {n % 2}" for n, _, _ in rows])
    _write(home / "bounding_boxes.txt", [f"{n} 1.0 1.0 30.0 30.0" for n, _, _ in rows])
    (home / "images" / "._001.Bird_1").write_bytes(b"Mac OS X")
    return root


def _sop(root: Path, classes: list[int], images: int) -> Path:
    home = root / "Stanford_Online_Products"
    half = len(classes) // 2
    for part, some in (("train", classes[:half]), ("test", classes[half:])):
        lines = ["image_id class_id super_class_id path"]
        for c, i, n in _numbered(some, images):
            path = f"{'bicycle' if c % 2 else 'chair'}_final/{111085122871 + c}_{i}.JPG"
            _photograph(home / path, c, 1000 * c + i)
            lines.append(f"{n} {c} {1 + c % 2} {path}")
        _write(home / f"Ebay_{part}.txt", lines)
    return root


def _inshop(root: Path, classes: list[int], images: int) -> Path:
    half, lines = len(classes) // 2, []
    for c, i, n in _numbered(classes, images):
        part = "train" if c in classes[:half] else "query" if i % 2 else "gallery"
        path = f"img/WOMEN/Dresses/id_{c:08d}/{i:02d}_1_front.jpg"
        _photograph(root / path, c, n)
        lines.append(f"{path:<70} id_{c:08d}    {part}")
    _write(root / "list_eval_partition.txt", [str(len(lines)), "image_name item_id evaluation_status", *lines])
    return root


def _cars(root: Path, classes: list[int], images: int) -> Path:
    _write(root / "names.csv", [f"Maker Model {c} 2012" for c in range(1, 197)])
    for part in ("train", "test"):
        rows = [(f"{n:05d}.jpg", c) for c, _, n in _numbered(classes, images // 2)]
        for number, (name, c) in enumerate(rows):
            _photograph(root / "car_data" / "car_data" / part / f"Maker Model {c} 2012" / name, c, number)
        _write(root / f"anno_{part}.csv", [f"{name},1,1,30,30,{c}" for name, c in rows])
    return root


LAYOUTS = {"cars": _cars, "cub": _cub, "sop": _sop, "inshop": _inshop}


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Path]:
    """``published(name, classes, images)``: a folder in the official layout, with a few tiny photographs."""

    def make(name: str, classes: list[int], images: int = 4) -> Path:
        return LAYOUTS[name](tmp_path / name, classes, images)

    return make


@pytest.fixture(scope="session")
def chromium():
    """A Chromium that is installed, or that CHROMIUM names."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is the extra `browser`")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium here: install one, or name it by CHROMIUM")
    with api.sync_playwright() as playwright:
        # Root has no sandbox; the pages are our own.
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=[(400, "light"), (400, "dark"), (1280, "light"), (1280, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def window(chromium, request):
    """A tab 400 or 1280 pixels wide, light or dark, in which no script fails and nothing is refused."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, failures = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda said: failures.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    assert not failures


@pytest.fixture
def assert_readable() -> Callable[..., None]:
    """That a page can be read: nothing wider than the window, and nothing that axe finds amiss."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page) -> None:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        found = axe.run(page).response["violations"]
        assert not found, "\n".join(f"{one['id']}: {one['nodes'][0]['html'][:300]}" for one in found)

    return check
