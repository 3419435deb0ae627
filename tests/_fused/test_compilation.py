"""Every kernel and configuration compiles to machine code, spills no register and fits the shared memory."""

import pytest
import torch
from kernel_marks import COMPILED

pytestmark = COMPILED


def chunks(number=16):
    return [pytest.param(i, number, id=f"{i + 1} of {number}") for i in range(number)]


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(("part", "parts"), chunks())
def test_nothing_spills(architecture, part, parts):
    from otdml._fused._triton_report import LARGEST_SHARED, configurations, usage

    for one in sorted(set(configurations()), key=str)[part::parts]:
        found = usage(one, architecture)
        assert found.spilled == 0, f"{one}: {found}"
        assert 0 < found.registers <= 255, f"{one}: {found}"
        assert found.shared <= LARGEST_SHARED, f"{one}: {found}"


def test_spills_would_be_seen(monkeypatch):
    """A tile that is too large for its threads holds what it cannot keep on the stack."""
    from otdml._fused import _triton_report
    from otdml._fused._triton_launch import Tile

    monkeypatch.setattr(_triton_report, "tile", lambda *args, **options: Tile(128, 128, 32, 0, True))
    assert _triton_report.usage(_triton_report.Configuration("softmin", d=32), 90).spilled > 0


def test_every_rule_is_among_the_configurations():
    """The shapes of tiles for any number of features are those of the table."""
    from otdml._fused._triton_launch import FORMS, tile
    from otdml._fused._triton_report import configurations
    from otdml._fused.device import PRECISIONS

    listed = {
        (c.form, c.precision, c.kernel == "product", tile(c.form, c.d, c.precision, product=c.kernel == "product"))
        for c in configurations()
        if c.kernel != "combine"
    }
    for form in FORMS:
        for precision in PRECISIONS if form == "product" else ("ieee",):
            for d in range(1, 300):
                for product in (False, True):
                    shape = tile(form, d, precision, product=product)
                    known = {one[3] for one in listed if one[:3] == (form, precision, product)}
                    known |= {one[3] for one in listed if one[0] == form and one[1] == "ieee" and one[2] == product}
                    assert shape in known, (form, precision, d, product)


class Pretence:
    """A driver that says it has a GPU: enough for a launch to be compiled from the arguments that it is given."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def launches(monkeypatch):
    """What the launches of kernels compile to, in their order."""
    from triton.runtime import driver

    from otdml._fused import _triton_kernels as kernels

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **options: found.append(self.kernel.warmup(*args, grid=grid, **options))

    found = []
    for name in ("softmin_kernel", "product_kernel", "combine_kernel"):
        monkeypatch.setattr(kernels, name, Recorded(getattr(kernels, name)))
    monkeypatch.setattr(driver, "_active", Pretence())
    return found


@pytest.mark.parametrize(
    ("form", "d", "precision"), [("product", 20, "tf32"), ("product", 20, "bf16"), ("angle", 3, "ieee")]
)
def test_launches_are_compiled_from_the_arguments_of_the_engine(launches, monkeypatch, form, d, precision):
    from otdml._fused import _triton_launch as launch
    from otdml._fused.barred import Barred

    monkeypatch.setattr(launch, "LEAST_SPAN", 32)
    x, y, f, g = torch.randn(1, 32, d), torch.randn(1, 96, d), torch.zeros(1, 32), torch.zeros(1, 96)
    barred = Barred(own=(torch.arange(32), torch.arange(96)))
    cost = launch.FusedCost(form, x, y, None if form == "product" else torch.ones(1), barred, precision)
    cost.softmin(g)
    cost.product(f, g, torch.ones(1, 96, 17), weights=(f[..., None], g[..., None]), slope=form != "product")
    assert [one.name for one in launches] == ["softmin_kernel", "combine_kernel", "product_kernel"]
    assert all("cubin" in one.asm for one in launches)
