"""lightly."""

from coming_from.row import Absent, Peer, Row

ROWS = (
    Row(
        "NT-Xent (SimCLR)",
        "NTXentLoss(temperature=0.5)(z1, z2)",
        'InfoNCE(eps=0.5, form="joint")(z1, z2)',
        "``temperature`` is ``eps``, 0.5 in both by default; ``gather_distributed`` is ``gather``.",
        ("z1", "z2"),
    ),
    Row(
        "NT-Xent with a memory bank (MoCo)",
        """
        loss = NTXentLoss(0.1, memory_bank_size=(16, 6))
        loss.memory_bank.bank = normalize(bank)
        loss.memory_bank.bank_ptr = torch.zeros(1).long()
        loss(z1, z2)
        """,
        """
        n, k = len(z1), len(bank)
        ids = torch.zeros(n).long()
        rows = torch.arange(n)
        extra = torch.arange(n, n + k)
        contrastive_alignment(
            z1, torch.cat([z2, bank]),
            (rows, torch.cat([rows, extra])),
            ids=(ids, torch.cat([ids, extra])), eps=0.1)
        """,
        """
        Their negatives are the bank alone, and ``ids`` leave the others of the batch out here; without ``ids`` they
        are negatives too. The bank is a tensor of yours: :class:`~otdml.dml.CrossBatchMemory` is for losses with
        labels.
        """,
        ("z1", "z2"),
    ),
    Row(
        "Negative cosine similarity (SimSiam, BYOL)",
        "negative.NegativeCosineSimilarity()(z1, z2)",
        "BYOL()(z1, z2) / 2 - 1",
        r"""
        Ours is the squared distance of unit vectors, :math:`2 - 2 \cos`, which is zero where views agree. It has no
        stop-gradient either: pass ``z2.detach()``.
        """,
        ("z1", "z2"),
    ),
    Row(
        "Alignment and uniformity",
        "HypersphereLoss(t=2.0, lam=1.0, alpha=2.0)(z1, z2)",
        """
        def uniformity(z):
            return kernel_dispersion(z, gamma=2.0, log=True)

        BYOL()(z1, z2) + (
            uniformity(z1) + uniformity(z2)) / 2
        """,
        "``t`` is ``gamma``: 1 there by default, 2 here, as the paper has it.",
        ("z1", "z2"),
    ),
    Row(
        "KoLeo",
        "KoLeoLoss()(z)",
        "koleo(z)",
        "No constant. Theirs adds 1e-8 to each coordinate and to the distance.",
        ("z",),
    ),
    Row(
        "SIGReg (LeJEPA)",
        "SIGReg(knots=17, t_max=5.0)(s)",
        "len(s) * sigreg(s, n_knots=17, largest=5.0)",
        """
        Theirs is n times ours, as in the paper. ``t_max`` is ``largest`` (3 there, 5 here by default),
        ``num_vectors`` (1024) is ``n_projections`` (256). Directions are drawn in both; ``s`` has one feature, so
        there is one direction.
        """,
        ("s",),
        digits=1e-05,
    ),
    Row(
        "Codes of SwaV",
        "sinkhorn(scores, iterations=100, epsilon=0.5)",
        """
        len(scores) * sinkhorn_matrix(
            -scores, eps=0.5, tol=1e-6).plan
        """,
        """
        Similarities are negative costs. Theirs has rows of sum one, from three iterations unless you say otherwise,
        whatever their error; ours go on to ``tol``, in the log domain.
        """,
    ),
    Row(
        "Loss of SwaV",
        """
        loss = SwaVLoss(
            0.1, sinkhorn_iterations=100,
            sinkhorn_epsilon=0.5)
        p = normalize(prototypes).T
        loss([normalize(z1) @ p, normalize(z2) @ p], [])
        """,
        """
        p = normalize(prototypes)

        def codes(z):
            scores = (normalize(z) @ p.T).detach()
            return sinkhorn_matrix(
                -scores, eps=0.5, tol=1e-6).plan

        (contrastive_alignment(z1, p, codes(z2), eps=0.1)
            + contrastive_alignment(
                z2, p, codes(z1), eps=0.1)) / 2
        """,
        "A plan is a target of :func:`~otdml.losses.contrastive_alignment`.",
        ("z1", "z2"),
        digits=1e-05,
    ),
    Row(
        "Nearest neighbours' vote",
        """
        found = knn_predict(
            normalize(w), normalize(z).T, labels % 2, 2,
            knn_k=5, knn_t=1e4)[:, 0]
        (found == lw % 2).double().mean()
        """,
        "neighbours(z, labels % 2, w, lw % 2, k=5)",
        r"""
        Ours is the plain vote. Theirs weighs it by :math:`e^{\cos / t}`, with 0.1 by default, and k = 200.
        """,
    ),
)

ABSENT = (
    Absent(
        ("lightly.loss.dcl_loss.DCLLoss", "lightly.loss.dcl_loss.DCLWLoss"),
        """
        Here the positive is part of the denominator always. Take InfoNCE with a larger batch
        (:class:`~otdml.dml.GradCache`), whose difference from it vanishes.
        """,
    ),
    Absent(
        ("lightly.loss.barlow_twins_loss.BarlowTwinsLoss", "lightly.loss.vicreg_loss.VICRegLoss"),
        """
        No losses of covariances. Against collapse: :class:`~otdml.losses.SIGReg`,
        :class:`~otdml.losses.MMDToGaussian` off the sphere, :class:`~otdml.losses.KoLeo` or
        :class:`~otdml.losses.KernelDispersion` on it.
        """,
    ),
    Absent(
        ("lightly.loss.dino_loss.DINOLoss", "lightly.loss.ibot_loss.IBOTPatchLoss", "lightly.loss.msn_loss.MSNLoss"),
        "No self-distillation: these are methods with their networks, which lightly has.",
    ),
    Absent(
        ("lightly.models.modules.memory_bank.MemoryBankModule",),
        "A tensor of yours, as above; with labels :class:`~otdml.dml.CrossBatchMemory`.",
    ),
)

LIGHTLY = Peer(
    "lightly",
    "lightly",
    """
    ``z1`` and ``z2`` (n, d) are two views of each sample, ``bank`` earlier embeddings, ``scores`` similarities to
    prototypes. lightly exports its losses from ``lightly.loss`` as well. It asks for torchvision, which its losses
    do not use: the test runs the files of the losses without it.
    """,
    """
    import torch
    from torch.nn.functional import normalize
    from lightly.loss.hypersphere_loss import (
        HypersphereLoss)
    from lightly.loss.koleo_loss import KoLeoLoss
    from lightly.loss.lejepa_loss import SIGReg
    from lightly.loss import (
        negative_cosine_similarity as negative)
    from lightly.loss.ntx_ent_loss import NTXentLoss
    from lightly.loss.swav_loss import (
        SwaVLoss, sinkhorn)
    from lightly.utils.benchmarking.knn import (
        knn_predict)
    """,
    """
    import torch
    from torch.nn.functional import normalize
    from otdml.contrast import neighbours
    from otdml.losses import (
        BYOL, InfoNCE, contrastive_alignment,
        kernel_dispersion, koleo, sigreg)
    from otdml.ot import sinkhorn_matrix
    """,
    ROWS,
    ABSENT,
)
