"""torchcfm, where its plans are ours."""

from coming_from.row import Absent, Peer, Row

ROWS = (
    Row(
        "Pairs of an exact plan",
        """
        x0, x1 = OTPlanSampler("exact").sample_plan(x, y)
        torch.cat([x0, x1], dim=1)
        """,
        """
        i, j = couple(x, y)
        torch.cat([x[i], y[j]], dim=1)
        """,
        """
        Ours are indices on the points' device, each of ``x`` once; theirs are points, drawn with replacement. Take
        ``n_pairs`` to draw as they do.
        """,
        compared="members",
    ),
    Row(
        "Labels that go with them",
        """
        x0, x1, l0, l1 = (
            OTPlanSampler("exact")
            .sample_plan_with_labels(x, y, lx, ly))
        torch.stack([l0, l1], dim=1)
        """,
        """
        i, j = couple(x, y)
        torch.stack([lx[i], ly[j]], dim=1)
        """,
        "Indices serve labels, or anything else that comes with a row.",
        compared="members",
    ),
    Row(
        "The exact plan",
        'OTPlanSampler("exact").get_map(x, y)',
        "exact(x, y).plan",
        "No constant.",
    ),
    Row(
        "The entropic plan",
        'OTPlanSampler("sinkhorn", reg=reg).get_map(x, y)',
        "sinkhorn(x, y, eps=reg).plan",
        """
        ``reg`` is ``eps``, in units of squared distances, and 0.05 whatever the data unless you say otherwise; None
        follows the costs here. Draw from it by ``couple(x, y, method="sinkhorn", eps=reg)``, which never holds it.
        """,
        digits=2e-3,
    ),
    Row(
        "The unbalanced plan",
        """
        OTPlanSampler("unbalanced", reg=reg,
            reg_m=reg_m).get_map(x, y)
        """,
        "sinkhorn(x, y, eps=reg, rho=reg_m).plan",
        "``reg_m`` is ``rho``.",
        digits=2e-3,
    ),
    Row(
        "Costs scaled by the largest",
        """
        OTPlanSampler("sinkhorn", reg=reg,
            normalize_cost=True).get_map(x, y)
        """,
        """
        C = cost_matrix(x, y)
        sinkhorn_matrix(C / C.max(), eps=reg).plan
        """,
        "Scale the matrix, or ``eps`` by the largest cost.",
        digits=2e-3,
    ),
)

ABSENT = (
    Absent(
        ("torchcfm.ConditionalFlowMatcher", "torchcfm.SchrodingerBridgeConditionalFlowMatcher"),
        """
        Paths and velocities are not here: pairs from :func:`~otdml.ot.couple` go into their matchers, or into ``x0
        + t * (x1 - x0)``. :doc:`An example <gallery/plot_flow_matching>`.
        """,
    ),
)

TORCHCFM = Peer(
    "torchcfm",
    "torchcfm",
    """
    ``x`` and ``y`` are batches of equally many points, ``lx`` and ``ly`` their labels.
    """,
    """
    import torch
    from torchcfm.optimal_transport import (
        OTPlanSampler)
    """,
    """
    import torch
    from otdml.costs import cost_matrix
    from otdml.ot import (
        couple, exact, sinkhorn, sinkhorn_matrix)
    """,
    ROWS,
    ABSENT,
)
