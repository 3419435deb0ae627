"""GeomLoss."""

from coming_from.row import Absent, Peer, Row

ROWS = (
    Row(
        "Sinkhorn divergence",
        """
        SamplesLoss("sinkhorn", blur=blur,
            scaling=0.99)(a, x, b, y)
        """,
        """
        sinkhorn_divergence(
            x, y, a, b, eps=2 * blur**2) / 2
        """,
        r"""
        Their cost is :math:`\tfrac12 \lVert x-y \rVert^2` and their temperature ``blur ** 2``, so our value is
        twice theirs at twice that. ``scaling`` (0.5) sets how many steps they take; ours go on until the marginals
        are right to ``tol``, and their default ``blur`` of 0.05 is ``eps=0.005`` here, where None follows the
        costs.
        """,
        ("x", "y"),
        digits=1e-2,
    ),
    Row(
        "The same of distances",
        """
        SamplesLoss("sinkhorn", p=1, blur=blur,
            scaling=0.99)(a, x, b, y)
        """,
        """
        sinkhorn_divergence(
            x, y, a, b, cost="euclidean", eps=blur)
        """,
        "With ``p=1`` no factor differs.",
        ("x", "y"),
        digits=1e-2,
    ),
    Row(
        "Entropic transport, biased",
        """
        SamplesLoss("sinkhorn", blur=blur, debias=False,
            scaling=0.99)(a, x, b, y)
        """,
        "entropic_ot(x, y, a, b, eps=2 * blur**2) / 2",
        r"""
        As above. Where both masses are m and not one, our value is larger by :math:`\varepsilon (m^2 - m)`.
        """,
        ("x", "y"),
        digits=1e-2,
    ),
    Row(
        "Unbalanced, with outliers",
        """
        SamplesLoss("sinkhorn", blur=blur, reach=reach,
            scaling=0.99)(a, x, b, y)
        """,
        """
        sinkhorn_divergence(
            x, y, a, b, eps=2 * blur**2,
            rho=2 * reach**2) / 2
        """,
        """
        ``reach`` is a length: ``rho`` is ``2 * reach ** 2``, and ``reach`` itself where ``p=1``. Here their
        gradient is not the slope of their value, by some per cent; ours is.
        """,
        digits=1e-2,
    ),
    Row(
        "Uniform weights, and batches",
        """
        SamplesLoss("sinkhorn", blur=blur,
            scaling=0.99, backend="tensorized")(X, Y)
        """,
        "sinkhorn_divergence(X, Y, eps=2 * blur**2) / 2",
        "Shapes (B, N, D) there, (..., n, d) here. Points come before weights, which may be left out.",
        digits=1e-2,
    ),
    Row(
        "Dual potentials",
        """
        f, g = SamplesLoss("sinkhorn", blur=blur,
            debias=False, potentials=True,
            scaling=0.99)(a, x, b, y)
        f - (a * f).sum(), g - (b * g).sum()
        """,
        """
        r = sinkhorn(x, y, a, b, eps=2 * blur**2)
        f, g = r.f / 2, r.g / 2
        f - (a * f).sum(), g - (b * g).sum()
        """,
        "Half of ours, as the values are, up to the constant that the two may exchange.",
        digits=1e-2,
    ),
    Row(
        "Another cost",
        """
        SamplesLoss("sinkhorn", p=2, blur=blur, cost=
            lambda x, y: (x[..., :, None, :]
            - y[..., None, :, :]).abs().sum(-1),
            scaling=0.99, backend="tensorized")(a, x, b, y)
        """,
        """
        sinkhorn_divergence(
            x, y, a, b, cost=lambda x, y:
            (x[..., :, None, :]
            - y[..., None, :, :]).abs().sum(-1),
            eps=blur**2)
        """,
        """
        A function of two sets of points, there and here. What ``blur`` is raised to is ``p``, whatever the cost.
        """,
        ("x", "y"),
        digits=2e-2,
    ),
    Row(
        "Gaussian MMD",
        'SamplesLoss("gaussian", blur=blur)(a, x, b, y)',
        "mmd(x, y, a, b, bandwidth=blur) / 2",
        r"""
        Kernel norms are halved there. The kernel is :math:`e^{-\lVert x-y \rVert^2 / 2 \sigma^2}` in both.
        """,
        ("x", "y"),
    ),
    Row(
        "Laplacian MMD",
        'SamplesLoss("laplacian", blur=blur)(a, x, b, y)',
        """
        mmd(x, y, a, b, kernel="laplacian",
            bandwidth=blur) / 2
        """,
        r"""
        Half as well, of :math:`e^{-\lVert x-y \rVert / \sigma}`. Their distances are 1e-4 at least, a point's from
        itself too.
        """,
        ("x", "y"),
        digits=1e-3,
    ),
    Row(
        "Energy distance",
        'SamplesLoss("energy")(a, x, b, y)',
        'mmd(x, y, a, b, kernel="energy") / 2',
        r"""
        Half as well, of :math:`-\lVert x-y \rVert`; there is no bandwidth.
        """,
        ("x", "y"),
        digits=1e-3,
    ),
)

ABSENT = (
    Absent(
        ("geomloss.ImagesBarycenter", "geomloss.sinkhorn_divergence"),
        """
        No transport on grids that uses their separable kernel. :func:`~otdml.ot.sinkhorn_barycenter` with the
        pixels as ``support`` is the same problem, at the cost of all pairs of pixels.
        """,
    ),
)

GEOMLOSS = Peer(
    "GeomLoss",
    "geomloss",
    """
    Weights come before points there and after them here. ``backend`` is ``"dense"``, ``"streamed"``, ``"keops"`` or
    ``"multiscale"`` (theirs, brought to our tolerance) where they say ``"tensorized"``, ``"online"`` and
    ``"multiscale"``. Gradients agree as the values do; theirs are right to what their schedule reaches.
    """,
    "from geomloss import SamplesLoss",
    """
    from otdml.losses import (
        entropic_ot, mmd, sinkhorn_divergence)
    from otdml.ot import sinkhorn
    """,
    ROWS,
    ABSENT,
)
