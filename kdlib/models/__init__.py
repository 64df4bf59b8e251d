"""Networks by name, and what they cost."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kdlib.models.mobilenet import MobileNetV2
from kdlib.models.network import Make, Network, Outputs
from kdlib.models.resnet import ResNet
from kdlib.models.shufflenet import ShuffleNetV2
from kdlib.models.vgg import VGG
from kdlib.models.wide_resnet import WideResNet
from kdlib.names import unknown

FAMILIES = (  # name without a width and with one, the width of the former, numbers, network
    ("ResNet{}", "ResNet{}x{:g}", 1, (8, 14, 20, 32, 44, 56, 110), ResNet),
    ("ResNet{}", "", None, (18, 34, 50), ResNet),
    ("WRN{}-2", "WRN{}-{:g}", 2, (10, 16, 22, 28, 34, 40), WideResNet),
    ("VGG{}", "", None, (8, 13), VGG),
    ("MobileNetV{}", "MobileNetV{}x{:g}", 0.5, (2,), MobileNetV2),
    ("ShuffleNetV{}", "ShuffleNetV{}x{:g}", 1, (2,), ShuffleNetV2))  # fmt: skip


def names() -> list[str]:
    """Every network in its usual width, in its canonical spelling."""
    return [plain.format(number) for plain, _, _, numbers, _ in FAMILIES for number in numbers]


def canonical(name: str) -> str:
    """``ResNet8x4`` for ``resnet-8-x4``, ``WRN16-2`` for ``wrn_16_2`` and the like.

    Raises:
        ValueError: no such network; the message names the nearest.
    """
    return _find(name)[0]


def _find(name):
    spelling = name.strip().lower().replace("wideresnet", "wrn")
    match = re.fullmatch(r"([a-z]+)[-_ ]?(\d+)(?:[-_ ]?[-_ x](\d+(?:\.\d+)?))?", spelling)
    for plain, wide, usual, numbers, network in FAMILIES if match else ():
        known = plain.lower().startswith(match[1] + "{") and int(match[2]) in numbers
        if known and match[3] and not wide:
            raise ValueError(f"network '{name}': {plain.format(match[2])} doesn't take a width")
        width = float(match[3]) if match[3] else usual
        if known and (width is None or 16 * width >= 1):  # at least one channel
            form = plain if width == usual else wide
            return form.format(int(match[2]), width), network, int(match[2]), width
    raise ValueError(unknown("network", name, names()))


def build(name: str, classes: int, *, mean=(127.5,) * 3, std=(64.0,) * 3, seed: int = 0,
    zero_init: bool = True, dtype=jnp.float32, same_padding: bool = False) -> Network:  # fmt: skip
    """A freshly initialised network.

    Args:
        name: one of :func:`names`. All but VGG and the ResNets with the ImageNet stem (18, 34, 50)
            take a width factor: ``ResNet8x4``, ``WRN28-10``, ``MobileNetV2x1``.
        classes: number of classes.
        mean, std: input statistics per channel, in units of 0..255; their number is the number of
            channels.
        seed: of the initial weights.
        zero_init: start every residual block as the identity.
        dtype: what convolutions compute in, ``jnp.bfloat16`` for speed on accelerators.
        same_padding: pad convolutions of stride 2 at the far ends only, as XLA's "SAME" does; for
            weights of others that were trained so.

    Raises:
        ValueError: no such network.
    """
    _, network, number, width = _find(name)
    make = Make(classes, mean, std, zero_init, dtype, nnx.Rngs(seed), same_padding)
    return network(make, number, width)


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
        model = nnx.eval_shape(lambda n=model: build(n, classes, mean=(0.0,) * c, std=(1.0,) * c))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    program = jax.make_jaxpr(lambda p, r, x: nnx.merge(graph, p, r)(x).logits)(params, rest, images)
    return Cost(sum(leaf.size for leaf in jax.tree.leaves(params)), _multiply_adds(program.jaxpr))


def _multiply_adds(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        each = 0  # multiply-adds per output value
        if equation.primitive.name == "dot_general":
            operand = equation.invars[0].aval.shape
            each = math.prod(operand[i] for i in equation.params["dimension_numbers"][0][0])
        elif equation.primitive.name == "conv_general_dilated":
            each = math.prod(equation.invars[1].aval.shape[:3])  # height, width, channels per group
        total += each * equation.outvars[0].aval.size if each else 0
        leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
        total += sum(_multiply_adds(getattr(e, "jaxpr", e)) for e in filter(_is_jaxpr, leaves))
    return total


_is_jaxpr = lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")
