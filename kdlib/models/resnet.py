"""Residual networks: the CIFAR family of depth 6n+2, and ResNet-18/34/50 with the ImageNet stem.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
Differs from the paper's CIFAR networks: a shortcut that changes shape is a 1x1 convolution with
batch norm (the paper pads with zeros), as in the distillation literature's tables.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.models.outputs import Outputs


class InputStatistic(nnx.Variable):
    """Mean or standard deviation of the pictures a network was trained on; never trained."""


class Normalise(nnx.Module):
    """Pictures 0..255 to zero mean and unit variance per channel.

    It is part of the network, so a teacher keeps the statistics it was trained with whatever data
    its student sees, and a checkpoint can't be evaluated with the wrong ones.

    Args:
        mean, std: one value per channel, in units of 0..255.
        dtype: what the convolutions compute in.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype=jnp.float32):
        self.mean = InputStatistic(jnp.asarray(mean, jnp.float32))
        self.std = InputStatistic(jnp.asarray(std, jnp.float32))
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        return ((images.astype(jnp.float32) - self.mean[...]) / self.std[...]).astype(self.dtype)


def conv(c_in, c_out, size, stride, dtype, rngs):
    """A convolution without bias that pads symmetrically, as the published ResNets do.

    Flax's default, "SAME", pads stride-2 convolutions on one side only: others' weights would load
    and then score a little less.
    """
    return nnx.Conv(
        c_in, c_out, (size, size), strides=stride, padding=size // 2, use_bias=False,
        dtype=dtype, rngs=rngs,
    )  # fmt: skip


def norm(channels, dtype, rngs, zero=False):
    """Batch norm with momentum 0.9 and epsilon 1e-5; ``zero`` starts its scale at 0."""
    scale = nnx.initializers.zeros if zero else nnx.initializers.ones
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, scale_init=scale, dtype=dtype, rngs=rngs
    )


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut. Returns the sum *before* the ReLU."""

    expansion = 1

    def __init__(self, c_in, width, stride, zero_init, dtype, rngs):
        self.conv1 = conv(c_in, width, 3, stride, dtype, rngs)
        self.norm1 = norm(width, dtype, rngs)
        self.conv2 = conv(width, width, 3, 1, dtype, rngs)
        self.norm2 = norm(width, dtype, rngs, zero=zero_init)
        self.shortcut = Shortcut(c_in, width, stride, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(y)) + self.shortcut(x)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions with four times the width at the end, and a shortcut."""

    expansion = 4

    def __init__(self, c_in, width, stride, zero_init, dtype, rngs):
        c_out = self.expansion * width
        self.conv1 = conv(c_in, width, 1, 1, dtype, rngs)
        self.norm1 = norm(width, dtype, rngs)
        self.conv2 = conv(width, width, 3, stride, dtype, rngs)
        self.norm2 = norm(width, dtype, rngs)
        self.conv3 = conv(width, c_out, 1, 1, dtype, rngs)
        self.norm3 = norm(c_out, dtype, rngs, zero=zero_init)
        self.shortcut = Shortcut(c_in, c_out, stride, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        return self.norm3(self.conv3(y)) + self.shortcut(x)


class Shortcut(nnx.Module):
    """The identity where shapes agree, else a strided 1x1 convolution with batch norm."""

    def __init__(self, c_in, c_out, stride, dtype, rngs):
        self.projects = stride != 1 or c_in != c_out
        if self.projects:
            self.conv = conv(c_in, c_out, 1, stride, dtype, rngs)
            self.norm = norm(c_out, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x)) if self.projects else x


class Stage(nnx.Module):
    """Blocks in a row, the first with the stride. Returns the last block's output and preact."""

    def __init__(self, block, c_in, width, depth, stride, zero_init, dtype, rngs):
        first = block(c_in, width, stride, zero_init, dtype, rngs)
        rest = [
            block(block.expansion * width, width, 1, zero_init, dtype, rngs)
            for _ in range(depth - 1)
        ]
        self.blocks = nnx.data([first, *rest])

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for block in self.blocks:
            preact = block(x)
            x = nnx.relu(preact)
        return x, preact


class ResNet(nnx.Module):
    """A stem, stages of residual blocks that halve the map between them, pooling, a classifier.

    Args:
        classes: number of classes ``k``.
        blocks: residual blocks per stage, ``(n, n, n)`` for the CIFAR depth 6n+2.
        widths: channels per stage, before the block's expansion.
        stem_width: channels of the first convolution.
        block: ``BasicBlock`` or ``Bottleneck``.
        imagenet_stem: a 7x7 convolution of stride 2 and a max pooling, instead of a 3x3.
        mean, std: input statistics per channel, in units of 0..255.
        zero_init: start every block as the identity, by a zero scale in its last batch norm.
        dtype: what convolutions compute in; parameters and statistics stay float32.
        rngs: Flax random streams for the initial weights (LeCun normal, as in the original).
    """

    def __init__(
        self, *, classes: int, blocks: Sequence[int], widths: Sequence[int], stem_width: int,
        block=BasicBlock, imagenet_stem: bool = False, mean: Sequence[float] = (127.5,) * 3,
        std: Sequence[float] = (64.0,) * 3, zero_init: bool = True, dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.imagenet_stem = imagenet_stem
        self.normalise = Normalise(mean, std, dtype)
        stem = (7, 2) if imagenet_stem else (3, 1)
        self.stem_conv = conv(len(mean), stem_width, *stem, dtype, rngs)
        self.stem_norm = norm(stem_width, dtype, rngs)
        stages, c_in = [], stem_width
        for i, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
            stages.append(Stage(block, c_in, width, depth, min(i, 1) + 1, zero_init, dtype, rngs))
            c_in = block.expansion * width
        self.stages = nnx.data(stages)
        self.classifier = nnx.Linear(c_in, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> Outputs:
        """Class scores and features of pictures.

        Args:
            images: ``[n, h, w, c]``, ``uint8`` or float, in units of 0..255.

        Returns:
            :class:`Outputs`; the feature maps have the sides h, h, h/2, h/4 in CIFAR networks and
            h/4, h/4, h/8, h/16, h/32 behind the ImageNet stem.
        """
        x = nnx.relu(self.stem_norm(self.stem_conv(self.normalise(images))))  # (n, h, w, c)
        if self.imagenet_stem:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        features, preacts = [x], []
        for stage in self.stages:
            x, preact = stage(x)
            features.append(x)
            preacts.append(preact)
        embedding = x.mean((1, 2)).astype(jnp.float32)  # (n, d)
        return Outputs(self.classifier(embedding), embedding, tuple(features), tuple(preacts))
