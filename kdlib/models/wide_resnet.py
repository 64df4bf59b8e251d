"""Wide residual networks for CIFAR, WRN-d-k: depth d = 6n+4, k times as wide as a ResNet.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146; no dropout.
"""

from flax import nnx

from kdlib.models.network import Array, Make, Network, Stage, rows


class PreactBlock(nnx.Module):
    """Batch norm, ReLU, 3x3 convolution, twice, and a shortcut from before or, if it is a 1x1
    convolution, after the first ReLU. A block of stride 2 begins behind the ReLU of a stage."""

    def __init__(self, make, c_in, c_out, stride):
        self.norm1 = None if stride == 2 else make.norm(c_in)
        self.conv1, self.norm2 = make.conv(c_in, c_out, 3, stride), make.norm(c_out)
        self.conv2 = make.conv(c_out, c_out, 3)
        self.shortcut = make.conv(c_in, c_out, 1, stride) if c_in != c_out else None

    def __call__(self, x: Array) -> Array:
        y = x if self.norm1 is None else nnx.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(nnx.relu(self.norm2(self.conv1(y)))) + shortcut


class WideResNet(Network):
    """Maps of the sides h, h, h/2, h/4; the first, the stem's, is a bare convolution's.

    The batch norm and ReLU behind a stage, which the paper counts to the next, close it here: the
    same computation. No block ends in a batch norm, so ``zero_init`` has no effect.
    """

    def __init__(self, make: Make, depth: int, width: float):
        self.stem_conv = make.conv(len(make.mean), 16, 3)
        stages, widths = [], [16, *(round(16 * width) * 2**i for i in range(3))]
        for i, blocks in enumerate(rows(PreactBlock, make, widths, ((depth - 4) // 6,) * 3), 1):
            stages.append(Stage([*blocks, make.norm(widths[i])], relu_between=False))
        super().__init__(make, stages, widths[-1])

    stem = property(lambda self: self.stem_conv)
