"""Our losses in the trainers of pytorch-metric-learning, and its losses in ours."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from otdml.dml import CrossBatchMemory, MultiSimilarity, ProxyDML, hard_triplets
from otdml.dml.losses import LOSSES, named_loss

pytest.importorskip("pytorch_metric_learning")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


OURS = {name: (lambda name=name: named_loss(name, 4, 4)) for name in LOSSES}
OURS["memory"] = lambda: CrossBatchMemory(MultiSimilarity(), 4, size=64)


@pytest.mark.parametrize("name", OURS)
def test_ours_train_in_their_trainer(name, generator):
    from pytorch_metric_learning import trainers

    torch.manual_seed(0)
    labels = torch.arange(64) % 4
    images = 2 * nn.functional.one_hot(labels, 8) + torch.randn(64, 8, generator=generator)
    loss, models = OURS[name](), {"trunk": nn.Linear(8, 16), "embedder": nn.Linear(16, 4)}

    def value():
        with torch.no_grad():
            return float(loss(models["embedder"](models["trunk"](images)), labels))

    before = value()
    parts = [*models["trunk"].parameters(), *models["embedder"].parameters(), *loss.parameters()]
    trainers.MetricLossOnly(
        models=models,
        optimizers={"trunk_optimizer": torch.optim.Adam(parts, lr=0.01)},
        batch_size=16,
        loss_funcs={"metric_loss": loss},
        dataset=TensorDataset(images, labels),
        dataloader_num_workers=0,
    ).train(num_epochs=12)
    assert value() < before


def test_their_losses_and_miners_train_in_ours(generator):
    from pytorch_metric_learning import losses, miners

    images, labels = torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3
    for loss in (losses.CircleLoss(), CrossBatchMemory(losses.ContrastiveLoss(), 8, miner=miners.BatchHardMiner())):
        module = ProxyDML(3, backbone_options={"widths": (4, 8)}, dim=8, loss=loss, seed=0)
        module.losses(images, labels)["loss"].backward()
        assert module.head.linear.weight.grad.norm() > 0


def test_proxy_losses_refuse_mined_tuples():
    z, labels = torch.randn(6, 4), torch.arange(6) % 3
    with pytest.raises(ValueError, match="`tuples` must be None: samples are compared with proxies"):
        named_loss("proxy-nca", 3, 4)(z, labels, hard_triplets(z, labels))
