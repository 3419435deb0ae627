"""Contrastive learning on small photographs: views, encoders, and evaluation of a frozen encoder."""

from otdml.contrast.corruptions import corrupted
from otdml.contrast.encoder import Encoder, Pairs, training
from otdml.contrast.judges import linear_probe, neighbours
from otdml.contrast.pictures import class_pictures
from otdml.contrast.views import Views, spoiled

__all__ = [
    "Encoder",
    "Pairs",
    "Views",
    "class_pictures",
    "corrupted",
    "linear_probe",
    "neighbours",
    "spoiled",
    "training",
]
