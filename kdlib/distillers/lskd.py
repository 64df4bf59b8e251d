"""Logit standardisation: of the scores only their shape counts, not their mean and spread."""

import jax.numpy as jnp

from kdlib.distillers.base import COMMON, Array, Distiller, require, safe_sqrt
from kdlib.distillers.soft_logits import SoftLogits


def standardise(*, logits: Array) -> Array:
    """``(z − mean) / (deviation + 1e-7)`` of each row of ``[n, k]``, deviation over k − 1; a row
    that is constant (to float32) becomes zeros and gets no gradient."""
    logits = logits.astype(jnp.float32)
    centred = logits - logits.mean(-1, keepdims=True)
    deviation = safe_sqrt((centred**2).sum(-1, keepdims=True) / (logits.shape[-1] - 1))  # (n, 1)
    varies = deviation > 1e-6 * jnp.abs(logits).max(-1, keepdims=True)
    return jnp.where(varies, centred / (deviation + 1e-7), 0.0)


class LSKD(Distiller):
    """Any distiller of logits, but its knowledge gets standardised ones and weighs more.

    Args:
        of: the distiller, of one view and the student's own classifier (ValueError else: ``MLKD``
            has a setting for it); its
            schedule and its weight of the CE stay. None is the published one,
            ``SoftLogits(temperature=2, alpha=1, gamma=0.1)``: 0.1 · CE + scale · T² · KL.
        scale: factor on the distiller's weight of the knowledge.

    Reference:
        Sun et al., CVPR 2024, arXiv:2403.01427;
        sunshangquan/logit-standardization-KD:mdistiller/distillers/KD.py.
    """

    invariances = ("constant per row of logits", "affine per row of logits")
    contextual = True

    def __init__(self, of: Distiller | None = None, scale: float = 9.0):
        self.of = of = SoftLogits(temperature=2.0, alpha=1.0, gamma=0.1) if of is None else of
        require(isinstance(of, Distiller) and of.views == 1 and not of.deploys,
                "of=: give one of logits like SoftLogits(); MLKD: standardised=True")  # fmt: skip
        kept = "ce_weight pretrain_ce afterwards mixup zero_at_match teacher_training".split()
        for name in (*COMMON, *kept):
            setattr(self, name, getattr(of, name))
        self.scale, self.weight = float(scale), scale * of.weight

    prepare = property(lambda self: self.of.prepare)

    def knowledge(self, student, teacher, labels, batch=None):
        s, t = (x._replace(logits=standardise(logits=x.logits)) for x in (student, teacher))
        return self.of(s, t, labels, batch)
