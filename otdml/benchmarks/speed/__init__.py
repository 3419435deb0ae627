"""Speed tables: this library beside its peers, in one process, with the ratio and the peak memory.

A table is a module with a function ``measurements(quick: bool, wanted: Wanted) -> Iterator[Measurement]``, registered
here by name; ``wanted(case)`` says whether a case is to be measured.
"""

__all__ = ["TABLES"]

TABLES: dict[str, str] = {
    "alignment": "otdml.benchmarks.speed.alignment",
    "couplings": "otdml.benchmarks.speed.couplings",
    "cuda": "otdml.benchmarks.speed.cuda",
    "dispersion": "otdml.benchmarks.speed.dispersion",
    "features": "otdml.benchmarks.speed.features",
    "gromov": "otdml.benchmarks.speed.gromov",
    "images": "otdml.benchmarks.speed.images",
    "mmd": "otdml.benchmarks.speed.mmd",
    "retrieval": "otdml.benchmarks.speed.retrieval",
    "sinkhorn": "otdml.benchmarks.speed.sinkhorn",
    "training": "otdml.benchmarks.speed.training",
}
