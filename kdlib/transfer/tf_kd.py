"""Teacher-free distillation by regularisation: a hand-made teacher that is always right."""

import jax
import jax.numpy as jnp

from kdlib.distillers.base import positive, require
from kdlib.transfer.supervised import Loss, Supervised, cross_entropy


def virtual_teacher(*, labels: jax.Array, classes: int, temperature: float, how: str) -> jax.Array:
    """Class probabilities of a teacher that gives the label ``0.99`` and shares the rest.

    Args:
        labels: int32 ``[n]``.
        classes: k.
        temperature: softens them. At 20 the authors' code leaves 0.01050 for the label and 0.00999
            for each of 99 others: uniform label smoothing in all but name.
        how: ``"code"``: softmax of the *probabilities* over the temperature, as in the authors'
            code; ``"paper"``: softmax of their logarithms over it (unverified).

    Returns:
        ``[n, k]``.
    """
    u = jnp.where(jax.nn.one_hot(labels, classes) > 0, 0.99, 0.01 / (classes - 1))
    return jax.nn.softmax((u if how == "code" else jnp.log(u)) / temperature)


class TfKD(Supervised):
    """``(1 − alpha) · CE + alpha · multiplier · mean of KL(virtual teacher ‖ student)``.

    The mean is over pictures *and* classes, as in the authors' code; the student is not softened.
    ``TfKDSelf`` is the paper's other form, with an own pretrained teacher.

    Args:
        alpha, multiplier, temperature: 0.1, 100 and 20 in the authors' ResNet-18 run on CIFAR-100.
        virtual_teacher: ``"code"`` or ``"paper"``, see :func:`virtual_teacher`.

    Raises:
        ValueError: a value out of range.

    Reference:
        Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR
        2020, arXiv:1909.11723; yuanli2333/Teacher-free-Knowledge-Distillation:my_loss_function.py.
    """

    family = "SelfDistillation"

    def __init__(self, alpha: float = 0.1, multiplier: float = 100.0, temperature: float = 20.0,
                 virtual_teacher: str = "code"):  # fmt: skip
        known = 0 <= alpha <= 1 and virtual_teacher in ("code", "paper")
        require(known, f"{alpha=}, {virtual_teacher=}: give a share 0 to 1, 'code' or 'paper'")
        positive(temperature=temperature)
        self.alpha, self.multiplier, self.temperature = alpha, multiplier, temperature
        self.virtual_teacher = virtual_teacher

    def loss(self, trained, frozen, batch):
        logits = trained.student(batch.images).logits.astype(jnp.float32)
        kind = {"temperature": self.temperature, "how": self.virtual_teacher}
        teacher = virtual_teacher(labels=batch.labels, classes=logits.shape[-1], **kind)
        divergence = (teacher * (jnp.log(teacher) - jax.nn.log_softmax(logits))).mean()
        ce = cross_entropy(logits, batch.labels)
        parts = {"cross_entropy": ce, "knowledge": divergence}
        return Loss((1 - self.alpha) * ce, self.alpha * self.multiplier * divergence, parts, logits)
