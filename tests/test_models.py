"""Networks: names, shapes, costs against the literature, and what a forward pass changes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdlib import models
from kdlib.models.network import BatchNorm, lecun_normal


def evaluating(*args, **kwargs):
    model = models.build(*args, **kwargs)
    model.eval()
    return model


PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ResNet56", "ResNet56"), ("ResNet-56", "ResNet56"), ("resnet56", "ResNet56"),
        ("resnet-8x4", "ResNet8x4"), ("ResNet8x0.5", "ResNet8x0.5"), ("resnet20x1", "ResNet20"),
        ("WRN16-2", "WRN16-2"), ("WRN-40-2", "WRN40-2"), ("wrn_28_10", "WRN28-10"),
        ("WideResNet16-2", "WRN16-2"), ("vgg-13", "VGG13"), ("mobilenetv2", "MobileNetV2"),
        ("MobileNetV2x0.5", "MobileNetV2"), ("MobileNetV2x1", "MobileNetV2x1"),
        ("ShuffleNetV2_x0.5", "ShuffleNetV2x0.5"),
    ],
)  # fmt: skip
def test_spellings_of_a_name(text, name):
    assert models.canonical(text) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet57", "'ResNet56'"), ("vgg", "'VGG8'"), ("vit", "known are"),
        ("resnet18x2", "take a width"), ("vgg8x2", "take a width"), ("wrn17-2", "'WRN16-2'"),
        ("resnet8x0", "'ResNet8'"), ("mobilenet", "'MobileNetV2'"),
    ],
)  # fmt: skip
def test_unknown_networks_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        models.build(text, 10)


@pytest.mark.parametrize(
    ("name", "millions", "mega_multiply_adds"),
    # He et al. 2016, table 6, and akamaster/pytorch_resnet_cifar10; with projections instead of
    # padded shortcuts a network has 2.8 to 3.2 thousand parameters more.
    [
        ("ResNet20", 0.27, 41),
        ("ResNet32", 0.46, 69),
        ("ResNet56", 0.85, 126),
        ("ResNet110", 1.7, 253),
    ],
)
def test_costs_are_the_literature_s(name, millions, mega_multiply_adds):
    found = models.cost(name)
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.036)
    assert found.multiply_adds / 1e6 == pytest.approx(mega_multiply_adds, abs=0.6)


@pytest.mark.parametrize(
    ("name", "parameters", "giga_multiply_adds"),
    [
        ("ResNet18", 11_689_512, 1.81),
        ("ResNet34", 21_797_672, 3.66),
        ("ResNet50", 25_557_032, 4.09),
    ],
)
def test_imagenet_networks_have_their_published_size(name, parameters, giga_multiply_adds):
    found = models.cost(name, (224, 224, 3), classes=1000)
    assert found.parameters == parameters
    assert found.multiply_adds / 1e9 == pytest.approx(giga_multiply_adds, abs=0.01)


def layers(*shapes):
    """Parameters of convolutions (side, channels in per group, channels out) with batch norm."""
    return sum(side**2 * c_in * c_out + 2 * c_out for side, c_in, c_out in shapes)


def wrn(depth, k, classes):
    total, c = 9 * 3 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        for _ in range((depth - 4) // 6):
            total += 2 * c + 9 * c * width + 2 * width + 9 * width**2
            total += c * width if c != width else 0
            c = width
    return total + 2 * c + (c + 1) * classes


def vgg(convs, classes):
    total, c = 0, 3
    for width in (64, 128, 256, 512, 512):
        total += layers((3, c, width), *[(3, width, width)] * (convs - 1))
        c = width
    return total + 513 * classes


def mobilenet(w, classes):
    c = int(32 * w)
    total = layers((3, 3, c))
    table = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for t, width, n in table:  # expansion, channels, blocks: the paper's table 2
        for _ in range(n):
            total += layers((1, c, t * c)) if t > 1 else 0
            total += layers((3, 1, t * c), (1, t * c, int(width * w)))
            c = int(width * w)
    return total + layers((1, c, 1280)) + 1281 * classes


def shufflenet(first, classes):
    total, c = layers((3, 3, 24)), 24
    for i, n in enumerate((4, 8, 4)):
        half = first * 2**i // 2
        total += layers((3, 1, c), (1, c, half), (1, c, half), (3, 1, half), (1, half, half))
        total += (n - 1) * layers((1, half, half), (3, 1, half), (1, half, half))
        c = 2 * half
    return total + layers((1, c, 1024)) + 1025 * classes


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    # Millions: the distillation literature's, WRN-28-10 the paper's; None where none is known. The
    # literature's VGG has biases (0.04 % more), its ShuffleNetV2 a 1x1 stem (0.04 % less).
    [
        ("WRN16-2", wrn(16, 2, 100), 0.70), ("WRN40-2", wrn(40, 2, 100), 2.26),
        ("WRN40-1", wrn(40, 1, 100), None), ("WRN28-10", wrn(28, 10, 100), 36.5),
        ("VGG8", vgg(1, 100), 3.97), ("VGG13", vgg(2, 100), 9.46),
        ("MobileNetV2", mobilenet(0.5, 100), 0.81), ("MobileNetV2x1", mobilenet(1, 100), None),
        ("ShuffleNetV2", shufflenet(116, 100), 1.36),
        ("ShuffleNetV2x0.5", shufflenet(48, 100), None),
    ],
)  # fmt: skip
def test_parameters_are_those_counted_by_hand(name, parameters, millions):
    assert models.cost(name, (8, 8, 3), classes=100).parameters == parameters
    assert millions is None or parameters / 1e6 == pytest.approx(millions, rel=0.01)


def shapes(model, side, train):
    """Shapes of all outputs, without running anything."""
    model.train() if train else model.eval()
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.uint8)
    return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, images)


COUNTED = {"ResNet32", "ResNet56", "ResNet110", "WRN40-2"}  # built by the tests of costs above


@pytest.mark.parametrize("name", [n for n in models.names() if n not in COUNTED] + ["WRN10-0.3"])
def test_every_network_builds_and_shows_the_promised_shapes(name):
    model = nnx.eval_shape(lambda: models.build(name, 7))
    for side, train in ((8, True), (32, False)):
        out = shapes(model, side, train)
        assert out.logits.shape == (2, 7)
        assert out.embedding.shape == (2, out.features[-1].shape[-1])
        assert [p.shape for p in out.preacts] == [f.shape for f in out.features[1:]]
        assert [leaf.shape for leaf in out.head] == [(out.embedding.shape[1], 7), (7,)]
        assert [scale.shape for scale, _ in out.norms] == (
            [p.shape[-1:] for p in out.preacts] if model.has_norms else []
        )


@pytest.mark.parametrize(
    ("name", "sides", "channels"),
    [
        ("WRN16-2", (32, 32, 16, 8), (16, 32, 64, 128)),
        ("VGG8", (32, 16, 8, 4, 4), (64, 128, 256, 512, 512)),
        ("MobileNetV2", (16, 16, 8, 4, 2), (16, 72, 96, 288, 1280)),
        ("ShuffleNetV2", (32, 16, 8, 4), (24, 116, 232, 1024)),
    ],
)
def test_maps_at_cifar_size(name, sides, channels):
    out = shapes(nnx.eval_shape(lambda: models.build(name, 100)), 32, False)
    assert tuple(f.shape[1] for f in out.features) == sides
    assert tuple(f.shape[3] for f in out.features) == channels


SMALL = ("ResNet8x0.5", "WRN10-1", "WRN10-0.5", "VGG8", "MobileNetV2x0.1", "ShuffleNetV2x0.1")


def shaken(name):
    """A network in evaluation mode, all of whose variables are random (and quickly made)."""
    graph, state = nnx.split(nnx.eval_shape(lambda: models.build(name, 5)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var", "std"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape) * (50 if kind == "std" else 1))
        spread = math.prod(leaf.shape[:-1]) ** -0.5 if kind == "kernel" else 0.5
        return jnp.asarray(rng.normal(0, spread, leaf.shape), jnp.float32)

    values = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    model = nnx.merge(graph, values)
    model.eval()
    return model


@pytest.mark.parametrize("name", SMALL)
def test_outputs_agree_with_one_another(name):
    """Features are rectified preacts, the head gives the logits, and finish goes on anywhere."""
    model = shaken(name)

    @nnx.jit
    def everything(model, x):
        out = model(x)
        return out, {i: model.finish(out.features[i], i) for i in (1, len(model.stages))}

    out, finished = everything(model, PICTURES[:, :16, :16])
    for preact, feature in zip(out.preacts, out.features[1:], strict=True):
        assert (np.asarray(preact) < 0).any()
        np.testing.assert_array_equal(np.maximum(preact, 0), feature)
    np.testing.assert_allclose(out.embedding, out.features[-1].mean((1, 2)), rtol=1e-4, atol=1e-6)
    kernel, bias = out.head
    np.testing.assert_allclose(out.embedding @ kernel + bias, out.logits, rtol=1e-3, atol=1e-4)
    for i, later in finished.items():
        np.testing.assert_allclose(later.logits, out.logits, rtol=1e-4, atol=1e-5)
        assert len(later.features) == len(out.features) - i == len(later.preacts) + 1
        assert len(later.norms) == len(out.norms[i:])


def test_norms_are_of_the_batch_norm_that_ends_a_stage():
    """Shifting its bias shifts the preact by as much, so that margins can be computed from it."""
    for name in ("ResNet8x0.25", "WRN10-0.5", "MobileNetV2x0.1"):
        model = shaken(name)
        show = nnx.jit(lambda model, x: model(x))
        before = show(model, PICTURES[:, :8, :8])
        last = model.stages[0].blocks[-1]
        getattr(last, "norm", last).bias[...] += 1.0
        after = show(model, PICTURES[:, :8, :8])
        np.testing.assert_allclose(after.norms[0][1], before.norms[0][1] + 1, rtol=1e-6)
        np.testing.assert_allclose(after.preacts[0], before.preacts[0] + 1, atol=1e-4)
        np.testing.assert_array_equal(after.norms[0][0], before.norms[0][0])


@pytest.mark.parametrize("name", ["WRN16-1", "WRN16-0.5"])
def test_wide_networks_compute_what_the_paper_does(name):
    """The paper's order: batch norm and ReLU belong to the block they precede."""
    model = shaken(name)
    x = model.stem_conv(model.normalise(PICTURES[:, :8, :8]))
    norm = None
    for stage in model.stages:
        *blocks, closing = stage.blocks
        for block in blocks:
            y = nnx.relu((norm or block.norm1)(x))
            short = x if block.shortcut is None else block.shortcut(y)
            x = short + block.conv2(nnx.relu(block.norm2(block.conv1(y))))
            norm = None
        norm = closing
    embedding = nnx.relu(norm(x)).mean((1, 2))
    found = model(PICTURES[:, :8, :8])
    np.testing.assert_allclose(found.logits, model.classifier(embedding), atol=1e-5)


def test_shuffling_is_a_transposition_of_two_groups():
    unit = shaken("ShuffleNetV2x0.1").stages[0].blocks[1]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 12)), jnp.float32)
    y = unit.right3(unit.right2(nnx.relu(unit.right1(x[..., 6:]))))
    groups = jnp.concatenate([x[..., :6], y], -1).reshape(2, 4, 4, 2, 6)
    by_hand = groups.swapaxes(-1, -2).reshape(2, 4, 4, 12)
    np.testing.assert_allclose(unit(x), by_hand, atol=1e-6)


def test_only_blocks_with_an_identity_start_at_zero():
    make = models.network.Make(1, (0,), (1,), True, jnp.float32, nnx.Rngs(0))
    for c_out, zero in ((2, True), (3, False)):
        block = models.mobilenet.InvertedResidual(make, 2, c_out, 1, expands=True)
        assert bool((block.project.norm.scale[...] == 0).all()) == zero


def test_wide_networks_have_the_literature_s_widths():
    out = jax.eval_shape(evaluating("ResNet8x4", 100), PICTURES)
    assert [f.shape[-1] for f in out.features] == [32, 64, 128, 256]


def test_outputs_have_the_promised_shapes():
    model = models.build("ResNet8x0.5", 7)
    model.eval()
    out = model(PICTURES)
    assert out.logits.shape == (2, 7) and out.embedding.shape == (2, 32)
    assert [f.shape[1:] for f in out.features] == [
        (32, 32, 8),
        (32, 32, 8),
        (16, 16, 16),
        (8, 8, 32),
    ]
    assert [p.shape for p in out.preacts] == [f.shape for f in out.features[1:]]
    for preact, feature in zip(out.preacts, out.features[1:], strict=True):
        np.testing.assert_array_equal(np.maximum(preact, 0), feature)
    np.testing.assert_allclose(out.embedding, out.features[-1].mean((1, 2)), rtol=1e-6)


def test_stride_2_pads_symmetrically():
    """A lone pixel in the corner is seen by the first output with the kernel's centre."""
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    make = models.network.Make(1, (0,), (1,), True, jnp.float32, nnx.Rngs(0))
    layer = make.conv(1, 1, 3, stride=2)
    layer.kernel[...] = kernel
    picture = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    assert float(layer(picture)[0, 0, 0, 0]) == kernel[1, 1, 0, 0]


def test_zero_init_starts_every_block_as_its_shortcut():
    model = models.build("ResNet8x0.25", 3)
    assert not model.stages[0].blocks[0].norm2.scale[...].any()
    assert (
        models.build("ResNet8x0.25", 3, zero_init=False).stages[0].blocks[0].norm2.scale[...].all()
    )


def test_batch_norm_moves_in_training_and_rests_in_evaluation():
    model = models.build("ResNet8x0.25", 3)
    before = np.asarray(model.stem_norm.mean[...])
    model.eval()
    model(PICTURES)
    np.testing.assert_array_equal(model.stem_norm.mean[...], before)
    model.train()
    model(PICTURES)
    assert not np.array_equal(model.stem_norm.mean[...], before)
    assert model.stem_norm.momentum == 0.9 and model.stem_norm.epsilon == 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(16, 6, 6, 5), (32, 5)])
def test_batch_norm_is_flax_s(shape, dtype):
    """Values, gradients and moved averages, also of channels far from 0; nothing else at rest."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = (jax.random.normal(keys[0], shape) + jnp.array([0, 1, -3, 10, 0])).astype(dtype)
    x = x.at[..., 4].set(0)  # a dead channel
    pull = jax.random.normal(keys[1], shape)
    ours, theirs = (
        make(5, dtype=dtype, rngs=nnx.Rngs(0)) for make in (
            BatchNorm, lambda c, **told: nnx.BatchNorm(c, momentum=0.9, epsilon=1e-5, **told))
    )  # fmt: skip

    def shown(norm):
        norm.scale[...], norm.bias[...] = jnp.linspace(0.5, 2, 5), jnp.linspace(-1, 1, 5)
        graph, params, rest = nnx.split(norm, nnx.Param, ...)
        params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

        def loss(params, x):
            merged = nnx.merge(graph, params, rest)
            y = merged(x)
            moved = nnx.to_pure_dict(nnx.split(merged, nnx.Param, ...)[2])
            return (y.astype(jnp.float32) * pull).sum(), (y, moved)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    found, expected = jax.tree.leaves(shown(ours)), jax.tree.leaves(shown(theirs))
    # A dead channel's variance of 1e-5 divides roundings by 0.003.
    loose = {"rtol": 2e-4, "atol": 2e-3} if dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.1}
    for mine, plain in zip(found, expected, strict=True):
        assert mine.dtype == plain.dtype and mine.shape == plain.shape
        np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (mine, plain)), **loose)
    ours.eval(), theirs.eval()
    np.testing.assert_array_equal(ours(x), theirs(x))
    assert isinstance(models.build("VGG8", 3).first.blocks[0].norm, BatchNorm)


@pytest.mark.filterwarnings("error")
def test_batch_norm_keeps_float64():
    jax.config.update("jax_enable_x64", True)
    try:
        x = jax.random.normal(jax.random.key(0), (64, 3), jnp.float64)
        y = np.asarray(BatchNorm(3, dtype=jnp.float64, rngs=nnx.Rngs(0))(x))
        expected = np.asarray((x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-10)


def test_batch_norm_centres_no_map():
    """The one thing it is for: no difference as large as the map, forward or back."""

    def differences(norm):
        graph, state = nnx.split(norm)
        state = nnx.to_pure_dict(state)
        loss = lambda x: (nnx.merge(graph, state)(x) ** 2).sum()
        text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((16, 6, 6, 5))))
        return text.count(":f32[16,6,6,5] = sub")

    assert differences(nnx.BatchNorm(5, rngs=nnx.Rngs(0)))  # else this would see none anywhere
    assert not differences(BatchNorm(5, rngs=nnx.Rngs(0)))


def test_the_network_normalises_with_its_own_statistics():
    plain = models.build("ResNet8x0.25", 3, mean=(0, 0, 0), std=(1, 1, 1))
    scaled = models.build("ResNet8x0.25", 3, mean=(10, 20, 30), std=(2, 4, 8))
    plain.eval(), scaled.eval()
    by_hand = (PICTURES.astype(np.float32) - [10, 20, 30]) / np.array([2, 4, 8], np.float32)
    np.testing.assert_allclose(scaled(PICTURES).logits, plain(by_hand).logits, atol=1e-5)


def test_seeds_decide_the_weights():
    kernels = [models.build("ResNet8x0.25", 3, seed=s).stem_conv.kernel[...] for s in (0, 0, 1)]
    assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])


def test_bfloat16_computes_low_and_keeps_parameters_high():
    model = evaluating("ResNet8x0.25", 3, dtype=jnp.bfloat16)
    out = jax.eval_shape(model, PICTURES)
    assert out.features[1].dtype == jnp.bfloat16 and out.logits.dtype == jnp.float32
    assert model.stem_conv.kernel[...].dtype == jnp.float32


@pytest.mark.parametrize("shape", [(3, 3, 16, 32), (1, 1, 3, 7), (5, 5, 7, 3), (64, 10), (1, 1)])
def test_initial_weights_are_those_of_flax(shape):
    """Drawn from the beginning of a longer row, so that one program serves all shapes."""
    usual = nnx.initializers.lecun_normal()(jax.random.key(3), shape, jnp.float32)
    assert jnp.array_equal(lecun_normal(jax.random.key(3), shape), usual)
