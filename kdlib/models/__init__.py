"""Networks by name, and what they cost."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.models.network import Make, Network
from kdlib.models.outputs import Outputs
from kdlib.models.resnet import ResNet
from kdlib.names import unknown

__all__ = ["Cost", "Network", "Outputs", "ResNet", "build", "canonical", "cost", "names"]

CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
IMAGENET_DEPTHS = (18, 34, 50)


def names() -> list[str]:
    """Every network without a width factor, in its canonical spelling."""
    return [f"ResNet{depth}" for depth in sorted((*CIFAR_DEPTHS, *IMAGENET_DEPTHS))]


def canonical(name: str) -> str:
    """``ResNet56`` for ``resnet56``, ``ResNet-56`` and the like; ``ResNet8x4`` for ``resnet-8-x4``.

    Raises:
        ValueError: no such network; the message names the nearest.
    """
    match = re.fullmatch(r"resnet[-_ ]?(\d+)[-_ ]?(?:x(\d+(?:\.\d+)?))?", name.strip().lower())
    if match and int(match[1]) in (*CIFAR_DEPTHS, *IMAGENET_DEPTHS):
        depth, width = int(match[1]), float(match[2] or 1)
        if width == 1:
            return f"ResNet{depth}"
        if depth in CIFAR_DEPTHS and width * 16 >= 1:
            return f"ResNet{depth}x{width:g}"
        raise ValueError(f"network '{name}': only the CIFAR depths {CIFAR_DEPTHS} take a width")
    if match:
        near = min((*CIFAR_DEPTHS, *IMAGENET_DEPTHS), key=lambda depth: abs(depth - int(match[1])))
        raise ValueError(f"unknown network '{name}': did you mean 'ResNet{near}'?")
    raise ValueError(unknown("network", name, names()))


def build(
    name: str,
    classes: int,
    *,
    mean=(127.5, 127.5, 127.5),
    std=(64.0, 64.0, 64.0),
    seed: int = 0,
    zero_init: bool = True,
    dtype=jnp.float32,
) -> Network:
    """A freshly initialised network.

    Args:
        name: ``ResNet`` and a depth: 8, 14, 20, 32, 44, 56, 110 (CIFAR) or 18, 34, 50 (ImageNet
            stem). The CIFAR ones take a width factor, ``ResNet8x4`` or ``ResNet8x0.5``.
        classes: number of classes.
        mean, std: input statistics per channel, in units of 0..255; their number is the number of
            channels.
        seed: of the initial weights.
        zero_init: start every residual block as the identity.
        dtype: what convolutions compute in, ``jnp.bfloat16`` for speed on accelerators.

    Raises:
        ValueError: no such network.
    """
    make = Make(classes, mean, std, zero_init, dtype, nnx.Rngs(seed))
    depth, _, width = canonical(name).removeprefix("ResNet").partition("x")
    if int(depth) in IMAGENET_DEPTHS:
        return ResNet.imagenet(make, int(depth), None)
    return ResNet.cifar(make, int(depth), float(width or 1))


class Cost(NamedTuple):
    """Trainable parameters, and multiply-adds of one forward pass of one picture."""

    parameters: int
    multiply_adds: int


def cost(model: nnx.Module | str, image_shape=(32, 32, 3), classes: int = 10) -> Cost:
    """Count parameters and multiply-adds of a network, without running it.

    Multiply-adds are those of convolutions and matrix products, padding included, as the
    literature counts them.

    Args:
        model: a network, or the name of one with ``classes`` classes.
        image_shape: ``(h, w, c)`` of one picture.
    """
    if isinstance(model, str):
        c = image_shape[-1]
        shape = functools.partial(build, model, classes, mean=(0.0,) * c, std=(1.0,) * c)
        model = nnx.eval_shape(shape)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    program = jax.make_jaxpr(lambda p, r, x: nnx.merge(graph, p, r)(x).logits)(params, rest, images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Cost(parameters, _multiply_adds(program.jaxpr))


def _multiply_adds(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            if equation.primitive.name == "dot_general":
                operand = equation.invars[0].aval.shape
                each = 1  # multiply-adds per output value: the contracted sizes
                for axis in equation.params["dimension_numbers"][0][0]:
                    each *= operand[axis]
            else:  # the kernel is (height, width, channels in, channels out)
                kernel = equation.invars[1].aval.shape
                each = kernel[0] * kernel[1] * kernel[2]
            total += each * equation.outvars[0].aval.size
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                total += _multiply_adds(getattr(inner, "jaxpr", inner))
    return total


def _is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
