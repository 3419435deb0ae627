"""Questions about the losses of this library, each answered by one fixed protocol: arms × seeds with a control.

Names are imported on first use, so that a list of studies trains nothing and draws nothing.
"""

from importlib import import_module
from typing import Any

from otdml._arguments import check_known
from otdml.studies.protocol import Arm, Reading, Score, Study

__all__ = ["Arm", "Reading", "Score", "Study", "named", "names", "topics"]

# Of each topic its studies, those that answer it before those that choose settings for them, and of each study the
# module that declares it in its `STUDIES`.
_TOPICS = {
    "The Gromov-Monge gap and disentanglement": {
        "sprites-gap": "gap",
        "sprites-gap-tc": "gap",
        "scenes-gap": "gap",
        "sprites-free": "disentanglement",
        "scenes-free": "disentanglement",
        "sprites-stability": "stability",
        "sprites-base": "disentanglement",
        "sprites-tc": "disentanglement",
        "sprites-weights": "disentanglement",
        "sprites-settings": "disentanglement",
        "scenes-base": "disentanglement",
        "scenes-weights": "disentanglement",
        "dsprites-base": "disentanglement",
    },
    "Contrastive alignment": {
        "views-clean": "views",
        "views-wrong-20": "views",
        "views-wrong-50": "views",
        "views-wrong-80": "views",
        "views-crops": "views",
        "views-noise": "views",
        "domains": "domains",
    },
    "Dispersion": {
        "prototypes-4": "prototypes",
        "prototypes-8": "prototypes",
        "prototypes-16": "prototypes",
        "prototypes-32": "prototypes",
        "prototypes-rows": "prototypes",
        "birds-4": "birds",
        "birds-8": "birds",
        "birds-16": "birds",
        "birds-32": "birds",
        "embeddings": "embeddings",
        "prototypes-weights": "prototypes",
        "birds-weights": "birds",
        "embeddings-weights": "embeddings",
    },
}
_HOMES = {name: home for homes in _TOPICS.values() for name, home in homes.items()}


def topics() -> dict[str, list[str]]:
    """Names of the studies on each topic."""
    return {topic: list(homes) for topic, homes in _TOPICS.items()}


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
