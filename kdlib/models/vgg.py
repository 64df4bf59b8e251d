"""VGG-8 and VGG-13 with batch norm, at CIFAR size, as the distillation literature has them.

Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556; sizes of HobbitLong/RepDistiller:models/vgg.py,
whose convolutions have a bias besides.
"""

from kdlib.models.network import Array, ConvNorm, Make, Network, Stage


class VGG(Network):
    """Five groups of one (depth 8) or two (13) convolutions, the first of which is the stem.

    The maps have the sides h, h/2, h/4, h/8, h/8. No residual blocks: ``zero_init`` has no effect.
    """

    def __init__(self, make: Make, depth: int, width: None):
        stages, c_in = [], len(make.mean)
        for c_out, pool in ((64, False), (128, True), (256, True), (512, True), (512, False)):
            inputs = (c_in,) if depth == 8 else (c_in, c_out)
            stages.append(Stage([ConvNorm(make, c, c_out, 3) for c in inputs], pool=pool))
            c_in = c_out
        self.first = stages.pop(0)
        super().__init__(make, stages, c_in)

    def stem(self, x: Array) -> Array:
        return self.first(x)[0]
