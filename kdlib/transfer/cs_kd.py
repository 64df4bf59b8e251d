"""Class-wise self-knowledge distillation: two pictures of a class should get the same answer."""

import jax
import jax.numpy as jnp

from kdlib.distillers import SoftLogits
from kdlib.transfer.offline import taught
from kdlib.transfer.supervised import Supervised


class CSKD(Supervised):
    """``CE + weight · T² · KL(p(partner) ‖ p(picture))``, the partner another of the same class.

    Args:
        temperature: T of the divergence.
        weight: of it; 1 in the paper, 3 on CUB.

    Raises:
        ValueError: a temperature of 0 or below, or a weight below 0.

    Reference:
        Yun et al., "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR
        2020, arXiv:2003.13964; alinlab/cs-kd:train.py, datasets.py.
    """

    family, passes = "SelfDistillation", (2, 0)

    def __init__(self, temperature: float = 4.0, weight: float = 1.0):
        self.temperature, self.weight = float(temperature), weight
        self.distiller = SoftLogits(temperature, alpha=weight, gamma=1.0)

    def extra(self, view, pictures, index, key):
        draw, shift = jax.random.split(jax.random.fold_in(key, 31))
        itself = jnp.arange(len(pictures.labels)) == index[:, None]  # (n, m)
        same = (pictures.labels == pictures.labels[index, None]) & ~itself
        # A class with a single picture has no partner but itself.
        same |= ~same.any(1, keepdims=True) & itself
        return view(shift, jax.random.categorical(draw, jnp.where(same, 0.0, -jnp.inf)))

    def loss(self, trained, frozen, batch):
        partner, student = trained.student(batch.extra), trained.student(batch.images)
        return taught(self.distiller, student, partner, batch)
