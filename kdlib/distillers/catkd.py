"""Class attention transfer: the student should see each class where the teacher sees it."""

import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller, l2_normalise, mean_square, pool_evenly, require


def class_map_loss(*, student: Array, teacher: Array, pool=2, normalise=False) -> Array:
    """Mean squared difference of class activation maps ``[n, h, w, k]``, pooled to ``pool · pool``
    positions and, if asked, each divided by its length over these. A scalar."""
    maps = [pool_evenly(x.astype(jnp.float32), pool) for x in (student, teacher)]
    if normalise:
        maps = [l2_normalise(x.reshape(len(x), pool**2, -1).swapaxes(1, 2)) for x in maps]
    return mean_square(*maps)


class CATKD(Distiller):
    """``CE + beta ·`` distance of class activation maps: the classifiers at every position.

    Args:
        beta: weight; published: 0.7 (ResNet-56 to 20) to 15 (32x4 to 8x4), 80 to 600 normalised.
        pool: side of the compared maps, 2, or 4 for networks of different families.
        normalise: see :func:`class_map_loss`; for networks of different families.

    Reference:
        Guo et al., CVPR 2023, arXiv:2304.12777;
        GzyAftermath/CAT-KD:mdistiller/distillers/CAT_KD.py, whose classifiers have no bias; it
        moves no class map. ValueError if a network shows none.
    """

    def __init__(self, beta: float = 0.7, pool: int = 2, normalise: bool = False):
        require(pool >= 1, f"{pool=}: give a whole number from 1, usually 2 or 4")
        self.beta = self.weight = float(beta)
        self.pool, self.normalise = pool, normalise

    def prepare(self, student, teacher, rngs, labels):
        require(student.head and teacher.head, "CATKD needs both classifiers: choose others")

    def knowledge(self, student, teacher, labels):
        s, t = (x.features[-1].astype(jnp.float32) @ x.head[0] for x in (student, teacher))
        return class_map_loss(student=s, teacher=t, pool=self.pool, normalise=self.normalise)
