"""Two distillers of one's own, as notebook 07 builds them; an example to copy and change.

``python -m kdlib.compare --methods plain SoftLogits notebooks/my_distiller.py:cka_loss``
"""

import jax.numpy as jnp

from kdlib.distillers import Adapter, Distiller
from kdlib.distillers.base import l2_normalise


def cka_loss(student, teacher, labels):
    """1 − CKA of the embeddings: pictures alike for the teacher should be alike for the student."""

    def alike(embedding):
        e = embedding.astype(jnp.float32)  # (n, d)
        e = e - e.mean(0)
        return l2_normalise(jnp.matmul(e, e.T, precision="highest").ravel())  # (n·n,)

    return ((alike(student.embedding) - alike(teacher.embedding)) ** 2).sum() / 2


cka_loss.weight = 1.0
cka_loss.invariances = (
    "shift of the embedding", "scale of all features", "rotation of the embedding",
)  # fmt: skip


class DirectionMatch(Distiller):
    """``CE + weight · mean over positions (1 − cosine)`` of the last maps' channel vectors.

    Args:
        weight: of the knowledge.
    """

    zero_at_match = False  # the adapter has to be learnt first

    def __init__(self, weight: float = 1.0):
        self.weight = float(weight)

    def prepare(self, student, teacher, rngs, labels):
        self.adapter = Adapter(student.features[-1], teacher.features[-1], rngs)

    def knowledge(self, student, teacher, labels):
        s = l2_normalise(self.adapter(student.features[-1]).astype(jnp.float32))  # (n, h, w, c)
        t = l2_normalise(teacher.features[-1].astype(jnp.float32))
        return ((s - t) ** 2).sum(-1).mean() / 2
