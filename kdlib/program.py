"""The jitted functions of training: the recipe, the state, one step, one epoch."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from kdlib import distillers, parallel
from kdlib.data import Batch, Dataset, Pictures, crop_and_flip
from kdlib.dot import dot
from kdlib.models.convolution import compiled
from kdlib.names import require
from kdlib.progress import Progress
from kdlib.score import scorer
from kdlib.transfer import Setup, Supervised


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; by default as in the original, but that every picture is shifted.

    Attributes:
        epochs, batch_size: passes over the training pictures, pictures per step.
        learning_rate: at the start; it is multiplied by ``decay_rate`` at each of ``decay_points``,
            shares of the epochs.
        momentum: of SGD, in Nesterov's form if ``nesterov``.
        weight_decay: added to the gradient, of batch norms and biases too if ``decay_all``.
        dot: above 0, distillation-oriented training: the knowledge's gradient has a momentum so
            much larger, the labels' so much smaller (0.075 in the paper), and neither is in
            Nesterov's form; see :func:`dot`.
        pad, crop, flip: largest shift in pixels, probability of a shift, of a mirroring.
        zero_init: start every residual block as the identity.
        bfloat16: compute in bfloat16; parameters, momentum and statistics stay float32.
        eval_batch_size, test_every: pictures per evaluation step, epochs between evaluations.

    Raises:
        ValueError: sizes or epochs that are no whole numbers above 0, ``decay_points`` that are no
            shares, or a ``dot`` with which a momentum would reach 1.
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
    dot: float = 0.0
    pad: int = 4
    crop: float = 1.0
    flip: float = 0.5
    zero_init: bool = True
    bfloat16: bool = False
    eval_batch_size: int = 250
    test_every: int = 1

    def __post_init__(self):
        for name in ("epochs", "batch_size", "eval_batch_size", "test_every"):
            whole = isinstance(value := getattr(self, name), int) and value > 0
            require(whole, f"{name}={value!r}: give an int above 0")
        shares = all(0 <= point <= 1 for point in self.decay_points)
        require(shares, f"decay_points={self.decay_points}: give shares of the epochs, 0 to 1")
        fits = not self.dot or 0 < self.dot < round(1 - self.momentum, 9)  # no momentum reaches 1
        require(fits, f"dot={self.dot}: give 0, or less than 1 - {self.momentum} (momentum)")

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Learning rate by step. It drops between epochs, and not before the first has ended."""
        drops: dict[int, float] = {}
        for point in self.decay_points:
            step = max(1, int(self.epochs * point + 1e-6)) * steps_per_epoch  # 0.7 * 90 is below 63
            drops[step] = drops.get(step, 1.0) * self.decay_rate
        return optax.piecewise_constant_schedule(self.learning_rate, drops)

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """SGD as described above."""
        kernels = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
        decay = optax.add_decayed_weights(self.weight_decay, None if self.decay_all else kernels)
        schedule = self.schedule(steps_per_epoch)
        if self.dot:
            return dot(decay, schedule, self.momentum, self.dot)
        return optax.chain(decay, optax.sgd(schedule, self.momentum, self.nesterov))


class TrainState(NamedTuple):
    """Everything that changes during a run, in one pytree of arrays.

    ``params``, ``rest`` (statistics, memory banks, tables) and ``optimizer`` are dicts by module:
    ``student``, ``distiller``, and whatever else a transfer trains.
    """

    params: dict
    rest: dict
    optimizer: dict
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
        network: makes a network from a name (None: the student's) and a seed.
        data: what is trained and tested on; its arrays move to the device here, once.
        transfer, recipe: who teaches, and how.
        fused: one program per epoch (``lax.scan`` over steps, ``vmap`` over seeds), right for GPU
            and TPU, instead of one call per step: in a loop a CPU's convolutions are slow.
        mesh: the devices that share the work (:func:`kdlib.parallel.mesh`); None is one of them.
        seed: one of the run's, whose networks show what all of its networks are.
    """

    def __init__(self, network: Callable, data: Dataset, transfer: Supervised, recipe: Recipe,
                 fused: bool, mesh: jax.sharding.Mesh | None = None, seed: int = 0):  # fmt: skip
        self.network, self.transfer, self.recipe, self.fused = network, transfer, recipe, fused
        self.mesh = mesh or parallel.mesh(1, 1, recipe.batch_size)
        self.classes, self.image_shape = data.num_classes, data.image_shape
        self.steps = len(data.train) // recipe.batch_size
        self.epochs = recipe.epochs * transfer.generations
        self.optimizer = recipe.optimizer(self.steps)
        everywhere = lambda tree: parallel.spread(tree, self.mesh)
        on_device = lambda split: everywhere(jax.device_put(Pictures(split.images, split.labels)))
        self.pictures = on_device(data.train)
        held_out = {"validation": data.validation, "test": data.test}
        self.splits = {name: on_device(split) for name, split in held_out.items() if split}
        frozen = Modules(transfer.frozen())
        frozen.eval() if not transfer.frozen_training else frozen.train()
        self.frozen_graph, frozen_state = nnx.split(frozen)
        self.frozen = everywhere(nnx.to_pure_dict(frozen_state))
        self._modules = functools.lru_cache(1)(self._modules)  # for graph, record and first run
        modules = self._modules(seed)
        self.graph = nnx.graphdef(modules)
        # While a first phase's loss doesn't reach a parameter, decay would only make it fade.
        phased = any(getattr(module, "pretrain", 0.0) for module in vars(modules).values())
        self.decays = lambda p, *g: jnp.where(sum(x.any() for x in g), p, 0.0) if phased else p
        modules.eval()
        frozen.eval()
        self.eval_graph, self.frozen_eval_graph = map(nnx.graphdef, (modules, frozen))
        logits = lambda variables, images: self.deployed(*variables)(images).logits
        self.score = scorer(logits, recipe.eval_batch_size, fused, self.mesh)
        every_seed = parallel.each_seed(self._epoch, self.mesh, in_axes=(0, None, None))
        self.epoch = jax.jit(every_seed, donate_argnums=0)  # the new state takes its memory
        self.order, self.step = jax.jit(self._order), compiled(self._step, recipe.batch_size >= 64)
        self.add = jax.jit(lambda *sums: jax.tree.map(jnp.add, *sums))

    def _modules(self, seed: int) -> Modules:
        student = self.network(None, seed)
        setup = Setup(seed, student, self.network, self.pictures.labels, self.classes,
                      self.image_shape)  # fmt: skip
        modules = Modules({"student": student, **self.transfer.trained(setup)})
        # A first phase lasts an epoch at least, else in short runs there would be none.
        for part in (p for _, p in nnx.iter_graph(modules) if isinstance(p, distillers.Distiller)):
            part.pretrain = part.pretrain and max(part.pretrain, 1 / max(self.recipe.epochs, 2))
        modules.train()
        return modules

    def init(self, seed: int) -> TrainState:
        """The state before the first step. Everything random in a run follows from ``seed``."""
        params, rest = map(nnx.to_pure_dict, nnx.split(self._modules(seed), nnx.Param, ...)[1:])
        moving = {name: tree for name, tree in params.items() if name not in self.transfer.still}
        optimizer = {name: self.optimizer.init(tree) for name, tree in moving.items()}
        return TrainState(params, rest, optimizer, jax.random.key(seed), jnp.zeros((), jnp.int32))

    def start(self, seeds: Sequence[int]) -> TrainState:
        """The states before the first step in a stack where fused, else that of the one seed."""
        stack = lambda *leaves: jnp.stack(leaves) if self.fused else leaves[0]
        return self.place(jax.tree.map(stack, *map(self.init, seeds)))

    def place(self, state: TrainState) -> TrainState:
        """A state, or a stack of them where fused, on the devices that train it."""
        return parallel.spread(state, self.mesh, *[parallel.SEEDS] * self.fused)

    def trained(self, state: TrainState) -> Modules:
        """The modules of a state, in evaluation mode."""
        return nnx.merge(self.eval_graph, state.params, state.rest)

    def deployed(self, params: dict, rest: dict, frozen: dict) -> nnx.Module:
        """The network that these variables make: what is tested, and what a run leaves."""
        trained = nnx.merge(self.eval_graph, params, rest)
        return self.transfer.network(trained, nnx.merge(self.frozen_eval_graph, frozen))

    def scores(self, state: TrainState) -> dict[str, np.ndarray]:
        """Accuracy and loss, ``[seeds, 2]``, on the validation pictures, if any, and the test's."""
        variables = state.params, state.rest, self.frozen
        return {k: np.atleast_2d(self.score(variables, *s)) for k, s in self.splits.items()}

    def _order(self, state: TrainState) -> jax.Array:
        """This epoch's shuffled positions in the training set, ``[steps, b]``."""
        key = jax.random.fold_in(state.key, state.step // self.steps)
        order = jax.random.permutation(jax.random.fold_in(key, 1), len(self.pictures.labels))
        return order[: self.steps * self.recipe.batch_size].reshape(self.steps, -1)

    def batch(self, state: TrainState, order, pictures: Pictures) -> Batch:
        """The batch of a state's next step."""
        recipe = self.recipe
        view = lambda key, index: crop_and_flip(key, pictures.images, index, pad=recipe.pad,
                                                crop=recipe.crop, flip=recipe.flip)  # fmt: skip
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step)
        progress = (state.step // self.steps + 1) / self.epochs
        index = order[state.step % self.steps]  # (b,)
        batch = self.transfer.batch(view, pictures, index, key, progress, self.classes)
        return parallel.by_picture(batch, self.mesh, recipe.batch_size)

    def objective(self, params, rest, frozen, batch: Batch):
        """The two weighted losses, ``[2]``, and (the transfer's ``Loss``, the new statistics)."""
        trained = nnx.merge(self.graph, params, rest)
        loss = self.transfer.loss(trained, nnx.merge(self.frozen_graph, frozen), batch)
        rest = nnx.to_pure_dict(nnx.split(trained, nnx.Param, ...)[2])  # batch norm has moved
        return jnp.stack([loss.task, loss.knowledge]), (loss, rest)

    def _step(self, state: TrainState, order, frozen, pictures) -> tuple[TrainState, dict]:
        """One update: augment, forward student and teacher, backward; sums over the pictures."""
        batch = self.batch(state, order, pictures)
        params, rest, optimizer = dict(state.params), dict(state.rest), dict(state.optimizer)
        shown = None
        for names in self.transfer.turns or [sorted({*params, *rest})]:
            objective = lambda params, rest=dict(rest): self.objective(params, rest, frozen, batch)
            _, back, (loss, moved) = jax.vjp(objective, dict(params), has_aux=True)
            sides = ((1.0, 0.0), (0.0, 1.0)) if self.recipe.dot else ((1.0, 1.0),)
            grads = [back(jnp.array(side))[0] for side in sides]
            rest |= {name: moved[name] for name in names if name in moved}
            for name in filter(optimizer.__contains__, names):
                mine = [g[name] for g in grads]
                decays = jax.tree.map(self.decays, params[name], *mine)
                mine = mine if self.recipe.dot else mine[0]
                step, optimizer[name] = self.optimizer.update(mine, optimizer[name], decays)
                params[name] = optax.apply_updates(params[name], step)
            shown = shown or loss
        params, rest = self.transfer.after_step(params, rest, state.step)
        means = {"loss": shown.total, **shown.parts, "count": 1.0}
        sums = {name: len(batch.labels) * jnp.float32(mean) for name, mean in means.items()}
        sums["accuracy"] = jnp.float32(shown.logits.argmax(-1) == batch.labels).sum()
        return TrainState(params, rest, optimizer, state.key, state.step + 1), sums

    def _epoch(self, state: TrainState, frozen, pictures):
        """All steps of an epoch in one program: on a GPU or TPU, ``vmap`` adds the seeds."""
        order = self._order(state)
        step = lambda state, _: self._step(state, order, frozen, pictures)
        state, sums = jax.lax.scan(step, state, length=self.steps)
        return state, jax.tree.map(lambda sums: sums.sum(0), sums)

    def run_epoch(self, state: TrainState, progress: Progress) -> tuple[TrainState, dict]:
        """Train one epoch: of one seed, or of a stack of them where fused."""
        if self.fused:
            state, sums = self.epoch(state, self.frozen, self.pictures)
            progress.advance(self.steps * self.recipe.batch_size * len(state.step), sums)
            return state, sums
        order, sums = self.order(state), None
        for _ in range(self.steps):
            state, of_step = self.step(state, order, self.frozen, self.pictures)
            sums = self.add(sums, of_step) if sums else of_step
            progress.advance(self.recipe.batch_size, sums)
        return state, sums
