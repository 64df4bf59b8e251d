"""Nobody teaches: the student learns from the labels alone. The form every transfer follows."""

from typing import NamedTuple

import jax
import optax
from flax import nnx

from kdlib.models import Outputs


class Batch(NamedTuple):
    """What one training step sees: augmented pictures ``[n, h, w, c]``, int32 labels ``[n]``."""

    images: jax.Array
    labels: jax.Array


class Loss(NamedTuple):
    """What a transfer returns: the scalar to minimise, its parts, and the student's outputs."""

    total: jax.Array
    parts: dict[str, jax.Array]
    student: Outputs


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats. Args: ``logits [n, k]``, ``labels`` int32 ``[n]``."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Supervised:
    """Plain training with cross-entropy: the teacher's own training, and the student's baseline.

    A transfer says which modules train beside the student (:meth:`trained`) and which stay as they
    are (:meth:`frozen`), and computes the loss from all of them. Only the trained ones get
    gradients; they and their batch statistics are part of the training state.
    """

    name = "Supervised"
    spec = "cross-entropy"

    def trained(self) -> dict[str, nnx.Module]:
        return {}

    def frozen(self) -> dict[str, nnx.Module]:
        return {}

    def loss(self, trained: nnx.Module, frozen: nnx.Module, batch: Batch) -> Loss:
        """The loss of one batch.

        Args:
            trained: holds ``student`` and what :meth:`trained` named, in training mode.
            frozen: holds what :meth:`frozen` named, in evaluation mode.
        """
        student = trained.student(batch.images)
        ce = cross_entropy(student.logits, batch.labels)
        return Loss(ce, {"cross_entropy": ce}, student)
