"""Random crops and flips, inside the jitted step, on uint8 pictures that stay on the device."""

import jax
import jax.numpy as jnp


def crop_and_flip(
    key: jax.Array,
    images: jax.Array,
    index: jax.Array,
    *,
    pad: int = 4,
    crop: float = 1.0,
    flip: float = 0.5,
) -> jax.Array:
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

    column = jnp.arange(width)[None]  # (1, w)
    column = jnp.where(mirrored, width - 1 - column, column)  # (b, w)
    column = _reflect(column + shift[1], width)  # (b, w)
    row = _reflect(jnp.arange(height)[None] + shift[0], height)  # (b, h)
    return images[index[:, None, None], row[:, :, None], column[:, None, :]]  # (b, h, w, c)


def _reflect(position: jax.Array, size: int) -> jax.Array:
    """Fold positions outside 0..size-1 back in, the border pixel itself not repeated."""
    return (size - 1) - jnp.abs((size - 1) - jnp.abs(position))
