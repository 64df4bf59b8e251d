"""Residual networks: the CIFAR family of depth 6n+2, and ResNet-18/34/50 with the ImageNet stem.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
Differs from the paper's CIFAR networks: a shortcut that changes shape is a 1x1 convolution with
batch norm (the paper pads with zeros), as in the distillation literature's tables.
"""

import jax
from flax import nnx

from kdlib.models.network import ConvNorm, Make, Network, Stage, row


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut. Returns the sum *before* the ReLU."""

    norm = property(lambda self: self.norm2)

    def __init__(self, make, c_in, c_out, stride):
        self.conv1 = make.conv(c_in, c_out, 3, stride)
        self.norm1 = make.norm(c_out)
        self.conv2 = make.conv(c_out, c_out, 3)
        self.norm2 = make.norm(c_out, ends_block=True)
        self.shortcut = shortcut(make, c_in, c_out, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(y)) + self.shortcut(x)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions, the first two of a quarter of the width, and a shortcut."""

    norm = property(lambda self: self.norm3)

    def __init__(self, make, c_in, c_out, stride):
        self.conv1 = make.conv(c_in, c_out // 4, 1)
        self.norm1 = make.norm(c_out // 4)
        self.conv2 = make.conv(c_out // 4, c_out // 4, 3, stride)
        self.norm2 = make.norm(c_out // 4)
        self.conv3 = make.conv(c_out // 4, c_out, 1)
        self.norm3 = make.norm(c_out, ends_block=True)
        self.shortcut = shortcut(make, c_in, c_out, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        return self.norm3(self.conv3(y)) + self.shortcut(x)


def shortcut(make, c_in, c_out, stride):
    """The identity where shapes agree, else a strided 1x1 convolution with batch norm."""
    changes = stride != 1 or c_in != c_out
    return ConvNorm(make, c_in, c_out, 1, stride) if changes else nnx.identity


class ResNet(Network):
    """Stages of ``depths`` blocks and ``widths`` channels that halve the map between them.

    Its maps have the sides h, h, h/2, h/4 in CIFAR networks and h/4, h/4, h/8, h/16, h/32 behind
    the ImageNet stem, a 7x7 convolution of stride 2 and a max pooling.
    """

    def __init__(
        self, make: Make, depths, widths, stem_width, block=BasicBlock, imagenet_stem=False
    ):
        self.imagenet_stem = imagenet_stem
        stem = (7, 2) if imagenet_stem else (3, 1)
        self.stem_conv = make.conv(len(make.mean), stem_width, *stem)
        self.stem_norm = make.norm(stem_width)
        stages, c_in = [], stem_width
        for depth, c_out in zip(depths, widths, strict=True):
            stages.append(Stage(row(block, make, c_in, c_out, depth, 2 if stages else 1)))
            c_in = c_out
        super().__init__(make, stages, c_in)

    def stem(self, x: jax.Array) -> jax.Array:
        x = super().stem(x)
        if self.imagenet_stem:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x

    @classmethod
    def cifar(cls, make: Make, depth: int, width: float):
        """Depth 6n+2. The stem stops at 32 channels, as in the literature's 8x4 and 32x4."""
        first = round(16 * width)
        widths = (first, 2 * first, 4 * first)
        return cls(make, ((depth - 2) // 6,) * 3, widths, min(first, 32))

    @classmethod
    def imagenet(cls, make: Make, depth: int, width: None):
        """The paper's table 1; its widths are fixed."""
        depths = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
        block, first = (Bottleneck, 256) if depth == 50 else (BasicBlock, 64)
        widths = (first, 2 * first, 4 * first, 8 * first)
        return cls(make, depths, widths, 64, block, imagenet_stem=True)
