"""What every network shows: one named tuple, so that no distiller needs a hook to look inside."""

from typing import NamedTuple

import jax


class Outputs(NamedTuple):
    """Everything a distiller may look at. XLA removes whatever nobody uses.

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

    logits: jax.Array
    embedding: jax.Array
    features: tuple[jax.Array, ...]
    preacts: tuple[jax.Array, ...]
    head: tuple[jax.Array, ...] = ()
    norms: tuple[tuple[jax.Array, jax.Array], ...] = ()
