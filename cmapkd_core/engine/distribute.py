"""A module on several ranks: its gradients are their mean, and batch norms on GPUs share their statistics."""

from __future__ import annotations

from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from cmapkd_core import parallel


def distribute(module: nn.Module) -> nn.Module:
    """The module under DDP where there are several processes; batch norms then share their statistics on GPUs."""
    if parallel.world() == 1:
        return module
    if parallel.device().type == "cuda":
        module = share_batch_statistics(module)
        return DistributedDataParallel(module, device_ids=[parallel.local_rank()], broadcast_buffers=False)
    return DistributedDataParallel(module, broadcast_buffers=False)


def share_batch_statistics(module: nn.Module) -> nn.Module:
    """The module, in place, with batch norms that take their statistics over all ranks; such ones stay as they are.

    timm's converter and not torch's: its batch norms hold the activation after them, which torch's would drop. Its own
    shared ones it takes for torch's and would drop their activation too, so only layers of one process reach it: a
    stage calls this before each of its phases.
    """
    if isinstance(module, nn.SyncBatchNorm):
        return module
    if isinstance(module, _BatchNorm):
        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    for name, child in module.named_children():
        module.add_module(name, share_batch_statistics(child))
    return module
