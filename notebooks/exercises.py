"""The notebooks' exercises: what each answer has to satisfy. ``kdlib.check.answer`` asks them.

The answers are in ``solutions.ipynb``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kdlib import check, distillers, metrics, models


def _logits(seed, n=6, k=5):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 3, (n, k)), jnp.float32)


def _maps(seed, channels=3):
    values = np.random.default_rng(seed).normal(size=(4, 8, 8, channels))
    return jnp.asarray(np.maximum(values, 0), jnp.float32)


def _agree(found, expected, hint: str, rtol: float = 1e-3) -> None:
    found = _numbers(found, None)
    assert found.shape == np.shape(expected), (
        f"the result has shape {found.shape}, expected {np.shape(expected)}"
    )
    wrong = ~np.isclose(found, expected, rtol=rtol, atol=1e-5)
    assert not wrong.any(), (
        f"got {found[wrong][:3]}, expected {np.asarray(expected)[wrong][:3]} there. {hint}"
    )


def _numbers(found, kind=float) -> np.ndarray:
    """What an answer returned; NumPy alone would make nan of a ``None`` among numbers."""
    missing = [value for value in np.ravel(np.asarray(found, object)) if value is None]
    assert not missing, "it returns nothing: is there a return?"
    return np.asarray(found, kind)


def _temperature_entropy(entropy: Callable) -> None:
    logits = _logits(0)
    for temperature in (1.0, 4.0):
        p = np.asarray(jax.nn.softmax(logits / temperature))
        expected = -(p * np.log(p)).sum(-1)
        hint = "Is the temperature in it, and is it one number per picture, in nats?"
        _agree(entropy(logits, temperature), expected, hint)
    sure = entropy(jnp.array([[300.0, 0, -300]]), 1.0)
    _agree(sure, [0], "A probability that rounds to zero has an infinite logarithm.")


def _reverse_kl(loss: Callable) -> None:
    s, t = _logits(1), _logits(2)
    expected = distillers.soft_logit_loss(student_logits=t, teacher_logits=s, temperature=3.0)
    _agree(loss(s, t, 3.0), expected, "Whose probabilities are the weights? And the factor T²?")
    sure = jnp.array([[300.0, 0, -300]])
    hint = "A probability that rounds to zero has an infinite logarithm."
    _agree(loss(sure, sure, 1.0), 0, hint)


def _logit_gradient(gradient: Callable) -> None:
    s, t = _logits(3), _logits(4)
    expected = jax.grad(
        lambda s: distillers.soft_logit_loss(student_logits=s, teacher_logits=t, temperature=4.0)
    )(s)
    hint = "Compare with jax.grad of the loss, for one picture: is it the factor, or the sign?"
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
    expected = {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 159: 0.004, 160: 8e-4, 199: 8e-4}
    for epoch, value in expected.items():
        _agree(rate(epoch), value, f"That was epoch {epoch} of 200.")


def _parameters(count: int) -> None:
    # Without the number: a hint that gives the answer away is none.
    assert np.ndim(count) == 0 and count == models.cost("ResNet20").parameters, (
        f"{count} is not it. Convolutions have no bias, a batch norm has a scale and a bias per "
        "channel and follows every convolution, two shortcuts change the shape, and the "
        "classifier has biases."
    )


def _agreement(agreement: Callable) -> None:
    s, t = _logits(7, 40), _logits(7, 40) + 0.7 * _logits(8, 40)
    expected = (np.asarray(s).argmax(-1) == np.asarray(t).argmax(-1)).mean()
    _agree(agreement(s, t), expected, "The share of pictures on which both name the same class.")


def _gradient_to_teacher(gradient: Callable) -> None:
    s, t = _logits(9), _logits(10)
    expected = jax.grad(
        lambda t: distillers.soft_logit_loss(student_logits=s, teacher_logits=t, temperature=1.0)
    )(t)
    hint = "What does the softmax's derivative subtract from every entry of a row? And the mean?"
    _agree(gradient(t, s), expected, hint)


def _best_peer(best: Callable) -> None:
    logits, labels = jnp.stack([_logits(seed) for seed in (11, 12, 13)]), jnp.arange(6) % 5
    log_p = np.asarray(jax.nn.log_softmax(logits))
    chosen = [log_p[:, n, label].argmax() for n, label in enumerate(labels)]
    expected = np.stack([logits[peer, n] for n, peer in enumerate(chosen)])
    _agree(best(logits, labels), expected, "Compare probabilities of the label, not its logits.")


def _ensemble(accuracy: Callable) -> None:
    logits = jnp.stack([_logits(14, 60), 4 * _logits(15, 60), 0.5 * _logits(16, 60)])
    labels = jnp.asarray(np.asarray(logits.mean(0)).argmax(-1))  # what averaged logits would say
    p = np.asarray(jax.nn.softmax(logits)).mean(0)
    expected = (p.argmax(-1) == np.asarray(labels)).mean()
    _agree(accuracy(logits, labels), expected, "Softmax first, then the mean over networks.")


def _partners(partners: Callable) -> None:
    labels = np.array([0, 1, 0, 2, 1, 0, 1, 0])  # picture 3 is alone in its class
    drawn = [_numbers(partners(labels, np.random.default_rng(seed)), None) for seed in range(20)]
    assert all(found.shape == labels.shape for found in drawn), "return one position per picture"
    for found in drawn:
        assert (labels[found] == labels).all(), "a partner is of another class"
        assert ((found != np.arange(8)) | (np.arange(8) == 3)).all(), "a picture is its own partner"
    seen = {int(found[0]) for found in drawn}
    assert seen == {2, 5, 7}, f"twenty draws gave picture 0 the partners {seen}, not 2, 5 and 7"


def _left_of_the_start(left: Callable) -> None:
    found = _numbers([left(0), left(1), left(4, 0.5), left(5, 0.2)])
    expected = [1, 1 / 10, 1 / 10 * 2 / 11 * 3 / 12 * 4 / 13, 1 / 10 * 2 / 11 * 0.2**3]
    _agree(found, expected, "The first step is step 0, and each multiplies what is left by its d.")


def _best_temperature(best: Callable) -> None:
    logits = _logits(18, 400)
    rng, grid = np.random.default_rng(19), np.geomspace(0.1, 10, 2001)
    p = np.asarray(jax.nn.softmax(logits / 2.5), float)
    labels = np.array([rng.choice(5, p=row / row.sum()) for row in p])
    z = np.asarray(logits, float)
    nll = lambda T: np.mean(np.log(np.exp(z / T).sum(-1)) - z[np.arange(400), labels] / T)
    expected = grid[np.argmin([nll(T) for T in grid])]
    _agree(best(logits, jnp.asarray(labels)), expected, "Try many values of T.", rtol=0.02)


def _same_pull(weight: Callable) -> None:
    found = _numbers([weight(1000, 32, 64), weight(90, 8, 4)])
    _agree(found, [4000, 22.5], "What counts is the weight over the number of positions.")


def _front(front: Callable) -> None:
    cost = np.array([1.0, 1.5, 2.0, 1.5, 3.0, 1.0])
    accuracy = np.array([0.79, 0.85, 0.84, 0.80, 0.90, 0.79])
    found = front(cost, accuracy)
    expected = [True, True, False, False, True, True]
    _agree(found, expected, "The first and the last tie: neither is better than the other.")


def _distance(loss: Callable) -> None:
    s, t = check.outputs(2), check.outputs(3)
    s = s._replace(embedding=s.embedding.at[0].set(t.embedding[0]))
    expected = np.linalg.norm(np.asarray(s.embedding - t.embedding), axis=-1).mean()
    _agree(loss(s, t, None), expected, "The mean over pictures of the length of a difference.")
    slope = jax.grad(loss)(s, t, None).embedding
    assert np.isfinite(slope).all(), "the gradient is not finite where a picture's embeddings agree"
    assert not np.any(slope[0]) and np.any(slope[1]), "the gradient is 0 there, and only there"


def _correlation(loss: Callable) -> None:
    s, t = check.outputs(4), check.outputs(5)
    pairs = zip(np.asarray(s.logits, float), np.asarray(t.logits, float), strict=True)
    expected = np.mean([1 - np.corrcoef(*pair)[0, 1] for pair in pairs])
    _agree(loss(s, t, None), expected, "One number per picture, then the mean.")
    flat = s._replace(logits=s.logits.at[0].set(2.0))
    slope = jax.grad(loss)(flat, t, None).logits
    assert np.isfinite(slope).all(), "the gradient is not finite where a row of logits is constant"


def _matched_weight(weight: Callable) -> None:
    found = _numbers([weight(0.5, 20.0, 0.1), weight(2.0, 3.0, 1.0)])
    hint = "theirs is in lengths of ce_weight times the cross-entropy's gradient."
    _agree(found, [4.0, 1.5], hint)


def _forecast(forecast: Callable) -> None:
    found = _numbers([forecast([9.0, 2.0, 5.0, 2.0], 10, 3), forecast([8.0, 1.0], 2, 1)])
    hint = "Known epochs count as they were; the median of the others stands for each one to come."
    _agree(found, [18 + 26 * 2, 9], hint)


def _of_the_batch(statistics: Callable) -> None:
    parts = np.random.default_rng(20).normal(size=(4, 8)) + np.arange(4)[:, None]
    found = _numbers(statistics(parts.mean(1), parts.var(1)))
    _agree(found, [parts.mean(), parts.var()], "The devices' means differ, and that counts too.")


def _flipped_signs(share: Callable) -> None:
    cases = [1.0, 2, 3, 4, 5], [-1.0, -2, -4], [3.0, -1, -1], [0.25, 0.5, -1, 2], [2.0, -2]
    found = _numbers([share(np.array(differences)) for differences in cases])
    hint = "Both sides count, the signs as they are are one of the choices, and ties count too."
    _agree(found, [2 / 32, 2 / 8, 1, 10 / 16, 1], hint)


def _share_closed(closed: Callable) -> None:
    student, plain = np.array([0.71, 0.80, 0.84]), np.array([0.60, 0.71, 0.70])
    found = _numbers(closed(student, plain, 0.92))
    gain, gap = student - plain, 0.92 - plain
    share = gain.mean() / gap.mean()
    expected = share, metrics.interval((gain - share * gap) / gap.mean()).half
    _agree(found, expected, "The plain student's luck is in the gain and in the gap of its seed.")


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
    "04-1": _gradient_to_teacher,
    "04-2": _best_peer,
    "04-3": _ensemble,
    "05-1": _partners,
    "05-2": _left_of_the_start,
    "05-3": _best_temperature,
    "06-1": _same_pull,
    "06-2": _front,
    "07-1": _distance,
    "07-2": _correlation,
    "07-3": _matched_weight,
    "08-1": _forecast,
    "08-2": _of_the_batch,
    "09-1": _flipped_signs,
    "09-2": _share_closed,
}
