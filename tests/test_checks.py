"""What the library takes for a number, a weight or a label, and what it says of the rest."""

import fractions

import numpy as np
import pytest
import torch
from transforms import TRANSFORMS

from otdml._checks import (
    check_boolean,
    check_equal_mass,
    check_fraction,
    check_integer,
    check_labels,
    check_nonnegative,
    check_number,
    check_points,
    check_positive,
    check_signs,
    has_values,
)
from otdml.dml import NIR, ClassBalancedBatchSampler
from otdml.losses import (
    MMD,
    KernelDispersion,
    LloydDispersion,
    MMDToGaussian,
    SlicedDispersion,
    SlicedWassersteinToUniform,
    gromov_monge_gap,
    mmd,
    sinkhorn_divergence,
)
from otdml.ot import exact, soft_rank


@pytest.mark.parametrize("value", [np.float32(0.5), np.float16(0.5), np.float64(0.5), fractions.Fraction(1, 2), 0.5])
@pytest.mark.parametrize("check", [check_positive, check_nonnegative, check_fraction])
def test_real_numbers_become_floats(check, value):
    checked = check("eps", value)
    assert isinstance(checked, float)
    assert checked == 0.5


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.uint64, int])
def test_integers_become_integers_of_python(kind):
    checked = check_integer("k", kind(5))
    assert type(checked) is int
    assert checked == 5


@pytest.mark.parametrize("value", [True, False, np.bool_(True), np.bool_(False)])
def test_booleans_become_booleans_of_python(value):
    assert check_boolean("debias", value) is bool(value)


@pytest.mark.parametrize("value", ["False", "", 0, 1, None, torch.tensor(True)])
def test_what_is_no_boolean_is_refused(value):
    with pytest.raises(TypeError, match="`debias` must be True or False, got"):
        check_boolean("debias", value)


WITH_SWITCHES = {
    "unbiased": [MMD, MMDToGaussian, SlicedDispersion, SlicedWassersteinToUniform],
    "cache_second": [MMD],
    "balanced": [LloydDispersion],
    "log": [KernelDispersion],
    "axis_aligned": [SlicedDispersion],
    "detach_proxies": [lambda **switch: NIR(4, **switch)],
    "replacement": [lambda **switch: ClassBalancedBatchSampler(torch.arange(4), 2, 1, **switch)],
    "descending": [lambda **switch: soft_rank(torch.zeros(2), eps=1.0, **switch)],
}


@pytest.mark.parametrize("name", WITH_SWITCHES)
def test_switches_that_are_words_are_refused(name):
    for make in WITH_SWITCHES[name]:
        make(**{name: np.bool_(True)})
        with pytest.raises(TypeError, match=f"`{name}` must be True or False, got 'False'"):
            make(**{name: "False"})


def test_numbers_of_any_sign():
    assert check_number("base", np.float32(-0.5)) == -0.5
    for value, kind in ((torch.nan, ValueError), (-torch.inf, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(kind, match="`base` must be a finite number, got"):
            check_number("base", value)


def test_zero_is_not_negative():
    assert check_nonnegative("delta", np.float32(0)) == 0
    assert check_nonnegative("delta", 0) == 0


@pytest.mark.parametrize("value", [True, "1", None, np.bool_(True), 1j])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="`eps` must be a positive number, got"):
        check_positive("eps", value)
    with pytest.raises(TypeError, match="`k` must be an integer >= 1, got"):
        check_integer("k", value)


@pytest.mark.parametrize("value", [torch.tensor(0.5), np.array(0.5), np.float32(0.5)])
def test_a_tensor_of_one_number_is_that_number(value):
    assert check_positive("eps", value) == 0.5
    assert type(check_positive("eps", value)) is float
    assert check_integer("k", torch.tensor(3)) == 3
    with pytest.raises(TypeError, match=r"`k` must be an integer >= 1, got 0\.5"):
        check_integer("k", value)


@pytest.mark.parametrize("value", [torch.tensor([0.5, 1.0]), np.array([0.5])])
def test_several_numbers_are_not_one(value):
    with pytest.raises(TypeError, match=r"`eps` must be a positive number, got .* Pass one number."):
        check_positive("eps", value)


@TRANSFORMS
def test_a_number_under_a_derivative_or_a_transform_is_refused():
    def check(eps):
        return check_positive("eps", eps) * eps

    one, refusal = torch.tensor(0.5), "`eps` must be a number, got a tensor under a derivative or a transform"
    with pytest.raises(TypeError, match=refusal):
        torch.func.grad(check)(one)
    with pytest.raises(TypeError, match=refusal):
        torch.func.jvp(check, (one,), (one,))
    with pytest.raises(TypeError, match=refusal):
        torch.func.vmap(check)(one[None])
    with pytest.raises(TypeError, match=r"`eps` must be a number, got .* pass `.detach\(\)` of it"):
        check(one.clone().requires_grad_())


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_labels_of_any_integer_type(kind):
    labels = check_labels("labels", np.array([0, 2, 1], dtype=kind), 3, 3)
    assert labels.dtype == torch.long
    assert labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize("labels", [[0, 2, 1], (0, 2, 1), torch.tensor([0, 2, 1], dtype=torch.uint8)])
def test_labels_in_a_list_or_a_tensor(labels):
    assert check_labels("labels", labels, 3).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2), r"be a tensor of integers, got torch.float32. Convert it with `.long\(\)`"),
        ([0.0, 1.0], r"be integers, in a tensor, an array or a list, got list of float64\.$"),
        (["cat", "dog"], r"got list of <U3. Map class names to 0, 1"),
        (None, r"got NoneType\.$"),
    ],
)
def test_other_labels_are_told_what_to_be(labels, message):
    with pytest.raises(TypeError, match=message):
        check_labels("labels", labels, 2)


@pytest.mark.parametrize("points", [[[0.0, 1.0]], np.zeros((2, 2))])
def test_points_that_are_no_tensor_are_told_how_to_become_one(points):
    with pytest.raises(TypeError, match=r"`x` must be a torch.Tensor, got \w+. Convert it with `torch.as_tensor`"):
        check_points("x", points)


@pytest.mark.parametrize("function", [sinkhorn_divergence, mmd, gromov_monge_gap, exact])
def test_tensors_that_hold_no_numbers_are_refused_by_every_kind_of_function(function):
    with pytest.raises(ValueError, match=r"`x` must hold numbers, got a tensor on the meta device. Move it"):
        function(torch.zeros(2, 2, device="meta"), torch.zeros(2, 2, device="meta"))
    with pytest.raises(TypeError, match=r"`x` must be a dense tensor, got torch.sparse_coo. Convert it with"):
        function(torch.ones(2, 2).to_sparse(), torch.ones(2, 2))


def test_points_on_the_meta_device():
    with pytest.raises(ValueError, match=r"`x` must hold numbers, got a tensor on the meta device. Move it"):
        check_points("x", torch.zeros(2, 2, device="meta"))


def test_labels_on_the_meta_device():
    with pytest.raises(ValueError, match=r"`labels` must hold numbers, got a tensor on the meta device. Move it"):
        check_labels("labels", torch.zeros(2, dtype=torch.long, device="meta"), 2, 2)


def test_signs_of_weights():
    check_signs(a=torch.tensor([0.0, 1.0]), b=None)
    with pytest.raises(ValueError, match=r"`b` must hold no negative weight, got -0.5"):
        check_signs(a=torch.ones(2), b=torch.tensor([[1.0, -0.5]]))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="`a` must hold finite weights, got NaN or infinity"):
            check_signs(a=torch.tensor([1.0, value]))


def test_masses_name_the_batch_element_that_differs():
    a = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]])
    b = torch.tensor([[1.0], [3.0], [0.0]])
    with pytest.raises(ValueError, match=r"`b` must have the mass of `a`, got 3 and 1 in batch element \(1,\)"):
        check_equal_mass(a, b)
    check_equal_mass(a[::2], b[::2])
    check_equal_mass(a[:0], b[:0])
    with pytest.raises(ValueError, match=r"got 1 and 0\. Normalise"):
        check_equal_mass(a[2], b[0])


def test_values_are_not_looked_at_under_vmap():
    seen = []

    def look(x):
        seen.append(has_values(x))
        return x.sum()

    x = torch.ones(2, 3)
    torch.func.vmap(torch.func.grad(look))(x)
    torch.func.grad(look)(x)
    assert seen == [False, True]
    assert has_values(x)


def test_a_cuda_graph_that_is_recorded_has_no_values(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(3, device="cuda")
    for recording in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda recording=recording: recording)
        assert has_values(x) != recording
        assert has_values(torch.empty(3))
