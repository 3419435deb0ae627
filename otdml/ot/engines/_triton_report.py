"""What the Triton kernels take of a GPU, compiled ahead of time: registers, shared memory, spills. No GPU is needed.

``python -m otdml.ot.engines._triton_report`` prints the table of all configurations and architectures.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from otdml.ot.engines import _triton_kernels as kernels
from otdml.ot.engines._triton_launch import FORMS, OPTIONS, PRECISIONS, tile

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
    def meta(self) -> dict[str, Any]:
        if self.kernel == "combine":
            return {"BLOCK": 256, "num_warps": 4, **OPTIONS}
        shape = tile(self.form, self.d, self.precision, product=self.kernel == "product")
        meta = shape.meta(self.d, self.precision, crowded=bool(dict(self.flags).get("WEIGHTED")))
        return {"FORM": FORMS[self.form], "BARRED": 0, **meta, **dict(self.flags)}


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
        # No columns but the last, few, and as many as a program takes.
        for e in (0, 16, 256):
            yield _product(form, d, precision, e, SLOPE=form != "product")
    for form, d, precision in _hard():
        yield Configuration("softmin", form, d, precision, (("BARRED", 2),), aligned=False)
        slope = form != "product"
        yield _product(form, d, precision, 256, aligned=False, BARRED=2, SLOPE=slope)
        yield _product(form, d, precision, 256, aligned=False, BARRED=2, SLOPE=slope, WEIGHTED=True)
        yield _product(form, d, precision, 0, aligned=False, EXCESS=True)


def _problems() -> Iterator[tuple[str, int, str]]:
    """Forms, features and precisions that differ in their tiles."""
    for form in FORMS:
        yield from ((form, d, "ieee") for d in (1, 2, 3, 4, 64))
    for precision in PRECISIONS:
        yield from (("product", d, precision) for d in (16, 32, 64, 256) if (d, precision) != (64, "ieee"))


def _hard() -> Iterator[tuple[str, int, str]]:
    """Those of which all options at once, and sizes that are no multiples of 16, are looked at."""
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


def usage(configuration: Configuration, architecture: int) -> Usage:
    """What a kernel takes on an architecture, e.g. 90, as the assembler reports it."""
    function = getattr(kernels, f"{configuration.kernel}_kernel")
    meta = configuration.meta
    options = {name: meta.pop(name) for name in ("num_warps", *OPTIONS)}
    names = function.arg_names
    signature = {name: "constexpr" if name in meta else _type(name, configuration) for name in names}
    always = _PADDED + (_FEATURES if meta.get("WIDE") else ())
    divisible = [name.isupper() or name in always or (configuration.aligned and name in _SIZES) for name in names]
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if divisible[i] and name not in meta}
    source = ASTSource(function, signature, meta, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    found = _resources(compiled.asm["cubin"])
    return Usage(found["REG"], found["STACK"] + found["LOCAL"], compiled.metadata.shared)


def _type(name: str, configuration: Configuration) -> str:
    if not name.isupper():
        return "i32"
    half = configuration.precision == "bf16" and name in ("X", "Y", "V")
    return "*i32" if name.startswith("BARRED") else "*bf16" if half else "*fp32"


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
