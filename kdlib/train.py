"""Training: the recipe, the state, the jitted step, and ``fit``, which every notebook calls."""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from kdlib import checkpoint, history, models
from kdlib.data import Dataset, Split, crop_and_flip
from kdlib.history import History
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
        """Learning rate by step."""
        points = (int(self.epochs * point) * steps_per_epoch for point in self.decay_points)
        return optax.piecewise_constant_schedule(
            self.learning_rate, dict.fromkeys(points, self.decay_rate)
        )

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """SGD as described above."""
        mask = None if self.decay_all else functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
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


class Run(NamedTuple):
    """What :func:`fit` returns: the record, and one trained network per seed."""

    history: History
    students: list[nnx.Module]

    @property
    def student(self) -> nnx.Module:
        """The first seed's network."""
        return self.students[0]


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
            trained, teacher = nnx.merge(self.graph, params, rest), nnx.merge(self.frozen_graph, frozen)
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


def evaluate(model: nnx.Module, split: Split, batch_size: int = 250) -> dict[str, float]:
    """Test a network in evaluation mode.

    Returns:
        ``accuracy``, a share, and ``loss``, the mean negative log-likelihood in nats.
    """
    model.eval()
    graph, state = nnx.split(model)
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)
    accuracy, loss = Scorer(graph, batch_size)((nnx.to_pure_dict(state),), images, labels)
    return {"accuracy": float(accuracy), "loss": float(loss)}


def fit(
    student: str | Callable[[int], nnx.Module],
    data: Dataset,
    transfer: Supervised | None = None,
    recipe: Recipe = Recipe(),
    *,
    seeds: int | Sequence[int] = 1,
    run_dir: str | pathlib.Path | None = None,
    label: str | None = None,
    fused: bool | None = None,
    progress: bool = True,
) -> Run:
    """Train a network, once per seed.

    Args:
        student: a network's name, or a function from a seed to a fresh network.
        data: training, test and, if it has one, validation pictures.
        transfer: who teaches; None trains on the labels alone.
        recipe: how to train.
        seeds: how many (0, 1, …), or which.
        run_dir: where to keep config, history and a checkpoint per epoch; the same call again
            resumes there, bit for bit. None keeps nothing.
        label: a name for the progress display.
        fused: whole epochs and all seeds in one program; None decides by the hardware.
        progress: whether to show it.

    Raises:
        ValueError: a batch larger than the data, a teacher that knows another number of classes, or
            ``run_dir`` holds a run with another config (the difference is named).
    """
    transfer = transfer or Supervised()
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    fused = jax.default_backend() != "cpu" if fused is None else fused
    name = student if isinstance(student, str) else getattr(student, "__name__", "custom")
    if isinstance(student, str):
        dtype = jnp.bfloat16 if recipe.bfloat16 else jnp.float32
        student = lambda seed: models.build(  # noqa: E731
            name, data.num_classes, mean=data.mean, std=data.std, seed=seed,
            zero_init=recipe.zero_init, dtype=dtype,
        )  # fmt: skip
        name = models.canonical(name)
    _check(data, transfer, recipe, seeds)
    config = {
        "student": name, "transfer": transfer.name, "distiller": transfer.spec,
        "data": data.describe(), "recipe": asdict(recipe), "seeds": seeds,
    }  # fmt: skip
    config = json.loads(json.dumps(config))  # tuples become lists, as they will be read back
    if run_dir:
        run_dir = pathlib.Path(run_dir).expanduser()
        claim(run_dir, config)

    program = Program(student, data, transfer, recipe, fused)
    record = History(config, _protocol(student, data, transfer, fused), seeds)
    total = recipe.epochs * program.steps * recipe.batch_size * len(seeds)
    shown = Progress(label or f"{name} {transfer.spec}", total, progress)
    students = []
    try:
        for group in [seeds] if fused else [[seed] for seed in seeds]:
            state = _train_group(program, data, group, record, run_dir, shown)
            for place in range(len(group)):
                one = jax.tree.map(lambda leaf: leaf[place], state) if fused else state  # noqa: B023
                students.append(
                    nnx.merge(program.score.graph, one.params["student"], one.rest["student"])
                )
    finally:
        shown.close()
    if run_dir:
        record.save(run_dir / "history.json")
    return Run(record, students)


def _train_group(program, data, group, record, run_dir, shown) -> TrainState:
    """Train the seeds of one program from where their checkpoint stands, epoch by epoch."""
    recipe, fused = program.recipe, program.fused
    states = [program.init(seed) for seed in group]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if fused else states[0]
    file = run_dir and run_dir / f"state-seed-{'-'.join(map(str, group))}{checkpoint.SUFFIX}"
    first = 0
    if file and file.exists():
        state, metadata = checkpoint.restore_tree(file, state)
        for curve, values in metadata["curves"].items():
            record.curves.setdefault(curve, [[] for _ in record.seeds])
            for seed, value in zip(group, values, strict=True):
                record.curves[curve][record.seeds.index(seed)] = value
        first = metadata["epoch"]
        shown.skip(first * program.steps * recipe.batch_size * len(group))
    splits = {"validation": data.validation, "test": data.test}
    splits = {
        name: (jnp.asarray(split.images), jnp.asarray(split.labels))
        for name, split in splits.items()
        if split is not None
    }
    for epoch in range(first, recipe.epochs):
        started = time.monotonic()
        state, sums = program.run_epoch(state, shown)
        sums = {name: np.atleast_1d(value) for name, value in jax.device_get(sums).items()}
        seconds = (time.monotonic() - started) / len(group)
        variables = state.params["student"], state.rest["student"]
        scores = {name: np.atleast_2d(program.score(variables, *s)) for name, s in splits.items()}
        for place, seed in enumerate(group):
            count = sums["count"][place]
            values = {
                f"train_{name}": sums[name][place] / count
                for name in sums
                if name not in ("count", "correct")
            }
            values["train_accuracy"] = sums["correct"][place] / count
            for name, score in scores.items():
                values[f"{name}_accuracy"], values[f"{name}_loss"] = score[place]
            record.append(seed, values | {"seconds": seconds})
        if file:
            curves = {
                name: [curves[record.seeds.index(seed)] for seed in group]
                for name, curves in record.curves.items()
            }
            checkpoint.save_tree(file, state, {"epoch": epoch + 1, "curves": curves})
            record.save(run_dir / "history.json")
        shown.epoch(record, epoch + 1, recipe.epochs, group)
    return state


def _check(data, transfer, recipe, seeds):
    if recipe.batch_size > len(data.train):
        raise ValueError(
            f"a batch of {recipe.batch_size} is larger than the {len(data.train)} training pictures: "
            "use a smaller batch size"
        )
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ValueError(f"seeds={seeds}: give at least one, each once")
    for name, module in transfer.frozen().items():
        picture = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.uint8)
        graph, state = nnx.split(module)
        logits = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x).logits, state, picture)  # noqa: B023
        if logits.shape[-1] != data.num_classes:
            raise ValueError(
                f"the {name} knows {logits.shape[-1]} classes and {data.name} has "
                f"{data.num_classes}: train a teacher on this data"
            )


def _protocol(build, data, transfer, fused) -> dict:
    student = models.cost(nnx.eval_shape(lambda: build(0)), data.image_shape)
    return {
        "reported": "last epoch", "views": 1, "device": history.device(), "fused": fused,
        "versions": history.versions(), "parameters": student.parameters,
        "multiply_adds": student.multiply_adds,
    }  # fmt: skip


def claim(run_dir: pathlib.Path, config: dict) -> None:
    """Make a run's folder, or find the same run in it.

    Raises:
        ValueError: another run is there; the message names the settings that differ.
    """
    path = run_dir / "config.json"
    if not path.exists():
        history.write_text(path, json.dumps(config, indent=1))
        return
    there, here = _flat(json.loads(path.read_text())), _flat(config)
    differing = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise ValueError(
            f"{run_dir} holds another run ({'; '.join(differing)}): choose another folder, or the "
            "same settings to resume"
        )


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    rows = {}
    for key, value in tree.items():
        rows |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return rows
