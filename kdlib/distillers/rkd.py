"""Relational distillation: distances and angles between pictures should be the teacher's."""

import jax.numpy as jnp
import optax

from kdlib.distillers.base import Array, Distiller, l2_normalise


def distances(*, embedding: Array) -> Array:
    """Euclidean distances within ``[n, d]``, in units of the mean of the n·(n−1): ``[n, n]``."""
    n, e = len(embedding), embedding.astype(jnp.float32)
    square = ((e[None] - e[:, None]) ** 2).sum(-1)  # (n, n); a² + b² − 2ab would cancel
    # Floored inside the root: the gradient at equal pictures is 0, not infinite.
    distance = jnp.sqrt(jnp.maximum(square, 1e-12)) * (1 - jnp.eye(n))
    return distance / (distance.sum() / (n * (n - 1))) if n > 1 else distance


def cosines(*, embedding: Array) -> Array:
    """Cosine of the angle at picture i between those to j and to k, of ``[n, d]``: [n, n, n]."""
    e = embedding.astype(jnp.float32)
    unit = l2_normalise(e[None] - e[:, None])  # (n, n, d)
    return jnp.einsum("ijd,ikd->ijk", unit, unit, precision="highest")


class RKD(Distiller):
    """``CE + distance · mean H(distances) + angle · mean H(cosines)`` of the embeddings.

    H: Huber loss (δ 1) between student's and teacher's; means over all n² and n³ entries, which
    memory must hold: 128 pictures make 2.1 million cosines.

    Args:
        distance, angle: weights; 25 and 50 in RepDistiller, 1 and 2 in the authors' code.

    Reference:
        Park et al., CVPR 2019, arXiv:1904.05068; HobbitLong/RepDistiller:distiller_zoo/RKD.py,
        lenscloth/RKD:metric/loss.py.
    """

    invariances = ("scale of all features", "shift of the embedding", "rotation of the embedding")

    def __init__(self, distance: float = 25.0, angle: float = 50.0):
        self.distance, self.angle = float(distance), float(angle)

    def knowledge(self, student, teacher, labels):
        both = student.embedding, teacher.embedding
        loss = lambda of: optax.huber_loss(*(of(embedding=e) for e in both)).mean()
        return self.distance * loss(distances) + self.angle * loss(cosines)
