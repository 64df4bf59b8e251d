"""Residual networks: the CIFAR family of depth 6n+2, and ResNet-18/34/50 with the ImageNet stem.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
Differs from the paper's CIFAR networks: a shortcut that changes shape is a 1x1 convolution with
batch norm (the paper pads with zeros), as in the distillation literature's tables.
"""

from flax import nnx

from kdlib.models.network import Array, ConvNorm, Make, Network, Stage, rows


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut. Returns the sum *before* the ReLU."""

    norm = property(lambda self: self.norm2)

    def __init__(self, make, c_in, c_out, stride):
        self.conv1, self.norm1 = make.conv(c_in, c_out, 3, stride), make.norm(c_out)
        self.conv2, self.norm2 = make.conv(c_out, c_out, 3), make.norm(c_out, ends_block=True)
        self.shortcut = shortcut(make, c_in, c_out, stride)

    def __call__(self, x: Array) -> Array:
        return self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x))))) + self.shortcut(x)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions, the first two of a quarter of the width, and a shortcut."""

    norm = property(lambda self: self.norm3)

    def __init__(self, make, c_in, c_out, stride):
        narrow = c_out // 4
        self.conv1, self.norm1 = make.conv(c_in, narrow, 1), make.norm(narrow)
        self.conv2, self.norm2 = make.conv(narrow, narrow, 3, stride), make.norm(narrow)
        self.conv3, self.norm3 = make.conv(narrow, c_out, 1), make.norm(c_out, ends_block=True)
        self.shortcut = shortcut(make, c_in, c_out, stride)

    def __call__(self, x: Array) -> Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        return self.norm3(self.conv3(nnx.relu(self.norm2(self.conv2(y))))) + self.shortcut(x)


def shortcut(make, c_in, c_out, stride):
    """The identity where shapes agree, else a strided 1x1 convolution with batch norm."""
    return ConvNorm(make, c_in, c_out, 1, stride) if stride != 1 or c_in != c_out else nnx.identity


class ResNet(Network):
    """Maps of the sides h, h, h/2, h/4 in CIFAR networks, and h/4, h/4, h/8, h/16, h/32 behind the
    ImageNet stem, a 7x7 convolution of stride 2 and a max pooling."""

    def __init__(self, make: Make, depth: int, width: float | None):
        self.imagenet = depth in IMAGENET
        if self.imagenet:
            (block, depths, first), c_in, stem = IMAGENET[depth], 64, (7, 2)
        else:
            block, depths, first = BasicBlock, ((depth - 2) // 6,) * 3, round(16 * width)
            c_in, stem = min(first, 32), (3, 1)  # the literature's 8x4 and 32x4: 32, 64, 128, 256
        self.stem_conv, self.stem_norm = make.conv(len(make.mean), c_in, *stem), make.norm(c_in)
        widths = [c_in, *(first * 2**i for i in range(len(depths)))]
        super().__init__(make, list(map(Stage, rows(block, make, widths, depths))), widths[-1])

    def stem(self, x: Array) -> Array:
        x = super().stem(x)
        return nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if self.imagenet else x


IMAGENET = {  # depth: (block, blocks per stage, channels of the first), the paper's table 1
    18: (BasicBlock, (2, 2, 2, 2), 64), 34: (BasicBlock, (3, 4, 6, 3), 64),
    50: (Bottleneck, (3, 4, 6, 3), 256)}  # fmt: skip
