"""Variational information distillation: the student predicts a normal density of the teacher."""

import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.base import Array, Distiller, same_sides, stages_of


def variational_loss(*, mean: Array, teacher: Array, variance: Array) -> Array:
    """``mean ½ [(mean − t)² / variance + log variance]`` of two maps ``[n, h, w, c]``, variances
    ``[c]``: nats per element without the constant, a scalar that may be negative."""
    return ((mean.astype(jnp.float32) - teacher) ** 2 / variance + jnp.log(variance)).mean() / 2


class VID(Distiller):
    """``CE + beta · Σ_stages`` of :func:`variational_loss`; mean and variance are trained.

    The mean is three 1x1 convolutions of the student's map with ReLUs between, the variance
    ``softplus(rho) + 1e-5`` per channel, 5 at first. The larger map is pooled.

    Args:
        beta: weight of the sum. ValueError if the networks' numbers of stages differ.

    Reference:
        Ahn et al., CVPR 2019, arXiv:1904.05835; HobbitLong/RepDistiller:distiller_zoo/VID.py.
    """

    zero_at_match = False

    def __init__(self, beta: float = 1.0):
        self.beta = self.weight = float(beta)

    def prepare(self, student, teacher, rngs, labels):
        self.means, self.rhos = nnx.data([]), nnx.data([])
        for s, t in stages_of(student, teacher):
            d, c = s.shape[3], t.shape[3]
            first, second, last = (nnx.Linear(k, c, use_bias=False, rngs=rngs) for k in (d, c, c))
            self.means.append(nnx.Sequential(first, nnx.relu, second, nnx.relu, last))
            self.rhos.append(nnx.Param(jnp.full(c, jnp.log(jnp.expm1(5 - 1e-5)))))

    def knowledge(self, student, teacher, labels):
        total, pairs = 0.0, stages_of(student, teacher)
        for predict, rho, pair in zip(self.means, self.rhos, pairs, strict=True):
            (s, t), variance = same_sides(*pair), nnx.softplus(rho[...]) + 1e-5
            total += variational_loss(mean=predict(s), teacher=t, variance=variance)
        return total
