"""Multi-level distillation: predictions of pictures, of the batch and of classes, at five T."""

import jax
import jax.numpy as jnp

from kdlib.distillers.base import Array, Distiller, require
from kdlib.distillers.lskd import standardise


def levels(*, student_logits: Array, teacher_logits: Array, temperatures, standardised=False):
    """Three losses between ``p = softmax(logits [n, k] / T)`` at every T, before their means.

    ``T² · KL(p_t ‖ p_s)`` of each picture (of standardised logits if asked), ``[T, n]``; squared
    difference of the matrices ``p pᵀ``, sums of rows, ``[T, n]``; that of ``pᵀ p``, ``[T, k]``.
    """
    at = jnp.array(temperatures, jnp.float32)[:, None, None]
    logits = [x.astype(jnp.float32) for x in (student_logits, teacher_logits)]
    p = [jax.nn.softmax(x / at) for x in logits]  # (T, n, k)
    logits = [standardise(logits=x) for x in logits] if standardised else logits
    log_s, log_t = (jax.nn.log_softmax(x / at) for x in logits)
    found = [at[..., 0] ** 2 * (jnp.exp(log_t) * (log_t - log_s)).sum(-1)]
    for pattern in ("Tik,Tjk->Tij", "Tna,Tnb->Tab"):
        gram_s, gram_t = (jnp.einsum(pattern, x, x, precision="highest") for x in p)
        found.append(((gram_t - gram_s) ** 2).sum(-1))
    return found


class MLKD(Distiller):
    """``ce · CE + beta · Σ_temperatures`` of the means of three levels, over two views.

    Of the weak view only the pictures and classes count of which the teacher is at most as sure as
    of the median one. A strong view (``batch.extra``), if there is one, adds all levels and a CE,
    which a warm-up or a recipe's ``dot`` takes for knowledge.

    Args:
        strict: as the authors' code: masks scale whole means; of the strong view only the first
            level counts, at the last two T the weak view's. False: what it intends (unverified).
        temperatures: T, above 0 (ValueError else).
        ce, beta: weights, ce of each view; beta above 0 (ValueError else).
        standardised: LSKD's logits in the first level; published with T 2 for 4, and beta 9.

    Reference:
        Jin, Wang, Lin, CVPR 2023; Jin-Ying/Multi-Level-Logit-Distillation:
        mdistiller/distillers/KD_ours.py, sunshangquan/logit-standardization-KD.
    """

    invariances = ("constant per row of logits",)
    views, contextual = 2, True

    def __init__(self, strict: bool = False, temperatures: tuple = (4.0, 3.0, 5.0, 2.0, 6.0),
                 ce: float = 0.1, beta: float = 0.9, standardised: bool = False):  # fmt: skip
        self.temperatures = temperatures = tuple(float(t) for t in temperatures)
        least = min(min(temperatures, default=0), beta)
        require(least > 0, f"{temperatures=}, {beta=}: give numbers above 0")
        self.strict, self.standardised = bool(strict), bool(standardised)
        self.ce, self.beta = self.ce_weight, self.weight = float(ce), float(beta)

    def knowledge(self, student, teacher, labels, batch=None):
        sure = jax.nn.softmax(teacher.logits.astype(jnp.float32))
        sure = sure.max(-1), sure.max(-1), sure.sum(0)  # of pictures, pictures, classes
        masks = (x <= jnp.median(x) for x in sure)
        masks = [mask.mean() if self.strict else mask for mask in masks]
        extra = [] if batch is None or batch.extra is None else [batch.extra]
        weak, *strong = [
            levels(student_logits=s.logits, teacher_logits=jax.lax.stop_gradient(t.logits),
                   temperatures=self.temperatures, standardised=self.standardised)
            for s, t in [(student, teacher), *extra]]  # fmt: skip
        total = sum((x * m).mean(-1).sum() for x, m in zip(weak, masks, strict=True))
        for (s, _), found in zip(extra, strong, strict=True):
            found = [jnp.concatenate([found[0][:-2], weak[0][-2:]])] if self.strict else found
            log_p = jax.nn.log_softmax(s.logits.astype(jnp.float32))
            ce = -jnp.take_along_axis(log_p, labels[:, None], -1).mean()
            # The factor beta of all knowledge is not for this cross-entropy.
            total += sum(x.mean(-1).sum() for x in found) + self.ce / self.beta * ce
        return total
