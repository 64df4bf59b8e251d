"""Blocks of networks and what is trained beside them, against plain NumPy: layer by layer."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdlib import check, models
from kdlib.data import Batch
from kdlib.distillers import make, mlkd, soft_logit_loss
from kdlib.distillers.ft import FT, factor_loss
from kdlib.distillers.ofd import partial_loss
from kdlib.distillers.reviewkd import ReviewKD, hierarchical_loss
from kdlib.distillers.vid import variational_loss
from kdlib.models.convolution import convolve
from kdlib.models.mobilenet import InvertedResidual
from kdlib.models.network import ConvNorm, Make, Normalise, Stage
from kdlib.models.resnet import BasicBlock, Bottleneck
from kdlib.models.shufflenet import Unit
from kdlib.transfer.byot import Exit
from kdlib.transfer.one import Gate

STUDENT, TEACHER = (check.outputs(i, 3, 4, channels=c) for i, c in enumerate((3, 4)))
LABELS = jnp.arange(3)


def halved(shown):
    return jax.tree.map(lambda x: x[:, ::2, ::2] if x.ndim == 4 else x, shown)


def ready(method, student=STUDENT, teacher=TEACHER):
    method.prepare(student, teacher, nnx.Rngs(0), LABELS)
    return method


def randomised(module, training):
    """The module with parameters and statistics that leave no layer without a trace."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        name = path[-1].key
        fan_in = np.prod(x.shape[:-1]) if name == "kernel" else 1
        positive, any_sign = rng.uniform(0.5, 2, x.shape), rng.normal(0, fan_in**-0.5, x.shape)
        return jnp.asarray(positive if name in ("scale", "var") else any_sign, jnp.float32)

    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, jax.tree.map_with_path(draw, nnx.to_pure_dict(state)))
    nnx.update(module, state)
    module.train() if training else module.eval()
    return module


# --- layers, written down plainly


def conv(x, kernel, stride=1):
    """Pads by half the kernel on each side, as PyTorch's ``padding=size // 2``."""
    size, pad = len(kernel), len(kernel) // 2
    n, h, w, _ = x.shape
    padded = np.zeros((n, h + 2 * pad, w + 2 * pad, x.shape[3]))
    padded[:, pad : pad + h, pad : pad + w] = x
    out = np.zeros((n, h // stride, w // stride, kernel.shape[3]))
    for i, j in np.ndindex(out.shape[1:3]):
        box = padded[:, stride * i : stride * i + size, stride * j : stride * j + size]
        for a, b in np.ndindex(size, size):
            out[:, i, j] += box[:, a, b] @ kernel[a, b]
    return out


def double(x, kernel):
    """A transposed convolution of stride 2: every value is spread over 4x4."""
    n, h, w, _ = x.shape
    out = np.zeros((n, 2 * h + 2, 2 * w + 2, kernel.shape[3]))
    for i, j in np.ndindex(h, w):
        for a, b in np.ndindex(4, 4):
            out[:, 2 * i + 3 - a, 2 * j + 3 - b] += x[:, i, j] @ kernel[a, b]
    return out[:, 1:-1, 1:-1]


def norm(x, scale, bias, mean, var, training):
    if training:
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


PLAIN = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "pool": lambda x: x.mean((1, 2)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
}


def layers_of(module):
    """Parameters and statistics of every layer, in order: a list of dictionaries."""
    tree = nnx.to_pure_dict(nnx.state(module))
    tree = jax.tree.map(lambda x: np.asarray(x, float), tree.get("layers", tree))
    return [tree] if "kernel" in tree else [tree[key] for key in sorted(tree)]


def plain(text, layers, x, training=False):
    """What layers like ``"conv 3 2, norm, relu"`` (size, stride) make of ``x``."""
    x, layers = np.asarray(x, float), list(layers)
    for step in text.split(", "):
        kind, *detail = step.split()
        if kind in PLAIN:
            x = PLAIN[kind](x)
            continue
        layer = dict(layers.pop(0))
        if kind == "norm":
            x = norm(x, **layer, training=training)
            continue
        kernel = layer["kernel"]
        assert ("bias" in layer) == ("bias" in detail)
        if kind == "linear":
            x = x @ kernel
        else:
            assert kernel.shape[:2] == (int(detail[0]),) * 2
            x = double(x, kernel) if kind == "double" else conv(x, kernel, int(detail[1]))
        x = x + layer.get("bias", 0.0)
    assert not layers
    return x


SAME, LARGER, SMALLER = (STUDENT, TEACHER), (STUDENT, halved(TEACHER)), (halved(STUDENT), TEACHER)
TRANSLATOR = ", ".join(["conv 3 1, norm, leaky"] * 3)
PARAPHRASER = ", ".join(["conv 3 1 bias, leaky"] * 3)
VARIATIONAL = "linear, relu, linear, relu, linear"
CASES = {  # name: (method, pair, module of it, what it is shown, its layers)
    "FitNet": ("FitNet", SAME, lambda m: m.regressor, 2, "conv 1 1, norm, relu"),
    "FitNet, larger": ("FitNet", LARGER, lambda m: m.regressor, 2, "conv 3 2, norm, relu"),
    "FitNet, smaller": ("FitNet", SMALLER, lambda m: m.regressor, 2, "double 4, norm, relu"),
    "SRRL": ("SRRL", SAME, lambda m: m.connector, 3, "conv 1 1, norm, relu"),
    "SRRL, larger": ("SRRL", LARGER, lambda m: m.connector, 3, "conv 1 1, norm, relu"),
    "SRRL, smaller": ("SRRL", SMALLER, lambda m: m.connector, 3, "conv 1 1, norm, relu"),
    "VID": ("VID", SAME, lambda m: m.means[0], 1, VARIATIONAL),
    "VID, last": ("VID", SAME, lambda m: m.means[2], 3, VARIATIONAL),
    "FT, translator": ("FT", SAME, lambda m: m.translate, 3, TRANSLATOR),
    "FT, paraphraser": ("FT", SAME, lambda m: m.encode, "teacher", PARAPHRASER),
    "FT, decoder": ("FT(k=1)", SAME, lambda m: m.decode, "teacher", PARAPHRASER),
    "OFD": ("OFD", SAME, lambda m: m.connectors[0], 1, "conv 1 1, norm"),
    "AB": ("AB", SAME, lambda m: m.adapters[0], 1, "conv 1 1, norm"),
    "FSP": ("FSP", SAME, lambda m: m.adapters[1], 1, "conv 1 1 bias"),
    "SimKD": (
        "SimKD", SAME, lambda m: m.projector, 3,
        "conv 1 1, norm, relu, conv 3 1, norm, relu, conv 1 1, norm, relu",
    ),
}  # fmt: skip
both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@both_modes
@pytest.mark.parametrize("name", CASES)
def test_a_distiller_trains_the_layers_it_says(name, training):
    method, (student, teacher), module_of, stage, text = CASES[name]
    module = module_of(randomised(ready(make(method), student, teacher), training))
    x = teacher.features[3] if stage == "teacher" else student.features[stage]
    x = x - 0.3  # not all of one sign
    expected = plain(text, layers_of(module), x, training)
    np.testing.assert_allclose(module(x), expected, rtol=1e-4, atol=1e-5)


@both_modes
def test_the_gate_of_one(training):
    gate, shared = randomised(Gate(3, 4, nnx.Rngs(0)), training), STUDENT.features[2]
    expected = plain("pool, linear bias, norm, relu, softmax", layers_of(gate), shared, training)
    np.testing.assert_allclose(gate(shared), expected, rtol=1e-4)
    assert (expected < 0.24).any() and np.allclose(expected.sum(1), 1)


@both_modes
@pytest.mark.parametrize(("stage", "text"), [(1, "conv 5 4"), (2, "conv 3 2")])
def test_an_exit_of_byot(training, stage, text):
    feature, last = STUDENT.features[stage], TEACHER.features[3]
    early = randomised(Exit(feature, last, 5, nnx.Rngs(0)), training)
    bottleneck, classifier = layers_of(early.bottleneck), layers_of(early.classifier)
    x = plain(text + ", norm, relu", bottleneck, feature, training)
    logits = plain("pool, linear bias", classifier, x)
    for found, expected in zip(early(feature), (x, logits), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def by_levels(s, t):
    """Distance of two maps, of their 4x4, 2x2 and 1x1 means, as far as these are smaller."""
    total, weights = ((s - t) ** 2).mean(), 1.0
    for side in (side for side in (4, 2, 1) if side < s.shape[1]):
        step, square = s.shape[1] // side, 0.0
        for i, j in np.ndindex(side, side):
            box = np.s_[:, step * i : step * (i + 1), step * j : step * (j + 1)]
            square += ((s[box].mean((1, 2)) - t[box].mean((1, 2))) ** 2).mean() / side**2
        total, weights = total + square * weights / 2, weights / 2
    used = sum(side < s.shape[1] for side in (4, 2, 1))
    return total / sum(0.5**k for k in range(used + 1))


@both_modes
def test_knowledge_review_from_the_pooled_map_up(training):
    """Gated sums of maps, compared with the teacher's before the ReLU."""
    method = randomised(ready(ReviewKD()), training)
    maps = [STUDENT.embedding[:, None, None], *STUDENT.features[:0:-1]]
    targets = [TEACHER.embedding[:, None, None], *TEACHER.preacts[::-1]]
    total, deeper = 0.0, None
    for fusion, x, target in zip(method.fusions, maps, targets, strict=True):
        x = plain("conv 1 1, norm", layers_of(fusion.enter), x, training)
        if deeper is not None:
            times = x.shape[1] // deeper.shape[1]
            deeper = deeper.repeat(times, 1).repeat(times, 2)
            both = np.concatenate([x, deeper], -1)
            gates = plain("conv 1 1 bias, sigmoid", layers_of(fusion.gate), both)
            x = x * gates[..., :1] + deeper * gates[..., 1:]
        deeper = x
        leave = layers_of(fusion.leave) + layers_of(fusion)[-1:]
        total += by_levels(plain("conv 3 1, norm", leave, x, training), np.asarray(target, float))
    np.testing.assert_allclose(method(STUDENT, TEACHER, LABELS), total, rtol=1e-4)


def test_a_contrast_remembers_by_its_momentum():
    method, index = make("CRD(dim=4, momentum=0.9)"), jnp.array([7, 3, 20])
    method.prepare(STUDENT, TEACHER, nnx.Rngs(0), jnp.arange(40) % 10)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    pairs = zip(method.embed, (STUDENT, TEACHER), strict=True)
    seen = np.stack([unit(embed(shown.embedding)) for embed, shown in pairs])
    expected = np.array(method.banks[...])
    expected[:, index] = unit(0.9 * expected[:, index] + 0.1 * seen)
    batch = Batch(None, index % 10, index, key=jax.random.key(0))
    method(STUDENT, TEACHER, batch.labels, batch)
    np.testing.assert_allclose(method.banks[...], expected, rtol=1e-4, atol=1e-6)


def test_variances_have_a_floor():
    method, expected = ready(make("VID")), 0.0
    for i, (mean, rho) in enumerate(zip(method.means, method.rhos, strict=True), 1):
        rho[...] -= 50.0
        shown = {"mean": mean(STUDENT.features[i]), "teacher": TEACHER.features[i]}
        expected += variational_loss(**shown, variance=jnp.float32(1e-5))
    np.testing.assert_allclose(method(STUDENT, TEACHER, LABELS), expected, rtol=1e-4)


# --- blocks of networks

MAKE = Make(5, (0.0,) * 3, (1.0,) * 3, False, jnp.float32, nnx.Rngs(0))
relu = PLAIN["relu"]


def normed(x, convolution, batch_norm, stride=1):
    """A convolution, depthwise if its kernel has one channel, and batch norm in evaluation."""
    kernel = np.asarray(convolution.kernel[...], float)
    if kernel.shape[2] < x.shape[3]:
        one = [np.s_[..., i : i + 1] for i in range(x.shape[3])]
        x = np.concatenate([conv(x[i], kernel[i], stride) for i in one], -1)
    else:
        x = conv(x, kernel, stride)
    names = ("scale", "bias", "mean", "var")
    values = {name: np.asarray(getattr(batch_norm, name)[...], float) for name in names}
    return norm(x, **values, training=False)


def conv_norm(x, part, stride=1):
    return normed(x, part.conv, part.norm, stride)


def shortcut(block, x, stride):
    return conv_norm(x, block.shortcut, stride) if hasattr(block.shortcut, "conv") else x


def basic(block, x, stride):
    y = normed(relu(normed(x, block.conv1, block.norm1, stride)), block.conv2, block.norm2)
    return y + shortcut(block, x, stride)


def bottleneck(block, x, stride):
    y = relu(normed(x, block.conv1, block.norm1))
    y = relu(normed(y, block.conv2, block.norm2, stride))
    return normed(y, block.conv3, block.norm3) + shortcut(block, x, stride)


def inverted(block, x, stride):
    """Nothing but a convolution before and after the depthwise one, and no ReLU at the end."""
    y = x if block.expand is None else relu(conv_norm(x, block.expand))
    y = conv_norm(relu(conv_norm(y, block.depthwise, stride)), block.project)
    return y if block.expand is None or x.shape != y.shape else x + y


def unit(block, x, stride):
    """The only ReLU is that behind the first 1x1 convolution; the one at the end is the stage's."""
    left, right = np.split(x, 2, -1) if stride == 1 else (x, x)
    left = left if stride == 1 else conv_norm(conv_norm(left, block.left1, 2), block.left2)
    right = conv_norm(relu(conv_norm(right, block.right1)), block.right2, stride)
    right = conv_norm(right, block.right3)
    return np.stack([left, right], -1).reshape(*left.shape[:3], -1)


@pytest.mark.parametrize(
    ("block", "by_hand", "c_out", "given"),
    [
        (BasicBlock, basic, 8, (1,)), (BasicBlock, basic, 12, (2,)),
        (Bottleneck, bottleneck, 8, (1,)), (Bottleneck, bottleneck, 16, (2,)),
        (InvertedResidual, inverted, 8, (1, True)), (InvertedResidual, inverted, 6, (1, True)),
        (InvertedResidual, inverted, 6, (2, False)), (InvertedResidual, inverted, 8, (1, False)),
        (Unit, unit, 8, (1,)), (Unit, unit, 12, (2,)),
    ],
)  # fmt: skip
def test_a_block_computes_what_the_paper_does(block, by_hand, c_out, given):
    block = randomised(block(MAKE, 8, c_out, *given), training=False)
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 8)).astype(np.float32)
    expected = by_hand(block, x.astype(float), given[0])
    np.testing.assert_allclose(block(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_a_stage_of_vgg_begins_with_the_largest_of_every_four():
    stage = randomised(Stage([ConvNorm(MAKE, 4, 4, 3)], pool=True), training=False)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32)
    expected = conv_norm(x.reshape(2, 4, 2, 4, 2, 4).max((2, 4)), stage.blocks[0])
    np.testing.assert_allclose(stage(jnp.asarray(x))[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "between"), [("MobileNetV2x0.1", False), ("ResNet14x0.25", True)])
def test_only_mobile_networks_have_no_relu_between_blocks(name, between):
    stage = randomised(models.build(name, 5).stages[0], training=False)
    channels = 3 if name.startswith("Mobile") else 4
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, channels)), jnp.float32)
    expected = stage.blocks[0](x)
    for block in stage.blocks[1:]:
        expected = block(nnx.relu(expected) if between else expected)
    np.testing.assert_allclose(stage(x)[1], expected, rtol=1e-4, atol=1e-4)


def test_the_imagenet_stem_ends_in_a_maximum_padded_on_both_sides():
    model = randomised(models.build("ResNet8x0.25", 5), training=False)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
    before, model.imagenet = np.pad(model.stem(x), ((0, 0), (1, 1), (1, 1), (0, 0))), True
    windows = [before[:, i : i + 8 : 2, j : j + 8 : 2] for i, j in np.ndindex(3, 3)]
    np.testing.assert_allclose(model.stem(x), np.max(windows, 0), rtol=1e-5)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_residual_blocks_start_as_the_identity_if_asked(block):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 8)), jnp.float32)
    same = [np.allclose(block(MAKE._replace(zero_init=z), 8, 8, 1)(x), x) for z in (True, False)]
    assert same == [True, False]
    assert block(MAKE._replace(zero_init=True), 8, 16, 2)(x).any()  # a projection is no identity


def test_in_bfloat16_pictures_are_normalised_before_they_are_rounded():
    statistics = (127.3, 126.8, 120.1), (64.2, 63.1, 61.9)
    images = np.arange(100, 148, dtype=np.uint8).reshape(1, 4, 4, 3)
    expected = ((images - np.float32(statistics[0])) / np.float32(statistics[1])).astype("bfloat16")
    found = Normalise(*statistics, jnp.bfloat16)(jnp.asarray(images))
    np.testing.assert_array_equal(found, expected)


def test_the_embedding_is_float32_in_bfloat16_too():
    model = models.build("ResNet8x0.25", 5, dtype=jnp.bfloat16)
    shown = model.finish(jnp.ones((2, 2, 2, 16), jnp.bfloat16), 3)
    assert shown.embedding.dtype == shown.logits.dtype == jnp.float32


# --- losses


MATCHED = {
    "FT": lambda x: factor_loss(student=x, teacher=x),
    "FT, vector": lambda x: factor_loss(student=x, teacher=x, mode="vector"),
    "OFD": lambda x: partial_loss(student=x, teacher=x, margin=jnp.array([-0.1, -0.5, -2])),
    "ReviewKD": lambda x: hierarchical_loss(student=x, teacher=x),
}


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("name", MATCHED)
def test_zero_at_a_match(name, stage):
    assert float(MATCHED[name](STUDENT.preacts[stage])) == 0


@pytest.mark.parametrize("mode", ["attention", "vector"])
def test_factors_do_not_depend_on_the_scale_of_a_picture(mode):
    scale = jnp.array([0.01, 3.0, 100.0])[:, None, None, None]
    s, t = STUDENT.preacts[1], TEACHER.preacts[1][..., :3]
    plain = factor_loss(student=s, teacher=t, mode=mode)
    for pair in ({"student": scale * s, "teacher": t}, {"student": s, "teacher": scale * t}):
        np.testing.assert_allclose(factor_loss(**pair, mode=mode), plain, rtol=1e-5)
    assert plain > 0.01


@pytest.mark.parametrize("epochs", [63, 100, 126])
def test_the_paraphraser_is_alone_for_its_whole_number_of_epochs(epochs):
    """Compiled, the share of a run is rounded, and could end the phase an epoch early."""
    method = ready(FT())
    method.eval()

    @jax.jit
    def knowledge(step):
        batch = Batch(None, LABELS, progress=(step + 1) / epochs)
        return method(STUDENT, TEACHER, LABELS, batch)

    values = [float(knowledge(jnp.int32(step))) for step in range(epochs)]
    assert sum(value == values[0] for value in values) == round(epochs / 9)


S, T, Y = golden.student_logits(), golden.teacher_logits(), golden.LABELS
K = np.arange(40).reshape(4, 10)
S2, T2 = (2 * np.sin(0.5 + 0.4 * K)).astype("f"), (3 * np.cos(1 + 0.6 * K)).astype("f")


def out(logits):
    return golden.outputs(jnp.asarray(logits), (jnp.zeros((4, 1, 1, 2)),) * 2)


@pytest.mark.parametrize(
    ("kept", "value"),
    [(None, 0.6932739), (0, 22.45285), (1, 0.01074673), (2, 0.01658494)],
    ids=["cross-entropy", "pictures", "batch", "classes"],
)
def test_every_term_of_multi_level_distillation_as_coded(kept, value, monkeypatch):
    real = mlkd.levels
    only = lambda **given: [x * (i == kept) for i, x in enumerate(real(**given))]
    monkeypatch.setattr(mlkd, "levels", only)
    method = mlkd.MLKD(strict=True) if kept is None else mlkd.MLKD(strict=True, ce=0.0)
    batch = Batch(None, Y, extra=(out(S2), out(T2)))
    total = golden.minimised(method, 3.615938, method(out(S), out(T), Y, batch))
    np.testing.assert_allclose(total, value, rtol=1e-4)


def test_the_divergences_of_other_codes_are_not_ours():
    """The original cookbook's: reversed, and times T; a common bug: the mean over classes too."""
    reversed_ = lambda s: soft_logit_loss(student_logits=T, teacher_logits=s, temperature=4) / 4
    value, gradient = jax.value_and_grad(reversed_)(jnp.asarray(S))
    np.testing.assert_allclose(value, 0.889878, rtol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(gradient), 0.1004033, rtol=1e-4)
    element_mean = make("TfKDSelf(temperature=4)")(out(S), out(T), Y)
    np.testing.assert_allclose(element_mean, 0.360174, rtol=1e-4)


@pytest.mark.parametrize("name", ["FitNet", "FT", "OFD", "ReviewKD", "SimKD", "AB", "FSP"])
def test_distillers_convolve_as_networks_do(name):
    """Else a GPU's weight gradients of several seeds, and a CPU's of one, are slow ones."""
    made = make(name)
    shown = check.outputs(0, channels=6), check.outputs(1, channels=8)
    made.prepare(*shown, nnx.Rngs(0), jnp.zeros(8, jnp.int32))
    found = [part for _, part in nnx.iter_graph(made) if isinstance(part, nnx.Conv)]
    assert found and all(part.conv_general_dilated is convolve for part in found)
