"""Soft logits: the teacher's softened class probabilities are the student's targets."""

import jax
import jax.numpy as jnp

from kdlib.distillers.base import Distiller


def soft_logit_loss(
    *, student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
    """Kullback-Leibler divergence from the teacher's to the student's softened probabilities.

    ``temperature² · mean over pictures of Σ_classes p_t · (log p_t − log p_s)``, with
    ``p = softmax(logits / temperature)``. The gradient with respect to the logits shrinks like
    1/temperature², hence the factor: it keeps the balance with the cross-entropy.

    Args:
        student_logits, teacher_logits: ``[n, k]``.
        temperature: above 0; 1 leaves the probabilities as they are, more makes them softer.

    Returns:
        A scalar, in nats times temperature².

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531. As in the paper.
    """
    log_student = jax.nn.log_softmax(student_logits / temperature)
    log_teacher = jax.nn.log_softmax(teacher_logits / temperature)
    divergence = (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1)  # (n,)
    return temperature**2 * divergence.mean()


class SoftLogits(Distiller):
    """Knowledge distillation by soft logits, ``gamma · CE + alpha · T² · KL``.

    Args:
        temperature: T, above 0.
        alpha: weight of the knowledge loss.
        gamma: weight of the cross-entropy; None is ``1 − alpha``, so that alpha is a share.

    Raises:
        ValueError: a temperature or weight out of range.

    Reference:
        Hinton et al. 2015, arXiv:1503.02531; weights as in HobbitLong/RepDistiller (T 4, α 0.9).
    """

    invariances = ("constant per row of logits",)

    def __init__(self, temperature: float = 4.0, alpha: float = 0.9, gamma: float | None = None):
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: give a number above 0, usually 1 to 10")
        if not 0 <= alpha <= (1 if gamma is None else float("inf")):
            raise ValueError(f"alpha={alpha}: give the share of the knowledge loss, 0 to 1")
        self.temperature, self.alpha, self.gamma = float(temperature), float(alpha), gamma
        self.ce_weight, self.weight = 1 - self.alpha if gamma is None else gamma, self.alpha

    def knowledge(self, student, teacher, labels):
        return soft_logit_loss(
            student_logits=student.logits, teacher_logits=teacher.logits,
            temperature=self.temperature,
        )  # fmt: skip
