"""Activation boundaries: the student's neurons should be on and off where the teacher's are."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.base import Adapter, Distiller, stages_of


def boundary_loss(*, student: jax.Array, teacher: jax.Array, margin: float = 1.0) -> jax.Array:
    """``mean over pictures of Σ max(margin ∓ s, 0)²``, minus where t > 0 and plus elsewhere, of
    maps before the ReLU ``[n, h, w, c]``: a scalar."""
    student = student.astype(jnp.float32)
    short = nnx.relu(jnp.where(teacher > 0, margin - student, margin + student))
    return (short**2).sum((1, 2, 3)).mean()


class AB(Distiller):
    """``weight · Σ_stages boundary / 2^(L − l)`` alone for 30/270 of the run, then CE alone.

    The student's maps pass a 1x1 convolution with batch norm where shapes differ.

    Args:
        margin: see :func:`boundary_loss`.
        weight: of the sum. ValueError if the networks' numbers of stages differ.

    Reference:
        Heo et al., AAAI 2019, arXiv:1811.03233; HobbitLong/RepDistiller:distiller_zoo/AB.py;
        bhheo/AB_distillation, also with ``+ SoftLogits(temperature=3)``.
    """

    zero_at_match = False
    pretrain = 30 / 270
    afterwards = 0.0

    def __init__(self, margin: float = 1.0, weight: float = 0.003):
        self.margin, self.weight = float(margin), float(weight)

    def prepare(self, student, teacher, rngs, labels):
        stages_of(student, teacher)
        pairs = zip(student.preacts, teacher.preacts, strict=True)
        self.adapters = nnx.data([Adapter(s, t, rngs, always=False) for s, t in pairs])

    def knowledge(self, student, teacher, labels):
        total = 0.0  # the last stage weighs 1, the one before 1/2, ...
        for adapt, s, t in zip(self.adapters, student.preacts, teacher.preacts, strict=True):
            total = total / 2 + boundary_loss(student=adapt(s), teacher=t, margin=self.margin)
        return total
