"""Attention transfer: the student should look where the teacher looks."""

import jax
import jax.numpy as jnp

from kdlib.distillers.base import Distiller, l2_normalise, require, safe_sqrt, same_sides, stages_of


def attention_map(*, feature: jax.Array) -> jax.Array:
    """Where a feature map ``[n, h, w, c]`` is active: the mean of its squares over channels as
    unit vectors ``[n, h·w]`` (zero where all of the feature is)."""
    energy = (feature.astype(jnp.float32) ** 2).mean(-1)  # (n, h, w)
    return l2_normalise(energy.reshape(len(energy), -1))  # (n, h·w)


def attention_loss(*, student: jax.Array, teacher: jax.Array, mode: str = "squared") -> jax.Array:
    """Distance between the attention maps of one stage; the larger map is pooled to the smaller.

    Args:
        student, teacher: feature maps ``[n, h, w, c]``, each with sides and channels of its own.
        mode: ``"squared"``: mean over pictures and positions of the squared difference, as in the
            authors' code; ``"paper"``: mean over pictures of the Euclidean distance. A scalar.
    """
    student, teacher = same_sides(student, teacher)
    square = (attention_map(feature=student) - attention_map(feature=teacher)) ** 2  # (n, h·w)
    return square.mean() if mode == "squared" else safe_sqrt(square.sum(-1)).mean()


class AttentionTransfer(Distiller):
    """``CE + beta · Σ_stages`` of the distance between attention maps.

    Args:
        beta: weight of the sum. The mean over positions makes its effect depend on the map:
            1000 weighs 0.98, 3.9 and 15.6 per picture at 32x32, 16x16 and 8x8.
        mode: ``"squared"`` or ``"paper"``, see :func:`attention_loss`. The paper's form has
            ``beta / 2`` before the sum; give that half here.
        stages: which stages, from 1; all of them if None. ValueError for one that a network
            doesn't have, and for networks with different numbers of stages.

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928;
        szagoruyko/attention-transfer:utils.py; beta as in their code.
    """

    invariances = ("scale of a picture's features",)

    def __init__(self, beta: float = 1000.0, mode: str = "squared", stages: tuple | None = None):
        require(mode in ("squared", "paper"), f"{mode=}: give 'squared' or 'paper'")
        self.beta = self.weight = float(beta)
        self.mode, self.stages = mode, stages and tuple(stages)

    def knowledge(self, student, teacher, labels):
        pairs = stages_of(student, teacher, self.stages)
        return sum(attention_loss(student=s, teacher=t, mode=self.mode) for s, t in pairs)
