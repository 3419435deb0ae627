"""Registers, shared memory and spills of the Triton kernels, compiled ahead of time, without a GPU.

``python -m otdml._fused._triton_report`` prints the table of all configurations and architectures.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from otdml._fused import _triton_kernels as kernels
from otdml._fused._triton_arguments import Clouds, Factors, Output, Parts
from otdml._fused._triton_launch import FORMS, OPTIONS, Tile, tile
from otdml._fused.device import PRECISIONS

__all__ = ["ARCHITECTURES", "LARGEST_SHARED", "Configuration", "Usage", "configurations", "report", "usage"]

ARCHITECTURES = (80, 90, 100)
# Shared memory in bytes that every architecture gives to a program: that of consumer cards.
LARGEST_SHARED = 99 * 1024


@dataclass(frozen=True)
class Configuration:
    """A kernel with all its compile-time arguments, which the rule of tiles has chosen.

    Attributes:
        kernel: ``"softmin"``, ``"product"`` or ``"combine"``.
        form: Of the cost.
        d: Features.
        precision: Of matrix products.
        flags: Other compile-time arguments.
        aligned: Whether sizes are multiples of 16, so that loads are wide.
    """

    kernel: str
    form: str = "product"
    d: int = 1
    precision: str = "ieee"
    flags: tuple[tuple[str, Any], ...] = ()
    aligned: bool = True

    def __str__(self) -> str:
        flags = "".join(f" {name.lower()}={value}" for name, value in self.flags if value)
        return f"{self.kernel} {self.form} d={self.d} {self.precision}{flags}{'' if self.aligned else ' unaligned'}"

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time arguments."""
        if self.kernel == "combine":
            return {"BLOCK": 256}
        return {"SHAPE": self._tile.shape(self.form, 0, self.d, self.precision)._replace(**dict(self.flags))}

    @property
    def options(self) -> dict[str, Any]:
        """Options of a launch."""
        if self.kernel == "combine":
            return {"num_warps": 4, **OPTIONS}
        return self._tile.options(crowded=bool(dict(self.flags).get("WEIGHTED")))

    @property
    def _tile(self) -> Tile:
        return tile(self.form, self.d, self.precision, product=self.kernel == "product")


@dataclass(frozen=True)
class Usage:
    """Registers of a thread, bytes that it spills or holds on its stack, and bytes of shared memory of a program."""

    registers: int
    spilled: int
    shared: int


def configurations() -> Iterator[Configuration]:
    """Every kernel on every kind of tile that the rule can choose, with each of its options."""
    yield Configuration("combine")
    for form, d, precision in _problems():
        yield Configuration("softmin", form, d, precision)
        # No columns but the last, few, and as many as a program takes; the plan, and with the slope of a distance.
        for e, slope in product((0, 16, 256), (False, True) if form != "product" else (False,)):
            yield _product(form, d, precision, e, SLOPE=slope)
    for form, d, precision in _hard():
        yield Configuration("softmin", form, d, precision, (("BARRED", 2),), aligned=False)
        slope = form != "product"
        yield _product(form, d, precision, 256, aligned=False, BARRED=2, SLOPE=slope)
        yield _product(form, d, precision, 256, aligned=False, BARRED=2, SLOPE=slope, WEIGHTED=True)
        yield _product(form, d, precision, 0, aligned=False, EXCESS=True)
    for precision, barred in product(PRECISIONS, (1, 2)):
        # The log-sum-exp of contrastive losses, and its pull-back.
        yield Configuration("softmin", "product", 128, precision, (("BARRED", barred),))
        yield _product("product", 128, precision, 128, BARRED=barred)


def _problems() -> Iterator[tuple[str, int, str]]:
    """Forms, features and precisions that differ in their tiles."""
    for form in FORMS:
        yield from ((form, d, "ieee") for d in (1, 2, 3, 4, 64))
    for precision in PRECISIONS:
        yield from (("product", d, precision) for d in (16, 32, 64, 256) if (d, precision) != (64, "ieee"))


def _hard() -> Iterator[tuple[str, int, str]]:
    """Tiles that are compiled with all options at once, and for sizes that are not multiples of 16."""
    for form in FORMS:
        yield from ((form, d, "ieee") for d in (2, 4, 65))
    for precision in PRECISIONS:
        yield from (("product", d, precision) for d in (10, 20, 65))


def _product(form: str, d: int, precision: str, e: int, *, aligned: bool = True, **flags: Any) -> Configuration:
    options = {"SLOPE": False, "EXCESS": False, "WEIGHTED": False, **flags}
    shape = tile(form, d, precision, product=True)
    options["BLOCK_E"] = shape.columns(e, precision, crowded=options["WEIGHTED"])
    return Configuration("product", form, d, precision, tuple(options.items()), aligned)


# Arguments that are multiples of 16 where the sizes of a problem are.
_SIZES = ("n", "m", "stride_h", "stride_hf", "stride_hg")
# Those that always are: features and columns are padded.
_PADDED = ("e", "r", "span")
_FEATURES = ("d", "stride_x", "stride_y")
# Groups of arguments, by the name that a kernel gives them.
_GROUPS: dict[str, type[Any]] = {"clouds": Clouds, "split": Parts, "factors": Factors, "out": Output}
# Fields that are integers; the others point to the memory of a tensor.
_INTEGERS = {*_SIZES, *_PADDED, *_FEATURES, "batch", "parts", "count"}


def usage(configuration: Configuration, architecture: int) -> Usage:
    """The resources of a kernel on an architecture, e.g. 90, as the assembler reports them."""
    function = getattr(kernels, f"{configuration.kernel}_kernel")
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, name in enumerate(function.arg_names):
        fields = _GROUPS[name]._fields if name in _GROUPS else (name,)
        types = [_type(field, configuration) for field in fields]
        signature[name] = _GROUPS[name](*types) if name in _GROUPS else types[0]
        for k, field in enumerate(fields):
            if _divisible(field, configuration):
                attributes[(i, k) if name in _GROUPS else (i,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, configuration.constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=configuration.options)
    found = _resources(compiled.asm["cubin"])
    return Usage(found["REG"], found["STACK"] + found["LOCAL"], compiled.metadata.shared)


def _divisible(name: str, configuration: Configuration) -> bool:
    """Whether an argument is a multiple of 16."""
    if name in configuration.constants:
        return False
    wide = configuration.kernel != "combine" and configuration.constants["SHAPE"].WIDE
    always = _PADDED + (_FEATURES if wide else ())
    return name not in _INTEGERS or name in always or (configuration.aligned and name in _SIZES)


def _type(name: str, configuration: Configuration) -> str:
    if name in configuration.constants:
        return "constexpr"
    if name in _INTEGERS:
        return "i32"
    half = configuration.precision == "bf16" and name in ("x", "y", "v")
    return "*i32" if name.startswith("barred") else "*bf16" if half else "*fp32"


def _resources(binary: bytes) -> dict[str, int]:
    program = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        call = [str(program), "--dump-resource-usage", file.name]
        text = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def report(architectures: tuple[int, ...] = ARCHITECTURES) -> Iterator[str]:
    """Lines of a table: registers, bytes spilled and KiB of shared memory for each architecture."""
    yield f"{'kernel':<72}" + "".join(f"{f'sm_{a}':>18}" for a in architectures)
    for one in configurations():
        cells = []
        for architecture in architectures:
            found = usage(one, architecture)
            cells.append(f"{found.registers:>7}{found.spilled:>5}{found.shared / 1024:>6.1f}")
        yield f"{one!s:<72}" + "".join(cells)


if __name__ == "__main__":
    for line in report(tuple(map(int, sys.argv[1:])) or ARCHITECTURES):
        print(line, flush=True)
