"""Pair losses: samples of a batch are compared with each other, or with a memory of earlier ones.

==========================  ============================================  ==========================================
loss                        mean over                                     choose it when
==========================  ============================================  ==========================================
``MultiSimilarity``         samples (each weighs its pairs)               proxies are too many, or classes unknown
                                                                          beforehand
``TripletMargin``           triplets that violate the margin              with a miner
``RecallAtK``               anchors with a positive                       recall is what counts, and batches hold many
                                                                          negatives of each
==========================  ============================================  ==========================================

They are called as those of pytorch-metric-learning, ``loss(z, labels, tuples, reference, reference_labels)``, and the
miners return the tuples of indices that it takes: each may stand in for the other.
"""
