"""The page "Coming from": both texts of every row are run on the same inputs, and their values compared."""

import ast
import importlib.metadata
import importlib.util
import re
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from otdml.losses import sinkhorn_divergence

DOCS = Path(__file__).parents[1] / "docs"
if not DOCS.is_dir():
    pytest.skip("no site beside an installed package", allow_module_level=True)
sys.path.insert(0, str(DOCS))
try:
    from coming_from import PEERS
finally:
    sys.path.remove(str(DOCS))

CASES = [pytest.param(peer, row, id=f"{peer.package}: {row.name}") for peer in PEERS for row in peer.rows]
# Packages of lightly that import torchvision, or packages that do; files below them do not need it.
UNPACKED = ("", ".loss", ".models", ".models.modules", ".utils", ".utils.benchmarking")


def clouds(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_transport() -> dict[str, object]:
    """Clouds of 12 and 9 points in the plane with weights, and all that is made of them."""
    x, y, a, b = clouds(12, 2), clouds(9, 2, seed=1), clouds(12, seed=2) + 0.5, clouds(9, seed=3) + 0.5
    C, C1, C2 = (torch.cdist(u, v).square() for u, v in ((x, y), (x, x), (y, y)))
    grid = torch.linspace(0, 1, 20, dtype=torch.float64)
    A = torch.stack([torch.softmax(-((grid - m) ** 2) / s, 0) for m, s in ((0.3, 0.02), (0.7, 0.03))], dim=1)
    return {
        **{"x": x, "y": y, "a": a / a.sum(), "b": b / b.sum(), "C": C, "C1": C1, "C2": C2, "Tx": clouds(12, 2, seed=4)},
        **{"s": clouds(12, seed=5), "t": clouds(9, seed=6), "X": clouds(2, 9, 2, seed=7), "Y": clouds(2, 9, 2, seed=8)},
        **{"init": clouds(4, 2, seed=9), "theta": torch.nn.functional.normalize(clouds(2, 7, seed=10) - 0.5, dim=0)},
        **{"grid": grid[:, None], "A": A, "w": torch.tensor([0.4, 0.6], dtype=torch.float64)},
        **{"reg": 0.1, "reg_m": 0.7, "eps": 0.1, "tau": 0.75, "blur": 0.3, "reach": 0.8, "alpha": 0.4, "mass": 0.7},
        "u": torch.full((9,), 1 / 9, dtype=torch.float64),
    }


def of_pairs() -> dict[str, object]:
    """As many points in both clouds, with labels."""
    return {
        **of_transport(),
        "x": clouds(12, 2),
        "y": clouds(12, 2, seed=1),
        "lx": torch.arange(12),
        "ly": torch.arange(12),
    }


def of_embeddings() -> dict[str, object]:
    """Embeddings of four classes, two views, a reference, proxies, and a test set."""

    def normal(*shape: int, seed: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    labels, lw = torch.arange(12) % 4, torch.arange(40) % 4
    z = normal(12, 6, seed=0) + torch.eye(6, dtype=torch.float64)[labels]
    w = normal(40, 6, seed=1) + 2 * torch.eye(6, dtype=torch.float64)[lw]
    return {
        **{"z": z, "labels": labels, "w": w, "lw": lw, "y": normal(9, 6, seed=2), "ly": torch.arange(9) % 4},
        **{
            "z1": normal(8, 6, seed=3),
            "z2": normal(8, 6, seed=4),
            "ids": torch.arange(8),
            "bank": normal(16, 6, seed=5),
        },
        **{"classes": torch.arange(8) % 3, "proxies": normal(4, 6, seed=6), "centres": normal(4, 3, 6, seed=7)},
        **{"scores": clouds(12, 5), "prototypes": normal(5, 6, seed=8), "s": normal(12, 1, seed=9)},
    }


INPUTS = {
    **{"ot": of_transport, "geomloss": of_transport, "ott": of_transport, "torchcfm": of_pairs},
    **{"pytorch_metric_learning": of_embeddings, "lightly": of_embeddings},
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """lightly's packages without what they import, where it is installed; nothing of another library's warnings."""
    spec = importlib.util.find_spec("lightly")
    for name in UNPACKED if spec else ():
        package = types.ModuleType(f"lightly{name}")
        package.__path__ = [str(Path(spec.origin).parent.joinpath(*name.split(".")))]
        package.__spec__ = None if name else spec
        monkeypatch.setitem(sys.modules, package.__name__, package)
    if spec and importlib.util.find_spec("torchvision") is None:
        ops = types.ModuleType("torchvision.ops")
        ops.StochasticDepth = torch.nn.Module
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, ops.__name__, ops)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for name in [name for name in sys.modules if name.startswith("lightly.")]:
        monkeypatch.delitem(sys.modules, name, raising=False)


def value(text: str, names: dict[str, object]) -> object:
    """The value of the last line of a text, which is an expression."""
    *lines, last = ast.parse(text).body
    assert isinstance(last, ast.Expr)
    exec(compile(ast.Module(lines, []), "<text>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<text>", "eval"), names)


def parts(result: object) -> list[object]:
    return [one for item in result for one in parts(item)] if isinstance(result, (tuple, list)) else [result]


def differentiated(imports: str, text: str, inputs: dict[str, object], names) -> tuple[list[object], list[object]]:
    """The parts of the value of a text, and their derivatives in the inputs that are named."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    torch.manual_seed(0)
    spaces = {**inputs, **leaves}
    exec(imports, spaces)
    found = parts(value(text, spaces))
    torch.manual_seed(1)
    # Weights, for the sum of a plan is constant.
    total = sum(((part * torch.rand_like(part)).sum() for part in found), 0.0) if names else None
    return found, list(torch.autograd.grad(total, list(leaves.values()))) if names else []


def array(part: object) -> np.ndarray:
    return np.asarray(part.detach() if isinstance(part, torch.Tensor) else part, dtype=np.float64)


def columns(part: object) -> set[tuple[float, ...]]:
    return set(map(tuple, array(part).T.tolist()))


def is_older(peer, since: str) -> bool:
    """Whether the installed version of a library is older than ``since``, if that is one."""
    numbers = re.findall(r"\d+", importlib.metadata.version(peer.name)) if since else []
    return bool(since) and [int(n) for n in numbers[:3]] < [int(n) for n in since.split(".")]


@pytest.mark.parametrize(("peer", "row"), CASES)
def test_both_calls_have_one_value(peer, row):
    pytest.importorskip("lightly.loss.koleo_loss" if peer.package == "lightly" else peer.package)
    if is_older(peer, row.since):
        pytest.skip(f"{peer.name} has it since {row.since}")
    inputs = INPUTS[peer.package]()
    given = inputs
    if peer.package == "ott":
        numbers = importlib.import_module("jax.numpy")
        given = {name: numbers.asarray(v.numpy()) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
    theirs, expected = differentiated(peer.theirs, row.theirs, given, row.gradients)
    ours, slopes = differentiated(peer.ours, row.ours, inputs, row.gradients)
    assert len(ours) == len(theirs)
    if row.compared == "members":
        assert set(map(tuple, array(theirs[0]).tolist())) <= set(map(tuple, array(ours[0]).tolist()))
        return
    for mine, other in zip([*ours, *slopes], [*theirs, *expected], strict=True):
        if row.compared == "sets":
            assert columns(mine) == columns(other) != set()
            continue
        # Some of theirs are batches of one.
        mine, other = array(mine).squeeze(), array(other).squeeze()
        assert mine.shape == other.shape
        off = np.abs(mine - other).max() / np.abs(other).max()
        assert off <= row.digits, (off, mine.ravel()[:4], other.ravel()[:4])


def test_a_gradient_that_is_left_out_is_off():
    """Of GeomLoss' unbalanced values: against differences of the values, theirs and ours."""
    losses = pytest.importorskip("geomloss")
    given = of_transport()
    x, y, a, b, blur, reach = (given[name] for name in ("x", "y", "a", "b", "blur", "reach"))
    loss = losses.SamplesLoss("sinkhorn", blur=blur, reach=reach, scaling=0.99, diameter=2.0, backend="tensorized")
    direction = torch.zeros_like(x)
    direction[0, 0] = 1e-3
    for value, right in (
        (lambda x: loss(a, x, b, y), False),
        (lambda x: sinkhorn_divergence(x, y, a, b, eps=2 * blur**2, rho=2 * reach**2, tol=1e-8), True),
    ):
        slope = (value(x + direction) - value(x - direction)) / 2
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf), leaf)
        assert bool(abs((gradient * direction).sum() / slope - 1) < 0.01) is right


@pytest.mark.parametrize("peer", PEERS, ids=[peer.package for peer in PEERS])
def test_what_is_not_here_is_there(peer):
    pytest.importorskip("lightly.loss.koleo_loss" if peer.package == "lightly" else peer.package)
    prefix = "pytorch_metric_learning." if peer.package == "pytorch_metric_learning" else ""
    for name in (name for absent in peer.absent if not is_older(peer, absent.since) for name in absent.names):
        home, _, last = f"{prefix}{name}".rpartition(".")
        # The files of some ask for packages which are not here.
        text = Path(importlib.util.find_spec(peer.package).origin).parent.joinpath(*home.split(".")[1:])
        sources = text.rglob("*.py") if text.is_dir() else [text.with_suffix(".py")]
        assert any(re.search(rf"^(class|def) {last}\b", source.read_text(), re.MULTILINE) for source in sources), name


def test_texts_fit_side_by_side():
    texts = [text for peer in PEERS for text in (peer.theirs, peer.ours)]
    texts += [text for peer in PEERS for row in peer.rows for text in (row.theirs, row.ours)]
    assert not [line for text in texts for line in text.split("\n") if len(line) > 52]


def test_all_texts_are_on_the_page(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS)
    page = importlib.import_module("extensions.coming_from").page()
    unindented = re.sub(r"^ +", "", page, flags=re.MULTILINE)
    assert "   :caption: otdml" in page
    for row in (row for peer in PEERS for row in peer.rows):
        for text in (row.theirs, row.ours):
            assert re.sub(r"^ +", "", text, flags=re.MULTILINE) in unindented, row.name
