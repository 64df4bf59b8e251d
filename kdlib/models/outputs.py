"""What every network shows: one named tuple, so that no distiller needs a hook to look inside."""

from typing import NamedTuple

import jax


class Outputs(NamedTuple):
    """Everything a distiller may look at. XLA removes whatever nobody uses.

    Attributes:
        logits: class scores before the softmax, ``[n, k]``.
        embedding: globally average-pooled last feature map, ``[n, d]``.
        features: stem and stage outputs after the ReLU, a tuple of ``[n, h, w, c]``.
        preacts: stage outputs before their last ReLU, a tuple of ``[n, h, w, c]``
            (one shorter than ``features``: the stem has none).
    """

    logits: jax.Array
    embedding: jax.Array
    features: tuple[jax.Array, ...]
    preacts: tuple[jax.Array, ...]
