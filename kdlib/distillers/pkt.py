"""Probabilistic knowledge transfer: who is near whom, as probabilities, should be the teacher's."""

import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller
from kdlib.distillers.cc import INVARIANCES, cosines


def neighbours(*, embedding: Array) -> Array:
    """How likely picture i picks j: ``(1 + cosine_ij) / 2`` over its sum, ``[n, d]`` → [n, n]."""
    near = jnp.maximum(cosines(embedding=embedding) + 1, 0) / 2  # not below, by rounding
    return near / near.sum(-1, keepdims=True)


class PKT(Distiller):
    """``CE + beta · mean over n² pairs P_t · log((P_t + 1e-7) / (P_s + 1e-7))``, P neighbours.

    Args:
        beta: weight of the knowledge. It shrinks like 1/n, for rows of P sum to 1 whatever n: 3e4
            was published for batches of n = 64, twice that keeps its strength at 128.

    Reference:
        Passalis, Tefas, ECCV 2018, arXiv:1803.10837; HobbitLong/RepDistiller:distiller_zoo/PKT.py.
    """

    invariances = INVARIANCES

    def __init__(self, beta: float = 3e4):
        self.beta = self.weight = float(beta)

    def knowledge(self, student, teacher, labels):
        s, t = (neighbours(embedding=x.embedding) for x in (student, teacher))
        # Differences first: of two logarithms so much alike, rounding would be what is left. Rows
        # sum to 1, so s - t adds nothing but takes rounding's first order away.
        return (s - t - t * jnp.log1p((s - t) / (t + 1e-7))).mean()
