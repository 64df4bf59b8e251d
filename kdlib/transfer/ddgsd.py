"""Data-distortion guided self-distillation: two views of a picture should get the same answer."""

import jax

from kdlib.distillers import soft_logit_loss
from kdlib.distillers.base import positive
from kdlib.transfer.supervised import Loss, Supervised, cross_entropy


class DDGSD(Supervised):
    """``½ (CE_a + CE_b) + T² · [KL(p_b ‖ p_a) + KL(p_a ‖ p_b)] + mmd · ‖mean f_a − mean f_b‖²``.

    Args:
        temperature: T of the divergences; the target's side gets no gradient.
        mmd: weight of the distance between the two views' mean embeddings.

    Raises:
        ValueError: a temperature of 0 or below.

    Reference:
        Xu, Liu, "Data-Distortion Guided Self-Distillation", AAAI 2019; weights as in
        winycg/Self-KD-Lib:methods/ddsgd.py, but that halves the cross-entropies once more and
        reduces both means to scalars; here they are vectors, as in the paper (from memory:
        unverified).
    """

    family, views, passes = "SelfDistillation", 2, (2, 0)

    def __init__(self, temperature: float = 4.0, mmd: float = 5e-4):
        positive(temperature=temperature)
        self.temperature, self.mmd = float(temperature), mmd

    def extra(self, view, pictures, index, key):
        return view(jax.random.fold_in(key, 41), index)

    def loss(self, trained, frozen, batch):
        a, b = trained.student(batch.images), trained.student(batch.extra)
        ce = (cross_entropy(a.logits, batch.labels) + cross_entropy(b.logits, batch.labels)) / 2
        pairs = (a.logits, b.logits), (b.logits, a.logits)
        lesson = sum(soft_logit_loss(student_logits=s, teacher_logits=jax.lax.stop_gradient(t),
                                     temperature=self.temperature) for s, t in pairs)  # fmt: skip
        distance = ((a.embedding.mean(0) - b.embedding.mean(0)) ** 2).sum()
        parts = {"cross_entropy": ce, "knowledge": lesson}
        return Loss(ce, lesson + self.mmd * distance, parts, a.logits)
