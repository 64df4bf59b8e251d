"""``fit``, which every notebook and script calls: seeds, epochs, records and resuming."""

import contextlib
import json
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdlib import checkpoint, distillers, files, history, models, parallel
from kdlib.data import Dataset, Split
from kdlib.fingerprint import fingerprint, is_own
from kdlib.history import History
from kdlib.models import Outputs
from kdlib.names import OWN_FILE, require
from kdlib.program import Modules, Program, Recipe, TrainState, compiled
from kdlib.progress import Progress
from kdlib.transfer import Supervised
from kdlib.transfer.supervised import cross_entropy, shows


class Run(NamedTuple):
    """What :func:`fit` returns.

    ``history`` is the record; ``students`` the networks to use and ``modules`` everything that was
    trained (``modules[0].student``, ``.distiller``, ``.peer_1``), one per seed.
    """

    history: History
    students: list[nnx.Module]
    modules: list[nnx.Module]

    student = property(lambda self: self.students[0])  # the first seed's


def evaluate(model: nnx.Module, split: Split, batch_size: int = 250) -> dict[str, float]:
    """Test a network that shows :class:`Outputs`, in evaluation mode.

    Returns:
        ``accuracy``, a share, and ``loss``, the mean negative log-likelihood in nats.
    """
    logits = predict(model, split.images, batch_size, maps=False).logits
    right = logits.argmax(-1) == split.labels
    return {"accuracy": float(right.mean()), "loss": float(cross_entropy(logits, split.labels))}


def predict(model: nnx.Module, images, batch_size: int = 250, maps: bool = True) -> Outputs:
    """What a network shows for pictures, uint8 ``[n, h, w, c]``, in evaluation mode, as NumPy."""
    model.eval()
    graph, state = nnx.split(model)
    state, kept = nnx.to_pure_dict(state), {} if maps else {"features": (), "preacts": ()}
    show = compiled(lambda state, images: nnx.merge(graph, state)(images)._replace(**kept))
    parts = [show(state, images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    # Four have a row per picture; the rest, head and norms, are of the network.
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(tuple(p)[:4] for p in parts))
    return Outputs(*rows, *jax.device_get(tuple(parts[0])[4:]))


def networks(student: str | Callable[[int], nnx.Module], data: Dataset, recipe: Recipe):
    """A function that makes networks for this data from a name (None: the student's) and a seed."""

    def make(name: str | None, seed: int) -> nnx.Module:
        if name is None and callable(student):
            return student(seed)
        dtype = jnp.bfloat16 if recipe.bfloat16 else jnp.float32
        return models.build(name or student, data.num_classes, mean=data.mean, std=data.std,
                            seed=seed, zero_init=recipe.zero_init, dtype=dtype)  # fmt: skip

    return make


def fit(
    student: str | Callable[[int], nnx.Module], data: Dataset, transfer: Supervised | None = None,
    recipe: Recipe = Recipe(), *, seeds: int | Sequence[int] = 1, progress: bool = True,
    run_dir: str | pathlib.Path | None = None, label: str | None = None, fused: bool | None = None,
    devices: int | None = None, on_epoch: Callable | None = None) -> Run:  # fmt: skip
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
        devices: how many share the work: the seeds first, where one program trains them, then the
            pictures of each batch; None takes as many as deal the seeds out evenly.
        progress: whether to show it.
        on_epoch: called after every epoch with the record, the epoch, the seeds it trained, and a
            function that returns their networks as they are now.

    Raises:
        ValueError: a batch larger than the data; no teacher where one is needed; a teacher or a
            student of one's own with another number of classes; a ``transfer`` that is none;
            ``run_dir`` holds a run with another config (the difference is named); ``devices`` that
            aren't there or can't share the batch.
    """
    transfer = transfer or Supervised()
    seeds = list(range(seeds)) if np.ndim(seeds) == 0 else list(map(int, seeds))
    fused = jax.default_backend() != "cpu" if fused is None else fused
    _check(student, data, transfer, recipe, seeds)
    config = configuration(student, data, transfer, recipe, seeds)
    recipe = replace(recipe, epochs=max(1, round(recipe.epochs * transfer.longer)))
    on = parallel.mesh(devices, len(seeds) if fused else 1, recipe.batch_size)
    program = Program(networks(student, data, recipe), data, transfer, recipe, fused, on, seeds[0])
    record = History(config, _protocol(program, transfer, data, seeds[0]), seeds)
    if run_dir:
        run_dir = files.expand(run_dir)
        claim(run_dir, config | {"fused": fused})  # one state for all seeds, or one for each
    total = program.epochs * program.steps * recipe.batch_size * len(seeds)
    label, states = label or f"{config['student']} {transfer.spec}", []
    with contextlib.closing(Progress(label, total, progress)) as shown:
        for group in [seeds] if fused else [[seed] for seed in seeds]:
            states += _train_group(program, group, record, run_dir, shown, on_epoch)
    if run_dir:
        record.save(run_dir / "history.json")
    return Run(record, _deployed(program, states), [program.trained(state) for state in states])


def _deployed(program: Program, states: list[TrainState]) -> list[nnx.Module]:
    frozen = parallel.together(program.frozen, program.mesh)
    return [program.deployed(state.params, state.rest, frozen) for state in states]


def configuration(student, data: Dataset, transfer, recipe: Recipe, seeds) -> dict:
    """Everything that decides a run's numbers, JSON values only; arguments as in :func:`fit`.

    Pictures and labels, of training and test, frozen teachers and what is one's own are there as
    checksums.
    """
    kind = getattr(student, "__name__", "custom") if callable(student) else None
    splits = data.train, data.test, data.validation
    config = {"student": kind or models.canonical(student), "own": _own(student, transfer),
        "transfer": transfer.name, "distiller": transfer.spec, "recipe": asdict(recipe),
        "data": data.describe(), "picture_shape": data.image_shape,
        "picture_mean": [round(v, 3) for s in (data.train, data.test) for v in s.moments[0]],
        "teacher": checkpoint.digest(Modules(transfer.frozen())),
        "labels": checkpoint.digest([data.train.labels, data.test.labels]),
        "pictures": checkpoint.digest([s.images for s in splits if s]),
        "seeds": list(range(seeds)) if isinstance(seeds, int) else list(seeds)}  # fmt: skip
    return json.loads(json.dumps(config))  # tuples become lists, as they will be read back


def _own(student, transfer) -> dict[str, str]:
    """Checksums of what isn't ours: of files named in text, of functions, classes and objects, and
    of a distiller of ours with weights that its text doesn't tell."""
    paths = map(pathlib.Path, re.findall(rf"({OWN_FILE}):", transfer.spec))
    found = {str(path): checkpoint.sha256(files.expand(path))[:16] for path in paths}
    taught = {"distiller": getattr(transfer, "distiller", None)} | transfer.frozen()
    (modules := nnx.clone(Modules(taught))).eval()  # whatever mode a teacher was left in
    for given in (student, transfer, *(part for _, part in nnx.iter_graph(modules))):
        made_by = getattr(given, "function", given)  # a loss's, and a partial function's
        made_by = getattr(made_by, "func", made_by)
        kind = made_by if hasattr(made_by, "__qualname__") else type(made_by)
        stock = type(given) in distillers.DISTILLERS.values() and not hasattr(given, "of")
        altered = stock and given.weights(1.0) != distillers.make(given.spec).weights(1.0)
        if is_own(kind) or altered or (given is student and callable(student)):
            # Two lambdas have one name.
            found[kind.__qualname__] = found.get(kind.__qualname__, "") + fingerprint(given)
    return found


def _train_group(program, group, record, run_dir, shown, on_epoch) -> list[TrainState]:
    """Train the seeds of one program from where their checkpoint stands; one state for each."""
    recipe, fused = program.recipe, program.fused

    start = lambda generation=0: program.start([seed + 100_000 * generation for seed in group])

    def each() -> list[TrainState]:  # on one device, whatever trained them
        whole = parallel.together(state, program.mesh)
        seed_of = lambda place: jax.tree.map(lambda leaf: leaf[place], whole)
        return [seed_of(place) for place in range(len(group))] if fused else [whole]

    state, first, places = start(), 0, [record.seeds.index(seed) for seed in group]
    file = run_dir and run_dir / f"state-seed-{'-'.join(map(str, group))[:99]}{checkpoint.SUFFIX}"
    if file and file.exists():
        state, metadata = checkpoint.restore_tree(file, state)
        state = program.place(state)
        for curve, values in metadata["curves"].items():
            record.curves.setdefault(curve, [[] for _ in record.seeds])
            for place, value in zip(places, values, strict=True):
                record.curves[curve][place] = value
        first = metadata["epoch"]
        record.ran(**{fact: metadata[fact] for fact in ("device", "code")})
        shown.advance(first * program.steps * recipe.batch_size * len(group))
    if first < program.epochs:
        record.ran(device=history.device(program.mesh.size), code=history.code())
    for epoch in range(first, program.epochs):
        if epoch and epoch % recipe.epochs == 0:
            state = program.transfer.next_generation(state, start(epoch // recipe.epochs))
        started = time.monotonic()
        state, sums = program.run_epoch(state, shown)
        sums = {name: np.atleast_1d(value) for name, value in jax.device_get(sums).items()}
        seconds = (time.monotonic() - started) / len(group)
        tested = (epoch + 1) % recipe.test_every == 0 or epoch + 1 == program.epochs
        scores, count = program.scores(state) if tested else {}, sums.pop("count")
        for place, seed in enumerate(group):
            values = {f"train_{k}": total[place] / count[place] for k, total in sums.items()}
            for name, score in scores.items():
                values[f"{name}_accuracy"], values[f"{name}_loss"] = score[place]
            record.append(seed, values | {"seconds": seconds})
        if file:
            claim(run_dir, record.config | {"fused": fused})  # no other run has saved here since
            curves = {k: [curves[i] for i in places] for k, curves in record.curves.items()}
            facts = {k: record.protocol[k] for k in ("device", "code")}
            checkpoint.save_tree(file, state, facts | {"epoch": epoch + 1, "curves": curves})
            record.save(run_dir / "history.json")
        shown.epoch(record, epoch + 1, program.epochs, group)
        if on_epoch:
            on_epoch(record, epoch + 1, group, lambda: _deployed(program, each()))
    return each()


def _check(student, data, transfer, recipe, seeds):
    require(isinstance(transfer, Supervised), f"{type(transfer)}: give what transfer.make returns")
    size, pictures = recipe.batch_size, len(data.train)
    require(size <= pictures, f"a batch of {size} is larger than the {pictures} training pictures: "
            "use a smaller batch size")  # fmt: skip
    sound = 0 < len(seeds) == len(set(seeds)) and max(map(abs, seeds)) < 2**31
    require(sound, f"seeds={seeds}: give at least one, each once, below 2**31")
    frozen, pictures = transfer.frozen(), jnp.zeros((2, *data.image_shape), jnp.uint8)
    require(None not in frozen.values(), f"{transfer.spec} needs a trained {', '.join(frozen)}")
    shown = {name: shows(module, data.image_shape) for name, module in frozen.items()}
    if callable(student):
        shown["student"] = nnx.eval_shape(lambda: student(seeds[0])(pictures))
    for name, known in ((name, outputs.logits.shape[-1]) for name, outputs in shown.items()):
        require(known == data.num_classes, f"the {name} knows {known} classes and {data.name} has "
                f"{data.num_classes}: take one for this data")  # fmt: skip


def _protocol(program: Program, transfer: Supervised, data: Dataset, seed: int) -> dict:
    """How a run is measured: sizes of what is used and of what is trained, passes per step."""
    state, count = program.init(seed), lambda tree: sum(map(jnp.size, jax.tree.leaves(tree)))
    student = models.cost(program.trained(state).student, data.image_shape)
    return {"reported": "last epoch", "views": transfer.views, "fused": program.fused,
        "versions": history.versions(), **student._asdict(), "epochs": program.epochs,
        "trained_parameters": count(state.params), "generations": transfer.generations,
        "deployed_parameters": count(nnx.state(_deployed(program, [state])[0], nnx.Param)),
        "student_passes": transfer.passes[0], "teacher_passes": transfer.passes[1]}  # fmt: skip


def claim(run_dir: pathlib.Path, config: dict) -> None:
    """Make a run's folder, or find the same run in it.

    Raises:
        ValueError: another run is there (the message names the settings that differ), one whose
            config is gone, or a config of something else.
    """
    path, advice = run_dir / "config.json", "choose another folder"
    there = files.read_json(path, advice, dict) if path.exists() else {}
    require(not there or "transfer" in there, f"{path} is not a run's: {advice}")
    if not (any(run_dir.glob("*-seed-*")) or (run_dir / "history.json").exists()):
        return files.write_text(path, json.dumps(config, indent=1))
    require(there, f"{run_dir} holds a run without its {path.name}: {advice}")
    there, here = (dict(checkpoint.named_leaves(v, whole_lists=True)) for v in (there, config))
    differing = [f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in
                 sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]  # fmt: skip
    require(not differing, f"{run_dir} holds another run ({'; '.join(differing)}): {advice}, "
            "or the same settings to resume")  # fmt: skip
