"""Feedback: on the exercises of the notebooks, and on distillers of one's own."""

import math
import pathlib
import runpy
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdlib import checkpoint, distillers, report
from kdlib.data import Batch
from kdlib.models import Outputs
from kdlib.names import require, unknown

FILE = pathlib.Path(__file__).resolve().parent.parent / "notebooks" / "exercises.py"


def answer(exercise: str, given) -> None:
    """Say whether an exercise is solved; an unfinished one is named, not raised.

    Args:
        exercise: its number, like ``"02-1"``; ValueError if there is none.
        given: the reader's function or value.
    """
    exercises = runpy.run_path(str(FILE))["EXERCISES"]
    require(exercise in exercises, f"no exercise '{exercise}': there are {', '.join(exercises)}")
    try:
        exercises[exercise](given)
    except NotImplementedError:
        print(f"exercise {exercise}: not done yet - replace the line that raises")
    except AssertionError as error:
        print(f"exercise {exercise}: not yet - {error}")
    else:
        print(f"exercise {exercise}: passed")


def outputs(seed: int, n: int = 4, classes: int = 10, scale: float = 1.0, channels: int = 6):
    """Made-up :class:`Outputs` of a network with a stem and three stages, on 8x8 pictures."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(0, 1, shape), jnp.float32)
    preacts = tuple(draw(n, side, side, channels) for side in (8, 8, 4, 2))
    features = tuple(jnp.maximum(x, 0) for x in preacts)
    head = draw(channels, classes), draw(classes)
    norms = ((jnp.ones(channels), 0.3 * jnp.arange(channels) - 1.0),) * 3
    logits, embedding = scale * draw(n, classes), features[-1].mean((1, 2))
    return Outputs(logits, embedding, features, preacts[1:], head, norms)


def loss_of(distiller, student: Outputs, teacher: Outputs) -> Callable:
    """The knowledge loss as a function of two ``Outputs``, prepared for shapes like these."""
    distiller, classes = distillers.own(distiller), student.logits.shape[-1]
    distiller.prepare(student, teacher, nnx.Rngs(0), jnp.arange(40) % classes)
    distiller.train()
    graph, state = nnx.split(distiller)
    state = nnx.to_pure_dict(state)  # arrays, so that every call gets variables of its own

    def loss(s, t, order=None, state=state):
        labels = (jnp.arange(len(s.logits)) % classes)[... if order is None else order]
        batch = Batch(s.logits, labels, jnp.arange(len(labels)), 1.0, jax.random.key(0))
        return nnx.merge(graph, state)(s, t, labels, batch)

    loss.distiller, loss.state = distiller, state
    return loss


def _each(change: Callable, shown: Outputs) -> Outputs:
    """Outputs with everything that has a row per picture changed; the weights stay."""
    return Outputs(*jax.tree.map(change, tuple(shown)[:4]), *shown[4:])


def _scaled(shown: Outputs, factors) -> Outputs:
    change = lambda x: x * factors.reshape(-1, *[1] * (x.ndim - 1))
    return _each(change, shown)._replace(logits=shown.logits)


# Changes of both sides that a method may declare itself blind to.
CHANGES: dict[str, Callable[[Outputs], Outputs]] = {
    "constant per row of logits": lambda s: s._replace(
        logits=s.logits + jnp.linspace(-9, 9, len(s.logits))[:, None]),
    "affine per row of logits": lambda s: s._replace(
        logits=jnp.linspace(0.5, 3, len(s.logits))[:, None] * s.logits - 2.0),
    "scale of a picture's features": lambda s: _scaled(s, jnp.linspace(0.5, 4, len(s.logits))),
    "scale of all features": lambda s: _scaled(s, jnp.full(len(s.logits), 3.0)),
    "shift of the embedding": lambda s: s._replace(embedding=s.embedding + 2.0),
    "rotation of the embedding": lambda s: s._replace(  # mirrored twice
        embedding=(s.embedding - 2 * s.embedding.mean(-1, keepdims=True))[:, ::-1])}  # fmt: skip
# What a loss and its gradient must stay finite for: student and teacher of each case.
EXTREMES: dict[str, Callable[[], tuple[Outputs, Outputs]]] = {
    "logits of 10,000": lambda: (outputs(0, scale=1e4), outputs(1, scale=1e4)),
    "equal pictures": lambda: tuple(
        _each(lambda x: jnp.broadcast_to(x[:1], x.shape), outputs(i)) for i in (0, 1)),
    "all-zero maps": lambda: (_scaled(outputs(0), jnp.zeros(4)), outputs(1)),
    "one all-zero map": lambda: (_scaled(outputs(0), jnp.array([1.0, 0, 1, 1])), outputs(1)),
    "two classes": lambda: (outputs(0, classes=2), outputs(1, classes=2)),
    "one picture": lambda: (outputs(0, n=1), outputs(1, n=1)),
    "a match": lambda: (outputs(0), outputs(0))}  # fmt: skip


def _same(a, b, message):
    assert np.allclose(a, b, 2e-4, 1e-6), f"{message}: {np.float32(a)!s} and {np.float32(b)!s}"


def _zero_at_a_match(make):
    x, other = outputs(0), outputs(1)
    value, usual = float(loss_of(make(), x, x)(x, x)), float(loss_of(make(), x, other)(x, other))
    if not make().zero_at_match:
        return "not claimed"
    assert abs(value) <= 1e-4 * abs(usual) + 1e-6, f"it is {value:.3g} where both show the same"
    return "0 where both show the same"


def _gradient(make):
    student, teacher = outputs(0), outputs(1)
    loss = loss_of(make(), student, teacher)
    s, t = jax.jit(jax.grad(loss, argnums=(0, 1)))(student, teacher)
    assert any(x.any() for x in jax.tree.leaves(s)), "the student gets no gradient"
    assert not any(x.any() for x in jax.tree.leaves(t)), "the teacher gets a gradient"
    count = sum(x.size for x in jax.tree.leaves(nnx.state(loss.distiller, nnx.Param)))
    return "to the student only" if not count else f"to the student and {count} own parameters"


def _extremes(make):
    compiled = {}  # by shapes: the state is an argument
    for case, pair in EXTREMES.items():
        pair = pair()
        loss, shapes = loss_of(make(), *pair), str(jax.tree.map(jnp.shape, pair))
        slopes = jax.jit(jax.value_and_grad(lambda s, t, state, f=loss: f(s, t, state=state)))
        value, slope = compiled.setdefault(shapes, slopes)(*pair, loss.state)
        assert math.isfinite(value), f"the loss is {value} for {case}"
        largest = jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(slope)]).max()  # nan wins
        assert largest < 1e8, f"the gradient reaches {largest:.3g} for {case}"
    return f"finite for {', '.join(EXTREMES)}"


def _batch_order(make):
    if not make().any_order:
        return "not claimed"
    student, teacher, order = outputs(0), outputs(1), jnp.array([2, 0, 3, 1])
    shuffle = lambda shown: _each(lambda x: x[order], shown)
    loss = loss_of(make(), student, teacher)
    shuffled = loss(shuffle(student), shuffle(teacher), order)
    _same(loss(student, teacher), shuffled, "the loss depends on the order of the batch")
    return "the same in any order of the batch"


def _jit_and_vmap(make):
    pairs = [(outputs(2 * i), outputs(2 * i + 1)) for i in range(3)]
    loss = loss_of(make(), *pairs[0])
    eager = jnp.stack([loss(*pair) for pair in pairs])
    _same(eager, jnp.stack([jax.jit(loss)(*pair) for pair in pairs]), "jit gives another value")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
    _same(eager, jax.vmap(loss)(*stacked), "vmap over seeds gives another value")
    return "the same under jit and vmap"


def _invariances(make):
    declared, student, teacher = make().invariances, outputs(0), outputs(1)
    loss = loss_of(make(), student, teacher)
    for change in declared:
        require(change in CHANGES, unknown("invariance", change, CHANGES))
        changed = loss(CHANGES[change](student), CHANGES[change](teacher))
        _same(loss(student, teacher), changed, f"it does notice a {change}")
    return "; ".join(declared) or "none claimed"


def _state(make):
    student, teacher = outputs(0), outputs(1)
    loss = loss_of(make(), student, teacher)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_tree(f"{folder}/state", loss.state, {})
        again, _ = checkpoint.restore_tree(f"{folder}/state", loss.state)
    found, back = loss(student, teacher), loss(student, teacher, state=again)
    assert float(found) == float(back), "the loss changes when its state is saved and restored"
    return f"{len(jax.tree.leaves(loss.state))} arrays saved and restored bit for bit"


PROMISES = _zero_at_a_match, _gradient, _extremes, _batch_order, _jit_and_vmap, _invariances, _state
CONTRACT = {test.__name__.strip("_").replace("_", " "): test for test in PROMISES}


def check_distiller(given) -> report.Table:
    """Run the contract that every method of the cookbook keeps on a distiller of one's own.

    Args:
        given: a distiller, its class, text that :func:`kdlib.distillers.make` reads, or a function
            ``(student, teacher, labels) -> scalar``. Attributes of the function declare more:
            ``zero_at_match``, ``invariances``, ``any_order``.

    Returns:
        A table of the promises, whether each is kept, and what was found. Nothing is raised for a
        promise that is broken.
    """
    make = lambda: nnx.clone((distillers.make if isinstance(given, str) else distillers.own)(given))
    make()  # what is no distiller at all is said at once
    rows = [["promise", "kept", "found"]]
    for promise, test in CONTRACT.items():
        try:
            rows.append([promise, "yes", test(make)])
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            rows.append([promise, "no", kind + " ".join(str(error).split())[:150]])
    return report.markdown(rows)
