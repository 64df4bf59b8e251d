"""Scoring: accuracy and loss of a network on a split, on one device or several."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdlib import parallel
from kdlib.models.convolution import compiled


def scorer(logits: Callable, batch_size: int, fused: bool, mesh) -> Callable:
    """A function that tests a network on a split, the last incomplete batch included.

    Args:
        logits: a function of variables and uint8 pictures ``[b, h, w, c]``. With ``fused`` the
            variables are ``(params, rest, frozen)``, the first two with a leading axis of seeds.
        batch_size: pictures per step.
        mesh: the devices that share the work.

    Returns:
        A function of variables, pictures and labels to ``[..., 2]``: accuracy (a share) and mean
        negative log-likelihood (nats); the axis in front is the seeds'.
    """

    def batch(variables, images, labels, index):
        """Sums over the pictures at ``index`` ``[b]``; negative positions are padding."""
        index = parallel.by_picture(index, mesh, len(index))
        scores = logits(variables, images[index]).astype(jnp.float32)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(scores, labels[index])
        correct = scores.argmax(-1) == labels[index]
        return jnp.stack([jnp.where(index >= 0, value, 0).sum() for value in (correct, loss)])

    def whole(variables, images, labels, order):
        body = lambda sums, index: (sums + batch(variables, images, labels, index), None)
        return jax.lax.scan(body, jnp.zeros(2), order)[0]

    stack = jax.jit(parallel.each_seed(whole, mesh, in_axes=((0, 0, None), None, None, None)))
    step = compiled(batch)

    def score(variables, images, labels) -> np.ndarray:
        size = min(batch_size, len(labels))
        size += -size % mesh.shape[parallel.PICTURES]  # so that all devices get as many
        order = np.pad(np.arange(len(labels)), (0, -len(labels) % size), constant_values=-1)
        order = jnp.asarray(order.reshape(-1, size), jnp.int32)
        given = variables, images, labels
        sums = stack(*given, order) if fused else sum(step(*given, index) for index in order)
        return np.asarray(sums) / len(labels)

    return score
