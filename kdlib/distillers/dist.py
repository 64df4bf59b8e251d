"""DIST: the student's probabilities should correlate with the teacher's, not equal them."""

import jax
import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller, positive, safe_sqrt


def pearson_distance(*, student: Array, teacher: Array) -> Array:
    """1 − Pearson's correlation between the rows of two ``[m, d]`` arrays: ``[m]``. Constant rows
    (to float32) give no gradient: 1 if only the student's is constant, 0 if the teacher's is."""

    def standard(x):
        centred = x - x.mean(-1, keepdims=True)
        length = safe_sqrt((centred**2).sum(-1, keepdims=True))
        varies = length > 1e-6 * jnp.abs(x).max(-1, keepdims=True) + 1e-12  # (m, 1)
        return jnp.where(varies, centred / jnp.where(varies, length, 1.0), 0.0), varies[:, 0]

    (s, varies_s), (t, varies_t) = standard(student), standard(teacher)
    distance = ((s - t) ** 2).sum(-1) / 2  # 1 − s·t of unit vectors, and exactly 0 where s = t
    return jnp.where(varies_t, jnp.where(varies_s, distance, 1.0), 0.0)


class DIST(Distiller):
    """``CE + scale · T² · (beta · inter + gamma · intra)``, of the softmax at temperature T.

    inter: mean over pictures of the Pearson distance along the classes. intra: mean over classes of
    the one along the batch's pictures (0 for a single picture).

    Args:
        beta, gamma: weights of inter and intra.
        scale: weight of both together.
        temperature: T, above 0, ValueError else; 4 for CIFAR, 1 for ImageNet.

    Reference:
        Huang et al., NeurIPS 2022, arXiv:2205.10536;
        hunto/image_classification_sota:lib/models/losses/dist_kd.py, which has T² too (and 1e-8 in
        the correlation's denominator).
    """

    invariances = ("constant per row of logits",)

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, scale: float = 2.0,
                 temperature: float = 4.0):  # fmt: skip
        positive(temperature=temperature)
        self.beta, self.gamma, self.temperature = float(beta), float(gamma), float(temperature)
        self.scale = self.weight = float(scale)

    def knowledge(self, student, teacher, labels):
        logits = (x.logits.astype(jnp.float32) for x in (student, teacher))
        s, t = (jax.nn.softmax(z / self.temperature) for z in logits)
        inter = pearson_distance(student=s, teacher=t).mean()
        intra = pearson_distance(student=s.T, teacher=t.T).mean()
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)
