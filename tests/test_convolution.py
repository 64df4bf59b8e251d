"""The convolution of ``kdlib.models.convolution``: oneDNN's, XLA's in chunks, and the plain one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdlib import models
from kdlib.models import convolution

needs_oneDNN = pytest.mark.skipif(
    not convolution.ONEDNN, reason="this jaxlib's oneDNN isn't called"
)
ONEDNN = pytest.param(0, id="oneDNN", marks=needs_oneDNN)


@pytest.mark.parametrize("worth", [ONEDNN, pytest.param(10**12, id="XLA")])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (7, 2)])
@pytest.mark.parametrize(("c", "groups"), [(3, 1), (8, 1), (8, 8)])
@pytest.mark.parametrize(("pictures", "side"), [(5, 9), (13, 16), (12, 7)])
def test_gradients_are_those_of_the_plain_convolution(
    size, stride, c, groups, pictures, side, worth, monkeypatch
):
    """Also where the last chunk is shorter, and where a chunk is a single picture."""
    monkeypatch.setattr(convolution, "PATCHES", 4 * size * size * side * side * c // groups)
    monkeypatch.setattr(convolution, "CHUNK", 4 * side * side * c)
    monkeypatch.setattr(convolution, "WORTH", worth)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (pictures, side, side, c))
    kernel = jax.random.normal(keys[1], (size, size, c // groups, 8))
    pads = ((size // 2, size // 2),) * 2
    found, expected = (
        jax.vjp(lambda x, k, f=f: f(x, k, (stride, stride), pads, feature_group_count=groups,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC")), x, kernel)
        for f in (convolution.convolve, jax.lax.conv_general_dilated)
    )  # fmt: skip
    if worth:
        np.testing.assert_array_equal(found[0], expected[0])  # XLA's own forward pass
    gradient = jax.random.normal(keys[2], found[0].shape)
    pairs = zip((found[0], *found[1](gradient)), (expected[0], *expected[1](gradient)), strict=True)
    for mine, plain in pairs:
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())


@needs_oneDNN
def test_large_convolutions_are_oneDNNs(monkeypatch):
    """Forward, to pictures and to the kernel: three calls in what is compiled; and under vmap."""
    x, kernel = jnp.ones((32, 32, 32, 8)), jnp.ones((3, 3, 8, 8))
    named = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    loss = lambda x, k: convolution.convolve(x, k, (1, 1), ((1, 1),) * 2, **named).sum()
    gradients = jax.grad(lambda x, k: loss(x, k) ** 2, (0, 1))
    calls = lambda *args: jax.jit(gradients).lower(*args).compile().as_text().count("__onednn$conv")
    assert calls(x, kernel) == 3
    assert calls(x[:16], kernel) == 0  # too small
    assert calls(x, jnp.ones((1, 1, 8, 64))) == 0  # padded by more than the kernel reaches
    assert calls(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 0
    stack = jnp.stack([kernel, 2 * kernel])
    found = jax.vmap(loss, (None, 0))(x, stack)
    np.testing.assert_allclose(found, [loss(x, kernel), 2 * loss(x, kernel)], rtol=1e-5)


def test_memory_is_kept_from_step_to_step():
    """A step's pages aren't given back to the system and fetched again."""
    code = """
import resource, kdlib, jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.sin(x) @ x) @ x)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = jnp.ones((3000, 3000))
for _ in range(4):
    jax.block_until_ready(step(x))
before = faults()
for _ in range(4):
    jax.block_until_ready(step(x))
print(faults() - before)
"""
    if sys.platform != "linux":
        pytest.skip("glibc only")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    told = {"capture_output": True, "text": True, "check": True}
    count = lambda env: int(subprocess.run([sys.executable, "-c", code], env=env, **told).stdout)
    assert count(env) < 1000  # two maps of 36 MB are 18,000 pages
    assert count(env | {"MALLOC_PERTURB_": "0"}) > 10_000  # who sets glibc up is left alone


def test_networks_convolve_in_chunks(monkeypatch):
    """The gradient of every convolution of a network goes through ``convolve``."""
    model = models.build("ResNet8x0.25", 4)
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda p: nnx.merge(graph, p, rest)(jnp.ones((32, 16, 16, 3))).logits.sum()
    count = lambda: str(jax.make_jaxpr(jax.grad(loss))(params)).count("conv_general_dilated")
    monkeypatch.setattr(convolution, "PATCHES", 10**9)
    whole = count()
    monkeypatch.setattr(convolution, "PATCHES", 1)  # a picture at a time: 32 products for 9 kernels
    assert count() >= whole + 9 * 31
