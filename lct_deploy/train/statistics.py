"""BatchNorm's running statistics where a batch is cut into parts, which it normalises one by one.

Of the parts of a batch the means count: the same whether one process takes them one after another or
several take one each, which is what makes runs on few and on many GPUs equal.
"""

import torch
from torch import Tensor, nn

from lct_deploy.train.ranks import Ranks

_MOMENTUM = 0.1  # torch's default, for all networks here


def set_momentum(model: nn.Module, part: int, parts: int) -> None:
    """Before part 0, 1, … of a batch: momenta with which all parts end up counting alike.

    With the momentum μ of a whole batch, μ / (parts − (parts − 1 − part) μ) leaves 1 − μ of what was
    before the first part and μ / parts of each.
    """
    for norm in _norms(model):
        norm.momentum = _MOMENTUM / (parts - (parts - 1 - part) * _MOMENTUM)


def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """The mean over all processes, in place."""
    found = [value for norm in _norms(model) for value in (norm.running_mean, norm.running_var)]
    with torch.no_grad():
        ranks.average([value for value in found if isinstance(value, Tensor)])


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
