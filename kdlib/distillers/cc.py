"""Correlation congruence: the correlations between pictures should be the teacher's."""

import math

import jax.numpy as jnp
from flax import nnx

from kdlib.distillers.base import Array, Distiller, l2_normalise, mean_square, require

PUBLISHED = {"taylor": 100.0, "repdistiller": 0.02}  # weight, by variant
# Of whatever sees only the angles between embeddings.
INVARIANCES = "scale of a picture's features", "scale of all features", "rotation of the embedding"


def cosines(*, embedding: Array) -> Array:
    """Cosine of the angle between each pair of pictures: [n, d] → [n, n]."""
    unit = l2_normalise(embedding.astype(jnp.float32))
    return jnp.matmul(unit, unit.T, precision="highest")


def correlations(*, embedding: Array, gamma: float = 0.4, order: int = 2) -> Array:
    """``Σ_p≤order exp(−2·gamma) · (2·gamma)^p / p! · cosine^p`` of pairs of [n, d]: [n, n]."""
    cosine = cosines(embedding=embedding)
    terms = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(terms)


def neighbour_loss(*, student: Array, teacher: Array) -> Array:
    """``mean_i Σ_d Δ_i · Δ_(i+1)`` with ``Δ = |student − teacher|``, both [n, d]; 0 for n = 1."""
    difference = jnp.abs(student.astype(jnp.float32) - teacher.astype(jnp.float32))
    return (difference[:-1] * difference[1:]).sum() / max(len(student) - 1, 1)


class CC(Distiller):
    """``CE + beta · mean over n² pairs (K_s − K_t)²``, K the embeddings' correlations.

    Args:
        variant: ``"taylor"``, or ``"repdistiller"``, which differs from the paper: the neighbour
            loss of both embeddings after a linear layer each to 128, trained with the student.
        gamma, order: of :func:`correlations`; order from 1 (ValueError else).
        beta: weight of the knowledge; None is the variant's published one, 100 or 0.02.

    Reference:
        Peng et al., ICCV 2019, arXiv:1904.01802; AberHu/Knowledge-Distillation-Zoo:kd_losses/cc.py,
        HobbitLong/RepDistiller:distiller_zoo/CC.py.
    """

    def __init__(self, variant: str = "taylor", gamma: float = 0.4, order: int = 2,
                 beta: float | None = None):  # fmt: skip
        require(variant in PUBLISHED, f"{variant=}: give 'taylor' or 'repdistiller'")
        require(order >= 1, f"{order=}: give 1 or more")
        self.variant, self.gamma, self.order, self.beta = variant, float(gamma), int(order), beta
        self.weight = PUBLISHED[variant] if beta is None else float(beta)
        self.zero_at_match = self.any_order = variant == "taylor"
        self.invariances = INVARIANCES if self.zero_at_match else ()

    def prepare(self, student, teacher, rngs, labels):
        if self.variant == "repdistiller":
            self.of_student = nnx.Linear(student.embedding.shape[-1], 128, rngs=rngs)
            self.of_teacher = nnx.Linear(teacher.embedding.shape[-1], 128, rngs=rngs)

    def knowledge(self, student, teacher, labels):
        s, t = student.embedding, teacher.embedding
        if self.variant == "repdistiller":
            return neighbour_loss(student=self.of_student(s), teacher=self.of_teacher(t))
        s, t = (correlations(embedding=e, gamma=self.gamma, order=self.order) for e in (s, t))
        return mean_square(s, t)
