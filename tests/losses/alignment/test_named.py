import pytest
import torch

from otdml.losses import BYOL, GCAINCE, GCARINCE, GCAUOT, RINCE, InfoNCE, SupCon, contrastive_alignment

LABELS = torch.tensor([0, 0, 1, 1, 2, 0])
ROBUST = {"q": 0.25, "lam": 0.1}


@pytest.mark.parametrize(
    ("loss", "target", "settings"),
    [
        (InfoNCE(eps=0.3, form="joint"), None, {"eps": 0.3, "form": "joint"}),
        (SupCon(), LABELS, {"eps": 0.1, "form": "joint"}),
        (RINCE(**ROBUST), None, {"divergence": "rince", **ROBUST}),
        (GCAINCE(tol=1e-6), None, {"marginals": "balanced", "tol": 1e-6}),
        (GCARINCE(**ROBUST), None, {"marginals": "balanced", "divergence": "rince", **ROBUST}),
        (
            GCAUOT(rho=(None, 0.5), weight=0.3, **ROBUST),
            None,
            {"marginals": (None, 0.5), "divergence": "kl+rince", "weight": 0.3, **ROBUST},
        ),
        (GCAUOT(weight=0.0), None, {"marginals": 1.0}),
        (BYOL(), None, {"marginals": "none"}),
    ],
)
def test_names_are_configurations(loss, target, settings):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 6, 4, generator=generator)
    torch.testing.assert_close(loss(z1, z2, target), contrastive_alignment(z1, z2, target, **settings))


def test_all_names_differ():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 6, 4, generator=generator)
    values = [make()(z1, z2) for make in (InfoNCE, RINCE, GCAINCE, GCARINCE, GCAUOT, BYOL)]
    assert len({round(float(v), 4) for v in values}) == 6


def test_temperature_can_be_learnt():
    for make in (InfoNCE, SupCon, GCAINCE):
        assert len(list(make(learnable=True).parameters())) == 1
