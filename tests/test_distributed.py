import pytest
import torch
import torch.distributed as dist
from processes import in_two_processes
from torch import nn

from otdml.distributed import Gathered, from_first, gather, is_first, local_rows, total
from otdml.dml import ProxyAnchor, ProxyNCA, SoftTriple
from otdml.losses import (
    MMD,
    ContrastiveAlignment,
    Distortion,
    DomainTarget,
    EntropicOT,
    GromovMongeGap,
    KernelDispersion,
    KoLeo,
    LloydDispersion,
    MaxCosine,
    MaxMinAngle,
    MMDToUniform,
    MongeGap,
    SinkhornDivergence,
    SlicedDispersion,
    SlicedWasserstein,
)

# Uneven on purpose: the last batch of an epoch is.
COUNTS = (4, 3)
N = sum(COUNTS)
LABELS = torch.tensor([0, 0, 1, 2, 2, 1, 0])
IDS = torch.tensor([0, 1, 2, 0, 3, 4, 4])
TIGHT = {"tol": 1e-10}


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, N, 3, generator=generator, dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Linear(3, 4).double()


def slices():
    return [slice(0, COUNTS[0]), slice(COUNTS[0], N)]


def matrix(rows, columns, seed=0):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def joint_rows(rows):
    return torch.cat([torch.arange(N)[rows], torch.arange(N)[rows] + N])


def sparse(T):
    return (T * (T > 0.4)).to_sparse_coo()


def alignment_cases():
    """Name, settings, and the arguments of the process that owns some rows."""
    full = {"marginals": "balanced", "divergence": "kl+rince", **TIGHT}
    return [
        ("one-way", {}, lambda rows: {}),
        ("two-way", {"form": "two-way", "marginals": "balanced", **TIGHT}, lambda rows: {}),
        ("joint", {"form": "joint"}, lambda rows: {}),
        ("ids", {"form": "joint", **full}, lambda rows: {"ids": IDS[rows]}),
        ("labels", {"form": "joint", "marginals": 0.7, **TIGHT}, lambda rows: {"target": LABELS[rows]}),
        ("label pairs", {"form": "two-way", **full}, lambda rows: {"target": (LABELS[rows], LABELS[rows])}),
        ("domains", full, lambda rows: {"target": DomainTarget(LABELS[rows], 0.2, 0.1)}),
        ("matrix", {"form": "two-way", **full}, lambda rows: {"target": matrix(N, N)[rows]}),
        ("joint matrix", {"form": "joint", **full}, lambda rows: {"target": matrix(2 * N, 2 * N)[joint_rows(rows)]}),
        ("mask", {}, lambda rows: {"target": matrix(N, N)[rows] > 0.5}),
        ("sparse", {"form": "two-way", **full}, lambda rows: {"target": sparse(matrix(N, N)[rows])}),
        (
            "joint sparse",
            {"form": "joint", "divergence": "rince"},
            lambda rows: {"target": sparse(matrix(2 * N, 2 * N)[joint_rows(rows)])},
        ),
        ("attraction", {"marginals": "none"}, lambda rows: {}),
        ("learnt temperature", {"form": "two-way", "learnable": True}, lambda rows: {}),
        ("learnt temperature of a plan", {"learnable": True, **full}, lambda rows: {"target": LABELS[rows]}),
    ]


def generator():
    return torch.Generator().manual_seed(3)


def gathered_cases():
    """Name, the loss, and the number of point clouds that it takes."""
    return [
        ("MMD", lambda: MMD(), 2),
        ("SinkhornDivergence", lambda: SinkhornDivergence(eps=1.0, tol=1e-10), 2),
        ("EntropicOT", lambda: EntropicOT(eps=1.0, tol=1e-10), 2),
        ("SlicedWasserstein", lambda: SlicedWasserstein(n_projections=8, generator=generator()), 2),
        ("MongeGap", lambda: MongeGap(eps=1.0, tol=1e-10), 2),
        ("Distortion", lambda: Distortion(), 2),
        ("GromovMongeGap", lambda: GromovMongeGap(eps=1.0), 2),
        ("KernelDispersion", lambda: KernelDispersion(), 1),
        ("MMDToUniform", lambda: MMDToUniform(), 1),
        ("KoLeo", lambda: KoLeo(), 1),
        ("MaxMinAngle", lambda: MaxMinAngle(), 1),
        ("MaxCosine", lambda: MaxCosine(), 1),
        ("LloydDispersion", lambda: LloydDispersion(n_samples=64, generator=generator()), 1),
        ("SlicedDispersion", lambda: SlicedDispersion(n_projections=8, generator=generator()), 1),
    ]


def proxy_cases():
    """Losses whose mean over a batch is no mean of the means of its parts, and two that are."""
    return [(make.__name__, make) for make in (ProxyAnchor, ProxyNCA, SoftTriple)]


def run(loss, step):
    """The value of ``step`` and its gradient in network and loss, as DistributedDataParallel leaves it."""
    net = network()
    value = step(net)
    value.backward()
    gradients = [p.grad for p in (*net.parameters(), *loss.parameters())]
    if dist.is_initialized():
        for g in gradients:
            dist.all_reduce(g)
            g /= dist.get_world_size()
    return value.detach(), *gradients


def results(rows):
    z1, z2 = (z[rows] for z in inputs())
    found = {}
    for name, settings, arguments in alignment_cases():
        loss = ContrastiveAlignment(gather=True, **settings).double()
        found[name] = run(loss, lambda net, loss=loss, a=arguments: loss(net(z1), net(z2), **a(rows)))
    for name, make, views in gathered_cases():
        loss = Gathered(make())
        found[name] = run(loss, lambda net, loss=loss, views=views: loss(*(net(z) for z in (z1, z2)[:views])))
    for name, make in proxy_cases():
        torch.manual_seed(1)
        loss = Gathered(make(3, 4)).double()
        found[name] = run(loss, lambda net, loss=loss: loss(net(z1), LABELS[rows]))
    return found


def facts(rank):
    """What a process finds out about the collectives."""
    rows = torch.arange(COUNTS[rank]) + 10 * rank
    x = torch.full((COUNTS[rank], 2), float(rank), requires_grad=True)
    # The gradient is that of the sum over processes of their values, here rank + 1 times the sum of all rows.
    ((rank + 1) * gather(x).sum()).backward()
    y = torch.tensor(float(rank + 1), requires_grad=True)
    ((rank + 1) * total(y)).backward()
    return {
        "rows": gather(rows),
        "masks": gather(rows % 2 == 0),
        "local": local_rows(COUNTS[rank], torch.device("cpu")),
        "gather gradient": x.grad,
        "total": total(y.detach()),
        "total gradient": y.grad,
        "first": (is_first(), from_first(lambda: rank)),
        "error": raised_by_first(),
        "kinds": {dtype: gather(torch.full((COUNTS[rank], 1), rank).to(dtype)) for dtype in KINDS},
        "no rows": gather(torch.ones(3 * rank, 2, dtype=torch.half)),
        "refused": [
            refused(x) for x in (torch.ones(2, 2 + rank), torch.ones(2, dtype=DTYPES[rank]), torch.ones(rank * (1,)))
        ],
        "after": gather(rows),
        "second": second_derivatives(rank),
        "due": (gather(torch.tensor([1 + 2j]).conj()), gather(torch.tensor([1 + 2j]).conj().imag)),
        "no columns": gather(torch.ones(COUNTS[rank], 0)),
        "failures": [failure(error) for error in (Odd(1, 2), SystemExit(3), ValueError(lambda: None))],
    }


DTYPES = (torch.float32, torch.float64)
KINDS = (torch.bool, torch.int16, torch.int64, torch.float8_e4m3fn, torch.bfloat16, torch.complex64)


class Odd(Exception):
    """Cannot be made again from its arguments, as pickle does."""

    def __init__(self, one, two):
        super().__init__(f"{one} of {two}")


def refused(x):
    with pytest.raises(ValueError, match="the same but for n, and one dtype") as found:
        gather(x)
    return str(found.value)


def failure(error):
    def make():
        raise error

    with pytest.raises(BaseException) as found:
        from_first(make)
    return repr(found.value).split(" at ")[0]


def raised_by_first():
    try:
        from_first(lambda: {}["absent"])
    except KeyError as error:
        return str(error)


def second_derivatives(rank):
    """Of the gradients of cubes of all rows and of their sum, added up over the processes."""
    found = []
    for collective in (gather, total):
        x = torch.full((2,), float(rank + 1), requires_grad=True)
        (slope,) = torch.autograd.grad(collective(x).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.sum(), x, allow_unused=True)[0])
    return found


def work(rank, folder):
    torch.save({"facts": facts(rank), "losses": results(slices()[rank])}, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes found, each with its part of the batch."""
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return results(slice(0, N))


@pytest.mark.parametrize("name", [case[0] for case in (*alignment_cases(), *gathered_cases(), *proxy_cases())])
def test_two_processes_are_one(processes, alone, name):
    for found in processes:
        for actual, expected in zip(found["losses"][name], alone[name], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)
    assert alone[name][1].abs().max() > 1e-4


def test_gathered_loss_is_not_the_mean_of_the_parts(alone):
    parts = [KernelDispersion()(network()(inputs()[0][rows])) for rows in slices()]
    assert abs(alone["KernelDispersion"][0] - sum(parts) / 2) > 1e-3


def test_gather_is_in_order_of_rank(processes):
    expected = torch.tensor([0, 1, 2, 3, 10, 11, 12])
    for found in processes:
        assert torch.equal(found["facts"]["rows"], expected)
        assert torch.equal(found["facts"]["masks"], expected % 2 == 0)
    assert [found["facts"]["local"] for found in processes] == slices()


def test_gather_is_of_any_dtype_and_of_no_rows(processes):
    for found in processes:
        for dtype, rows in found["facts"]["kinds"].items():
            assert rows.dtype == dtype
            assert rows.to(torch.complex64).real.flatten().tolist() == [0.0] * 4 + [1.0] * 3
        assert torch.equal(found["facts"]["no rows"], torch.ones(3, 2, dtype=torch.half))


def test_rows_of_other_kinds_are_refused_by_all_processes_and_the_next_are_gathered(processes):
    assert "got torch.float32 of shape (2, 3) here" in processes[1]["facts"]["refused"][0]
    assert [len(found["facts"]["refused"]) for found in processes] == [3, 3]
    for found in processes:
        assert torch.equal(found["facts"]["after"], found["facts"]["rows"])


def test_whatever_stops_the_first_process_is_told_to_all(processes):
    first, second = (found["facts"]["failures"] for found in processes)
    assert first[:2] == ["Odd('1 of 2')", "SystemExit(3)"]
    assert second[:2] == ["RuntimeError('Odd: 1 of 2')", "SystemExit(3)"]
    assert second[2].startswith("RuntimeError('ValueError: <function facts")


def test_gradients_are_those_of_the_sum_of_processes(processes):
    for rank, found in enumerate(processes):
        torch.testing.assert_close(found["facts"]["gather gradient"], torch.full((COUNTS[rank], 2), 3.0))
        torch.testing.assert_close(found["facts"]["total"], torch.tensor(3.0))
        torch.testing.assert_close(found["facts"]["total gradient"], torch.tensor(3.0))


def test_second_derivatives_are_those_of_the_sum_of_processes(processes):
    """They were read as zero where they may be unused, as in ``torch.autograd.functional.hessian``."""
    for rank, found in enumerate(processes):
        gathered, summed = found["facts"]["second"]
        # Each of two processes has 3 x² of each row, and each of two slopes is 2 · 3 s² of the sum s = 3.
        torch.testing.assert_close(gathered, torch.full((2,), 2 * 6.0 * (rank + 1)))
        torch.testing.assert_close(summed, torch.full((2,), 2 * 2 * 6.0 * 3))


def test_views_and_rows_without_columns_are_gathered(processes):
    for found in processes:
        conjugate, negative = found["facts"]["due"]
        assert conjugate.tolist() == [1 - 2j] * 2
        assert negative.tolist() == [-2.0] * 2
        assert found["facts"]["no columns"].shape == (N, 0)


def test_first_process_speaks_for_all(processes):
    assert [found["facts"]["first"] for found in processes] == [(True, 0), (False, 0)]
    assert [found["facts"]["error"] for found in processes] == ["'absent'"] * 2


def test_rank_is_known_before_processes_are_connected(monkeypatch):
    assert is_first()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_first()
    monkeypatch.setenv("RANK", "0")
    assert is_first()
    monkeypatch.setenv("RANK", "")
    assert not is_first()


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ({"SLURM_PROCID": "1"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "0", "SLURM_PROCID": "1"}, True),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"JSM_NAMESPACE_RANK": "2"}, False),
    ],
)
def test_rank_is_that_among_all_nodes(monkeypatch, names, first):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert is_first() == first


def test_one_process_needs_no_group():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x
    assert total(x) is x
    assert local_rows(3, torch.device("cpu")) == slice(0, 3)


def test_error_no_module():
    with pytest.raises(TypeError, match=r"`loss` must be an nn.Module, got function"):
        Gathered(lambda z: z)
