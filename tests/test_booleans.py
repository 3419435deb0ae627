"""Every option that is True or False: the word "False" would count as true, so nothing else is taken for one."""

import numpy as np
import pytest
import torch
from signatures import parameters

from otdml.data import Digits, Omniglot, check, class_folds, held_out_classes, split_classes
from otdml.data.files import ImageFiles
from otdml.disentanglement import Objective, Schedule
from otdml.dml import (
    NIR,
    ClassBalancedBatchSampler,
    CrossBatchMemory,
    EmbeddingIndex,
    ProxyDML,
    TrainingConfig,
    TripletMargin,
    embed,
    evaluate,
    fit,
)
from otdml.dml.backbones import ResNet, resnet18, resnet50
from otdml.losses import (
    contrastive_alignment,
    kernel_dispersion,
    lloyd_dispersion,
    mmd,
    mmd_self_term,
    mmd_to_gaussian,
    mmd_to_uniform,
    sliced_dispersion,
    sliced_wasserstein_to_uniform,
)
from otdml.ot import sinkhorn_barycenter, soft_rank
from otdml.sphere import great_circles

Z, LABELS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
NAMES = [f"{group}/{name}" for group in "abc" for name in "xyz"]


def nothing(*_, **__):
    """For entries that are refused before anything else is looked at."""


def index():
    return EmbeddingIndex(Z, [str(i) for i in range(6)])


# Calls of what needs arguments, with the option by its name; all else is made without any.
CALLS = {
    "sinkhorn_barycenter": lambda **o: sinkhorn_barycenter(torch.stack([Z, Z]), **o),
    "soft_rank": lambda **o: soft_rank(Z[0], eps=0.1, **o),
    "contrastive_alignment": lambda **o: contrastive_alignment(Z, Z, **o),
    "kernel_dispersion": lambda **o: kernel_dispersion(Z, **o),
    "lloyd_dispersion": lambda **o: lloyd_dispersion(Z, **o),
    "mmd": lambda **o: mmd(Z, Z, **o),
    "mmd_self_term": lambda **o: mmd_self_term(Z, **o),
    "mmd_to_gaussian": lambda **o: mmd_to_gaussian(Z, **o),
    "mmd_to_uniform": lambda **o: mmd_to_uniform(Z, **o),
    "sliced_dispersion": lambda **o: sliced_dispersion(Z, **o),
    "sliced_wasserstein_to_uniform": lambda **o: sliced_wasserstein_to_uniform(Z, **o),
    "great_circles": lambda **o: great_circles(3, Z, **o),
    "ClassBalancedBatchSampler": lambda **o: ClassBalancedBatchSampler(LABELS, 2, 2, **o),
    "CrossBatchMemory": lambda **o: CrossBatchMemory(TripletMargin(), 3, **o),
    "EmbeddingIndex.search": lambda **o: index().search(Z, **o),
    "EmbeddingIndex.load": lambda **o: EmbeddingIndex.load("nowhere", **o),
    "NIR": lambda **o: NIR(3, **o),
    "ProxyDML": lambda **o: ProxyDML(3, dim=4, **o),
    "ProxyDML.from_pretrained": lambda **o: ProxyDML.from_pretrained("nowhere", **o),
    "ProxyDML.load_from_checkpoint": lambda **o: ProxyDML.load_from_checkpoint("nowhere", **o),
    "TrainingConfig": TrainingConfig,
    "embed": lambda **o: embed(ProxyDML(5, dim=4), Digits(split="test"), **o),
    "evaluate": lambda **o: evaluate(ProxyDML(5, dim=4), Digits(split="test"), **o),
    "fit": lambda **o: fit(ProxyDML(3, dim=4), Digits(), folder="nowhere", **o),
    "Omniglot": lambda **o: Omniglot("nowhere", **o),
    "ImageFiles": lambda **o: ImageFiles([], torch.zeros(0).long(), ["a"], transform=nothing, **o),
    "check": lambda **o: check("digits", **o),
    "class_folds": lambda **o: class_folds(NAMES, 3, **o),
    "held_out_classes": lambda **o: held_out_classes(NAMES, **o),
    "split_classes": lambda **o: split_classes("train", NAMES, ["u", "v"], **o),
    "ResNet": ResNet,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "Objective": Objective,
    "Schedule": Schedule,
}


# Fields of forms of a cost and of a kernel, which named functions make.
FORMS = {"NamedCost", "Ground", "Bilinear", "Matrix", "Pointwise", "RadialKernel", "Mixture"}
OPTIONS = {
    (label, parameter.name): CALLS.get(label, member)
    for label, member, parameter in parameters()
    if parameter.annotation in (bool, bool | None) and label.partition(".")[0] not in FORMS
}


def test_there_are_many_of_them():
    assert len(OPTIONS) > 60


@pytest.mark.parametrize("value", ["False", "no", 0, 1, 0.0, []], ids=repr)
@pytest.mark.parametrize(("label", "name"), OPTIONS, ids=map(" ".join, OPTIONS))
def test_what_is_no_boolean_is_refused(label, name, value):
    with pytest.raises(TypeError, match=rf"^`{name}` must be True or False, got "):
        OPTIONS[label, name](**{name: value})


@pytest.mark.parametrize(
    ("label", "name"), [k for k in OPTIONS if k[0] in ("mmd", "KernelDispersion", "MMDToGaussian")]
)
def test_those_of_numpy_are_those_of_python(label, name):
    call = OPTIONS[label, name]
    for value in (True, False):
        given, plain = call(**{name: np.bool_(value)}), call(**{name: value})
        assert str(given) == str(plain)
