"""Similarity preserving: pictures alike for the teacher should be alike for the student."""

import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller, l2_normalise, mean_square


def similarities(*, feature: Array) -> Array:
    """``F Fᵀ`` of feature maps ``[n, h, w, c]`` flattened to F, rows at length 1; ``[n, n]``."""
    flat = feature.reshape(len(feature), -1).astype(jnp.float32)  # (n, h·w·c)
    return l2_normalise(jnp.matmul(flat, flat.T, precision="highest"))


class SP(Distiller):
    """``CE + beta · mean over n² pairs (G_t − G_s)²``, G the similarities of the last features.

    Args:
        beta: weight of the knowledge. It shrinks like 1/n, for rows of G have length 1 whatever n:
            3000 was published for batches of n = 64, twice that keeps its strength at 128.

    Reference:
        Tung, Mori, ICCV 2019, arXiv:1907.09682; HobbitLong/RepDistiller:distiller_zoo/SP.py.
    """

    invariances = ("scale of all features",)

    def __init__(self, beta: float = 3000.0):
        self.beta = self.weight = float(beta)

    def knowledge(self, student, teacher, labels):
        return mean_square(*(similarities(feature=x.features[-1]) for x in (student, teacher)))
