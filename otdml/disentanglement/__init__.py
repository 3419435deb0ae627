"""Pictures with known factors, autoencoders of them, and scores of how well their codes separate the factors."""

from otdml.disentanglement._scenes import SCENE_FACTORS, SCENES, scenes
from otdml.disentanglement._sprites import FACTORS, SPRITES, load_dsprites, sprites
from otdml.disentanglement.autoencoder import Autoencoder, Objective, Schedule, fit, total_correlation, training
from otdml.disentanglement.evaluation import Scores, Trees, regularizer, scores
from otdml.disentanglement.factors import FactorSet, coarse
from otdml.disentanglement.metrics import DCI, dci, dci_scores, importances, mutual_information_gap

__all__ = [
    "DCI",
    "FACTORS",
    "SCENES",
    "SCENE_FACTORS",
    "SPRITES",
    "Autoencoder",
    "FactorSet",
    "Objective",
    "Schedule",
    "Scores",
    "Trees",
    "coarse",
    "dci",
    "dci_scores",
    "fit",
    "importances",
    "load_dsprites",
    "mutual_information_gap",
    "regularizer",
    "scenes",
    "scores",
    "sprites",
    "total_correlation",
    "training",
]
