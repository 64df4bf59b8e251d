"""ShuffleNetV2 at CIFAR size. Ma et al., ECCV 2018, arXiv:1807.11164.

Differs from the paper: the stem has stride 1 and no pooling, as in HobbitLong/RepDistiller:models/
ShuffleNetv2.py, where it is a 1x1 convolution, though.
"""

import jax.numpy as jnp
from flax import nnx

from kdlib.models.network import Array, ConvNorm, Make, Network, Stage, rows

WIDTHS = {0.5: 48, 1: 116, 1.5: 176, 2: 244}  # channels of the first stage, the paper's table 5


class Unit(nnx.Module):
    """Half of the channels pass three convolutions, half pass by; then both are interleaved.

    With stride 2, both halves see all channels, and the one that passes by is made smaller, too.
    """

    def __init__(self, make, c_in, c_out, stride):
        half, self.splits = c_out // 2, stride == 1
        if not self.splits:
            self.left1 = ConvNorm(make, c_in, c_in, 3, stride, groups=c_in)
            self.left2 = ConvNorm(make, c_in, half)
        self.right1 = ConvNorm(make, half if self.splits else c_in, half)
        self.right2 = ConvNorm(make, half, half, 3, stride, groups=half)
        self.right3 = ConvNorm(make, half, half)

    def __call__(self, x: Array) -> Array:
        # (n, h, w, c / 2) each, but for the right of a stride 2: that is x.
        left, right = jnp.split(x, 2, -1) if self.splits else (self.left2(self.left1(x)), x)
        right = self.right3(self.right2(nnx.relu(self.right1(right))))
        return jnp.stack([left, right], -1).reshape(*left.shape[:-1], -1)  # (n, h, w, c)


class ShuffleNetV2(Network):
    """Maps of the sides h, h/2, h/4, h/8. Nothing is added up: ``zero_init`` has no effect.

    Half of a preact has passed a ReLU in an earlier unit, so there are no ``norms``.
    """

    has_norms = False

    def __init__(self, make: Make, version: int, width: float):
        self.stem_conv, self.stem_norm = make.conv(len(make.mean), 24, 3), make.norm(24)
        first, last = WIDTHS.get(width) or 2 * round(58 * width), 2048 if width >= 2 else 1024
        widths = 24, first, 2 * first, 4 * first
        stages = list(rows(Unit, make, widths, (4, 8, 4), stride=2))
        stages[-1].append(ConvNorm(make, widths[-1], last))
        super().__init__(make, [Stage(blocks) for blocks in stages], last)
