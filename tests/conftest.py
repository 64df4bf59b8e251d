"""Shared fixtures: tiny data and networks, so that compilations are few and reused."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# Compiling is most of what these tests do. Notebooks, the demo, and the
# runs that are killed and resumed, are compiled as users compile them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("MALLOC_ARENA_MAX", "8")  # kdlib leaves glibc alone: workers share a memory
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    # Networks as small as these gain nothing from a second core, but workers that share cores
    # wait for each other's threads: each gets a core to itself.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import gc

import jax
import numpy as np
import pytest

import kdlib
from kdlib.data import Dataset, Split, shapes

# Tracing makes many small objects that live on: looking for dead ones less often saves a twentieth.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

SIDE, CLASSES = 8, 4


def make_tiny() -> Dataset:
    """64 random 8x8 pictures of four classes, told apart by the brightness of one corner."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = (np.arange(count) % CLASSES).astype(np.int32)
        images = rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
        images[:, :4, :4] = (60 * labels)[:, None, None, None]
        return Split(images, labels)

    return Dataset("tiny", "test pictures", tuple("abcd"), split(64), split(30), split(20))


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    return make_tiny()


@pytest.fixture(scope="session")
def small_shapes() -> Dataset:
    """100 training and 50 test pictures of the embedded set, without the cache."""
    train, test = shapes.render(100, 0), shapes.render(50, 1)
    return Dataset("shapes", "embedded shapes", tuple(shapes.SHAPES), Split(*train), Split(*test))


@pytest.fixture(scope="session")
def teacher(tiny):
    """An untrained network with the input statistics of ``tiny``, in evaluation mode."""
    model = kdlib.models.build("ResNet8x0.25", CLASSES, mean=tiny.mean, std=tiny.std, seed=7)
    model.eval()
    return model


def leaves_equal(a, b) -> bool:
    """Whether two pytrees agree bit for bit."""
    raw = kdlib.checkpoint._raw
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(raw(x)), np.asarray(raw(y))) for x, y in pairs)


@pytest.fixture(scope="session")
def cifar10() -> Dataset:
    """Real CIFAR-10 pictures; tests marked ``tfds`` need it prepared."""
    folder = os.environ.get("TFDS_DATA_DIR", os.path.expanduser("~/tensorflow_datasets"))
    if not os.path.isdir(os.path.join(folder, "cifar10")):
        pytest.skip(f"CIFAR-10 is not prepared in {folder}")
    return kdlib.load("cifar10")
