"""Experiments and speed tables: configuration and reports, no algorithms.

Names are imported on first use, so that a list of methods costs neither Lightning nor scikit-learn.
"""

from otdml._exports import exports

# The module that holds each public name.
_HOMES = {
    "METHODS": "methods",
    "Comparison": "results",
    "Figure": "results",
    "Finished": "results",
    "Method": "methods",
    "Preset": "presets",
    "Published": "presets",
    "Run": "runs",
    "RunFolder": "runs",
    "RunState": "experiment",
    "Weights": "presets",
    "beside": "results",
    "collect": "results",
    "comparisons": "results",
    "execute": "experiment",
    "export": "results",
    "figure": "results",
    "half_width": "results",
    "preset": "presets",
    "preset_files": "presets",
    "run_grid": "experiment",
    "summary": "results",
    "write_report": "report",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = exports(__name__, _HOMES)
