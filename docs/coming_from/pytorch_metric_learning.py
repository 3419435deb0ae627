"""pytorch-metric-learning."""

from coming_from.row import Absent, Peer, Row

ROWS = (
    Row(
        "Two views in one batch (NT-Xent, SimCLR)",
        """
        losses.SelfSupervisedLoss(
            losses.NTXentLoss(temperature=0.1))(z1, z2)
        """,
        'InfoNCE(eps=0.1, form="joint")(z1, z2)',
        """
        ``temperature`` is ``eps``, in units of the cosine: 0.07 there by default, 0.5 here. Both take the mean over
        anchors.
        """,
        ("z1", "z2"),
    ),
    Row(
        "One view against the other",
        """
        losses.NTXentLoss(temperature=0.1)(
            z1, ids, ref_emb=z2, ref_labels=ids.clone())
        """,
        "InfoNCE(eps=0.1)(z1, z2)",
        """
        Row i and row i are the pair; no labels are needed. Given one tensor twice, theirs takes ``z2`` for the same
        batch and leaves the pairs out: hence the copy.
        """,
        ("z1", "z2"),
    ),
    Row(
        "Both ways (CLIP)",
        """
        loss = losses.SelfSupervisedLoss(
            losses.NTXentLoss(temperature=0.1),
            symmetric=False)
        (loss(z1, z2) + loss(z2, z1)) / 2
        """,
        'InfoNCE(eps=0.1, form="two-way")(z1, z2)',
        "With ``learnable=True`` the temperature is a parameter.",
        ("z1", "z2"),
    ),
    Row(
        "SupCon",
        "losses.SupConLoss(temperature=0.1)(z, labels)",
        "SupCon(eps=0.1)(z, labels)",
        """
        The same temperature by default. In both, the logarithm is of each positive's share, an anchor without
        positives has no part in the mean, and a batch without any is an error here (zero with ``empty="zero"``). A
        batch of one class has a value here, of log(n - 1) or more (zero with ``empty="zero-one-sided"``). There both
        are zero.
        """,
        ("z",),
    ),
    Row(
        "SupCon of two views",
        """
        losses.SupConLoss(temperature=0.1)(
            torch.cat([z1, z2]), classes.repeat(2))
        """,
        "SupCon(eps=0.1)(z1, z2, classes)",
        "Views are not concatenated here.",
        ("z1", "z2"),
    ),
    Row(
        "Triplets",
        "losses.TripletMarginLoss(margin=0.05)(z, labels)",
        "TripletMargin(margin=0.05)(z, labels)",
        """
        The same margin, on distances of unit vectors, by default. The mean is over triplets that violate it (their
        ``AvgNonZeroReducer``), in both.
        """,
        ("z",),
    ),
    Row(
        "Triplets that a miner chose",
        """
        miner = miners.TripletMarginMiner(
            margin=0.2, type_of_triplets="semihard")
        losses.TripletMarginLoss(margin=0.2)(
            z, labels, miner(z, labels))
        """,
        """
        tuples = semi_hard_triplets(z, labels, margin=0.2)
        TripletMargin(margin=0.2)(z, labels, tuples)
        """,
        "Miners are functions here, and tuples go where theirs go; a loss takes tuples of either library.",
        ("z",),
    ),
    Row(
        "Multi-similarity",
        """
        losses.MultiSimilarityLoss(
            alpha=2, beta=50, base=0.5)(z, labels)
        """,
        """
        MultiSimilarity(
            alpha=2, beta=50, base=0.5)(z, labels)
        """,
        "No constant; these are the defaults of both.",
        ("z",),
    ),
    Row(
        "Multi-similarity with its miner",
        """
        pairs = miners.MultiSimilarityMiner(0.1)(z, labels)
        losses.MultiSimilarityLoss()(z, labels, pairs)
        """,
        "MultiSimilarity(epsilon=0.1)(z, labels)",
        "The miner is an option of the loss here.",
        ("z",),
    ),
    Row(
        "Against a reference",
        """
        losses.MultiSimilarityLoss()(
            z, labels, ref_emb=y, ref_labels=ly)
        """,
        "MultiSimilarity()(z, labels, None, y, ly)",
        "In the same places: embeddings, labels, tuples, reference, labels of the reference.",
        ("z", "y"),
    ),
    Row(
        "The hardest triplets",
        "torch.stack(miners.BatchHardMiner()(z, labels))",
        "torch.stack(hard_triplets(z, labels))",
        "Farthest positive and nearest negative of each anchor that has both. For other distances pass ``distances=``.",
        compared="sets",
    ),
    Row(
        "Semi-hard triplets",
        """
        torch.stack(miners.TripletMarginMiner(
            0.2, "semihard")(z, labels))
        """,
        """
        torch.stack(semi_hard_triplets(
            z, labels, margin=0.2))
        """,
        """
        The same margin by default. Distances of half-precision embeddings are single here; ``distances=`` takes those
        of half precision, or any others.
        """,
        compared="sets",
    ),
    Row(
        "Pairs of multi-similarity",
        """
        a1, p, a2, n = miners.MultiSimilarityMiner(0.1)(
            z, labels)
        torch.stack([a1, p]), torch.stack([a2, n])
        """,
        """
        a1, p, a2, n = multi_similarity_pairs(
            z, labels, epsilon=0.1)
        torch.stack([a1, p]), torch.stack([a2, n])
        """,
        "``epsilon`` is 0.1 in both by default.",
        compared="sets",
    ),
    Row(
        "Proxy-anchor",
        """
        loss = losses.ProxyAnchorLoss(
            4, 6, margin=0.1, alpha=32)
        loss.proxies.data = proxies
        loss(z, labels)
        """,
        """
        loss = ProxyAnchor(4, 6, delta=0.1, alpha=32)
        loss.proxies.data = proxies
        loss(z, labels)
        """,
        """
        ``margin`` is ``delta``. Proxies are a parameter of both, for an optimiser with a learning rate of their
        own; trained ones can be copied as here.
        """,
        ("z",),
    ),
    Row(
        "Proxy-NCA",
        """
        loss = losses.ProxyNCALoss(4, 6, softmax_scale=9)
        loss.proxies.data = proxies
        loss(z, labels)
        """,
        """
        loss = ProxyNCA(4, 6, temperature=1 / 9)
        loss.proxies.data = proxies
        loss(z, labels)
        """,
        """
        ``softmax_scale`` is one over ``temperature``, of squared distances in both: 1 there by default, 9 here, as
        ProxyNCA++ has it. Theirs leaves out a sample whose probability underflows.
        """,
        ("z",),
    ),
    Row(
        "Normalised softmax",
        """
        loss = losses.NormalizedSoftmaxLoss(
            4, 6, temperature=0.05)
        loss.W.data = proxies.T
        loss(z, labels)
        """,
        """
        loss = ProxyNCA(4, 6, temperature=0.1)
        loss.proxies.data = proxies
        loss(z, labels)
        """,
        """
        The same loss: squared distances of unit vectors are twice one minus the cosine, so our temperature is twice
        theirs.
        """,
        ("z",),
    ),
    Row(
        "SoftTriple",
        """
        loss = losses.SoftTripleLoss(
            4, 6, centers_per_class=3,
            la=20, gamma=0.1, margin=0.01)
        loss.fc.data = centres.flatten(0, 1).T
        loss(z, labels)
        """,
        """
        loss = SoftTriple(
            4, 6, centres=3,
            lam=20, gamma=0.1, delta=0.01, tau=0)
        loss.proxies.data = centres
        loss(z, labels)
        """,
        """
        ``la`` is ``lam``, ``margin`` is ``delta``; 10 centres in both by default. Theirs has no term that draws
        centres of a class together, which is ``tau`` (0.2) in the paper and here.
        """,
        ("z",),
    ),
    Row(
        "Memory of earlier batches",
        """
        loss = losses.CrossBatchMemory(
            losses.MultiSimilarityLoss(), 6, memory_size=32)
        loss(y, ly), loss(z, labels)
        """,
        """
        loss = CrossBatchMemory(
            MultiSimilarity(), 6, size=32)
        loss(y, ly), loss(z, labels)
        """,
        """
        ``memory_size`` is ``size``, 1024 in both by default; a miner is an argument of both. With ``gather=True``
        ours is one memory of all processes, and it is part of ``state_dict``, place and filling included.
        """,
        ("z",),
    ),
    Row(
        "Retrieval metrics",
        """
        include = ("precision_at_1", "r_precision",
            "mean_average_precision_at_r",
            "mean_reciprocal_rank")
        found = accuracy_calculator.AccuracyCalculator(
            include, k=len(w) - 1).get_accuracy(
                normalize(w), lw)
        [found[name] for name in include]
        """,
        """
        found = retrieval_metrics(w, lw, extra=["mrr"])
        [found["recall@1"], found["r_precision"],
            found["map@r"], found["mrr"]]
        """,
        """
        ``precision_at_1`` is ``recall@1``. Theirs searches by Euclidean distance, so normalise; ours by cosine
        unless ``similarity`` says otherwise. Their ``k`` must reach the largest class, by ``"max_bin_count"`` or a
        number; ours searches as far as is needed.
        """,
    ),
    Row(
        "Batches of m images for each class",
        """
        batch = list(MPerClassSampler(
            lw, m=4, batch_size=12))[:12]
        lw[batch].unique(return_counts=True)[1]
        """,
        """
        batch = next(iter(ClassBalancedBatchSampler(
            lw, 3, 4)))
        lw[batch].unique(return_counts=True)[1]
        """,
        """
        ``batch_size`` is classes times samples here, and the sampler yields batches: pass it as ``batch_sampler``.
        Classes are drawn at random in both.
        """,
    ),
)

ABSENT = (
    Absent(
        (
            "losses.ContrastiveLoss",
            "losses.CircleLoss",
            "losses.ArcFaceLoss",
            "losses.CosFaceLoss",
            "losses.NPairsLoss",
        ),
        """
        Not here. :class:`~otdml.dml.ProxyDML`, :class:`~otdml.dml.CrossBatchMemory` and
        :class:`~otdml.dml.GradCache` take their modules as ``loss``, and their trainers take ours.
        """,
    ),
    Absent(
        ("losses.FastAPLoss", "losses.SmoothAPLoss"),
        ":class:`~otdml.dml.RecallAtK`, the recall itself, smoothed.",
        since="2.8.1",
    ),
    Absent(
        ("losses.VICRegLoss",),
        """
        :class:`~otdml.losses.BYOL` for the invariance, :class:`~otdml.losses.SIGReg` or
        :class:`~otdml.losses.MMDToGaussian` against collapse.
        """,
    ),
    Absent(
        ("losses.NTXentLoss",),
        """
        With classes of more than two, theirs compares each positive with the negatives alone. SupCon, which has the
        other positives in the denominator, is what we have.
        """,
    ),
    Absent(
        ("distances.LpDistance", "distances.SNRDistance", "reducers.MeanReducer", "reducers.ThresholdReducer"),
        "Distances and reducers are fixed: those which the method's paper has.",
    ),
    Absent(
        ("regularizers.ZeroMeanRegularizer", "regularizers.RegularFaceRegularizer"),
        "A :class:`~otdml.dml.Dispersion` of embeddings or proxies.",
    ),
    Absent(
        ("utils.distributed.DistributedLossWrapper",),
        "``gather=True`` of the alignment losses and the memory; ``ProxyDML`` gathers by itself.",
    ),
    Absent(
        ("miners.DistanceWeightedMiner", "miners.AngularMiner", "miners.HDCMiner"),
        "Our losses take their tuples.",
    ),
)

PYTORCH_METRIC_LEARNING = Peer(
    "pytorch-metric-learning",
    "pytorch_metric_learning",
    """
    ``z`` (n, d) are embeddings with ``labels``, ``z1`` and ``z2`` two views of samples with ``classes`` and
    ``ids``, ``y`` and ``ly`` a reference, ``w`` and ``lw`` a test set. Both normalise embeddings inside. Modules
    are called with embeddings and labels, and their trainers take ours.
    """,
    """
    import torch
    from torch.nn.functional import normalize
    from pytorch_metric_learning import losses, miners
    from pytorch_metric_learning.samplers import (
        MPerClassSampler)
    from pytorch_metric_learning.utils import (
        accuracy_calculator)
    """,
    """
    import torch
    from otdml.dml import (
        ClassBalancedBatchSampler, CrossBatchMemory,
        MultiSimilarity, ProxyAnchor, ProxyNCA,
        SoftTriple, TripletMargin, hard_triplets,
        multi_similarity_pairs, retrieval_metrics,
        semi_hard_triplets)
    from otdml.losses import InfoNCE, SupCon
    """,
    ROWS,
    ABSENT,
)
