"""Activation boundaries: the student's neurons should be on and off where the teacher's are."""

import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.base import Array, Distiller, adapters, halving


def boundary_loss(*, student: Array, teacher: Array, margin: float = 1.0) -> Array:
    """``mean over pictures of Σ max(margin ∓ s, 0)²``, minus where t > 0 and plus elsewhere, of
    maps before the ReLU ``[n, h, w, c]``: a scalar."""
    student = student.astype(jnp.float32)
    short = nnx.relu(jnp.where(teacher > 0, margin - student, margin + student))
    return (short**2).sum((1, 2, 3)).mean()


class AB(Distiller):
    """``weight · Σ_stages boundary / 2^(L − l)`` alone for 30/270 of the run, then CE alone.

    Where shapes differ, the student's maps pass a convolution with batch norm: 1x1, or strided or
    transposed where sides do.

    Args:
        margin: see :func:`boundary_loss`.
        weight: of the sum. ValueError if the networks' numbers of stages differ.

    Reference:
        Heo et al., AAAI 2019, arXiv:1811.03233; HobbitLong/RepDistiller:distiller_zoo/AB.py;
        bhheo/AB_distillation, also with ``+ SoftLogits(temperature=3)``.
    """

    zero_at_match, pretrain, afterwards = False, 30 / 270, 0.0

    def __init__(self, margin: float = 1.0, weight: float = 0.003):
        self.margin, self.weight = float(margin), float(weight)

    def prepare(self, student, teacher, rngs, labels):
        self.adapters = adapters(student, teacher, rngs, always=False)

    def knowledge(self, student, teacher, labels):
        maps = zip(self.adapters, student.preacts, teacher.preacts, strict=True)
        losses = (boundary_loss(student=f(s), teacher=t, margin=self.margin) for f, s, t in maps)
        return halving(losses)
