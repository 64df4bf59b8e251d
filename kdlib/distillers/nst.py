"""Neuron selectivity transfer: the channels' maps, as a set, should be like the teacher's."""

import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller, l2_normalise, same_sides, stages_of


def selectivity_loss(*, student: Array, teacher: Array) -> Array:
    """``mean k(t, t) + mean k(s, s) − 2 · mean k(s, t)`` over pictures and pairs of channels, where
    ``k(a, b) = (a·b)²`` and a channel is its map over positions, at length 1: the squared maximum
    mean discrepancy. Both ``[n, h, w, c]``; the larger map is pooled to the smaller. A scalar."""

    kernel = lambda a, b: (jnp.einsum("npa,npb->nab", a, b, precision="highest") ** 2).mean()
    maps = same_sides(student.astype(jnp.float32), teacher.astype(jnp.float32))
    flat = (x.reshape(len(x), -1, x.shape[-1]) for x in maps)  # (n, h·w, c)
    s, t = (l2_normalise(x.swapaxes(1, 2)).swapaxes(1, 2) for x in flat)
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


class NST(Distiller):
    """``CE + beta · Σ_stages selectivity_loss``.

    Args:
        beta: weight of the sum.
        stages: which stages, from 1; all of them if None. ValueError if they aren't there.

    Reference:
        Huang, Wang, 2017, arXiv:1707.01219; HobbitLong/RepDistiller:distiller_zoo/NST.py.
    """

    invariances = ("scale of a picture's features", "scale of all features")

    def __init__(self, beta: float = 50.0, stages: tuple[int, ...] | None = None):
        self.beta = self.weight = float(beta)
        self.stages = stages and tuple(stages)

    def knowledge(self, student, teacher, labels):
        pairs = stages_of(student, teacher, self.stages)
        return sum(selectivity_loss(student=s, teacher=t) for s, t in pairs)
