"""Questions about the losses of this library, each answered by one fixed protocol: arms × seeds with a control.

Names are imported on first use, so that a list of studies trains nothing and draws nothing.
"""

from importlib import import_module
from typing import Any

from otdml._arguments import check_known
from otdml.studies.protocol import Arm, Reading, Score, Study

__all__ = ["Arm", "Reading", "Score", "Study", "named", "names"]

# The module that declares each study, in its `STUDIES`.
_HOMES = {
    "sprites-base": "disentanglement",
    "sprites-weights": "disentanglement",
    "sprites-settings": "disentanglement",
    "sprites-gap": "gap",
    "sprites-gap-tc": "gap",
    "scenes-gap": "gap",
    "sprites-tc": "disentanglement",
    "sprites-free": "disentanglement",
    "sprites-stability": "stability",
    "scenes-base": "disentanglement",
    "scenes-weights": "disentanglement",
    "dsprites-base": "disentanglement",
    "views-clean": "views",
    "views-wrong-20": "views",
    "views-wrong-50": "views",
    "views-wrong-80": "views",
    "views-crops": "views",
    "views-noise": "views",
    "prototypes-weights": "prototypes",
    "prototypes-4": "prototypes",
    "prototypes-8": "prototypes",
    "prototypes-16": "prototypes",
    "prototypes-32": "prototypes",
    "prototypes-rows": "prototypes",
    "birds-weights": "birds",
    "birds-4": "birds",
    "birds-8": "birds",
    "birds-16": "birds",
    "birds-32": "birds",
    "domains": "domains",
    "embeddings-weights": "embeddings",
    "embeddings": "embeddings",
}


def names() -> list[str]:
    """Names of all studies."""
    return list(_HOMES)


def named(name: str) -> Study:
    """The study of that name.

    Raises:
        ValueError: There is none; the message has those that there are.
    """
    module: Any = import_module(f"{__name__}.{_HOMES[check_known('study', name, _HOMES)]}")
    return module.STUDIES[name]
