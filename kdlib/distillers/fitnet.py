"""FitNets: a regressor on one of the student's maps predicts the teacher's map."""

import jax
import jax.numpy as jnp

from kdlib.distillers.base import Adapter, Distiller, stages_of


def hint_loss(*, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean squared difference over all elements of two arrays of one shape: a scalar."""
    return ((student.astype(jnp.float32) - teacher) ** 2).mean()


class FitNet(Distiller):
    """``CE + beta · mean (regressor(f_s) − f_t)²``, with a convolution, batch norm and ReLU.

    Args:
        beta: weight of the hint.
        stage: whose maps are compared, from 1; ValueError if a network doesn't have it.
        original: the hint alone for the first fifth of the run, then none, as in
            ``FitNet(original=True) + SoftLogits``; the paper's two stages, lengths unverified.

    Reference:
        Romero et al., ICLR 2015, arXiv:1412.6550; HobbitLong/RepDistiller:helper/loops.py.
    """

    zero_at_match = False

    def __init__(self, beta: float = 100.0, stage: int = 2, original: bool = False):
        self.beta, self.stage, self.original = float(beta), stage, original
        self.weight = self.beta
        if original:
            self.pretrain, self.afterwards = 0.2, 0.0

    def prepare(self, student, teacher, rngs, labels):
        (i,) = stages_of(student, teacher, (self.stage,))
        self.regressor = Adapter(student.features[i], teacher.features[i], rngs, relu=True)

    def knowledge(self, student, teacher, labels):
        hint = self.regressor(student.features[self.stage])
        return hint_loss(student=hint, teacher=teacher.features[self.stage])
