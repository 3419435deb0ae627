"""OTT-JAX."""

from coming_from.row import Absent, Peer, Row

ROWS = (
    Row(
        "Costs between points",
        """
        (pointcloud.PointCloud(x, y).cost_matrix,
            pointcloud.PointCloud(
                x, y, costs.Euclidean()).cost_matrix,
            pointcloud.PointCloud(
                x, y, costs.Cosine()).cost_matrix)
        """,
        """
        (cost_matrix(x, y),
            cost_matrix(x, y, "euclidean"),
            cost_matrix(x, y, "cosine"))
        """,
        "The same costs and the same default, squared distances without a factor ½.",
        digits=1e-05,
    ),
    Row(
        "Entropic transport, its value",
        """
        geom = pointcloud.PointCloud(x, y, epsilon=eps)
        linear.solve(geom, a, b).reg_ot_cost
        """,
        "sinkhorn(x, y, a, b, eps=eps).value",
        """
        ``epsilon`` is ``eps``, and so is the entropy, against the product of the weights. ``threshold`` is ``tol``:
        both are 1e-3, the sum of the marginal's errors.
        """,
        digits=1e-3,
    ),
    Row(
        "Its gradient",
        """
        def value(x):
            geom = pointcloud.PointCloud(x, y, epsilon=eps)
            return linear.solve(geom, a, b).reg_ot_cost

        jax.grad(value)(x)
        """,
        """
        x.requires_grad_()
        value = sinkhorn(x, y, a, b, eps=eps).value
        torch.autograd.grad(value, x)[0]
        """,
        """
        Both hold the plan fixed (the envelope theorem); second derivatives come from the implicit function theorem,
        here without an option.
        """,
        digits=5e-3,
    ),
    Row(
        "The plan",
        """
        geom = pointcloud.PointCloud(x, y, epsilon=eps)
        linear.solve(geom, a, b).matrix
        """,
        "sinkhorn(x, y, a, b, eps=eps).plan",
        "``apply`` is ``apply`` or ``apply_transpose``, by the axis.",
        digits=5e-3,
    ),
    Row(
        "The default temperature",
        """
        geom = pointcloud.PointCloud(x, y)
        linear.solve(geom, a, b).reg_ot_cost
        """,
        """
        C = cost_matrix(x, y)
        eps = 0.05 * C.std(correction=0)
        sinkhorn(x, y, a, b, eps=eps).value
        """,
        """
        Theirs is 0.05 times the standard deviation of the costs; ours (``eps=None``) is 0.05 times their mean
        excess over the least one.
        """,
        digits=1e-3,
    ),
    Row(
        "Scaled costs",
        """
        geom = pointcloud.PointCloud(
            x, y, epsilon=eps, scale_cost="mean")
        linear.solve(geom, a, b).reg_ot_cost
        """,
        """
        C = cost_matrix(x, y)
        sinkhorn_matrix(
            C / C.mean(), a, b, eps=eps).value
        """,
        """
        Scale the points or the matrix yourself; their ``relative_epsilon="mean"`` is ``eps`` times the mean.
        """,
        digits=1e-3,
    ),
    Row(
        "Dual potentials",
        """
        geom = pointcloud.PointCloud(x, y, epsilon=eps)
        out = linear.solve(geom, a, b, threshold=1e-5)
        f, g = out.f, out.g
        f - f.mean(), g - g.mean()
        """,
        """
        r = sinkhorn(x, y, a, b, eps=eps, tol=1e-5)
        f = r.f + eps * a.log()
        g = r.g + eps * b.log()
        f - f.mean(), g - g.mean()
        """,
        r"""
        Their plan is :math:`e^{(f + g - C) / \varepsilon}`, ours :math:`(a \otimes b)` times that, so theirs hold
        :math:`\varepsilon \log a`. Both are determined up to a constant that is added to f and taken from g.
        """,
        digits=2e-3,
    ),
    Row(
        "Unbalanced transport",
        """
        geom = pointcloud.PointCloud(x, y, epsilon=eps)
        linear.solve(
            geom, a, b, tau_a=tau, tau_b=tau,
            threshold=1e-5).matrix
        """,
        """
        C = cost_matrix(x, y)
        C = C + eps * (a[:, None] * b).log()
        sinkhorn_matrix(
            C, a, b, eps=eps,
            rho=eps * tau / (1 - tau)).plan
        """,
        """
        ``rho`` is ``epsilon * tau / (1 - tau)``. Their entropy is not relative to the weights, which matters where
        marginals are free: hence the logarithm in the cost, which only makes the plans equal.
        """,
        digits=5e-3,
    ),
    Row(
        "Sinkhorn divergence",
        "sinkdiv(x, y, a=a, b=b, epsilon=eps)[0]",
        "sinkhorn_divergence(x, y, a, b, eps=eps)",
        "``epsilon`` is ``eps``. Theirs returns the value and an output, ours the value.",
        digits=2e-3,
    ),
    Row(
        "Exact transport of equally many points",
        "unreg.hungarian(pointcloud.PointCloud(x, Tx))[0]",
        "exact(x, Tx).value",
        "No constant. Ours takes weights and different numbers; theirs stays on the device.",
        digits=0.0001,
    ),
    Row(
        "Sliced transport",
        """
        sliced_wasserstein(
            x, y, a, b, proj_fn=lambda x: x @ theta)[0]
        """,
        "sliced(x, y, a, b, projections=theta.T)",
        "Both are the mean of squared distances, not its root.",
        digits=0.0001,
    ),
    Row(
        "Gromov-Wasserstein",
        """
        xx = pointcloud.PointCloud(x, x)
        yy = pointcloud.PointCloud(y, y)
        gromov_wasserstein.GromovWasserstein(
            sinkhorn.Sinkhorn(threshold=1e-5),
            epsilon=eps, max_iterations=60,
            threshold=1e-6)(
                quadratic_problem.QuadraticProblem(
                    xx, yy, a=a, b=b)).primal_cost / 2
        """,
        """
        gromov(x, y, a, b, eps=eps, tol=1e-5,
            init=a[:, None] * b).value
        """,
        "``epsilon`` is ``eps``; we have the factor ½ of :cite:t:`uscidda:24`, so our value is half of theirs.",
        digits=1e-3,
    ),
    Row(
        "Monge gap",
        """
        geom = pointcloud.PointCloud(x, Tx, epsilon=eps)
        moved = jnp.mean(jnp.sum((x - Tx) ** 2, axis=-1))
        moved - linear.solve(geom).ent_reg_cost
        """,
        "monge_gap(x, Tx, eps=eps) + 2 * eps * log(len(x))",
        """
        This is what their ``monge_gap_from_samples`` returns, whose module needs flax. Its entropy is not relative
        to the weights, which adds a constant without gradient.
        """,
        digits=1e-3,
    ),
    Row(
        "Soft ranks",
        "soft_sort.ranks(s, epsilon=1e-4)",
        "soft_rank(s, eps=1e-3) - 1",
        """
        Theirs count from zero, ours from one. Temperatures are not comparable: theirs is that of scores which have
        been whitened and squashed into [0, 1], ours is in units of the scores, about the gap below which two share
        their ranks. At low temperatures both are the ranks of sorting.
        """,
        digits=3e-2,
    ),
)

ABSENT = (
    Absent(
        (
            "ott.solvers.linear.sinkhorn_lr.LRSinkhorn",
            "ott.solvers.quadratic.gromov_wasserstein_lr.LRGromovWasserstein",
        ),
        """
        :func:`~otdml.ot.low_rank_sinkhorn`, with ``rank``. The problem is not convex and the starts differ, so plans do
        too: compare their costs. There is no Gromov-Wasserstein of low rank.
        """,
    ),
    Absent(
        ("ott.neural.methods.neuraldual.W2NeuralDual", "ott.neural.networks.icnn.ICNN"),
        """
        No neural dual solvers. A map of your own is trained with :class:`~otdml.losses.MongeGap` and a fitting
        loss.
        """,
    ),
    Absent(
        ("ott.tools.segment_sinkhorn.segment_sinkhorn",),
        ":func:`~otdml.ot.pad_clouds`, and any solver or loss on the batch that it makes.",
    ),
    Absent(
        ("ott.tools.progot.ProgOT", "ott.tools.gaussian_mixture.gaussian_mixture.GaussianMixture"),
        "Stay with OTT.",
    ),
    Absent(
        ("ott.geometry.costs.TICost", "ott.geometry.costs.SoftDTW"),
        "Any function of two sets of points is a ``cost``; there are no closed forms of their maps.",
    ),
    Absent(
        ("ott.geometry.grid.Grid",),
        "No separable kernels on grids: pixels are points here.",
    ),
)

OTT = Peer(
    "OTT-JAX",
    "ott",
    """
    ``x`` (n, d) and ``y`` (m, d) are points with weights ``a`` and ``b``, ``Tx`` images of ``x``, ``s`` scores,
    ``theta`` directions as columns: arrays there, tensors here. There is no ``jit`` to call here, and what they
    ``vmap``, here are leading dimensions. JAX computes in single precision unless told otherwise, and so ran the
    test.
    """,
    """
    import jax
    from jax import numpy as jnp
    from ott.geometry import costs, pointcloud
    from ott.problems.quadratic import (
        quadratic_problem)
    from ott.solvers import linear
    from ott.solvers.linear import sinkhorn
    from ott.solvers.quadratic import gromov_wasserstein
    from ott.tools import soft_sort, unreg
    from ott.tools.sinkhorn_divergence import sinkdiv
    from ott.tools.sliced import sliced_wasserstein
    """,
    """
    from math import log
    import torch
    from otdml.costs import cost_matrix
    from otdml.losses import (
        monge_gap, sinkhorn_divergence)
    from otdml.ot import (
        exact, gromov, sinkhorn, sinkhorn_matrix,
        sliced, soft_rank)
    """,
    ROWS,
    ABSENT,
)
