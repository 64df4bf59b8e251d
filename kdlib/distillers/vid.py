"""Variational information distillation: the student predicts a normal density of the teacher."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.base import Distiller, pool_to_smaller, stages_of


def variational_loss(*, mean: jax.Array, teacher: jax.Array, variance: jax.Array) -> jax.Array:
    """``mean ½ [(mean − t)² / variance + log variance]`` of two maps ``[n, h, w, c]``, variances
    ``[c]``: nats per element without the constant, a scalar that may be negative."""
    square = (mean.astype(jnp.float32) - teacher) ** 2
    return (square / variance + jnp.log(variance)).mean() / 2


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
        for i in stages_of(student, teacher):
            c_s, c_t = student.features[i].shape[3], teacher.features[i].shape[3]
            a, b, c = (nnx.Linear(c, c_t, use_bias=False, rngs=rngs) for c in (c_s, c_t, c_t))
            self.means.append(nnx.Sequential(a, nnx.relu, b, nnx.relu, c))
            self.rhos.append(nnx.Param(jnp.full(c_t, jnp.log(jnp.expm1(5 - 1e-5)))))

    def knowledge(self, student, teacher, labels):
        maps, total = zip(student.features[1:], teacher.features[1:], strict=True), 0.0
        for predict, rho, pair in zip(self.means, self.rhos, maps, strict=True):
            s, t = pool_to_smaller(*pair)
            variance = nnx.softplus(rho[...]) + 1e-5
            total += variational_loss(mean=predict(s), teacher=t, variance=variance)
        return total
