"""What all networks share: normalisation, layers as the literature has them, one forward pass."""

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from kdlib.models.convolution import convolve, once


class Outputs(NamedTuple):
    """What every network shows: all that a distiller may look at, so that none needs a hook to look
    inside. XLA removes whatever nobody uses.

    In every network ``features[i + 1] == relu(preacts[i])``.

    Attributes:
        logits: class scores before the softmax, ``[n, k]``.
        embedding: globally average-pooled last feature map, ``[n, d]``.
        features: the stem's output, then every stage's after its ReLU, a tuple of ``[n, h, w, c]``.
        preacts: stage outputs before their last ReLU, a tuple of ``[n, h, w, c]``
            (one shorter than ``features``: the stem has none).
        head: the classifier, ``(kernel [d, k], bias [k])``: logits = embedding @ kernel + bias.
        norms: ``(scale [c], bias [c])`` of the batch norm that ends each entry of ``preacts``,
            before a shortcut is added; empty where no single one does (ShuffleNetV2).
    """

    logits: Array
    embedding: Array
    features: tuple[Array, ...]
    preacts: tuple[Array, ...]
    head: tuple[Array, ...] = ()
    norms: tuple[tuple[Array, Array], ...] = ()


class InputStatistic(nnx.Variable):
    """Mean or standard deviation of the pictures a network was trained on; never trained."""


class Normalise(nnx.Module):
    """Pictures 0..255 to zero mean and unit variance per channel.

    It is part of the network, so a teacher keeps the statistics it was trained with whatever data
    its student sees, and a checkpoint can't be evaluated with the wrong ones.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype=jnp.float32):
        self.mean = InputStatistic(jnp.asarray(mean, jnp.float32))
        self.std, self.dtype = InputStatistic(jnp.asarray(std, jnp.float32)), dtype

    def __call__(self, images: Array) -> Array:
        return ((images.astype(jnp.float32) - self.mean[...]) / self.std[...]).astype(self.dtype)


_draw = jax.jit(lambda key, n: jax.random.truncated_normal(key, -2, 2, (n,)), static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def _scale(draws, shape):
    deviation = jnp.sqrt(shape[-1] / math.prod(shape)) / 0.87962566103423978  # that of -2..2
    return draws[: math.prod(shape)].reshape(shape) * deviation


def lecun_normal(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """The draws of ``nnx.initializers.lecun_normal``, to the bit, from one or two small programs.

    A draw depends on its position alone, so a short row is the beginning of a long one. Compiled
    for each shape by itself, such draws take up most of a network's first start.
    """
    return _scale(_draw(key, 2 ** max(16, (math.prod(shape) - 1).bit_length())), tuple(shape))


class Make(NamedTuple):
    """What a network is told, as in :func:`kdlib.models.build`, and layers made accordingly."""

    classes: int
    mean: Sequence[float]
    std: Sequence[float]
    zero_init: bool
    dtype: jnp.dtype
    rngs: nnx.Rngs
    same_padding: bool = False

    def conv(self, c_in, c_out, size, stride=1, groups=1):
        """A convolution without bias that pads symmetrically, as the published networks do.

        Flax's default, "SAME", pads stride-2 convolutions on one side only: others' weights would
        load and then score a little less. With ``same_padding`` it pads as "SAME" does on maps of
        even sides, for weights that were trained so.
        """
        near = max(size // 2 - (stride - 1) * self.same_padding, 0)  # of strides 1 and 2
        return nnx.Conv(c_in, c_out, (size, size), strides=stride, use_bias=False, dtype=self.dtype,
            padding=((near, size // 2),) * 2, feature_group_count=groups, rngs=self.rngs,
            kernel_init=lecun_normal, conv_general_dilated=convolve)  # fmt: skip

    def norm(self, channels, ends_block=False):
        """Batch norm; with ``zero_init`` one that ends a residual block starts with scale 0."""
        scale = nnx.initializers.zeros if ends_block and self.zero_init else nnx.initializers.ones
        return BatchNorm(channels, scale_init=scale, dtype=self.dtype, rngs=self.rngs)


@functools.partial(jax.jit, static_argnums=3)  # traced once for all layers alike
def _normalise(x, scale, bias, epsilon):
    """Batch norm of ``x``, and its mean and variance ``[c]``."""
    wide, axes = x.astype(jnp.promote_types(x.dtype, jnp.float32)), tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    var = jnp.maximum((wide * wide).mean(axes) - mean * mean, 0.0)  # not below, by rounding
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return (wide * factor + (bias - mean * factor)).astype(x.dtype), mean, var


class BatchNorm(nnx.BatchNorm):
    """Flax's, for maps ``[n, h, w, c]`` and rows ``[n, c]``; in training the same in another form.

    Takes ``channels`` (c) and Flax's settings, but for momentum and epsilon. Ioffe, Szegedy, "Batch
    Normalization", ICML 2015, arXiv:1502.03167.

    Written as ``x * factor + shift``, it needs no centred copy of the map, and nor does its
    gradient, ``g * factor + x * a + b`` with a and b per channel: fewer passes over memory, which
    is what batch norm costs. Sums and statistics are float32 at least.
    """

    def __init__(self, channels, **settings):
        super().__init__(channels, momentum=0.9, epsilon=1e-5, **settings)

    def __call__(self, x: Array) -> Array:
        if self.use_running_average:
            return super().__call__(x)
        y, mean, var = _normalise(x, self.scale[...], self.bias[...], self.epsilon)
        for average, now in ((self.mean, mean), (self.var, var)):
            now = (1 - self.momentum) * now.astype(jnp.float32)
            # Setting average[...] would have JAX word an error message each time, for nobody.
            average.copy_from(nnx.BatchStat(self.momentum * average[...] + now))
        return y


class ConvNorm(nnx.Module):
    """A convolution and its batch norm."""

    def __init__(self, make, c_in, c_out, size=1, stride=1, groups=1, ends_block=False):
        self.conv = make.conv(c_in, c_out, size, stride, groups)
        self.norm = make.norm(c_out, ends_block)

    def __call__(self, x: Array) -> Array:
        return self.norm(self.conv(x))


class Stage(nnx.Module):
    """Blocks in a row, with a ReLU between them or not. Returns the last output and its preact.

    The last block ends in a batch norm, ``block.norm``, or is one. ``pool`` halves the map first.
    """

    def __init__(self, blocks, relu_between=True, pool=False):
        self.blocks, self.relu_between, self.pool = nnx.data(blocks), relu_between, pool

    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = nnx.max_pool(x, (2, 2), (2, 2)) if self.pool else x
        for i, block in enumerate(self.blocks):
            x = block(once(nnx.relu(x) if self.relu_between else x) if i else x)
        return nnx.relu(x), x

    def norm(self) -> tuple[Array, Array]:
        norm = getattr(self.blocks[-1], "norm", self.blocks[-1])
        return norm.scale[...], norm.bias[...]


def rows(block, make, widths, depths, stride=1):
    """Blocks in a row, for one stage after the other: from each of the widths to the next, as many
    as the depth says. A row's first block changes channels and has stride 2, or the first's."""
    for (c_in, c_out), depth in zip(pairwise(widths), depths, strict=True):
        yield [block(make, c, c_out, s) for c, s in [(c_in, stride), *[(c_out, 1)] * (depth - 1)]]
        stride = 2


class Network(nnx.Module):
    """A stem, stages, global average pooling and a linear classifier.

    A family's constructor makes its stem and stages, and calls this one with ``c``, the channels of
    the last map. Initial weights are LeCun normal; parameters and statistics stay float32.
    """

    has_norms = True

    def __init__(self, make: Make, stages: list[Stage], c: int):
        self.normalise = Normalise(make.mean, make.std, make.dtype)
        self.same_padding, self.stages = make.same_padding, nnx.data(stages)
        self.classifier = nnx.Linear(c, make.classes, kernel_init=lecun_normal, rngs=make.rngs)

    def stem(self, x: Array) -> Array:
        return nnx.relu(self.stem_norm(self.stem_conv(x)))

    def __call__(self, images: Array) -> Outputs:
        """What the network shows for ``images [n, h, w, c]``, uint8 or float, units of 0..255."""
        return self.finish(self.stem(self.normalise(images)), 0)

    def finish(self, x: Array, stage: int) -> Outputs:
        """What the network shows when it goes on from ``x = features[stage]`` of a forward pass.

        The result's ``features`` start with ``x``; ``preacts`` and ``norms`` are those of the
        stages run, none where ``stage`` is the last.
        """
        features, preacts, run = [x], [], self.stages[stage:]
        for part in run:
            x, preact = part(x)
            features.append(x)
            preacts.append(preact)
        embedding = x.mean((1, 2)).astype(jnp.float32)  # (n, d)
        head = (self.classifier.kernel[...], self.classifier.bias[...])
        norms = tuple(part.norm() for part in run) if self.has_norms else ()
        logits = self.classifier(embedding)
        return Outputs(logits, embedding, tuple(features), tuple(preacts), head, norms)
