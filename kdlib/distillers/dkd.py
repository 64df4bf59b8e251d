"""Decoupled distillation: the label's class and the rest of them are weighed apart."""

import jax
import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller, positive


def decouple(*, logits: Array, labels: Array) -> tuple[Array, Array]:
    """Of ``p = softmax(logits)``: ``log (p_label, 1 − p_label)`` ``[n, 2]``, and log p of the other
    classes ``[n, k]``, with sum 1 and a 0 in the label's place; finite, unlike with masks."""
    other = labels[:, None] != jnp.arange(logits.shape[-1])  # (n, k)
    log_p = jax.nn.log_softmax(logits)
    rest = jax.nn.logsumexp(log_p, -1, where=other, keepdims=True)  # log(1 − p_label), (n, 1)
    label = jnp.take_along_axis(log_p, labels[:, None], -1)
    return jnp.concatenate([label, rest], -1), jnp.where(other, log_p - rest, 0.0)


class DKD(Distiller):
    """``CE + T² · mean over pictures of (alpha · KL(b_t ‖ b_s) + beta · KL(q_t ‖ q_s))``.

    b is (label, not label) and q the other classes among themselves, of the softmax at T; q says
    nothing where there are two classes. The knowledge warms up over 20 of 240 epochs.

    Args:
        alpha, beta: weights. Published betas on CIFAR-100: 2 (ResNet-56 to 20), 6 to 8 (wide ones).
        temperature: T, above 0; ValueError else.

    Reference:
        Zhao et al., CVPR 2022, arXiv:2203.08679; megvii-research/mdistiller:
        mdistiller/distillers/DKD.py, configs/cifar100/dkd.
    """

    invariances, warmup = ("constant per row of logits",), 1 / 12

    def __init__(self, alpha: float = 1.0, beta: float = 2.0, temperature: float = 4.0):
        positive(temperature=temperature)
        self.alpha, self.beta, self.temperature = float(alpha), float(beta), float(temperature)

    def knowledge(self, student, teacher, labels):
        logits = (x.logits.astype(jnp.float32) / self.temperature for x in (student, teacher))
        parts = zip(*(decouple(logits=z, labels=labels) for z in logits), strict=True)
        # Of b and of q, (n,); there the label's place adds 0 − 0.
        target, rest = ((jnp.exp(t) * (t - s)).sum(-1) for s, t in parts)
        return self.temperature**2 * (self.alpha * target + self.beta * rest).mean()
