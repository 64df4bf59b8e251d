"""The notebooks' exercises: what each answer has to satisfy. ``kdlib.check.answer`` asks them.

The answers are in ``solutions.ipynb``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kdlib import distillers, models


def _logits(seed, n=6, k=5):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 3, (n, k)), jnp.float32)


def _maps(seed, channels=3):
    values = np.random.default_rng(seed).normal(size=(4, 8, 8, channels))
    return jnp.asarray(np.maximum(values, 0), jnp.float32)


def _agree(found, expected, hint: str, rtol: float = 1e-3) -> None:
    found = np.asarray(found)
    assert found.shape == np.shape(expected), (
        f"the result has shape {found.shape}, expected {np.shape(expected)}"
    )
    assert np.allclose(found, expected, rtol=rtol, atol=1e-5), (
        f"got {np.ravel(found)[:3]}, expected {np.ravel(expected)[:3]}. {hint}"
    )


def _temperature_entropy(entropy: Callable) -> None:
    logits = _logits(0)
    for temperature in (1.0, 4.0):
        p = np.asarray(jax.nn.softmax(logits / temperature))
        expected = -(p * np.log(p)).sum(-1)
        _agree(entropy(logits, temperature), expected, "Is it one number per picture, in nats?")


def _reverse_kl(loss: Callable) -> None:
    s, t = _logits(1), _logits(2)
    expected = distillers.soft_logit_loss(student_logits=t, teacher_logits=s, temperature=2.0)
    _agree(loss(s, t, 2.0), expected, "Swap who is weighed by whose probabilities.")


def _logit_gradient(gradient: Callable) -> None:
    s, t = _logits(3), _logits(4)
    expected = jax.grad(
        lambda s: distillers.soft_logit_loss(student_logits=s, teacher_logits=t, temperature=4.0)
    )(s)
    hint = "It is T / n times a difference of two softmaxes."
    _agree(gradient(s, t, 4.0), expected, hint)


def _max_map(attention: Callable) -> None:
    feature = _maps(5)
    energy = np.asarray(feature).max(-1).reshape(4, -1)
    expected = energy / np.linalg.norm(energy, axis=-1, keepdims=True)
    _agree(attention(feature), expected, "The maximum over channels, flattened, of length 1.")


def _share(share: Callable) -> None:
    feature = _maps(6)
    masks = np.zeros((4, 8, 8), bool)
    masks[:, 2:5, 3:7] = True
    energy = (np.asarray(feature) ** 2).mean(-1)
    expected = (energy * masks).sum((1, 2)) / energy.sum((1, 2))
    _agree(share(feature, masks), expected, "Energy inside the mask over all energy, per picture.")


def _learning_rate(rate: Callable) -> None:
    expected = {0: 0.1, 59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008, 199: 0.0008}
    for epoch, value in expected.items():
        _agree(rate(epoch), value, f"That was epoch {epoch} of 200.")


def _parameters(count: int) -> None:
    # Without the number: a hint that gives the answer away is none.
    assert np.ndim(count) == 0 and count == models.cost("ResNet20").parameters, (
        f"{count} is not it. Convolutions have no bias, a batch norm has a scale and a bias per "
        "channel, and two shortcuts change the shape."
    )


def _agreement(agreement: Callable) -> None:
    s, t = _logits(7, 40), _logits(7, 40) + 0.7 * _logits(8, 40)
    expected = (np.asarray(s).argmax(-1) == np.asarray(t).argmax(-1)).mean()
    _agree(agreement(s, t), expected, "The share of pictures on which both name the same class.")


# By the numbers that the notebooks give them.
EXERCISES: dict[str, Callable] = {
    "00-1": _agreement,
    "01-1": _learning_rate,
    "01-2": _parameters,
    "02-1": _temperature_entropy,
    "02-2": _reverse_kl,
    "02-3": _logit_gradient,
    "03-1": _max_map,
    "03-2": _share,
}
