"""What keeps training fast, and that it computes what it computed before it was fast."""

import multiprocessing
import time

import jax
import numpy as np
import pytest

import kdlib
from kdlib import models
from kdlib.distillers import make
from kdlib.models import convolution
from kdlib.program import Program
from kdlib.progress import Progress

# Mean losses by epoch, recorded with XLA's plain convolutions and their plain derivatives (kdlib of
# 2026-11-22, seed 0, jax 0.10.2, two CPU cores).
GOLDEN = {
    "plain": (
        [1.339002, 1.232895, 1.221697],  # train_loss
        [1.291067, 1.292198, 1.282768],  # test_loss
    ),
    "SoftLogits": (
        [0.1846241, 0.1693122, 0.1626883],  # train_loss
        [1.340548, 1.351063, 1.352916],  # test_loss
    ),
    "AT(beta=100)": (
        [8.177847, 7.352434, 7.12853],  # train_loss
        [1.282142, 1.273333, 1.257165],  # test_loss
    ),
}


def noise(train=64, test=50, side=16):
    """Noise of four shades."""
    rng = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n, dtype=np.int32) % 4
        images = rng.integers(0, 160, (n, side, side, 3)) + 24 * labels[:, None, None, None]
        return kdlib.data.Split(images.astype(np.uint8), labels)

    return kdlib.data.Dataset("noise", "four shades", tuple("abcd"), split(train), split(test))


def taught(name, data, teacher="ResNet14x0.25"):
    if name == "plain":
        return kdlib.Supervised()
    statistics = {"mean": data.mean, "std": data.std}
    return kdlib.Offline(models.build(teacher, 4, **statistics, seed=1), make(name))


@pytest.mark.parametrize("way", ["usual", "oneDNN", "fused"])
@pytest.mark.parametrize("name", GOLDEN)
def test_training_curves_are_those_recorded_before(name, way, monkeypatch):
    """The order of sums may differ, nothing else: a fraction of the seeds' spread."""
    if way == "oneDNN":
        if not convolution.ONEDNN:
            pytest.skip("this jaxlib's oneDNN isn't called")
        calls, call = [], convolution._onednn
        convolution._convolve.clear_cache()  # or what earlier tests traced would be taken
        monkeypatch.setattr(convolution, "WORTH", 0)
        monkeypatch.setattr(
            convolution, "_onednn", lambda *a, **k: calls.append(0) or call(*a, **k)
        )
    recipe = kdlib.Recipe(epochs=3, batch_size=16, learning_rate=0.02, zero_init=False)
    data = noise()
    run = kdlib.fit("ResNet8x0.25", data, taught(name, data), recipe, progress=False,
                    fused=way == "fused")  # fmt: skip
    found = [run.history.curve(metric)[0] for metric in ("train_loss", "test_loss")]
    np.testing.assert_allclose(found, GOLDEN[name], rtol=2e-4)
    assert way != "oneDNN" or len(calls) >= 9 * 3  # nine convolutions and their two gradients


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_read_or_sent_inside_an_epoch(fused, monkeypatch):
    """An epoch runs on arrays without values, so it can't read any; and none comes from the host.

    The display reads the sums, a few times per second at most.
    """
    data = noise()
    recipe = kdlib.Recipe(epochs=2, batch_size=16)
    network = lambda name, seed: models.build(name or "ResNet8x0.25", 4, seed=seed)
    program = Program(network, data, taught("SoftLogits", data), recipe, fused)
    start = lambda: program.start([0])
    epoch = lambda progress: lambda state: program.run_epoch(state, progress)
    silent, shown = Progress("", 1, enabled=False), Progress("", 1)
    shown.write, shown.shown = print, 0.0  # a display whose second is over
    state = start()
    epoch(silent)(state)  # compiles
    assert jax.tree.leaves(state.params)[0].is_deleted() == fused  # its memory was used again
    state = start()
    with monkeypatch.context() as patch:
        # JAX traces no program with options of its own inside another: the same step without.
        patch.setattr(program, "step", jax.jit(program._step), raising=False)
        jax.eval_shape(epoch(silent), state)
        with pytest.raises(jax.errors.ConcretizationTypeError):
            jax.eval_shape(epoch(shown), state)
    with jax.transfer_guard_host_to_device("disallow"):
        epoch(silent)(state)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_is_traced_once(fused):
    data, traced = noise(), []
    network = lambda name, seed: models.build("ResNet8x0.25", 4, seed=seed)
    recipe = kdlib.Recipe(batch_size=16)
    program = Program(network, data, taught("SoftLogits", data), recipe, fused)
    objective = program.objective
    program.objective = lambda *args: traced.append(0) or objective(*args)
    state, silent = program.start([0]), Progress("", 1, enabled=False)
    for _ in range(2):
        state, _ = program.run_epoch(state, silent)
    assert len(traced) == 1


@pytest.mark.parametrize(("size", "in_a_row"), [(32, False), (64, True)])
def test_only_large_batches_are_worked_off_layer_by_layer(size, in_a_row, monkeypatch):
    asked = []
    monkeypatch.setattr("kdlib.program.compiled", lambda step, *args: asked.append(args))
    network = lambda name, seed: models.build("ResNet8x0.25", 4, seed=seed)
    Program(network, noise(), kdlib.Supervised(), kdlib.Recipe(batch_size=size), False)
    assert asked == [(in_a_row,)]


def test_a_network_is_made_once_for_each_seed():
    """The first seed's also gives a program its structure, and a record its sizes."""
    made = []
    network = lambda name, seed: made.append(seed) or models.build("ResNet8x0.25", 4, seed=seed)
    program = Program(network, noise(), kdlib.Supervised(), kdlib.Recipe(batch_size=32), False)
    for seed in (0, 0, 1):
        program.init(seed)
    assert made == [0, 1]


def calls() -> tuple[float, float]:
    """Seconds that calling a step of ResNet-56, taught by ResNet-56, takes of the thread; and
    calling a program that only hands its arrays on."""
    data = noise(side=8)
    network = lambda name, seed: models.build("ResNet56", 4, seed=seed)
    transfer = taught("SoftLogits", data, teacher="ResNet56")
    program = Program(network, data, transfer, kdlib.Recipe(batch_size=1), fused=False)
    state = program.init(0)
    arguments = state, program.order(state), program.frozen, program.pictures

    def fastest(step):
        times = []
        for _ in range(30):
            started = time.thread_time()
            result = step(*arguments)  # and the last one's arrays end, as in training
            times.append(time.thread_time() - started)
            jax.block_until_ready(result)
        return min(times)

    return fastest(program.step), fastest(jax.jit(lambda *arguments: arguments[0]))


@pytest.mark.slow
def test_python_takes_little_of_a_step():
    """Less than 3 ms; on a busy machine, less than three times what handing arrays on takes.

    The fastest of three new processes: it depends on how memory lies, and after hundreds of tests
    it lies in pieces.
    """
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        ours, least = map(min, zip(*(pool.apply(calls) for _ in range(3)), strict=True))
    assert ours < max(3e-3, 3 * least), f"{1e3 * ours:.1f} ms, {1e3 * least:.1f} ms at least"
