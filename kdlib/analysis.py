"""Tools to choose settings: how strong a method's gradient is, sweeps of temperature and share."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from kdlib.data import Dataset
from kdlib.distillers import SoftLogits
from kdlib.names import require
from kdlib.program import Program, Recipe
from kdlib.progress import Progress
from kdlib.train import networks
from kdlib.transfer import Offline, Supervised


def gradient_ratio(
    student: str, data: Dataset, transfer: Supervised, recipe: Recipe, *, batches: int = 4,
    at: Sequence[float] = (0.0, 0.25, 1.0), seed: int = 0) -> dict[float, float]:  # fmt: skip
    """How long the knowledge's gradient is against the cross-entropy's, as a run goes on.

    ‖∇ knowledge‖ / ‖∇ cross-entropy‖ with respect to the student's parameters, both with their
    weights, as a mean over batches. It carries a weight to another data set or batch size: scale it
    until the ratio is what it was where the published weight worked.

    Args:
        student: a network's name.
        data, transfer, recipe: as in :func:`kdlib.fit`.
        at: shares of the run at which to measure, 0 to 1.
        batches: how many to average over.
        seed: of the run.

    Returns:
        share → ratio; ``inf`` where the cross-entropy has no weight.

    Raises:
        ValueError: the method trains for other epochs than the recipe's, in generations or longer.
    """
    program = Program(networks(student, data, recipe), data, transfer, recipe, fused=False)
    require(program.epochs == transfer.longer * recipe.epochs == recipe.epochs, f"{transfer.spec} "
            "is no single run: measure its distiller by Offline")  # fmt: skip

    @jax.jit
    def norms(state):
        batch = program.batch(state, program._order(state), program.pictures)
        loss = lambda params: program.objective(params, state.rest, program.frozen, batch)
        _, back, _ = jax.vjp(loss, state.params, has_aux=True)
        sides = [back(jnp.array(side))[0]["student"] for side in ((1.0, 0.0), (0.0, 1.0))]
        return jnp.stack([optax.tree.norm(side) for side in sides])

    state, found, quiet = program.init(seed), {}, Progress("", 1, enabled=False)
    for share in sorted(at):
        while state.step < round(share * program.epochs) * program.steps:
            state, _ = program.run_epoch(state, quiet)
        # At the very end there is no next step: measure the last epoch's batches once more.
        first = min(state.step, (program.epochs - 1) * program.steps)
        each = [norms(state._replace(step=first + i)) for i in range(batches)]
        task, lesson = np.asarray(each, float).mean(0)
        found[share] = float(lesson / task) if task else float("inf")
    return found


class Setting(nnx.Variable):
    """A number that programs take as an argument, so that one program serves many values of it."""


class SweptSoftLogits(SoftLogits):
    """Soft logits whose temperature and share are part of the state."""

    def __init__(self):
        self.temperature, self.alpha = Setting(jnp.float32(1)), Setting(jnp.float32(1))

    def weights(self, progress):
        return 1 - self.alpha[...], self.alpha[...]


def sweep(student: str, data: Dataset, teacher: nnx.Module, recipe: Recipe, *, seeds: int = 1,
          temperatures: Sequence[float], alphas: Sequence[float], fused: bool | None = None,
          progress: bool = True) -> np.ndarray:  # fmt: skip
    """Train with every pair of temperature and share; one compiled program serves them all.

    On a GPU all runs are one vmapped program; on a CPU they follow one another. Where the data has
    a validation split its accuracy is returned: choose on that, not on the test set.

    Args:
        student: a network's name.
        data, teacher, recipe: as in :func:`kdlib.fit` and ``Offline``.
        temperatures, alphas: the grid.
        seeds: runs per pair.
        fused: as in :func:`kdlib.fit`.

    Returns:
        Accuracy after the last epoch, a share, ``[temperatures, alphas, seeds]``.
    """
    fused = jax.default_backend() != "cpu" if fused is None else fused
    transfer = Offline(teacher, SweptSoftLogits())
    program = Program(networks(student, data, recipe), data, transfer, recipe, fused)
    grid = [(t, a, s) for t in temperatures for a in alphas for s in range(seeds)]
    split = "validation" if data.validation else "test"

    def start(t, a, seed):
        state = program.init(seed)
        setting = {"temperature": jnp.float32(t), "alpha": jnp.float32(a)}
        return state._replace(rest=state.rest | {"distiller": setting})

    states = [start(*cell) for cell in grid]
    states = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)] if fused else states
    total = len(grid) * program.epochs * program.steps * recipe.batch_size
    shown, scores = Progress("sweep", total, progress), []
    for state in states:
        for _ in range(program.epochs):
            state, _ = program.run_epoch(state, shown)
        scores.append(program.scores(state)[split][:, 0])
    shown.close()
    return np.concatenate(scores).reshape(len(temperatures), len(alphas), seeds)
