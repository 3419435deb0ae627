"""The directive ``feature-table``: what this library and others can do, what ours is tested against, and the time.

A time is that of one case in a file that ``otdml speed TABLE --out docs/figures/speed/TABLE.json`` has written: the
fastest correct contender of each library. A row whose case has not been measured has none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docutils import nodes
from extensions.speed_tables import duration, list_table, memory, said
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from otdml.benchmarks.speed.harness import Measurement

# How the names of each library's contenders begin.
CONTENDERS = {
    "POT": ("pot",),
    "OTT": ("ott",),
    "torchcfm": ("torchcfm",),
    "pytorch-metric-learning": ("pytorch-metric-learning", "NTXentLoss", "SupConLoss"),
}


@dataclass(frozen=True)
class Row:
    """One feature.

    Attributes:
        name: What it is called.
        ours: Our call, in reStructuredText.
        theirs: The calls of others by the library's name; who is not named does not have it.
        tested: Test file, and what the test compares with.
        table: The speed table that has a case of it.
        case: Its parameters.
        contender: Which of ours the call is, where others of ours stand beside it; the fastest if empty.
    """

    name: str
    ours: str
    tested: str
    theirs: Mapping[str, str] = field(default_factory=dict)
    table: str = ""
    case: Mapping[str, Any] = field(default_factory=dict)
    contender: str = ""


def couplings(method: str) -> dict[str, Any]:
    return {"table": "couplings", "case": {"n": 4096, "d": 3072, "method": method}}


def feature(name: str, n: int, d: int) -> dict[str, Any]:
    return {"table": "features", "case": {"feature": name, "n": n, "d": d}}


OT, LOSS, DML = "otdml.ot", "otdml.losses", "otdml.dml"
PML = "pytorch-metric-learning"
# Where the calls of the page "Coming from" are run beside ours.
PAIRS = "``tests/test_coming_from.py``"

ROWS = (
    Row(
        "entropic transport, value and gradient",
        f":func:`~{OT}.sinkhorn`",
        "POT, OTT, GeomLoss: ``tests/ot/test_sinkhorn.py``",
        {"POT": "``ot.sinkhorn``, ``ot.solve_sample``", "OTT": "``Sinkhorn``"},
        "sinkhorn",
        {"n": 4096, "d": 16, "eps": 0.05, "gradient": True},
    ),
    Row(
        "the same with penalties in place of marginals",
        f":func:`~{OT}.sinkhorn` with ``rho``",
        "POT, OTT: ``tests/ot/test_sinkhorn.py``, ``tests/test_conventions.py``",
        {"POT": "``ot.sinkhorn_unbalanced``", "OTT": "``tau_a``, ``tau_b``"},
    ),
    Row(
        "debiased divergence",
        f":class:`~{LOSS}.SinkhornDivergence`",
        f"POT, OTT, GeomLoss: {PAIRS}; closed forms: ``tests/losses/test_sinkhorn.py``",
        {"POT": "``empirical_sinkhorn_divergence``", "OTT": "``sinkhorn_divergence``"},
        **feature("Sinkhorn divergence", 1000, 16),
    ),
    Row(
        "exact transport, value and gradient",
        f":func:`~{OT}.exact`",
        "assignment of SciPy: ``tests/ot/test_exact.py``",
        {"POT": "``ot.emd2``, whose solver ours is"},
        **feature("exact transport", 1000, 2),
    ),
    Row(
        "partial transport, exact and entropic",
        f":func:`~{OT}.exact`, :func:`~{OT}.sinkhorn` with ``mass``",
        "POT: ``tests/ot/test_partial.py``",
        {"POT": "``ot.partial``", "torchcfm": "``OTPlanSampler('partial')``"},
    ),
    Row(
        "plans of low rank, value and gradient",
        f":func:`~{OT}.low_rank_sinkhorn`",
        "OTT, exact transport, separate groups: ``tests/ot/_low_rank/test_solver.py``",
        {"POT": "``ot.lowrank_sinkhorn``", "OTT": "``LRSinkhorn``"},
        **feature("plans of low rank", 16384, 2),
        contender="otdml",
    ),
    Row(
        "a streamed entropic plan of the same cost, beside it",
        f":func:`~{OT}.sinkhorn` with ``backend='streamed'``",
        "the plan of low rank: ``tests/benchmarks/test_speed_features.py``",
        **feature("plans of low rank", 16384, 2),
        contender="otdml streamed sinkhorn",
    ),
    Row(
        "semi-discrete transport from samples",
        f":func:`~{OT}.semidiscrete`",
        "closed forms: ``tests/ot/test_semidiscrete.py``",
        {"POT": "``ot.stochastic``"},
    ),
    Row(
        "sliced transport",
        f":func:`~{OT}.sliced`",
        f"POT: ``tests/losses/test_sliced.py``; POT, OTT: {PAIRS}",
        {"POT": "``ot.sliced_wasserstein_distance``", "OTT": "``tools.sliced``"},
        **feature("sliced transport", 4096, 16),
    ),
    Row(
        "pairs for flow matching, exact",
        f":func:`~{OT}.couple`",
        f"assignment of SciPy: ``tests/ot/test_couplings.py``; torchcfm: {PAIRS}",
        {"torchcfm": "``OTPlanSampler('exact')``"},
        **couplings("exact"),
    ),
    Row(
        "the same from an entropic plan, without its matrix",
        f":func:`~{OT}.couple` with ``method='sinkhorn'``",
        "the plan's entries: ``tests/ot/test_couplings.py``",
        {"torchcfm": "``OTPlanSampler('sinkhorn')``, with it"},
        **couplings("sinkhorn"),
    ),
    Row(
        "the same with outliers left out",
        f":func:`~{OT}.couple` with ``method='unbalanced'``",
        "the plan's entries: ``tests/ot/test_couplings.py``",
        {"torchcfm": "``OTPlanSampler('unbalanced')``"},
        **couplings("unbalanced"),
    ),
    Row(
        "the same by cells of the whole data",
        f":func:`~{OT}.couple` with ``method='semidiscrete'``",
        "mass of cells: ``tests/ot/test_couplings.py``",
    ),
    Row(
        "Gromov-Wasserstein, and the gap of a map",
        f":func:`~{OT}.gromov`, :class:`~{LOSS}.GromovMongeGap`",
        f"POT: ``tests/test_conventions.py``; POT, OTT: {PAIRS}",
        {"POT": "``ot.gromov``, ``ot.batch``", "OTT": "``GromovWasserstein``"},
        "gromov",
        {"n": 256, "d_x": 10, "d_y": 10},
    ),
    Row(
        "the same with features, fused",
        f":func:`~{OT}.gromov` with ``features``, ``alpha``",
        "POT, permutations: ``tests/ot/_gromov/test_feature_cost.py``",
        {"POT": "``fused_gromov_wasserstein``", "OTT": "``QuadraticProblem(geom_xy=...)``"},
    ),
    Row(
        "the same unbalanced or partial",
        f":func:`~{OT}.gromov` with ``rho`` or ``mass``",
        "POT, permutations: ``tests/ot/_gromov/test_relaxed_solution.py``",
        {
            "POT": "``partial_gromov_wasserstein``, ``fused_unbalanced_gromov_wasserstein``",
            "OTT": "``tau_a``, ``tau_b``",
        },
    ),
    Row(
        "barycentre of free points",
        f":func:`~{OT}.sinkhorn_barycenter`, debiased or not",
        "POT, Gaussians, quantiles: ``tests/ot/_barycenters/test_solver.py``",
        {"POT": "``free_support_sinkhorn_barycenter``", "OTT": "``FreeWassersteinBarycenter``"},
        **feature("barycentre of free points", 400, 2),
    ),
    Row(
        "barycentre on a support",
        f":func:`~{OT}.sinkhorn_barycenter` with ``support``",
        "POT, Gaussians: ``tests/ot/_barycenters/test_solver.py``",
        {"POT": "``barycenter``, ``barycenter_debiased``", "OTT": "``FixedBarycenter``"},
        **feature("barycentre on a support", 1000, 2),
    ),
    Row(
        "ranks with gradients",
        f":func:`~{OT}.soft_rank`",
        f"sorting, ties: ``tests/ot/test_ranks.py``; OTT, cold: {PAIRS}",
        {"OTT": "``tools.soft_sort.ranks``"},
    ),
    Row(
        "the k largest with gradients",
        f":func:`~{OT}.soft_topk`, :class:`~{DML}.RecallAtK`",
        "sorting, hard recall: ``tests/ot/test_ranks.py``, ``tests/dml/pairs/test_recall.py``",
        {"OTT": "``tools.soft_sort.topk_mask``"},
    ),
    Row(
        "clouds of different sizes in one batch",
        f":func:`~{OT}.pad_clouds`",
        "cloud by cloud: ``tests/ot/test_padding.py``",
        {"OTT": "``segment_sinkhorn``"},
    ),
    Row(
        "distance to a Gaussian, against collapse",
        f":class:`~{LOSS}.MMDToGaussian`, :class:`~{LOSS}.SIGReg`",
        f"quadrature, means of samples: ``tests/losses/dispersion/test_gaussian.py``; lightly: {PAIRS}",
    ),
    Row(
        "InfoNCE",
        f":class:`~{LOSS}.InfoNCE`",
        f"{PML}: ``tests/losses/alignment/test_loss.py``; lightly: {PAIRS}",
        {PML: "``NTXentLoss``"},
        "alignment",
        {"loss": "infonce", "rows": 2048, "d": 128},
    ),
    Row(
        "proxy losses",
        f":class:`~{DML}.ProxyAnchor`, :class:`~{DML}.ProxyNCA`, :class:`~{DML}.SoftTriple`",
        f"{PML}: ``tests/dml/proxies/test_anchor.py`` and beside it",
        {PML: "``ProxyAnchorLoss``, ``ProxyNCALoss``, ``SoftTripleLoss``"},
    ),
    Row(
        "pairs of a batch",
        f":class:`~{DML}.MultiSimilarity`",
        f"{PML}: ``tests/dml/pairs/test_contract.py``",
        {PML: "``MultiSimilarityLoss``"},
        **feature("multi-similarity", 512, 128),
    ),
    Row(
        "triplets of a batch",
        f":class:`~{DML}.TripletMargin`",
        f"{PML}: ``tests/dml/pairs/test_contract.py``",
        {PML: "``TripletMarginLoss``"},
        **feature("triplets", 256, 128),
    ),
    Row(
        "memory of earlier batches",
        f":class:`~{DML}.CrossBatchMemory`, exact under several processes",
        f"{PML}: ``tests/dml/pairs/test_memory.py``",
        {PML: "``CrossBatchMemory``"},
        **feature("memory of batches", 1024, 128),
    ),
    Row(
        "batches larger than memory",
        f":class:`~{DML}.GradCache`",
        "the whole batch: ``tests/dml/test_grad_cache.py``",
    ),
    Row(
        "retrieval metrics",
        f":func:`~{DML}.retrieval_metrics`",
        f"{PML}: ``tests/dml/test_retrieval.py``",
        {PML: "``AccuracyCalculator``"},
        **feature("retrieval metrics", 4096, 128),
    ),
)


def table(folder: Path, rows: Sequence[Row] = ROWS) -> str:
    """The reStructuredText of the rows, with the times that the files of a folder hold."""
    measured = {name: contenders(folder / f"{name}.json") for name in {row.table for row in rows} - {""}}
    heads = ("feature", "otdml", *CONTENDERS, "tested against", "timed at")
    lines = [cells(row, [m for m in measured.get(row.table, []) if m.case == dict(row.case)]) for row in rows]
    return list_table(heads, lines, "16 16 13 11 11 13 14 10", "stacked labelled features")


def contenders(path: Path) -> list[Measurement]:
    """What a file of measurements holds, nothing where there is none."""
    if not path.is_file():
        return []
    return [Measurement(**row) for row in json.loads(path.read_text(encoding="utf-8"))["measurements"]]


def cells(row: Row, measured: Sequence[Measurement]) -> list[str]:
    ours = [m for m in measured if row.contender in ("", m.contender)]
    found = [row.name, told(row.ours, ours, ("otdml",))]
    found += [told(row.theirs.get(name, ""), measured, begin) for name, begin in CONTENDERS.items()]
    size = ", ".join(f"{key} = {said(value)}" for key, value in row.case.items() if not isinstance(value, str))
    return [*found, row.tested, size if measured else ""]


def told(call: str, measured: Sequence[Measurement], begin: tuple[str, ...]) -> str:
    """A call, and the time and the memory of the fastest contender that is right."""
    theirs = [m for m in measured if m.contender.startswith(begin)]
    right = [m for m in theirs if m.correct]
    if not call or not theirs:
        return call or "–"
    if not right:
        return f"{call}; not correct"
    best = min(right, key=lambda m: m.seconds)
    return "; ".join(text for text in (call, f"**{duration(best.seconds)}**", memory(best.peak_mib)) if text)


class FeatureTable(SphinxDirective):
    """The table, from the files in ``docs/figures/speed``."""

    def run(self) -> list[nodes.Node]:
        folder = Path(self.env.srcdir) / "figures" / "speed"
        for name in {row.table for row in ROWS} - {""}:
            self.env.note_dependency(str(folder / f"{name}.json"))
        return self.parse_text_to_nodes(table(folder))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("feature-table", FeatureTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
