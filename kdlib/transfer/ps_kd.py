"""Progressive self-knowledge distillation: last epoch's answer softens this epoch's label."""

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.transfer.supervised import Loss, Setup, Supervised, cross_entropy, require


class Answers(nnx.Variable):
    """The last probabilities of every training picture, ``[m, k]``: state, not trained."""


class Table(nnx.Module):
    """Holds :class:`Answers`; labels stand in until a picture has been seen."""

    def __init__(self, labels: jax.Array, classes: int):
        self.answers = Answers(jax.nn.one_hot(labels, classes))


class PSKD(Supervised):
    """Cross-entropy with ``(1 − a) · label + a · p_previous``, ``a`` growing from 0 to ``alpha``.

    Args:
        alpha: ``a`` of the last epoch; it is ``alpha · (epoch + 1) / epochs`` in between.

    Raises:
        ValueError: alpha outside 0..1.

    Reference:
        Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021,
        arXiv:2006.12000; lgcnsai/PS-KD-Pytorch:main.py, loss/pskd_loss.py.
    """

    family = "SelfDistillation"

    def __init__(self, alpha: float = 0.8):
        require(0 <= alpha <= 1, f"{alpha=}: give the last epoch's share, 0 to 1")
        self.alpha = alpha

    def trained(self, setup: Setup):
        return {"table": Table(setup.labels, setup.classes)}

    def loss(self, trained, frozen, batch):
        logits, answers = trained.student(batch.images).logits, trained.table.answers
        # A picture is seen once per epoch, so what the table holds is the previous epoch's answer.
        before = answers[...][batch.index]
        answers[...] = answers[...].at[batch.index].set(jax.lax.stop_gradient(nnx.softmax(logits)))
        share, label = self.alpha * batch.progress, jax.nn.one_hot(batch.labels, logits.shape[-1])
        hard, soft = cross_entropy(logits, label), cross_entropy(logits, before)
        parts = {"cross_entropy": hard, "knowledge": soft}
        return Loss((1 - share) * hard, jnp.asarray(share * soft), parts, logits)
