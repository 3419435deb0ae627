"""Calls of other libraries beside ours: the page is drawn from them, and a test runs both of each."""

from coming_from.geomloss import GEOMLOSS
from coming_from.lightly import LIGHTLY
from coming_from.ott import OTT
from coming_from.pot import POT
from coming_from.pytorch_metric_learning import PYTORCH_METRIC_LEARNING
from coming_from.row import Absent, Peer, Row
from coming_from.torchcfm import TORCHCFM

__all__ = ["PEERS", "Absent", "Peer", "Row"]

PEERS = (POT, GEOMLOSS, OTT, TORCHCFM, PYTORCH_METRIC_LEARNING, LIGHTLY)
