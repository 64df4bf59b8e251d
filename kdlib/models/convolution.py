"""A convolution that is fast on a CPU too, and so are its gradients.

XLA's CPU back end runs convolutions slower than oneDNN, and gathers the patches of the whole batch
for a weight gradient. jaxlib for x86 ships oneDNN, which PyTorch's convolutions
come from as well, and XLA knows how to call it (openxla/xla,
``xla/service/cpu/onednn_convolution.cc``), but no option makes it do so. Hence it is called here by
name. What the call is told has no promised form, so only what it was tried on gets it, and
everything else XLA's own convolution with a weight gradient that stays in the cache.
"""

import functools
import json
import math
import os
import pathlib
import platform

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

# Systems, processors, versions of jaxlib.
TRIED = {("Linux", "x86_64", version) for version in ("0.10.2", "0.11.2", "0.12.0.1")}
ONEDNN = (platform.system(), platform.machine(), jaxlib.__version__) in TRIED
ONEDNN = ONEDNN and " avx2 " in pathlib.Path("/proc/cpuinfo").read_text()  # for its fast methods
ONEDNN &= os.environ.get("KDLIB_ONEDNN", "1") != "0"  # for whoever it gives trouble
WORTH = 2**24  # multiply-adds; below, XLA's programs are preferred: a program with calls of oneDNN
# can't be kept in the compilation cache, and a small network trains less long than it compiles
PATCHES = 1_200_000  # numbers of all patches of a chunk, 5 MB; half and twice as many are slower
GROUP = 16  # pictures, and more where a group's result would be over four times as large as they

LEAST = "jax_persistent_cache_min_compile_time_secs"  # a program that took less isn't kept
usual = []  # what it was before a call of oneDNN was traced, until that program is compiled


def _dont_keep() -> None:
    """Not to offer the program that is being traced, with calls of oneDNN, to the cache.

    To write it down, jaxlib would ask for more memory than there is (it takes these calls for
    others), and glibc then moves the thread that asked to another heap, which has no room for a
    step's block.
    """
    if jax.default_backend() == "cpu" and not usual:
        usual.append(getattr(jax.config, LEAST))
        jax.config.update(LEAST, math.inf)


def _keep_others(event: str, *_, **__) -> None:
    if usual and event == "/jax/core/compile/backend_compile_duration":
        jax.config.update(LEAST, usual.pop())


jax.monitoring.register_event_duration_secs_listener(_keep_others)

# For a CPU's programs: XLA drops what :func:`once` asks for in a pass of this name, and LLVM's
# second level compiles sooner than its third, the usual one, for steps no slower.
OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_backend_optimization_level": 2}
IN_A_ROW = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def compiled(function, in_a_row: bool = True):
    """``jax.jit`` of a function that calls :func:`once`; the back end is that of this moment.

    ``in_a_row`` has a CPU do a layer's work at once, from the cache, not what may run side by side:
    faster with batches of 128, of all but the narrowest networks, and slower with those of 32,
    whose maps are in the cache anyway.
    """
    options = OPTIONS | (IN_A_ROW if in_a_row else {})
    here = ONEDNN and jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=options if here else None)


def once(x: jax.Array) -> jax.Array:
    """``x``, which a CPU computes once, and keeps, in programs that are :data:`compiled`.

    XLA would compute a residual sum anew in every later sum of its stage: each kernel reads the
    outputs of all convolutions before it, and none is like another, so all have to be compiled.
    From jaxlib 0.11 on it doesn't, and this changes nothing.
    """
    return lax.optimization_barrier(x) if ONEDNN and jax.default_backend() == "cpu" else x


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **named) -> jax.Array:
    """``lax.conv_general_dilated`` of ``x [n, h, w, c]``, to be given to ``nnx.Conv``.

    Same result and gradients up to rounding. On GPUs, TPUs and several CPU devices it is that
    function; on one CPU it is oneDNN's if the convolution is large enough, in float32, neither
    grouped nor dilated. Raises what the plain one does.
    """
    if jax.default_backend() == "cpu" and jax.local_device_count() > 1:
        # XLA can't deal out calls of oneDNN, nor chunks of a batch.
        return lax.conv_general_dilated(x, kernel, strides, padding, **named)
    # Multiply-adds, where it pads as "SAME" does.
    large = x.size * kernel.size // kernel.shape[2] // math.prod(strides) >= WORTH
    dilations = *(named.get("lhs_dilation") or ()), *(named.get("rhs_dilation") or ())
    sides, groups = zip(padding, kernel.shape[:2], strict=True), named.get("feature_group_count", 1)
    simple = {groups, *dilations} <= {1} and all(0 <= p < k for pair, k in sides for p in pair)
    if by_onednn := ONEDNN and large and simple and x.dtype == kernel.dtype == jnp.float32:
        _dont_keep()
    settings = tuple(strides), tuple(map(tuple, padding)), tuple(named.items())
    return _convolve(x, kernel, *settings, by_onednn)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))  # traced once for all layers alike
def _convolve(x, kernel, strides, padding, named, by_onednn):
    plain = lambda x, kernel: lax.conv_general_dilated(x, kernel, strides, padding, **dict(named))
    run, back = plain, functools.partial(_in_chunks, plain)
    if by_onednn:
        shape = jax.eval_shape(plain, x, kernel).shape
        forward = lambda x, kernel: _onednn(x, kernel, shape, padding, strides)
        run = functools.partial(lax.platform_dependent, cpu=forward, default=plain)
        back = lambda *a: (_to_pictures(*a, strides, padding), _to_kernel(*a, strides, padding))
    both = functools.partial(lax.platform_dependent, cpu=back, default=_of_each_seed(plain))
    convolution = jax.custom_vjp(run)
    convolution.defvjp(lambda *args: (run(*args), args), lambda saved, g: both(*saved, g))
    return convolution(x, kernel)


def _of_each_seed(plain):
    """Both gradients of ``plain``, and of several seeds those of one convolution of them all.

    XLA's gradient to a kernel, mapped over seeds, would be a forward convolution with a window as
    large as the map, and a GPU's library takes it as that; of a convolution that was mapped over
    seeds it is known as what it is.
    """
    both = jax.custom_batching.custom_vmap(lambda x, k, g: jax.vjp(plain, x, k)[1](g))

    def seeds(size, mapped, *arrays):
        every = lambda a, is_mapped: a if is_mapped else jnp.broadcast_to(a, (size, *a.shape))
        x, kernel, gradient = map(every, arrays, mapped)
        return jax.vjp(jax.vmap(plain), x, kernel)[1](gradient), (True, True)

    both.def_vmap(seeds)
    return both


def _in_chunks(plain, x, kernel, gradient):
    """XLA's gradients; the kernel's as a sum over a few pictures at a time, which is faster.

    XLA takes that one as a convolution with a window as large as the map; the patches of 128
    pictures of 32x32, 16x16 or 8x8 are far more than caches hold.
    """
    to_pictures = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)[0]
    to_kernel = lambda x, gradient: jax.vjp(lambda k: plain(x, k), kernel)[1](gradient)[0]
    # As many pictures as have PATCHES numbers in all their patches.
    size = max(1, PATCHES // (math.prod(kernel.shape[:3]) * math.prod(gradient.shape[1:3])))
    parts = (slice(i, i + size) for i in range(0, len(x), size))
    return to_pictures, sum(to_kernel(x[part], gradient[part]) for part in parts)


def _to_pictures(x, kernel, gradient, strides, padding):
    """The gradient to pictures ``x``: the mirrored kernel over the gradient.

    With a stride of 2, of each axis' places the even and the odd ones meet every second tap only.
    Places that meet the same taps are one convolution without strides, all of them channels of a
    common one, whose results are then set side by side.
    """
    stride, sizes, low = np.array(strides), np.array(kernel.shape[:2]), np.array(padding)[:, 0]
    taps, first = -(-sizes // stride), low // stride
    places = (np.array(x.shape[1:3]) - 1 + low) // stride + 1 - first
    kernel = jnp.pad(kernel, (*((0, more) for more in taps * stride - sizes), (0, 0), (0, 0)))
    kernel = kernel.reshape(taps[0], stride[0], taps[1], stride[1], *kernel.shape[2:])
    kernel = kernel[::-1, :, ::-1].swapaxes(1, 2).reshape(*taps, -1, kernel.shape[-1])
    pads = list(zip(taps - 1 - first, first + places - gradient.shape[1:3], strict=True))
    shape = len(x), *places, kernel.shape[2]
    found = _onednn(gradient, kernel, shape, pads, axes=(3, 2, 0, 1))
    found = found.reshape(len(x), *places, *stride, -1).swapaxes(2, 3)
    found = found.reshape(len(x), *places * stride, -1)
    return lax.dynamic_slice(found, (0, *low % stride, 0), x.shape)


def _to_kernel(x, kernel, gradient, strides, padding):
    """The gradient to a kernel, itself as a convolution.

    A group of ``m`` pictures ``[m, h, w, c]`` is seen as one of ``m`` channels, of ``h`` rows and
    ``w * c`` columns, its gradient as a kernel whose taps lie ``c`` columns apart. The result's
    ``3 * c`` columns (of a 3x3 kernel) are long enough rows for oneDNN to be fast.

    The batch's ``k`` groups lie along a third axis of one call, which oneDNN deals out to its
    threads. There, stride and dilation are so large that each place of the result meets one group
    of pictures only, and the tap that is its gradient (the last meets the first tap, hence
    ``[::-1]``); all other taps fall on padding, which is skipped.
    """
    (n, h, w, c), (rows, columns, _, d) = x.shape, (shape := kernel.shape)
    reach = [(gradient.shape[i + 1] - 1) * strides[i] + shape[i] - padding[i][0] for i in (0, 1)]
    ends = reach[0] - h, reach[1] - w
    # Else XLA turns x in the forward pass already, and computes the gradient a second time.
    x, gradient = lax.optimization_barrier((x, gradient))
    x = x[:, : h + min(ends[0], 0), : w + min(ends[1], 0)]  # what no tap of the kernel reaches
    h, w = x.shape[1:3]
    most = min(n, max(GROUP, rows * columns * d // (4 * h * w)))
    m = next(size for size in range(most, 0, -1) if n % size == 0)
    k = n // m
    turned = x.reshape(k, m, -1)[::-1].swapaxes(1, 2).reshape(1, k, h, w * c, m)
    taps = gradient.reshape(k, m, *gradient.shape[1:])
    apart, result = (k, strides[0], strides[1] * c), (1, k, rows, columns * c, d)
    sides = (padding[0][0], max(ends[0], 0)), (padding[1][0] * c, max(ends[1], 0) * c)
    pads = (k * (k - 1),) * 2, *sides
    found = _onednn(turned, taps, result, pads, (k + 1, 1, 1), apart, (1, 4, 0, 2, 3))
    return sum(found[0, i] for i in range(k)).reshape(shape)


def _onednn(x, kernel, shape, padding, strides=(1, 1), dilation=(1, 1), axes=(2, 3, 0, 1)):
    """oneDNN's convolution of ``x [n, h, w, c]`` to ``shape [n, h, w, c]``, or with more axes.

    ``axes`` are those of the kernel that stand for channels in, channels out, rows and columns.
    """
    _dont_keep()
    text = lambda numbers: [str(number) for number in numbers]  # as the format has integers
    last = len(shape) - 1
    data = {"batch_dim": "0", "feature_dim": str(last), "spatial_dims": text(range(1, last))}
    axes = text(axes)
    taps = {"input_feature_dim": axes[0], "output_feature_dim": axes[1], "spatial_dims": axes[2:]}
    low, high = (text(ends) for ends in zip(*padding, strict=True))
    window = {"pad_left": low, "pad_right": high, "strides": text(strides),
              "window_dilations": text(dilation)}  # fmt: skip
    told = {"dims": str(last + 1), "feature_groups": "1", "input": {"data": data},
            "output": {"data": data}, "kernel": {"filter": taps}, "window": window}  # fmt: skip
    told, result = json.dumps({"onednn_conv_config": told}), jax.ShapeDtypeStruct(shape, x.dtype)
    call = jax.ffi.ffi_call("__onednn$convolution", result, vmap_method="sequential",
                            custom_call_api_version=2, legacy_backend_config=told)  # fmt: skip
    return call(x, kernel)
