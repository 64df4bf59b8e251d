"""The jitted functions of training: the recipe, the state, one step, one epoch, scoring."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from kdlib.data import Dataset, crop_and_flip
from kdlib.progress import Progress
from kdlib.transfer import Batch, Supervised


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the original cookbook's.

    Attributes:
        epochs, batch_size: passes over the training pictures, pictures per step.
        learning_rate: at the start; it is multiplied by ``decay_rate`` at each of ``decay_points``,
            shares of the epochs.
        momentum: of SGD, in Nesterov's form if ``nesterov``.
        weight_decay: added to the gradient, of batch norms and biases too if ``decay_all``.
        pad, crop, flip: largest shift in pixels, probability of a shift, of a mirroring.
        zero_init: start every residual block as the identity.
        bfloat16: compute convolutions in bfloat16; parameters and statistics stay float32.
        eval_batch_size: pictures per evaluation step.
    """

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    decay_points: tuple[float, ...] = (0.3, 0.6, 0.8)
    decay_rate: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = True
    pad: int = 4
    crop: float = 1.0
    flip: float = 0.5
    zero_init: bool = True
    bfloat16: bool = False
    eval_batch_size: int = 250

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Learning rate by step. It drops between epochs, and not before the first has ended."""
        drops: dict[int, float] = {}
        for point in self.decay_points:
            step = max(1, int(self.epochs * point)) * steps_per_epoch
            drops[step] = drops.get(step, 1.0) * self.decay_rate
        return optax.piecewise_constant_schedule(self.learning_rate, drops)

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """SGD as described above."""
        mask = (
            None if self.decay_all else functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
        )
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, mask),
            optax.sgd(self.schedule(steps_per_epoch), self.momentum, self.nesterov),
        )


class TrainState(NamedTuple):
    """Everything that changes during a run, in one pytree of arrays.

    ``params`` and ``rest`` (batch and input statistics) are dicts by module: ``student``,
    ``distiller``, and whatever else a transfer trains.
    """

    params: dict
    rest: dict
    optimizer: optax.OptState
    key: jax.Array
    step: jax.Array


class Modules(nnx.Module):
    """Named modules side by side, so that one split and one gradient cover them all."""

    def __init__(self, modules: dict[str, nnx.Module]):
        for name, module in modules.items():
            setattr(self, name, module)


class Program:
    """The jitted functions of one kind of run; all seeds and epochs share them.

    Args:
        build: makes the student of a seed.
        data: what is trained and tested on; its arrays move to the device here, once.
        transfer: who teaches.
        recipe: how.
        fused: one program per epoch (``lax.scan`` over steps, ``vmap`` over seeds) instead of one
            call per step. Right for GPU and TPU; on a CPU convolutions inside a loop body lose
            XLA's fast path and a scanned step is many times slower.
    """

    def __init__(
        self,
        build: Callable[[int], nnx.Module],
        data: Dataset,
        transfer: Supervised,
        recipe: Recipe,
        fused: bool,
    ):
        self.build, self.transfer, self.recipe, self.fused = build, transfer, recipe, fused
        self.steps = len(data.train) // recipe.batch_size
        self.optimizer = recipe.optimizer(self.steps)
        self.images, self.labels = jnp.asarray(data.train.images), jnp.asarray(data.train.labels)
        frozen = Modules(transfer.frozen())
        frozen.eval()
        self.frozen_graph, frozen_state = nnx.split(frozen)
        self.frozen = nnx.to_pure_dict(frozen_state)
        modules = self._modules(0)
        self.graph = nnx.graphdef(modules)
        modules.student.eval()
        self.score = Scorer(nnx.graphdef(modules.student), recipe.eval_batch_size, fused)
        order, step, epoch = self._order, self._step, self._epoch
        if fused:
            self.epoch = jax.jit(jax.vmap(epoch, in_axes=(0, None, None, None)))
        else:
            self.order, self.step = jax.jit(order), jax.jit(step)

    def _modules(self, seed: int) -> Modules:
        modules = Modules({"student": self.build(seed), **self.transfer.trained()})
        modules.train()
        return modules

    def init(self, seed: int) -> TrainState:
        """The state before the first step. Everything random in a run follows from ``seed``."""
        _, params, rest = nnx.split(self._modules(seed), nnx.Param, ...)
        params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
        state = self.optimizer.init(params)
        return TrainState(params, rest, state, jax.random.key(seed), jnp.zeros((), jnp.int32))

    def _order(self, state: TrainState) -> jax.Array:
        """This epoch's shuffled positions in the training set, ``[steps, b]``."""
        key = jax.random.fold_in(state.key, state.step // self.steps)
        order = jax.random.permutation(jax.random.fold_in(key, 1), len(self.labels))
        return order[: self.steps * self.recipe.batch_size].reshape(self.steps, -1)

    def _step(self, state: TrainState, sums: dict, order, frozen, images, labels):
        """One update: augment, forward student and teacher, backward, metrics."""
        recipe = self.recipe
        index = order[state.step % self.steps]  # (b,)
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step)
        pictures = crop_and_flip(
            key, images, index, pad=recipe.pad, crop=recipe.crop, flip=recipe.flip
        )
        batch = Batch(pictures, labels[index])
        teacher = nnx.merge(self.frozen_graph, frozen)

        def objective(params):
            trained = nnx.merge(self.graph, params, state.rest)
            loss = self.transfer.loss(trained, teacher, batch)
            rest = nnx.to_pure_dict(nnx.split(trained, nnx.Param, ...)[2])  # batch norm has moved
            return loss.total, (loss, rest)

        grads, (loss, rest) = jax.grad(objective, has_aux=True)(state.params)
        updates, optimizer = self.optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        correct = (loss.student.logits.argmax(-1) == batch.labels).sum()
        count = jnp.float32(len(batch.labels))
        values = {"loss": loss.total, **loss.parts}
        sums = {name: sums[name] + count * value for name, value in values.items()} | {
            "correct": sums["correct"] + correct,
            "count": sums["count"] + count,
        }
        return TrainState(params, rest, optimizer, state.key, state.step + 1), sums

    def _zeros(self, state: TrainState) -> dict:
        """Metrics of no pictures: the names come from tracing the loss once, without running it."""
        pictures = jax.ShapeDtypeStruct((1, *self.images.shape[1:]), self.images.dtype)
        batch = Batch(pictures, jax.ShapeDtypeStruct((1,), jnp.int32))

        def parts(params, rest, frozen, batch):
            trained, teacher = (
                nnx.merge(self.graph, params, rest),
                nnx.merge(self.frozen_graph, frozen),
            )
            return self.transfer.loss(trained, teacher, batch).parts

        names = jax.eval_shape(parts, state.params, state.rest, self.frozen, batch)
        return dict.fromkeys(("loss", *names, "correct", "count"), jnp.zeros((), jnp.float32))

    def _epoch(self, state: TrainState, frozen, images, labels):
        """All steps of an epoch in one program: on a GPU or TPU, ``vmap`` adds the seeds."""
        order = self._order(state)
        body = lambda carry, _: (self._step(*carry, order, frozen, images, labels), None)  # noqa: E731
        return jax.lax.scan(body, (state, self._zeros(state)), length=self.steps)[0]

    def run_epoch(self, state: TrainState, progress: Progress) -> tuple[TrainState, dict]:
        """Train one epoch: of one seed, or of a stack of them where fused."""
        if self.fused:
            state, sums = self.epoch(state, self.frozen, self.images, self.labels)
            progress.advance(self.steps * self.recipe.batch_size * len(state.step), sums)
            return state, sums
        order, sums = self.order(state), self._zeros(state)
        for _ in range(self.steps):
            state, sums = self.step(state, sums, order, self.frozen, self.images, self.labels)
            progress.advance(self.recipe.batch_size, sums)
        return state, sums


class Scorer:
    """Accuracy and negative log-likelihood of a network over a split, the last batch included."""

    def __init__(self, graph, batch_size: int, fused: bool = False):
        self.graph, self.batch_size, self.fused = graph, batch_size, fused
        self.batch = jax.jit(self._batch)
        self.stack = jax.jit(jax.vmap(self._split, in_axes=(0, None, None, None)))

    def _batch(self, variables, images, labels, index):
        """Sums over the pictures at ``index`` ``[b]``; negative positions are padding."""
        logits = nnx.merge(self.graph, *variables)(images[index]).logits.astype(jnp.float32)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels[index])
        correct = logits.argmax(-1) == labels[index]
        return jnp.stack([jnp.where(index >= 0, value, 0).sum() for value in (correct, loss)])

    def _split(self, variables, images, labels, order):
        body = lambda sums, index: (sums + self._batch(variables, images, labels, index), None)  # noqa: E731
        return jax.lax.scan(body, jnp.zeros(2), order)[0]

    def __call__(self, variables, images, labels) -> np.ndarray:
        """``[..., 2]``: accuracy (a share) and loss (nats); the axis in front is the seeds'."""
        size = min(self.batch_size, len(labels))
        order = np.full(-(-len(labels) // size) * size, -1, np.int32)
        order[: len(labels)] = np.arange(len(labels))
        order = jnp.asarray(order.reshape(-1, size))
        if self.fused:
            sums = self.stack(variables, images, labels, order)
        else:
            sums = sum(self.batch(variables, images, labels, index) for index in order)
        return np.asarray(sums) / len(labels)
