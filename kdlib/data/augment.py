"""Batches and their random views, made inside the jitted step from pictures on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Batch(NamedTuple):
    """What one training step sees.

    Attributes:
        images: augmented pictures ``[n, h, w, c]``, in units of 0..255.
        labels: int32 ``[n]``.
        index: their positions in the training set, int32 ``[n]``.
        progress: share of the run that is done when this epoch ends, 0 to 1.
        key: random key of the step.
        targets: class probabilities ``[n, k]`` in place of the labels (mixup), or None.
        extra: further views, or what a loss wants of them.
    """

    images: Array
    labels: Array
    index: Array | None = None
    progress: Array | float = 1.0
    key: Array | None = None
    targets: Array | None = None
    extra: Any = None


class Pictures(NamedTuple):
    """A training set on the device: uint8 ``[m, h, w, c]``, int32 ``[m]``."""

    images: Array
    labels: Array


def crop_and_flip(key: Array, images: Array, index: Array, *, pad: int = 4, crop: float = 1.0,
                  flip: float = 0.5) -> Array:  # fmt: skip
    """Take a batch from the data set, each picture shifted and mirrored on its own.

    Selecting, padding by reflection, cropping and flipping are one gather: for every pixel of the
    result it is computed which pixel of the data set lands there.

    Args:
        key: random key of this step.
        images: the whole data set, ``[n, h, w, c]``.
        index: positions of the batch in it, ``[b]``.
        pad: largest shift in pixels; each of the 2·pad+1 offsets a direction has is as likely.
        crop: probability of a shift.
        flip: probability of a left-right mirroring.

    Returns:
        ``[b, h, w, c]``, of the data set's dtype.
    """
    height, width = images.shape[1:3]
    size = (len(index), 1)
    shift_key, crop_key, flip_key = jax.random.split(key, 3)
    shift = jax.random.randint(shift_key, (2, *size), -pad, pad + 1)
    shift *= jax.random.bernoulli(crop_key, crop, size)
    mirrored = jax.random.bernoulli(flip_key, flip, size)

    column = jnp.where(mirrored, jnp.arange(width)[::-1], jnp.arange(width))  # (b, w)
    column = _reflect(column + shift[1], width)  # (b, w)
    row = _reflect(jnp.arange(height)[None] + shift[0], height)  # (b, h)
    return images[index[:, None, None], row[:, :, None], column[:, None, :]]  # (b, h, w, c)


def _reflect(position: Array, size: int) -> Array:
    """Fold positions outside 0..size-1 back in, the border pixel itself not repeated."""
    return (size - 1) - jnp.abs((size - 1) - jnp.abs(position))


def strong(key: Array, images: Array) -> Array:
    """A strongly changed view: turned, sheared, scaled, in other colours, with a hole.

    Stands in for RandAugment(2, 10) where a method asks for it; the ranges are like its own
    (30 degrees, 30 % shear, factors 0.4 to 1.6) and all changes are applied to every picture.

    Args:
        key: random key.
        images: ``[n, h, w, c]``, in units of 0..255.

    Returns:
        float32 ``[n, h, w, c]``, in units of 0..255.
    """
    n, h, w, _ = images.shape
    keys = jax.random.split(key, 5)
    turn, shear, scale = jax.random.uniform(keys[0], (3, n, 1, 1), minval=-0.5, maxval=0.5)
    y, x = jnp.arange(h)[None, :, None] - (h - 1) / 2, jnp.arange(w)[None, None] - (w - 1) / 2
    x = x + 0.6 * shear * y  # (n, h, w)
    factor = 1 + 0.4 * scale
    row = factor * (jnp.cos(turn) * y - jnp.sin(turn) * x) + (h - 1) / 2
    column = factor * (jnp.sin(turn) * y + jnp.cos(turn) * x) + (w - 1) / 2
    fold = lambda at, size: _reflect(jnp.round(at).astype(jnp.int32), size).clip(0, size - 1)
    picture = images[jnp.arange(n)[:, None, None], fold(row, h), fold(column, w)]
    picture = picture.astype(jnp.float32)
    change = jax.random.uniform(keys[1], (3, n, 1, 1, 1), minval=0.4, maxval=1.6)
    for factor, axes in zip(change, ((3,), (1, 2, 3), ()), strict=True):  # colour, contrast, light
        base = picture.mean(axes, keepdims=True) if axes else 0.0
        picture = base + factor * (picture - base)
    hole = _box(keys[2], keys[3], n, h, w, jnp.full((n,), 1 / 16))
    return jnp.where(hole[..., None], 127.5, picture.clip(0, 255))


def mix(key: Array, images: Array, targets: Array, *, alpha: float, cut: bool):
    """Mixup or CutMix: every picture is blended with another of the batch, and so is its target.

    Args:
        key: random key.
        images, targets: ``[n, h, w, c]`` and class probabilities ``[n, k]``.
        alpha: of the Beta distribution the share is drawn from, once per batch; 1 is uniform.
        cut: paste a box of the other picture (CutMix) instead of averaging (mixup).

    Returns:
        Images and targets of the same shapes, float32.

    Reference:
        Zhang et al., "mixup", ICLR 2018, arXiv:1710.09412; Yun et al., "CutMix", ICCV 2019,
        arXiv:1905.04899.
    """
    n, h, w, _ = images.shape
    keys = jax.random.split(key, 4)
    order = jax.random.permutation(keys[0], n)
    share = jax.random.beta(keys[1], alpha, alpha)  # of the picture itself
    images = images.astype(jnp.float32)
    if cut:
        box = _box(keys[2], keys[3], 1, h, w, 1 - share[None])[..., None]  # (1, h, w, 1)
        share, mixed = 1 - box.mean(), jnp.where(box, images[order], images)
    else:
        mixed = share * images + (1 - share) * images[order]
    return mixed, share * targets + (1 - share) * targets[order]


def _box(row_key, column_key, n, h, w, area):
    """Random rectangles covering a share ``area`` ``[n]`` (less at the border): bool [n, h, w]."""
    edge, inside = jnp.sqrt(area) / 2, []
    for key, size in ((row_key, h), (column_key, w)):
        middle = jax.random.randint(key, (n, 1), 0, size)
        at, reach = jnp.arange(size)[None], jnp.round(edge * size).astype(jnp.int32)[:, None]
        inside.append((at >= middle - reach) & (at < middle + reach))  # (n, size)
    return inside[0][:, :, None] & inside[1][:, None, :]
