"""Soft logits: the teacher's softened class probabilities are the student's targets."""

import jax
import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller, positive, require


def soft_logit_loss(*, student_logits: Array, teacher_logits: Array, temperature: float) -> Array:
    """Kullback-Leibler divergence from the teacher's to the student's softened probabilities.

    ``temperature² · mean over pictures of Σ_classes p_t · (log p_t − log p_s)``, with
    ``p = softmax(logits / temperature)``, a scalar. The gradient shrinks like 1/temperature², hence
    the factor: it keeps the balance with the cross-entropy.

    Args:
        student_logits, teacher_logits: ``[n, k]``.
        temperature: above 0; 1 leaves the probabilities as they are, more makes them softer.
    """
    both = (z.astype(jnp.float32) for z in (student_logits, teacher_logits))
    log_s, log_t = (jax.nn.log_softmax(z / temperature) for z in both)
    return temperature**2 * (jnp.exp(log_t) * (log_t - log_s)).sum(-1).mean()


class SoftLogits(Distiller):
    """Knowledge distillation by soft logits, ``gamma · CE + alpha · T² · KL``.

    Args:
        temperature: T, above 0 (ValueError for it or others out of range).
        alpha: weight of the knowledge loss.
        gamma: weight of the cross-entropy; None is ``1 − alpha``, so that alpha is a share.

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531; weights as in HobbitLong/RepDistiller (T 4, α 0.9).
    """

    invariances = ("constant per row of logits",)

    def __init__(self, temperature: float = 4.0, alpha: float = 0.9, gamma: float | None = None):
        positive(temperature=temperature)
        most = 1 if gamma is None else float("inf")
        require(0 <= alpha <= most, f"{alpha=}: give the share of the knowledge loss, 0 to 1")
        self.temperature, self.alpha, self.gamma = float(temperature), float(alpha), gamma
        self.ce_weight, self.weight = 1 - self.alpha if gamma is None else gamma, self.alpha

    def knowledge(self, student, teacher, labels):
        pair = {"student_logits": student.logits, "teacher_logits": teacher.logits}
        return soft_logit_loss(**pair, temperature=self.temperature)
