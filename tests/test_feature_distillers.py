"""Distillers of feature maps and embeddings: golden values, references, and what is special."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdlib.data import Batch
from kdlib.distillers.ab import AB, boundary_loss
from kdlib.distillers.base import Sum, mean_square, pool_evenly
from kdlib.distillers.catkd import CATKD, class_map_loss
from kdlib.distillers.crd import CRD, Bank, contrast_loss
from kdlib.distillers.fitnet import FitNet
from kdlib.distillers.fsp import FSP, flow_matrix
from kdlib.distillers.ft import FT, factor_loss
from kdlib.distillers.ofd import OFD, negative_margin, partial_loss
from kdlib.distillers.reviewkd import ReviewKD, hierarchical_loss
from kdlib.distillers.simkd import SimKD
from kdlib.distillers.soft_logits import SoftLogits
from kdlib.distillers.srrl import SRRL
from kdlib.distillers.vid import VID, variational_loss
from kdlib.models import Outputs

Y = golden.LABELS
CLASSES = [FitNet, FSP, VID, AB, FT, OFD, CRD, ReviewKD, CATKD, SRRL, SimKD]


def student_preact(channels, side, scale=1.0):
    k = np.arange(4 * channels * side**2).reshape(4, channels, side, side)
    return (scale * 1.5 * np.sin(0.3 * k + 1)).transpose(0, 2, 3, 1).astype(np.float32)


def teacher_preact(channels, side):
    k = np.arange(4 * channels * side**2).reshape(4, channels, side, side)
    return (1.5 * np.cos(0.17 * k + 2)).transpose(0, 2, 3, 1).astype(np.float32)


NORM = {
    "scale": jnp.array([1, 0.5, 0.8, 1.2, 0.3, 0.9]),
    "bias": jnp.array([0.1, -0.2, 0, 0.5, -1, 3.5]),
}
SCORES = (0.02 + 0.015 * np.sin(0.9 * np.arange(28).reshape(4, 7))).astype(np.float32)
FS, FT_ = golden.student_map, golden.teacher_map


def boundary(scale, weight):
    return lambda s: (
        0.003 * weight * boundary_loss(student=scale * s, teacher=teacher_preact(6, s.shape[1]))
    )


def partial(factor):
    margin = negative_margin(**NORM)
    return lambda s: factor * partial_loss(student=s, teacher=teacher_preact(6, 8), margin=margin)


CASES = {  # name: (loss, input, value, norm of the gradient)
    "FitNet": (lambda s: mean_square(student=s, teacher=FT_(6, 8)), FS(6, 8), 0.2942047, None),
    "VID": (
        lambda s: variational_loss(mean=s, teacher=FT_(6, 8), variance=jnp.full(6, 5.0)),
        FS(6, 8), 0.8341394, None,
    ),
    "AB, stage 1": (boundary(1, 1 / 4), student_preact(6, 8), 0.6003058, None),
    "AB, stage 2": (boundary(0.5, 1 / 2), student_preact(6, 8), 0.7362188, None),
    "AB, stage 3": (boundary(1, 1), student_preact(6, 4), 0.6055478, None),
    "FT, attention": (
        lambda s: factor_loss(student=s, teacher=FT_(6, 8)), FS(6, 8), 0.08556155, 0.005917317,
    ),
    "FT, vector": (
        lambda s: factor_loss(student=s, teacher=FT_(6, 8), mode="vector"),
        FS(6, 8), 0.04102309, None,
    ),
    "FSP": (
        lambda s: mean_square(
            student=flow_matrix(first=s, second=FS(8, 4)),
            teacher=flow_matrix(first=FT_(6, 8), second=FT_(8, 4)),
        ),
        FS(6, 8), 0.008335419, 6.301919e-4,
    ),
    "OFD, sum": (partial(4), student_preact(6, 8), 2874.694, None),
    "OFD": (partial(1), student_preact(6, 8), 718.6734, 26.80808),
    "ReviewKD, 8x8": (
        lambda s: hierarchical_loss(student=s, teacher=FT_(6, 8)), FS(6, 8), 0.1862003, 0.01793474,
    ),
    "ReviewKD, 4x4": (
        lambda s: hierarchical_loss(student=s, teacher=FT_(6, 4)), FS(6, 4), 0.2331328, None,
    ),
    "ReviewKD, 1x1": (
        lambda s: hierarchical_loss(student=s, teacher=FT_(6, 1)), FS(6, 1), 0.1988743, None,
    ),
    "CRD": (
        lambda x: contrast_loss(log_scores=jnp.log(x), pictures=50), SCORES, 2.831208, 22.76841,
    ),
    "CAT-KD": (
        lambda s: class_map_loss(student=s, teacher=FT_(6, 8), pool=2), FS(6, 8), 0.01252033, None,
    ),
    "CAT-KD, normalised": (
        lambda s: class_map_loss(student=s, teacher=FT_(6, 8), pool=4, normalise=True),
        FS(6, 8), 0.04025148, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_golden_value_and_gradient(name):
    loss, x, value, norm = CASES[name]
    found, gradient = jax.value_and_grad(loss)(jnp.asarray(x))
    np.testing.assert_allclose(found, value, rtol=1e-4)
    if norm is not None:
        np.testing.assert_allclose(jnp.linalg.norm(gradient), norm, rtol=1e-4)


def test_golden_margins():
    golden_margins = [-0.762617, -0.480941, -0.638308, -0.796831, -1.000463, -2.7]
    np.testing.assert_allclose(negative_margin(**NORM), golden_margins, rtol=1e-4)


# --- independent references: float64 loops, slow and obvious


def maps(seed, *shape):
    return np.random.default_rng(seed).normal(0, 1.5, shape).astype(np.float32)


def test_flow_equals_its_definition():
    def flow(a, b):
        n, h, w, c = b.shape
        small = np.zeros((n, h, w, a.shape[3]))
        for y in range(h):
            for x in range(w):
                small[:, y, x] = a[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
        out = np.zeros((n, a.shape[3], c))
        for i in range(n):
            for y in range(h):
                for x in range(w):
                    out[i] += np.outer(small[i, y, x], b[i, y, x]) / (h * w)
        return out

    a, b = maps(0, 3, 4, 4, 5), maps(1, 3, 2, 2, 7)
    found = flow_matrix(first=a, second=b)
    np.testing.assert_allclose(found, flow(a.astype(float), b), rtol=1e-4, atol=1e-6)


def test_variational_loss_equals_its_definition():
    mean, teacher, variance = maps(0, 2, 3, 3, 4), maps(1, 2, 3, 3, 4), np.array([0.1, 1, 5, 9.0])
    total = 0.0
    for m, t, v in zip(mean.ravel(), teacher.ravel(), np.resize(variance, mean.size), strict=True):
        total += 0.5 * ((float(m) - float(t)) ** 2 / v + np.log(v)) / mean.size
    found = variational_loss(mean=mean, teacher=teacher, variance=jnp.asarray(variance))
    np.testing.assert_allclose(found, total, rtol=1e-4)


def test_boundary_equals_its_definition():
    s, t, total = maps(0, 3, 2, 2, 5), maps(1, 3, 2, 2, 5), 0.0
    for u, v in zip(s.ravel().astype(float), t.ravel(), strict=True):
        if v <= 0 and u > -0.7:
            total += (u + 0.7) ** 2
        if v > 0 and u <= 0.7:
            total += (u - 0.7) ** 2
    found = boundary_loss(student=s, teacher=t, margin=0.7)
    np.testing.assert_allclose(found, total / 3, rtol=1e-4)


@pytest.mark.parametrize("mode", ["attention", "vector"])
def test_factor_loss_equals_its_definition(mode):
    s, t, total = maps(0, 3, 4, 4, 5), maps(1, 3, 4, 4, 5), []
    for pair in zip(s.astype(float), t.astype(float), strict=True):
        a, b = ((x**2).mean(-1).ravel() if mode == "attention" else x.ravel() for x in pair)
        total.append(np.abs(a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())).mean())
    found = factor_loss(student=s, teacher=t, mode=mode)
    np.testing.assert_allclose(found, np.mean(total), rtol=1e-4)


def test_margin_is_the_mean_of_the_negative_values():
    rng = np.random.default_rng(0)
    for scale, bias in ((1.0, 0.3), (-0.7, 0.5), (0.4, -0.9)):
        x = scale * rng.normal(size=400_000) + bias
        found = negative_margin(scale=jnp.array([scale]), bias=jnp.array([bias]))
        np.testing.assert_allclose(found[0], x[x < 0].mean(), rtol=1e-2)
    rare = negative_margin(scale=jnp.array([1.0, 0, 0, 0]), bias=jnp.array([3.2, 0, 2, -2.0]))
    np.testing.assert_allclose(rare, [-3, 0, 0, -2], atol=1e-6)


def test_partial_equals_its_definition():
    s, t, margin, total = maps(0, 2, 3, 3, 4), maps(1, 2, 3, 3, 4), [-0.1, -0.5, -1, -2], 0.0
    for i, u in np.ndenumerate(s.astype(float)):
        target = max(float(t[i]), margin[i[3]])
        if u > target or target > 0:
            total += (u - target) ** 2
    found = partial_loss(student=s, teacher=t, margin=jnp.array(margin))
    np.testing.assert_allclose(found, total / 2, rtol=1e-4)


@pytest.mark.formula
@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 7])
def test_pooling_of_any_side_equals_its_definition(side):
    x = maps(0, 2, 6, 7, 3)
    expected = np.zeros((2, side, side, 3))
    for i in range(side):
        for j in range(side):
            rows = slice(int(np.floor(i * 6 / side)), int(np.ceil((i + 1) * 6 / side)))
            columns = slice(int(np.floor(j * 7 / side)), int(np.ceil((j + 1) * 7 / side)))
            expected[:, i, j] = x[:, rows, columns].astype(float).mean((1, 2))
    np.testing.assert_allclose(pool_evenly(jnp.asarray(x), side), expected, atol=1e-6)


def reference_contrast(x, m):
    total, c = 0.0, (x.shape[1] - 1) / m
    for row in x.astype(float):
        total -= np.log(row[0] / (row[0] + c + 1e-7))
        for negative in row[1:]:
            total -= np.log(c / (negative + c + 1e-7))
    return total / len(x)


def test_contrast_equals_its_definition():
    x = np.random.default_rng(0).uniform(1e-6, 3, (5, 9)).astype(np.float32)
    found = contrast_loss(log_scores=jnp.log(x), pictures=30)
    np.testing.assert_allclose(found, reference_contrast(x, 30), rtol=1e-4)


def test_contrast_stays_finite_where_scores_would_overflow():
    x = jnp.array([[-500.0, 500, 0], [500, -500, -500]])
    loss = lambda x: contrast_loss(log_scores=x, pictures=10)
    value, gradient = jax.value_and_grad(loss)(x)
    assert np.isfinite(value) and np.isfinite(gradient).all() and gradient[0, 0] < 0


# --- distillers in use

LABELS = jnp.asarray(np.random.default_rng(9).integers(0, 10, 60))  # of the training set


def some_outputs(seed, channels=6, n=4, classes=10, scale=1.0) -> Outputs:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(0, scale, shape).astype(np.float32)
    preacts = [draw(n, side, side, c * channels) for side, c in ((8, 1), (4, 2), (2, 4))]
    stem, features = np.abs(draw(n, 8, 8, channels)), [np.maximum(x, 0) for x in preacts]
    embedding = features[-1].mean((1, 2))
    head = draw(4 * channels, classes), draw(classes)
    norms = tuple((draw(x.shape[3]), draw(x.shape[3])) for x in preacts)
    logits = embedding @ head[0] + head[1]
    outputs = Outputs(logits, embedding, (stem, *features), tuple(preacts), head, norms)
    return jax.tree.map(jnp.asarray, outputs)


def ready(distiller, student, teacher, labels=LABELS):
    distiller.prepare(student, teacher, nnx.Rngs(0), labels)
    return distiller


def a_batch(progress=1.0, index=(7, 3, 50, 20)):
    index = jnp.array(index)
    return Batch(jnp.zeros((4, 8, 8, 3)), LABELS[index], index, progress, jax.random.key(5))


def gradients(distiller, student, teacher, batch=None):
    """The loss and its gradients: by own parameters, the student, the teacher."""
    graph, params, rest = nnx.split(distiller, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    labels = Y if batch is None else batch.labels

    def loss(params, student, teacher):
        return nnx.merge(graph, params, rest)(student, teacher, labels, batch)

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(params, student, teacher)


def any_in(tree) -> bool:
    return any(bool(leaf.any()) for leaf in jax.tree.leaves(tree))


@pytest.mark.formula
@pytest.mark.parametrize("cls", CLASSES)
class TestEveryDistiller:
    @pytest.mark.parametrize("channels", [6, 9])
    def test_student_and_own_parameters_learn_and_the_teacher_does_not(self, cls, channels):
        student, teacher = some_outputs(0), some_outputs(1, channels)
        distiller = ready(cls(), student, teacher)
        value, (own, to_student, to_teacher) = gradients(distiller, student, teacher, a_batch())
        assert np.isfinite(value) and any_in(to_student) and not any_in(to_teacher)
        unused = [path for path, x in jax.tree.leaves_with_path(own) if not x.any()]
        assert not unused

    def test_only_shapes_are_read_to_prepare(self, cls):
        student, teacher = some_outputs(0), some_outputs(1, 9)
        shapes = jax.eval_shape(lambda s, t: (s, t), student, teacher)
        distiller = ready(cls(), *shapes)
        expected = ready(cls(), student, teacher)(student, teacher, Y)
        np.testing.assert_allclose(distiller(student, teacher, Y), expected, rtol=1e-5)

    @pytest.mark.parametrize("case", ["large", "equal", "zero", "two classes", "one picture"])
    def test_finite_at_extremes(self, cls, case):
        n, classes = 1 if case == "one picture" else 4, 2 if case == "two classes" else 10
        scale = 1e4 if case == "large" else 1.0
        student = some_outputs(0, 6, n, classes, scale)
        teacher = some_outputs(1, 9, n, classes, scale)
        if case == "equal":
            student = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), student)
        if case == "zero":
            student, teacher = jax.tree.map(jnp.zeros_like, (student, teacher))
        distiller = ready(cls(), student, teacher, LABELS % classes)
        batch = a_batch()._replace(labels=jnp.arange(n) % classes, index=jnp.arange(n))
        value, grads = gradients(distiller, student, teacher, batch)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))

    def test_jit_and_vmap_agree_with_eager(self, cls):
        pairs = [(some_outputs(2 * i), some_outputs(2 * i + 1, 9)) for i in range(2)]
        graph, state = nnx.split(ready(cls(), *pairs[0]))
        state, batch = nnx.to_pure_dict(state), a_batch()

        def loss(student, teacher):
            return nnx.merge(graph, state)(student, teacher, batch.labels, batch)

        eager = [loss(*pair) for pair in pairs]
        np.testing.assert_allclose(jax.jit(loss)(*pairs[0]), eager[0], rtol=1e-4)
        mapped = jax.vmap(loss)(*jax.tree.map(lambda *x: jnp.stack(x), *pairs))
        np.testing.assert_allclose(mapped, eager, rtol=1e-4)

    def test_zero_at_a_match_where_it_says_so(self, cls):
        x = some_outputs(0)
        value = ready(cls(), x, x)(x, x, Y, a_batch())
        assert (abs(float(value)) < 1e-6) == cls.zero_at_match


@pytest.mark.formula
def test_larger_and_smaller_maps_are_bridged():
    student, teacher = some_outputs(0), some_outputs(1, 9)
    halved = lambda x: x[:, ::2, ::2] if x.ndim == 4 else x
    for cls in CLASSES:
        half_s, half_t = jax.tree.map(halved, (student, teacher))
        for pair in ((half_s, teacher), (student, half_t)):
            value = ready(cls(), *pair)(*pair, LABELS[:4], a_batch())
            assert np.isfinite(value) and value.shape == ()


def test_srrl_compares_pooled_maps_so_any_sides_fit():
    student, teacher = some_outputs(0), some_outputs(1, 9)
    *others, last = student.features
    side = teacher.features[-1].shape[1]
    last = jnp.tile(last, (1, 3, 3, 1))[:, : side + 1, : side + 1]  # no multiple of the other
    odd = student._replace(features=(*others, last))
    distiller = ready(SRRL(), odd, teacher)
    assert np.isfinite(distiller(odd, teacher, LABELS[:4], a_batch()))
    assert distiller.connector.conv.kernel.shape[:2] == (1, 1)


def test_networks_with_other_numbers_of_stages_are_refused():
    student, teacher = some_outputs(0), some_outputs(1)
    short = teacher._replace(features=teacher.features[1:], preacts=teacher.preacts[1:])
    for cls in (FitNet, FSP, VID, AB, OFD, ReviewKD):
        with pytest.raises(ValueError, match="stages"):
            ready(cls(), student, short)


@pytest.mark.parametrize("cls", [CATKD, SRRL, SimKD, OFD])
def test_what_the_teacher_must_show(cls):
    student, teacher = some_outputs(0), some_outputs(1)
    with pytest.raises(ValueError, match="choose") as error:
        ready(cls(), student, teacher._replace(head=(), norms=()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FT(k=0), lambda: FT(mode="sum"), lambda: FT(beta=0), lambda: CRD(temperature=0.0),
        lambda: CRD(negatives=0), lambda: CRD(momentum=2), lambda: CATKD(pool=0),
        lambda: SimKD(factor=0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_in_one_line(make):
    with pytest.raises(ValueError, match="give") as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("distiller", [FitNet(original=True), FSP(original=True), AB()])
def test_pre_training_stands_alone(distiller):
    assert distiller.weights(0.01) == (0, distiller.weight)
    assert distiller.weights(1.0) == (1, 0)
    assert FitNet().weights(0.01) == (1, 100) and FSP().weights(0.01) == (1, 1)


def test_original_fitnet_then_soft_logits():
    student, teacher = some_outputs(0), some_outputs(1, 9)
    both = ready(Sum(FitNet(original=True), SoftLogits()), student, teacher)
    hint, soft = (part(student, teacher, Y) for part in both.parts)
    for progress, expected in ((0.1, 100 * hint), (0.5, 0.9 * soft)):
        found = both(student, teacher, Y, a_batch(progress))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_equal_channels_need_no_adapter():
    student, teacher = some_outputs(0), some_outputs(1)
    for cls in (FSP, AB):
        assert not jax.tree.leaves(nnx.state(ready(cls(), student, teacher)))


def test_variances_are_trained_and_start_at_five():
    student, teacher = some_outputs(0), some_outputs(1, 9)
    distiller = ready(VID(), student, teacher)
    np.testing.assert_allclose(nnx.softplus(distiller.rhos[0][...]) + 1e-5, 5, rtol=1e-5)
    _, (own, _, _) = gradients(distiller, student, teacher)
    assert all(any_in(rho) for rho in jax.tree.leaves(own["rhos"])) and len(own["rhos"]) == 3


@pytest.mark.parametrize("cls", [AB, OFD])
def test_later_stages_weigh_more(cls):
    student, teacher = some_outputs(0), some_outputs(0)
    distiller = ready(cls(), student, teacher)
    if cls is OFD:
        distiller.connectors = nnx.data([lambda x: x] * 3)
    total = 0.0
    for weight, s, t, norm in zip(
        (1 / 4, 1 / 2, 1), student.preacts, teacher.preacts, teacher.norms, strict=True
    ):
        margin = negative_margin(scale=norm[0], bias=norm[1])
        one = boundary_loss(student=s, teacher=t)
        total += weight * (partial_loss(student=s, teacher=t, margin=margin) if cls is OFD else one)
    np.testing.assert_allclose(distiller(student, teacher, Y), total, rtol=1e-4)


class TestFT:
    student, teacher = some_outputs(0), some_outputs(1, 9)

    def test_only_the_paraphraser_learns_at_first(self):
        distiller = ready(FT(), self.student, self.teacher)
        value, (own, to_student, _) = gradients(
            distiller, self.student, self.teacher, a_batch(progress=0.1)
        )
        assert not any_in(to_student) and not any_in(own["translate"])
        assert any_in(own["encode"]) and any_in(own["decode"])
        decoded = distiller.decode(distiller.encode(self.teacher.features[-1]))
        paraphrase = ((decoded - self.teacher.features[-1]) ** 2).mean()
        np.testing.assert_allclose(distiller.weight * value, 0.1 * paraphrase, rtol=1e-4)
        assert distiller.weights(0.1)[0] == 1

    def test_the_factors_never_teach_the_paraphraser(self):
        distiller = ready(FT(), self.student, self.teacher)
        early, late = (
            gradients(distiller, self.student, self.teacher, a_batch(progress))[1][0]
            for progress in (0.1, 0.2)
        )
        for part in ("encode", "decode"):
            jax.tree.map(np.testing.assert_array_equal, early[part], late[part])
        assert any_in(late["translate"])

    def test_a_paraphraser_learns_to_reconstruct(self):
        distiller = ready(FT(k=1.0), self.student, self.teacher)
        graph, params, rest = nnx.split(distiller, nnx.Param, ...)
        params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

        @jax.jit
        def loss(params):
            module = nnx.merge(graph, params, rest)
            return 200 * module(self.student, self.teacher, Y, a_batch(progress=0.0))

        first, step = loss(params), jax.jit(jax.grad(loss))
        for _ in range(30):
            params = jax.tree.map(lambda p, g: p - 5.0 * g, params, step(params))
        assert loss(params) < 0.7 * first


class TestCRD:
    student, teacher = some_outputs(0), some_outputs(1, 9)

    def crd(self, **settings):
        settings = {"negatives": 20, "dim": 8, **settings}
        return ready(CRD(**settings), self.student, self.teacher)

    def test_equals_its_definition(self):
        distiller, batch = self.crd(), a_batch()
        banks = np.array(distiller.banks[...], float)
        z = []
        for embed, outputs in zip(distiller.embed, (self.student, self.teacher), strict=True):
            e = np.array(embed(outputs.embedding), float)
            z.append(e / np.linalg.norm(e, axis=1, keepdims=True))
        others = np.array(distiller.others(batch.key, batch.labels))
        expected, constants = 0.0, []
        for vectors, bank in ((z[1], banks[0]), (z[0], banks[1])):
            x = np.zeros((4, 21))
            for i in range(4):
                for j, at in enumerate([int(batch.index[i]), *others[i]]):
                    x[i, j] = np.exp(bank[at] @ vectors[i] / 0.07)
            constants.append(x.mean() * 60)
            expected += reference_contrast(x / constants[-1], 60)
        found = distiller(self.student, self.teacher, batch.labels, batch)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        np.testing.assert_allclose(distiller.constants[...], constants, rtol=1e-4)
        for side in (0, 1):  # the batch's rows have moved half-way, the others not at all
            moved = banks[side].copy()
            for i, at in enumerate(np.array(batch.index)):
                row = 0.5 * moved[at] + 0.5 * z[side][i]
                moved[at] = row / np.linalg.norm(row)
            np.testing.assert_allclose(distiller.banks[...][side], moved, atol=1e-5)

    def test_constants_stay_as_the_first_batch_set_them(self):
        distiller = self.crd()
        distiller(self.student, self.teacher, Y, a_batch())
        first = np.array(distiller.constants[...])
        distiller(self.teacher._replace(embedding=self.student.embedding), self.teacher, Y,
                  a_batch(index=(1, 2, 3, 4)))  # fmt: skip
        assert (distiller.constants[...] == first).all() and (first > 0).all()

    def test_negatives_are_of_all_other_classes_and_of_these_only(self):
        distiller = self.crd(negatives=10_000)
        assert distiller.others(jax.random.key(0), Y).shape == (4, 60)
        seen = np.concatenate([distiller.others(jax.random.key(i), Y) for i in range(40)], axis=1)
        for row, label in zip(seen, Y, strict=True):
            others = np.flatnonzero(np.array(LABELS) != label)
            assert set(row) == set(others)
            counts = np.bincount(row, minlength=60)[others]
            assert counts.min() > 0.5 * counts.mean() and counts.max() < 1.7 * counts.mean()

    def test_without_a_batch_nothing_is_remembered(self):
        distiller = self.crd()
        before = nnx.to_pure_dict(nnx.state(distiller, Bank))
        before = jax.tree.map(np.array, before)
        value = distiller(self.student, self.teacher, Y)
        assert np.isfinite(value) and value == distiller(self.student, self.teacher, Y)
        after = nnx.to_pure_dict(nnx.state(distiller, Bank))
        jax.tree.map(np.testing.assert_array_equal, before, after)

    def test_banks_are_state_and_not_parameters(self):
        params = nnx.to_pure_dict(nnx.state(self.crd(), nnx.Param))
        assert set(params) == {"embed"}
        assert np.abs(np.linalg.norm(self.crd(dim=512).banks[...], axis=-1) - 1).max() < 0.2

    def test_the_state_moves_under_jit_and_grad(self):
        graph, params, rest = nnx.split(self.crd(), nnx.Param, ...)
        params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

        @jax.jit
        def step(params, rest, batch):
            def loss(params):
                module = nnx.merge(graph, params, rest)
                value = module(self.student, self.teacher, batch.labels, batch)
                return value, nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[2])

            return jax.grad(loss, has_aux=True)(params)

        grads, moved = step(params, rest, a_batch())
        changed = (moved["banks"] != rest["banks"]).any((0, 2))
        assert set(np.flatnonzero(changed)) == {3, 7, 20, 50} and any_in(grads)


class TestReviewKD:
    @pytest.mark.formula
    def test_the_pooled_map_reaches_the_first_stage(self):
        """Everything deeper flows into the last fusion: x · gate + deeper · gate."""
        student, teacher = some_outputs(0), some_outputs(1, 9)
        distiller = ready(ReviewKD(), student, teacher)
        assert len(distiller.fusions) == 4 and distiller.fusions[0].gate is None
        _, (_, to_student, _) = gradients(distiller, student, teacher)
        assert any_in(to_student.embedding) and not any_in(to_student.features[0])
        assert distiller.weights(1 / 24)[1] == pytest.approx(0.3)

    def test_sides_that_do_not_divide(self):
        student, teacher = some_outputs(0), some_outputs(1, 9)
        cut = lambda x: x[:, :7, :7] if x.ndim == 4 and x.shape[1] == 8 else x
        student, teacher = jax.tree.map(cut, (student, teacher))
        assert np.isfinite(ready(ReviewKD(), student, teacher)(student, teacher, Y))


def test_class_maps_average_to_the_logits():
    """Pooled to one position, the maps are the logits without their bias."""
    student, teacher = some_outputs(0), some_outputs(1, 9)
    found = ready(CATKD(pool=1), student, teacher)(student, teacher, Y)
    s, t = (x.logits - x.head[1] for x in (student, teacher))
    np.testing.assert_allclose(found, ((s - t) ** 2).mean(), rtol=1e-4)


def test_srrl_matches_embedding_and_logits():
    student, teacher = some_outputs(0), some_outputs(1, 9)
    distiller = ready(SRRL(alpha=2.0, beta=3.0), student, teacher)
    u = np.array(distiller.connector(student.features[-1]), float).mean((1, 2))
    logits = u @ np.array(teacher.head[0], float) + np.array(teacher.head[1])
    expected = 2 * ((u - teacher.embedding) ** 2).mean()
    expected += 3 * ((logits - teacher.logits) ** 2).mean()
    np.testing.assert_allclose(distiller(student, teacher, Y), expected, rtol=1e-4)


class Toy(nnx.Module):
    """A network of one linear layer that shows a map."""

    def __init__(self, channels, rngs):
        self.body = nnx.Linear(3, channels, rngs=rngs)
        self.classifier = nnx.Linear(channels, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.body(images))
        embedding = x.mean((1, 2))
        head = self.classifier.kernel[...], self.classifier.bias[...]
        return Outputs(self.classifier(embedding), embedding, (x, x), (x,), head)


class TestSimKD:
    networks = Toy(6, nnx.Rngs(0)), Toy(9, nnx.Rngs(1))
    images = jnp.asarray(maps(3, 4, 4, 4, 3))

    def test_what_is_deployed_predicts_what_training_showed(self):
        student, teacher = (network(self.images) for network in self.networks)
        distiller = ready(SimKD(), student, teacher)
        distiller.train()
        for _ in range(3):
            distiller(student, teacher, Y)
        deployed = distiller.deploy(*self.networks)
        deployed.eval()
        shown = distiller.logits(student, teacher)
        outputs = deployed(self.images)
        np.testing.assert_allclose(outputs.logits, shown, rtol=1e-5)
        head = self.networks[1].classifier
        np.testing.assert_allclose(head(outputs.embedding), shown, rtol=1e-5)
        assert deployed.classifier is not head

    def test_a_prediction_moves_no_statistics(self):
        student, teacher = (network(self.images) for network in self.networks)
        distiller = ready(SimKD(), student, teacher)
        distiller.train()
        statistics = lambda: jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(distiller)))
        before = statistics()
        distiller.logits(student, teacher)
        jax.tree.map(np.testing.assert_array_equal, before, statistics())
        distiller(student, teacher, Y)
        assert any_in(jax.tree.map(lambda a, b: a != b, before, statistics()))

    def test_labels_do_not_count(self):
        assert SimKD().weights(0.5) == (0, 1)
