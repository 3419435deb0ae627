"""POT."""

from coming_from.row import Absent, Peer, Row

ROWS = (
    Row(
        "Costs between points",
        'ot.dist(x, y), ot.dist(x, y, "euclidean")',
        'cost_matrix(x, y), cost_matrix(x, y, "euclidean")',
        "Both are squared distances unless you say otherwise, without a factor ½.",
        ("x", "y"),
    ),
    Row(
        "Exact transport, its cost",
        "ot.emd2(a, b, ot.dist(x, y))",
        "exact(x, y, a, b).value",
        """
        No constant. Without ``a`` and ``b`` ours are uniform, as theirs are with ``[]`` or ``ot.unif``. Ours is a
        batch of problems where points have leading dimensions.
        """,
        ("x", "y"),
    ),
    Row(
        "Exact transport, the plan of a matrix",
        "ot.emd(a, b, C)",
        "exact_matrix(C, a, b).plan",
        "No constant; the solver is theirs. Arguments come with the costs first, as in ``ot.solve``.",
    ),
    Row(
        "The same on the line",
        "ot.wasserstein_1d(s, t, a, b, p=2)",
        "wasserstein_1d(s, t, a, b, p=2)",
        """
        Both are the p-th power of the distance, but their ``p`` is 1 if you leave it out, ours 2, and their batches
        are the last dimension, ours the leading ones.
        """,
        ("s", "t"),
    ),
    Row(
        "Sliced transport",
        """
        ot.sliced_wasserstein_distance(
            x, y, a, b, projections=theta)
        """,
        """
        sliced(
            x, y, a, b, projections=theta.T).sqrt()
        """,
        """
        Theirs is the root of ours, and so has no gradient where the clouds are equal. Directions are columns there
        and rows here; 50 are drawn there, 64 here.
        """,
        ("x", "y"),
    ),
    Row(
        "Entropic transport, the plan",
        "ot.sinkhorn(a, b, C, reg)",
        "sinkhorn_matrix(C, a, b, eps=reg).plan",
        r"""
        ``reg`` is ``eps``. Theirs iterates on :math:`e^{-C / \mathrm{reg}}`, which is zero where costs are hundreds
        of times ``reg``, unless you pass ``method="sinkhorn_log"``; ours is always in the log domain.
        """,
        ("C",),
        digits=2e-3,
    ),
    Row(
        "The same, when to stop",
        """
        ot.sinkhorn(
            a, b, C, reg, method="sinkhorn_log",
            stopThr=1e-9, numItermax=10_000)
        """,
        """
        sinkhorn_matrix(
            C, a, b, eps=reg,
            tol=1e-8, max_iter=10_000).plan
        """,
        """
        ``stopThr`` (1e-9) is the Euclidean norm of the marginal's error, ``tol`` (1e-3) the sum of its absolute
        values, relative to the mass. Ours gives the gradient of the optimum, so it needs fewer digits.
        """,
    ),
    Row(
        "Entropic transport, its cost",
        "ot.sinkhorn2(a, b, C, reg)",
        """
        P = sinkhorn_matrix(C, a, b, eps=reg).plan
        (P * C).sum()
        """,
        """
        Theirs leaves out the entropy, so it is not what the iteration minimises, and its gradient needs that of the
        plan. As a loss take ``sinkhorn(...).value``, the next row.
        """,
        ("C",),
        digits=2e-3,
    ),
    Row(
        "Entropic transport from points, its value",
        "ot.solve_sample(x, y, a, b, reg=reg).value",
        "sinkhorn(x, y, a, b, eps=reg).value",
        """
        The same entropy, against the product of the weights (their ``reg_type="KL"``, the default here; with
        ``"entropy"`` their value is less by ``reg`` times the entropies of ``a`` and ``b``).
        """,
        ("x", "y"),
        digits=1e-3,
    ),
    Row(
        "Its value with the other entropy",
        'ot.solve(C, a, b, reg, reg_type="entropy").value',
        """
        h = -(a * a.log()).sum() - (b * b.log()).sum()
        sinkhorn_matrix(C, a, b, eps=reg).value - reg * h
        """,
        "The same plan; values differ by the entropies of the weights.",
        ("C",),
        digits=1e-3,
    ),
    Row(
        "Many problems at once",
        "ot.batch.solve_sample_batch(X, Y, reg).value_linear",
        """
        P = sinkhorn(X, Y, eps=reg).plan
        (P * cost_matrix(X, Y)).sum((-2, -1))
        """,
        """
        Everything here takes leading dimensions, with values of the same shape, and gradients are those of the
        value. Theirs of ``value_linear`` hold the plan fixed.
        """,
        digits=2e-3,
        since="0.9.6",
    ),
    Row(
        "Unbalanced transport, the plan",
        "ot.sinkhorn_unbalanced(a, b, C, reg, reg_m)",
        "sinkhorn_matrix(C, a, b, eps=reg, rho=reg_m).plan",
        "``reg_m`` is ``rho``, one number or one for each side; None keeps that marginal, as infinity does there.",
        ("C",),
        digits=2e-3,
    ),
    Row(
        "Unbalanced transport, its value",
        """
        r = ot.solve(C, a, b, reg, unbalanced=reg_m)
        m = 1 - r.plan.sum()
        r.value + (reg + 2 * reg_m) * m
        """,
        """
        sinkhorn_matrix(
            C, a, b, eps=reg, rho=reg_m).value
        """,
        """
        Costs, entropy and penalties. Theirs leaves the difference of the masses out of each divergence, and what is
        left is zero at every optimum: no loss.
        """,
        digits=1e-3,
    ),
    Row(
        "Sinkhorn divergence",
        """
        ot.bregman.empirical_sinkhorn_divergence(
            x, y, reg, a, b)
        """,
        """
        def cost(x, y, a, b):
            P = sinkhorn(x, y, a, b, eps=reg).plan
            return (P * cost_matrix(x, y)).sum()

        cost(x, y, a, b) - (cost(x, x, a, a)
            + cost(y, y, b, b)) / 2
        """,
        """
        Theirs is of the costs without the entropies. That difference can be negative, and is cut off at zero there;
        take :func:`~otdml.losses.sinkhorn_divergence`, which is positive unless the clouds are equal.
        """,
        digits=5e-3,
    ),
    Row(
        "Partial transport",
        "ot.partial.partial_wasserstein2(a, b, C, m=mass)",
        "exact_matrix(C, a, b, mass=mass).value",
        "``m`` is ``mass``, in the units of the weights.",
    ),
    Row(
        "Gromov-Wasserstein with entropy",
        """
        ot.gromov.entropic_gromov_wasserstein2(
            C1, C2, a, b, epsilon=2 * eps)
        """,
        """
        2 * gromov_matrix(
            C1, C2, a, b, eps=eps,
            init=a[:, None] * b).value
        """,
        """
        We have the factor ½ of :cite:t:`uscidda:24`: half their value, at half their ``epsilon``. Both find a local
        optimum that depends on the start, theirs from the product of the weights; ``init="best"``, the default
        here, tries several.
        """,
        digits=1e-3,
    ),
    Row(
        "Fused Gromov-Wasserstein with entropy",
        """
        ot.gromov.entropic_fused_gromov_wasserstein(
            C, C1, C2, a, b,
            epsilon=(1 + alpha) * eps, alpha=alpha)
        """,
        """
        gromov_matrix(
            C1, C2, a, b, features=C,
            alpha=2 * alpha / (1 + alpha), eps=eps,
            init=a[:, None] * b).plan
        """,
        """
        Their quadratic part has no ½, so the share of it is another one here; our value is theirs over ``1 +
        alpha``.
        """,
        digits=5e-3,
    ),
    Row(
        "Barycentre of free points",
        """
        ot.bregman.free_support_sinkhorn_barycenter(
            list(X), [u, u], init, reg,
            numItermax=500, stopThr=1e-14)
        """,
        """
        sinkhorn_barycenter(
            X, init=init, eps=reg, debias=False,
            tol=1e-6).points
        """,
        """
        ``reg`` is ``eps``. Theirs is not debiased: its points are drawn together, more so the larger ``reg``. Ours
        is debiased unless you say otherwise.
        """,
        digits=1e-3,
    ),
    Row(
        "Barycentre on a support, debiased",
        """
        ot.bregman.barycenter_debiased(
            A, ot.dist(grid, grid), reg, weights=w)
        """,
        """
        sinkhorn_barycenter(
            grid.expand(2, -1, -1), w, A.T,
            support=grid, eps=reg).weights
        """,
        """
        ``reg`` is ``eps``. Histograms are the columns of one matrix there, one row of weights for each cloud here.
        Without debiasing it is their ``ot.bregman.barycenter`` and our ``debias=False``.
        """,
        digits=2e-3,
    ),
)

ABSENT = (
    Absent(
        ("ot.partial.entropic_partial_wasserstein",),
        """
        :func:`~otdml.ot.sinkhorn` with ``mass``, whose entropy is that of the balanced problem with one more point
        on each side, which theirs leaves out. The plans differ, and both tend to the exact one as the temperature
        falls.
        """,
    ),
    Absent(
        ("ot.da.SinkhornTransport", "ot.da.EMDTransport", "ot.mapping.joint_OT_mapping_linear"),
        """
        Nothing of domain adaptation. :meth:`otdml.ot.OTResult.barycentric_map` is the map of the points you have.
        """,
    ),
    Absent(
        ("ot.smooth.smooth_ot_dual",),
        "No quadratic or group regularisation: entropy or none.",
    ),
    Absent(
        ("ot.lowrank_sinkhorn", "ot.factored_optimal_transport"),
        """
        :func:`~otdml.ot.low_rank_sinkhorn`, with ``rank``. The problem is not convex and the starts differ, so plans do
        too: compare their costs.
        """,
    ),
    Absent(
        ("ot.gromov.gromov_barycenters", "ot.gromov.fgw_barycenters"),
        "No barycentres of graphs. Stay with POT.",
    ),
    Absent(
        ("ot.gaussian.bures_wasserstein_distance", "ot.gmm.gmm_ot_loss"),
        "No closed forms for Gaussians and their mixtures; they are a few lines with torch.",
    ),
    Absent(
        ("ot.max_sliced_wasserstein_distance", "ot.sliced_wasserstein_sphere"),
        """
        :func:`~otdml.ot.sliced` with directions of your own; to the uniform measure of the sphere,
        :class:`~otdml.losses.SlicedWassersteinToUniform`.
        """,
    ),
    Absent(
        ("ot.unbalanced.mm_unbalanced",),
        ":func:`~otdml.ot.sinkhorn` with ``rho``: there is no unbalanced transport without entropy.",
    ),
)

POT = Peer(
    "POT",
    "ot",
    """
    POT takes tensors, and both texts got the same ones: ``x`` (n, d) and ``y`` (m, d) are points, ``a`` and
    ``b`` their weights, ``C = ot.dist(x, y)``, and ``C1``, ``C2`` the same within each cloud; ``X`` and ``Y`` are
    batches of clouds, ``s`` and ``t`` points on the line, ``theta`` directions as columns, ``A`` histograms on a
    ``grid``, ``u`` uniform weights.
    """,
    "import ot",
    """
    from otdml.costs import cost_matrix
    from otdml.ot import (
        exact, exact_matrix, gromov_matrix, sinkhorn,
        sinkhorn_barycenter, sinkhorn_matrix, sliced,
        wasserstein_1d)
    """,
    ROWS,
    ABSENT,
)
