"""Norms for convolutional networks that begin at random: unlike batch norm, they see one study alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

GROUP_CHANNELS = 16  # channels a group: Wu & He's variant that leaves the number of groups free


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of (B, C, h, w)."""

    def forward(self, grid: Tensor) -> Tensor:
        return super().forward(grid.movedim(1, -1)).movedim(-1, 1)


def group_norm(channels: int) -> nn.GroupNorm:
    """A group norm of `GROUP_CHANNELS` channels a group; of one group where they do not divide."""
    groups, rest = divmod(channels, GROUP_CHANNELS)
    return nn.GroupNorm(1 if rest else groups, channels)


def replace_batch_norms(module: nn.Module, norm: Callable[[int], nn.Module] = group_norm) -> None:
    """Put `norm(channels)` in the place of every batch norm inside `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, norm(child.num_features))
        else:
            replace_batch_norms(child, norm)
