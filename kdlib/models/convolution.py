"""A convolution whose weight gradient is fast on a CPU too."""

import math

import jax
from jax import lax

PATCHES = 1_200_000  # numbers of all patches of a chunk, 5 MB; half and twice as many are slower


def convolve(x: jax.Array, kernel: jax.Array, *geometry, **named) -> jax.Array:
    """``lax.conv_general_dilated`` of ``x [n, h, w, c]``, to be given to ``nnx.Conv``.

    XLA's CPU back end takes a weight gradient as a convolution with a window as large as the map,
    and gathers the patches of the whole batch for it: far more than its caches hold. A few pictures
    at a time, and their sum, is the same gradient in about half the time (128 pictures of 32x32,
    16x16, 8x8; 2 CPU cores). Other platforms get the plain one. Raises what the plain one does.
    """
    plain = lambda x, kernel: lax.conv_general_dilated(x, kernel, *geometry, **named)

    def backward(saved, gradient):
        x, kernel = saved
        to_x = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)[0]
        to_kernel = lambda x, gradient: jax.vjp(lambda k: plain(x, k), kernel)[1](gradient)[0]

        def in_chunks(x, gradient):
            patches = math.prod(kernel.shape[:3]) * math.prod(gradient.shape[1:3])  # of one picture
            size = max(1, PATCHES // patches)
            starts = range(0, len(x), size)
            return sum(to_kernel(x[i : i + size], gradient[i : i + size]) for i in starts)

        return to_x, lax.platform_dependent(x, gradient, cpu=in_chunks, default=to_kernel)

    convolution = jax.custom_vjp(plain)
    convolution.defvjp(lambda x, kernel: (plain(x, kernel), (x, kernel)), backward)
    return convolution(x, kernel)
