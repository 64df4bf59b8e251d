"""The convolution of ``kdlib.models.convolution``: oneDNN's, XLA's in chunks, and the plain one."""

import functools
import os
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from kdlib import models
from kdlib.models import convolution

needs_oneDNN = pytest.mark.skipif(
    not convolution.ONEDNN, reason="this jaxlib's oneDNN isn't called"
)
ONEDNN = pytest.param(0, id="oneDNN", marks=needs_oneDNN)


@pytest.fixture(autouse=True)
def traced_anew():
    """Tests here change what a convolution is made from, and JAX keeps what it has traced."""
    convolution._convolve.clear_cache()
    yield
    convolution._convolve.clear_cache()


@pytest.mark.parametrize("worth", [ONEDNN, pytest.param(10**12, id="XLA")])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (7, 2)])
@pytest.mark.parametrize(("c", "groups"), [(3, 1), (8, 1), (8, 8)])
@pytest.mark.parametrize(("pictures", "side"), [(4, 9), (5, 9), (13, 16), (16, 7)])
def test_gradients_are_those_of_the_plain_convolution(
    size, stride, c, groups, pictures, side, worth, monkeypatch
):
    """XLA's of chunks, the last shorter or not; oneDNN's of one group, of four, and of pictures
    that only groups of one divide."""
    monkeypatch.setattr(convolution, "PATCHES", 4 * size * size * side * side * c // groups)
    monkeypatch.setattr(convolution, "GROUP", 4)
    monkeypatch.setattr(convolution, "WORTH", worth)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (pictures, side, side, c))
    kernel = jax.random.normal(keys[1], (size, size, c // groups, 8))
    pads = [[size // 2, size // 2]] * 2  # lists, as some write them
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
@pytest.mark.parametrize("strides", [(1, 2), (2, 3), (3, 1), (4, 5)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 4), (5, 2)])
@pytest.mark.parametrize("sides", [(9, 7), (6, 11)])
def test_gradients_of_unequal_axes(strides, kernel, sides, monkeypatch):
    """Other strides, sides and paddings along rows than along columns, and all that they leave."""
    monkeypatch.setattr(convolution, "WORTH", 0)
    named = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *sides, 3), np.float32)
    weights = rng.standard_normal((*kernel, 3, 4), np.float32)
    for pads in (((0, 0), (0, 0)), ((0, kernel[0] - 1), (kernel[1] // 2, 0)), ((1, 0), (0, 1))):
        if any(p >= k for pair, k in zip(pads, kernel, strict=True) for p in pair):
            continue  # XLA's, then
        found, expected = (
            jax.vjp(lambda x, k, f=f, p=pads: f(x, k, strides, p, **named), x, weights)
            for f in (convolution.convolve, jax.lax.conv_general_dilated)
        )
        gradient = rng.standard_normal(found[0].shape, np.float32)
        for mine, plain in zip(found[1](gradient), expected[1](gradient), strict=True):
            np.testing.assert_allclose(mine, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "kernel", "maps"),
    [(1, (3, 3, 5, 7), (2, 8, 8, 5)), (2, (2, 2, 4 * 5, 7), (2, 5, 5, 4 * 5))],
)
def test_gradients_to_pictures_need_no_more_taps_than_that(stride, kernel, maps, monkeypatch):
    """Of stride 1 those of the kernel; of stride 2 a quarter of the places, four results each."""
    asked = []
    call = lambda x, kernel, shape, *_, **__: (
        asked.append((kernel.shape, shape)) or jnp.zeros(shape)
    )
    monkeypatch.setattr(convolution, "_onednn", call)
    x, gradient = jnp.zeros((2, 8, 8, 5)), jnp.zeros((2, 8 // stride, 8 // stride, 7))
    weights, pads = jnp.zeros((3, 3, 5, 7)), ((1, 1), (1, 1))
    found = convolution._to_pictures(x, weights, gradient, (stride, stride), pads)
    assert found.shape == x.shape and asked == [(kernel, maps)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernels", ["one", "of each seed"])
def test_gradients_of_several_seeds_on_a_gpu(stride, kernels, monkeypatch):
    """What a GPU gets: values as plain, and a kernel's gradient from the convolution's own rule."""
    monkeypatch.setattr(convolution.lax, "platform_dependent", lambda *a, cpu, default: default(*a))
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (3, 4, 8, 8, 5))  # of three seeds, four pictures
    kernel = jax.random.normal(keys[1], (3, 3, 3, 5, 6))
    kernel, axes = (kernel[0], (0, None)) if kernels == "one" else (kernel, 0)
    names = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    found, expected = (
        jax.vmap(
            jax.grad(lambda x, k, f=f: (f(x, k, (stride,) * 2, ((1, 1),) * 2, **names) ** 2).sum(),
                     (0, 1)), axes)
        for f in (convolution.convolve, jax.lax.conv_general_dilated)
    )  # fmt: skip
    for mine, plain in zip(found(x, kernel), expected(x, kernel), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())
    text = str(jax.make_jaxpr(found)(x, kernel))
    assert "batch_group_count=3" in text  # mapping a gradient would group its features instead


@needs_oneDNN
def test_large_convolutions_are_oneDNNs(monkeypatch):
    """Forward, to pictures, to the kernel: a call each in what is compiled; and vmap."""
    x, kernel = jnp.ones((32, 32, 32, 8)), jnp.ones((3, 3, 8, 8))
    named = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    loss = lambda x, k, stride=1: convolution.convolve(
        x, k, (stride, stride), ((1, 1),) * 2, **named
    ).sum()

    def calls(*args):
        gradients = jax.jit(jax.grad(lambda *a: loss(*a) ** 2, (0, 1)), static_argnums=2)
        return gradients.lower(*args).compile().as_text().count("__onednn$conv")

    assert calls(x, kernel) == 3
    assert calls(x[:16], kernel) == calls(x, kernel, 2) == 0  # too small
    assert calls(x, jnp.ones((1, 1, 8, 64))) == 0  # padded by more than the kernel reaches
    assert calls(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 0
    stack = jnp.stack([kernel, 2 * kernel])
    found = jax.vmap(loss, (None, 0))(x, stack)
    np.testing.assert_allclose(found, [loss(x, kernel), 2 * loss(x, kernel)], rtol=1e-5)


@needs_oneDNN
@pytest.mark.parametrize(
    ("flags", "wish", "called"),
    [("avx avx2 fma", "1", True), ("avx f16c", "1", False), ("avx avx2 fma", "0", False)],
)
def test_where_oneDNN_is_called(flags, wish, called):
    """On a processor with AVX2, unless it is not to be."""
    code = f"""
import pathlib
read = pathlib.Path.read_text
pathlib.Path.read_text = lambda path, *a, **k: (
    "flags : {flags} \\n" if str(path) == "/proc/cpuinfo" else read(path, *a, **k))
from kdlib.models import convolution
print(convolution.ONEDNN)
"""
    told = {"capture_output": True, "text": True, "check": True}
    env = os.environ | {"KDLIB_ONEDNN": wish}
    done = subprocess.run([sys.executable, "-c", code], env=env, **told)
    assert done.stdout.strip() == str(called)


@needs_oneDNN
def test_gradients_where_jax_has_float64(monkeypatch):
    """With ``jax_enable_x64`` a bare 0.0 would be of another type than the gradient it pads."""
    monkeypatch.setattr(convolution, "WORTH", 0)
    named = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    loss = lambda x, k: convolution.convolve(x, k, (2, 2), ((1, 1),) * 2, **named).sum()
    x, kernel = jnp.ones((4, 8, 8, 8)), jnp.ones((3, 3, 8, 8))
    expected = jax.grad(loss, (0, 1))(x, kernel)
    with jax.enable_x64(True):
        found = jax.grad(loss, (0, 1))(x, kernel)
    for mine, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-5)


def test_memory_is_kept_from_step_to_step():
    """A step's pages aren't given back to the system and fetched again, nor has the thread that
    asks for them lost the only heap with room; and other threads have heaps of their own."""
    code = """
import ctypes, os, resource
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # threads that meet by chance need more
import kdlib, jax, jax.numpy as jnp
from kdlib.models import convolution
convolution.WORTH = 0  # by oneDNN, where it is tried
layer = lambda x, k: convolution.convolve(x, k, (1, 1), ((1, 1),) * 2,
                                          dimension_numbers=("NHWC", "HWIO", "NHWC"))
convolution.compiled(layer)(jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4)))
step = jax.jit(lambda x: jnp.sin(x) @ x[:, :8])  # the sine is a map
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = jnp.ones((5000, 5000))
each = []
for _ in range(10):
    before = faults()
    jax.block_until_ready(step(x))
    each.append(faults() - before)
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fdopen(os.memfd_create("heaps"), b"w+"))
libc.malloc_info(0, file)
libc.fflush(file)
heaps = os.pread(libc.fileno(file), 2**20, 0).count(b"<heap nr=")
print(sorted(each[5:])[2], heaps)  # of a step, once memory has found its size
"""
    if sys.platform != "linux":
        pytest.skip("glibc only")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}

    def measured(**more):
        told = {"capture_output": True, "text": True, "check": True, "env": env | more}
        return map(int, subprocess.run([sys.executable, "-c", code], **told).stdout.split())

    faults, heaps = measured()
    assert faults < 100  # a map of 100 MB is 24,000 pages
    assert heaps > 1
    faults, _ = measured(MALLOC_PERTURB_="0")  # who sets glibc up is left alone
    assert faults > 10_000


@pytest.fixture
def programs(tmp_path):
    """A compilation cache of its own, as a function that lists the names of what it holds."""
    usual = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield lambda: [path.name.partition("-")[0] for path in tmp_path.glob("*-cache")]
    jax.config.update("jax_compilation_cache_dir", usual)
    compilation_cache.reset_cache()


@needs_oneDNN
def test_what_cannot_be_kept_is_not_offered_to_the_cache(programs, monkeypatch):
    """Programs after it are kept, also where it was traced and no program came of it."""
    monkeypatch.setattr(convolution, "WORTH", 0)
    named = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    x, kernel = jnp.ones((2, 9, 9, 4)), jnp.ones((3, 3, 4, 4))
    least = lambda: jax.config.jax_persistent_cache_min_compile_time_secs
    usual, double = least(), jax.jit(lambda x: 2 * x)

    def layer(x):
        return convolution.convolve(x, kernel, (1, 1), ((1, 1),) * 2, **named)

    def other(x):
        return x.sum() + 7

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as JAX gives where it tries
        convolution.compiled(layer)(x)
        assert least() == usual
        ahead = jax.jit(lambda x: layer(x)).lower(x).compile()  # a trace is found again
        assert least() == usual
        jax.grad(lambda x: layer(x).sum())(x)  # forward and back are programs of their own
        assert least() == usual
    assert "jit_layer" not in programs()
    with pytest.raises(MemoryError):  # else all programs can be offered
        ahead.runtime_executable().serialize()
    jax.eval_shape(lambda x: layer(x), x)
    assert least() > usual
    double(x)
    assert least() == usual
    jax.jit(other)(x)
    assert "jit_other" in programs()


def convolutions(jaxpr) -> int:
    """How many convolutions a program holds, those of inner programs each time they are called."""
    is_inner = lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "conv_general_dilated"
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_inner)
        count += sum(convolutions(getattr(j, "jaxpr", j)) for j in inner if is_inner(j))
    return count


def test_networks_convolve_in_chunks(monkeypatch):
    """The gradient of every convolution of a network goes through ``convolve``."""
    model = models.build("ResNet8x0.25", 4)
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda p: nnx.merge(graph, p, rest)(jnp.ones((32, 16, 16, 3))).logits.sum()

    def count(patches):
        monkeypatch.setattr(convolution, "PATCHES", patches)
        convolution._convolve.clear_cache()
        return convolutions(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)

    # A picture at a time: 32 products for 9 kernels, and as many forward passes that XLA drops.
    assert count(1) == count(10**9) + 2 * 9 * 31


def test_layers_alike_are_traced_once(monkeypatch):
    """In a step, and in the next program."""
    traced = []
    in_chunks = convolution._in_chunks
    monkeypatch.setattr(convolution, "_in_chunks", lambda *a: traced.append(1) or in_chunks(*a))
    model = models.build("ResNet20x0.25", 4)  # 21 convolutions, a stage's but for the first alike
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    for _ in range(2):
        loss = lambda p: nnx.merge(graph, p, rest)(jnp.ones((8, 16, 16, 3))).logits.sum()
        jax.make_jaxpr(jax.grad(loss))(params)
    assert len(traced) == 8


@needs_oneDNN
def test_a_residual_sum_is_computed_once():
    """No kernel reads more than two convolutions; left to jaxlib 0.10, some do."""
    model = models.build("ResNet20x0.25", 10, zero_init=False)
    model.eval()
    graph, state = nnx.split(model)
    pictures = jnp.zeros((8, 16, 16, 3), jnp.uint8)

    def most(jit):
        """Largest number of convolutions that a kernel of the forward pass reads."""
        text = jit(lambda s: nnx.merge(graph, s)(pictures).logits).lower(state).compile().as_text()
        kernels = [line.split(" fusion(")[1] for line in text.splitlines() if " fusion(" in line]
        return max(line.partition("), kind=")[0].count("%conv_general_dilated") for line in kernels)

    assert most(convolution.compiled) <= 2
    if jaxlib.__version__.startswith("0.10."):
        assert most(jax.jit) > 2  # else ``once`` can go


@needs_oneDNN
def test_a_layer_s_work_is_done_in_a_row(monkeypatch):
    """Maps and gradients wait for their last use not as long as in XLA's usual order."""
    monkeypatch.setattr(convolution, "WORTH", 0)
    model = models.build("ResNet14x0.25", 10, zero_init=False)
    graph, *state = nnx.split(model, nnx.Param, ...)
    state = [nnx.to_pure_dict(part) for part in state]
    loss = lambda params, rest: nnx.merge(graph, params, rest)(
        jnp.zeros((16, 16, 16, 3), jnp.uint8)
    ).logits.sum()

    def wait(jit) -> float:
        """Instructions from that which makes an array of a batch to the last that reads it."""
        text = jit(lambda *s: jax.grad(loss)(*s)).lower(*state).compile().as_text()
        made, last = {}, {}
        for place, line in enumerate(text.partition("\nENTRY")[2].splitlines()[1:]):
            name, _, made_by = line.strip().removeprefix("ROOT ").partition(" = ")
            last |= dict.fromkeys(re.findall(r"%[\w.-]+", made_by), place)
            if re.match(r"f32\[\d+,\d+,\d+", made_by):
                made[name] = place
        assert len(made) > 50 and made.keys() <= last.keys()
        return sum(last[name] - place for name, place in made.items()) / len(made)

    usual = functools.partial(convolution.compiled, in_a_row=False)
    assert wait(convolution.compiled) < 0.95 * wait(usual)


def test_what_is_kept_passes_values_and_gradients():
    x = jnp.linspace(-1, 1, 5)
    value, gradient = jax.value_and_grad(lambda x: (convolution.once(x) ** 2).sum())(x)
    assert value == (x**2).sum() and jnp.array_equal(gradient, 2 * x)
