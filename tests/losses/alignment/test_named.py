import math

import pytest
import torch

from otdml.losses import (
    BYOL,
    GCAINCE,
    GCARINCE,
    GCAUOT,
    RINCE,
    ContrastiveAlignment,
    GromovMongeGap,
    InfoNCE,
    SupCon,
    contrastive_alignment,
)
from otdml.ot import gromov

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
            GCAUOT(marginals=(None, 0.5), weight=0.3, **ROBUST),
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


def test_names_are_classes():
    for make in (InfoNCE, SupCon, RINCE, GCAINCE, GCARINCE, GCAUOT, BYOL):
        assert isinstance(make(), make)
        assert isinstance(make(), ContrastiveAlignment)


# One batch and its labels

LABELLED = torch.tensor([0, 1, 0, 2, 1, 0])


def supervised(z, labels, eps):
    """Equation 2 of the paper, anchor by anchor."""
    z = z / z.norm(dim=-1, keepdim=True)
    scores = z @ z.mT / eps
    found = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            found.append(-(scores[i, positives] - scores[i, others].logsumexp(0)).mean())
    return torch.stack(found).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_batch_with_labels(dtype):
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype).requires_grad_()
    value, expected = SupCon(eps=0.3)(z, LABELLED), supervised(z, LABELLED, 0.3)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (value, expected)))
    torch.testing.assert_close(SupCon(eps=0.3)(z, LABELLED.numpy()), expected)
    both = torch.stack([z, z.flip(0)])
    torch.testing.assert_close(SupCon(eps=0.3)(both, LABELLED)[0], expected)


def test_one_batch_as_two_views_of_its_halves():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0])
    torch.testing.assert_close(SupCon()(z, labels.repeat(2)), SupCon()(z[:3], z[3:], labels))


def test_a_batch_without_positives_is_an_error_or_zero():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with pytest.raises(ValueError, match="at least one positive pair"):
        SupCon()(z, torch.arange(4))
    value = SupCon(empty="zero")(z, torch.arange(4))
    assert float(value.detach()) == 0
    torch.testing.assert_close(torch.autograd.grad(value, z)[0], torch.zeros_like(z))
    with pytest.raises(ValueError, match="`empty` must be one of 'error', 'zero'"):
        SupCon(empty="nothing")


def test_a_zero_has_a_gradient_in_the_temperature_too():
    # A parameter without one stops distributed training, which waits for it.
    loss = SupCon(empty="zero", learnable=True)
    z = torch.randn(4, 3, requires_grad=True)
    loss(z, torch.arange(4)).backward()
    assert loss.log_eps.grad == 0
    assert torch.equal(z.grad, torch.zeros(4, 3))
    loss.zero_grad()
    loss(torch.randn(0, 4, 3), torch.zeros(4, dtype=torch.long)).sum().backward()
    assert loss.log_eps.grad == 0


@pytest.mark.parametrize(("empty", "value"), [("error", math.log(2)), ("zero", math.log(2)), ("zero-one-sided", 0.0)])
def test_a_batch_of_one_class_has_the_value_of_the_formula_unless_it_is_to_be_zero(empty, value):
    z = torch.eye(3).requires_grad_()
    loss = SupCon(empty=empty)
    found = loss(z, torch.zeros(3, dtype=torch.long))
    assert found.item() == pytest.approx(value)
    # The cosines are equal, which is the minimum.
    torch.testing.assert_close(torch.autograd.grad(found, z)[0], torch.zeros(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(loss(z, torch.tensor([0, 0, 1])), SupCon()(z, torch.tensor([0, 0, 1])))


@pytest.mark.parametrize("bad", [[[1.0, 0.0], [0.0, 1.0]], None])
def test_what_is_no_tensor_is_an_error_that_says_so(bad):
    z = torch.eye(2)
    for loss in (InfoNCE(), GCAINCE()):
        with pytest.raises(TypeError, match=r"`z1` must be a torch.Tensor"):
            loss(bad, z)
        with pytest.raises(TypeError, match=r"`z2` must be a torch.Tensor"):
            loss(z, bad)
    with pytest.raises(TypeError, match=r"`z1` must be a torch.Tensor"):
        contrastive_alignment(bad, z)


@pytest.mark.parametrize("backend", ["keops", "multiscale"])
def test_engines_that_cannot_be_used_are_refused(backend):
    with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'dense', 'streamed'"):
        ContrastiveAlignment(backend=backend)
    with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'dense', 'streamed'"):
        GromovMongeGap(backend=backend)
    with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'dense', 'streamed'"):
        gromov(torch.eye(3), torch.eye(3), backend=backend)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("views", [1, 2])
def test_supervised_contrast_compiles(views, generator):
    torch._dynamo.reset()
    z, labels = torch.randn(views, 6, 4, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])
    values, gradients = [], []
    for loss in (SupCon(), torch.compile(SupCon(), backend="aot_eager")):
        leaves = z.clone().requires_grad_()
        values.append(loss(*leaves, labels))
        gradients.append(torch.autograd.grad(values[-1], leaves)[0])
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])
