"""Class-wise self-knowledge distillation: two pictures of a class should get the same answer."""

import jax
import jax.numpy as jnp

from kdlib.data import Batch
from kdlib.distillers import soft_logit_loss
from kdlib.distillers.base import positive
from kdlib.transfer.supervised import Loss, Supervised, cross_entropy


class CSKD(Supervised):
    """``CE + weight · T² · KL(p(partner) ‖ p(picture))``, the partner another of the same class.

    Args:
        temperature: T of the divergence.
        weight: of it; 1 in the paper, 3 on CUB.

    Raises:
        ValueError: a temperature of 0 or below.

    Reference:
        Yun et al., "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR
        2020, arXiv:2003.13964; alinlab/cs-kd:train.py, datasets.py.
    """

    family, passes = "SelfDistillation", (2, 0)

    def __init__(self, temperature: float = 4.0, weight: float = 1.0):
        positive(temperature=temperature)
        self.temperature, self.weight = float(temperature), weight

    def batch(self, view, pictures, index, key, progress, classes) -> Batch:
        labels = pictures.labels[index]
        draw, shift = jax.random.split(jax.random.fold_in(key, 31))
        itself = jnp.arange(len(pictures.labels)) == index[:, None]  # (n, m)
        same = (pictures.labels == labels[:, None]) & ~itself
        # A class with a single picture has no partner but itself.
        same |= ~same.any(1, keepdims=True) & itself
        partner = jax.random.categorical(draw, jnp.where(same, 0.0, -jnp.inf))  # (n,)
        return Batch(view(key, index), labels, index, progress, key, extra=view(shift, partner))

    def loss(self, trained, frozen, batch):
        partner = jax.lax.stop_gradient(trained.student(batch.extra).logits)
        logits = trained.student(batch.images).logits
        ce = cross_entropy(logits, batch.labels)
        pair = {"student_logits": logits, "teacher_logits": partner}
        lesson = soft_logit_loss(**pair, temperature=self.temperature)
        return Loss(ce, self.weight * lesson, {"cross_entropy": ce, "knowledge": lesson}, logits)
