"""MobileNetV2 at CIFAR size, expansion 6; without a width named, it is half as wide as the paper's.

Sandler et al., CVPR 2018, arXiv:1801.04381. Differs from the paper, as HobbitLong/RepDistiller:
models/mobilenetv2.py does: ReLU for ReLU6, and stride 1 where channels become 24. Unlike
there, an expansion by 1 is no convolution at all.
"""

from flax import nnx

from kdlib.models.network import Array, ConvNorm, Make, Network, Stage

# Channels of the blocks between two strides, before the width factor (the paper's table 2).
STAGES = ((16, 24, 24), (32, 32, 32), (64, 64, 64, 64, 96, 96, 96), (160, 160, 160, 320))


class InvertedResidual(nnx.Module):
    """1x1 expansion, 3x3 depthwise convolution, linear 1x1 projection, and the identity if it fits.

    The first block of a stage begins behind the expansion, which is the end of the stage before.
    """

    def __init__(self, make, c_in, c_out, stride, expands):
        self.adds = expands and c_in == c_out
        middle = 6 * c_in if expands else c_in
        self.expand = ConvNorm(make, c_in, middle) if expands else None
        self.depthwise = ConvNorm(make, middle, middle, 3, stride, groups=middle)
        self.project = ConvNorm(make, middle, c_out, ends_block=self.adds)

    def __call__(self, x: Array) -> Array:
        y = x if self.expand is None else nnx.relu(self.expand(x))
        y = self.project(nnx.relu(self.depthwise(y)))
        return x + y if self.adds else y


class MobileNetV2(Network):
    """Maps of the sides h/2, h/2, h/4, h/8, h/16.

    Blocks end without a ReLU; the 1x1 convolution, batch norm and ReLU behind a stage, which the
    paper counts to the next, close it here: the same computation, and features six times as wide.
    """

    def __init__(self, make: Make, version: int, width: float):
        c = int(32 * width)
        self.stem_conv, self.stem_norm = make.conv(len(make.mean), c, 3, 2), make.norm(c)
        stages = []
        for widths in STAGES:
            blocks = []
            for channels in widths:
                stride = 2 if stages and not blocks else 1
                c_in, c = c, int(channels * width)
                blocks.append(InvertedResidual(make, c_in, c, stride, expands=bool(blocks)))
            c_in, c = c, int(1280 * max(width, 1)) if widths is STAGES[-1] else 6 * c
            stages.append(Stage([*blocks, ConvNorm(make, c_in, c)], relu_between=False))
        super().__init__(make, stages, c)
