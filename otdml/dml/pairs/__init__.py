"""Pair losses: samples of a batch are compared with each other, or with a memory of earlier ones.

==========================  ============================================  ==========================================
loss                        mean over                                     choose it when
==========================  ============================================  ==========================================
:class:`MultiSimilarity`    samples (each weighs its pairs)               proxies are too many, or classes unknown
                                                                          beforehand
:class:`TripletMargin`      triplets that violate the margin              with a miner
:class:`RecallAtK`          anchors with a positive                       recall is what counts, and batches hold many
                                                                          negatives of each
==========================  ============================================  ==========================================

They are called as those of pytorch-metric-learning, ``loss(z, labels, tuples, reference, reference_labels)``, and the
miners return the tuples of indices that it takes: each may stand in for the other.
"""

from otdml.dml.pairs.memory import CrossBatchMemory
from otdml.dml.pairs.miners import hard_triplets, multi_similarity_pairs, semi_hard_triplets
from otdml.dml.pairs.multi_similarity import MultiSimilarity, multi_similarity
from otdml.dml.pairs.recall import RecallAtK, recall_at_k
from otdml.dml.pairs.triplet_margin import TripletMargin, triplet_margin

__all__ = [
    "CrossBatchMemory",
    "MultiSimilarity",
    "RecallAtK",
    "TripletMargin",
    "hard_triplets",
    "multi_similarity",
    "multi_similarity_pairs",
    "recall_at_k",
    "semi_hard_triplets",
    "triplet_margin",
]
