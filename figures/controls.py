"""Which part of a teacher's answer helps? Soft logits with its wrong classes told wrongly.

``python -m kdlib.compare --methods plain SoftLogits figures/controls.py:Shuffled``; recorded in
``figures/controls``, and the story is in notebook 02. Shuffling is the control of Furlanello et
al., "Born-Again Neural Networks", ICML 2018, arXiv:1805.04770, section 3.2 (from memory).
"""

import jax
import jax.numpy as jnp

from kdlib.distillers import SoftLogits


class Shuffled(SoftLogits):
    """Soft logits of a teacher whose classes, but the one it names, change places at random.

    Every answer stays as sure and as soft as it was; which other class is how likely is lost.
    """

    contextual, zero_at_match = True, False

    def knowledge(self, student, teacher, labels, batch):
        logits = shuffled(teacher.logits, batch.key)
        return super().knowledge(student, teacher._replace(logits=logits), labels)


class Alike(SoftLogits):
    """Soft logits of a teacher that finds all classes, but the one it names, equally likely."""

    zero_at_match = False

    def knowledge(self, student, teacher, labels):
        logits = alike(teacher.logits, self.temperature)
        return super().knowledge(student, teacher._replace(logits=logits), labels)


def _named(logits):
    """Where the largest of each row is, bool ``[n, k]``."""
    return logits.argmax(-1, keepdims=True) == jnp.arange(logits.shape[-1])


def shuffled(logits: jax.Array, key: jax.Array) -> jax.Array:
    """``logits [n, k]`` of which all but the largest change places within their row, drawn anew for
    each row by ``key``: ``[n, k]``."""
    named_first = lambda place: jnp.argsort(jnp.where(_named(logits), -1.0, place), -1)
    taken = named_first(jax.random.uniform(key, logits.shape))  # (n, k), in a drawn order
    back = jnp.argsort(named_first(jnp.arange(logits.shape[-1])), -1)  # to the places in the row
    return jnp.take_along_axis(jnp.take_along_axis(logits, taken, -1), back, -1)


def alike(logits: jax.Array, temperature: float) -> jax.Array:
    """``logits [n, k]`` with one value for all but the largest of a row, so that together they are
    as likely as before at ``temperature``: ``[n, k]``."""
    named = _named(logits)
    others = jax.nn.logsumexp(logits / temperature, -1, where=~named, keepdims=True)
    return jnp.where(named, logits, temperature * (others - jnp.log(logits.shape[-1] - 1)))
