"""Distillers of logits and of relations between pictures: golden values, references, behaviour."""

import itertools
import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdlib.data import Batch
from kdlib.distillers.base import Distiller
from kdlib.distillers.cc import CC, neighbour_loss
from kdlib.distillers.dist import DIST
from kdlib.distillers.dkd import DKD
from kdlib.distillers.logit_mse import LogitMSE
from kdlib.distillers.lskd import LSKD, standardise
from kdlib.distillers.mlkd import MLKD, levels
from kdlib.distillers.nst import NST, selectivity_loss
from kdlib.distillers.pkt import PKT
from kdlib.distillers.rkd import RKD
from kdlib.distillers.soft_logits import SoftLogits
from kdlib.distillers.sp import SP
from kdlib.models import Outputs

S, T, Y = golden.student_logits(), golden.teacher_logits(), golden.LABELS
K = np.arange(40).reshape(4, 10)
S2, T2 = (2 * np.sin(0.5 + 0.4 * K)).astype("f"), (3 * np.cos(1 + 0.6 * K)).astype("f")
ES = np.sin(0.11 * np.arange(64).reshape(4, 16) + 0.5).astype("f")
ET = np.cos(0.07 * np.arange(96).reshape(4, 24) + 0.2).astype("f")
ET16 = np.cos(0.07 * np.arange(64).reshape(4, 16) + 0.2).astype("f")
FS8, FT8 = golden.student_map(6, 8), golden.teacher_map(12, 8)
FS4, FT4 = golden.student_map(6, 4), golden.teacher_map(12, 4)


def out(logits=S, embedding=ES, feature=FS4) -> Outputs:
    features = (feature, feature)
    made = golden.outputs(logits, features)
    return jax.tree.map(jnp.asarray, made._replace(embedding=embedding))


def on_logits(method, teacher=T):
    return lambda s: method(out(logits=s), out(logits=teacher), Y)


def on_embeddings(method, teacher=ET):
    return lambda e: method(out(embedding=e), out(embedding=teacher), Y)


def level(number):
    def loss(s):
        return levels(student_logits=s, teacher_logits=T, temperatures=(4,))[number].mean()

    return loss


# --- golden values: (loss, where, value, norm of the gradient or None)

GOLDEN = {
    "NST": (lambda f: selectivity_loss(student=f, teacher=FT8), FS8, 0.5758019, 0.04590441),
    "NST, the distiller": (lambda f: NST()(out(feature=f), out(feature=FT8), Y),
                           FS8, 0.5758019, None),
    "SP": (lambda f: SP()(out(feature=f), out(feature=FT4), Y), FS4, 0.1330463, 0.05011801),
    "CC, RepDistiller": (lambda e: neighbour_loss(student=e, teacher=ET16), ES, 1.046464, None),
    "CC": (on_embeddings(CC()), ES, 0.008801645, 0.01745590),
    "RKD, distance": (on_embeddings(RKD(distance=1, angle=0)), ES, 0.05529743, None),
    "RKD, angle": (on_embeddings(RKD(distance=0, angle=1)), ES, 0.08799745, None),
    "RKD": (on_embeddings(RKD()), ES, 5.782308, 3.555888),
    "PKT": (on_embeddings(PKT()), ES, 0.01665651, 0.03030592),
    "DKD, target": (on_logits(DKD(alpha=1, beta=0)), S, 0.06528383, None),
    "DKD, non-target": (on_logits(DKD(alpha=0, beta=1)), S, 3.930590, None),
    "DKD": (on_logits(DKD(alpha=1, beta=8)), S, 31.51000, 3.717827),
    "DIST, inter": (on_logits(DIST(gamma=0, temperature=1)), S, 1.189493, None),
    "DIST, intra": (on_logits(DIST(beta=0, temperature=1)), S, 1.106227, None),
    "DIST": (on_logits(DIST()), S, 35.33302, 4.141211),
    "LSKD": (on_logits(LSKD()), S, 1.059588, 0.07722652),
    "MLKD, class": (level(2), S, 0.004453542, None),
    "MLKD, batch": (level(1), S, 0.001762222, None),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_value_and_gradient(name):
    loss, x, value, norm = GOLDEN[name]
    found, gradient = jax.value_and_grad(loss)(jnp.asarray(x))
    np.testing.assert_allclose(found, value, rtol=1e-4)
    if norm is not None:
        np.testing.assert_allclose(jnp.linalg.norm(gradient), norm, rtol=1e-4)


# --- independent references: float64 loops, slow and obvious


def softmax(row):
    powers = [math.exp(float(z) - float(max(row))) for z in row]
    return np.array([p / sum(powers) for p in powers])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def unit(v):
    v = np.asarray(v, float)
    return v / math.sqrt(sum(v**2))


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def mean_squares(a, b):
    return np.mean([(x - y) ** 2 for x, y in zip(np.ravel(a), np.ravel(b), strict=True)])


def reference_logit_mse(s, t):
    return mean_squares(s.logits.astype(float), t.logits.astype(float))


def reference_sp(s, t):
    grams = []
    for side in (s, t):
        flat = [np.ravel(one).astype(float) for one in side.features[-1]]
        grams.append([unit([a @ b for b in flat]) for a in flat])
    return mean_squares(*grams)


def reference_cc(s, t, gamma=0.7, order=3):
    kernels = []
    for e in (s.embedding, t.embedding):
        cosines = np.array([[unit(a) @ unit(b) for b in e] for a in e])
        powers = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
        kernels.append(math.exp(-2 * gamma) * np.sum(powers, 0))
    return mean_squares(*kernels)


def reference_pkt(s, t):
    nearness = []
    for e in (s.embedding, t.embedding):
        near = np.array([[(1 + unit(a) @ unit(b)) / 2 for b in e] for a in e])
        nearness.append([row / sum(row) for row in near])
    p_s, p_t = map(np.ravel, nearness)
    terms = [q * math.log((q + 1e-7) / (p + 1e-7)) for p, q in zip(p_s, p_t, strict=True)]
    return np.mean(terms)


def reference_rkd(s, t):
    n, tables = len(s.embedding), []
    for e in (s.embedding.astype(float), t.embedding.astype(float)):
        distance = np.array([[math.sqrt(sum((a - b) ** 2)) for b in e] for a in e])
        distance /= distance[distance > 0].mean()
        cosine = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    if i not in (j, k):
                        cosine[i, j, k] = unit(e[j] - e[i]) @ unit(e[k] - e[i])
        tables.append((distance, cosine))
    (d_s, a_s), (d_t, a_t) = tables
    distances, angles = np.ravel(d_s - d_t), np.ravel(a_s - a_t)
    return 25 * np.mean([huber(x) for x in distances]) + 50 * np.mean([huber(x) for x in angles])


def reference_nst(s, t):
    total = 0.0
    for f_s, f_t in zip(s.features[1:], t.features[1:], strict=True):
        for one_s, one_t in zip(f_s, f_t, strict=True):
            a = [unit(np.ravel(one_s[..., c])) for c in range(one_s.shape[-1])]
            b = [unit(np.ravel(one_t[..., c])) for c in range(one_t.shape[-1])]
            kernel = lambda x, y: np.mean([[(u @ v) ** 2 for v in y] for u in x])
            total += (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)) / len(f_s)
    return total


def reference_dkd(s, t, alpha=1.5, beta=3.0, temperature=2.0):
    total = 0.0
    for row_s, row_t, y in zip(s.logits, t.logits, Y, strict=True):
        p, q = softmax(row_s / temperature), softmax(row_t / temperature)
        target = kl([q[y], 1 - q[y]], [p[y], 1 - p[y]])
        p, q = np.delete(p, y), np.delete(q, y)
        total += alpha * target + beta * kl(q / sum(q), p / sum(p))
    return temperature**2 * total / len(Y)


def reference_dist(s, t, beta=0.5, gamma=2.0, temperature=3.0):
    p = np.array([softmax(row / temperature) for row in s.logits])
    q = np.array([softmax(row / temperature) for row in t.logits])
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def standardised(row):
    row = np.asarray(row, float)
    return (row - row.mean()) / np.std(row, ddof=1)


def reference_kd(s, t, temperature):
    pairs = [
        (softmax(a / temperature), softmax(b / temperature)) for a, b in zip(s, t, strict=True)
    ]
    return np.array([temperature**2 * kl(q, p) for p, q in pairs])


def reference_lskd(s, t):
    s, t = ([standardised(row) for row in x.logits] for x in (s, t))
    return reference_kd(s, t, 2.0).mean()


def reference_levels(s, t, temperature):
    p = np.array([softmax(row / temperature) for row in s])
    q = np.array([softmax(row / temperature) for row in t])
    n, k = p.shape
    batch = [sum((q[i] @ q[j] - p[i] @ p[j]) ** 2 for j in range(n)) for i in range(n)]
    classes = [
        sum((q[:, a] @ q[:, b] - p[:, a] @ p[:, b]) ** 2 for b in range(k)) for a in range(k)
    ]
    return reference_kd(s, t, temperature), np.array(batch), np.array(classes)


def reference_mlkd(s, t, strong_s=None, strong_t=None):
    """Masks choose pictures and classes on the weak view; nothing is masked on the strong one."""
    confident = np.array([softmax(row) for row in t.logits])
    picture = confident.max(1) <= np.percentile(confident.max(1), 50)
    of_class = confident.sum(0) <= np.percentile(confident.sum(0), 50)
    total = 0.0
    for temperature in (4, 3, 5, 2, 6):
        instance, batch, classes = reference_levels(s.logits, t.logits, temperature)
        total += (instance * picture).mean() + (batch * picture).mean()
        total += (classes * of_class).mean()
        if strong_s is not None:
            strong = reference_levels(strong_s.logits, strong_t.logits, temperature)
            total += sum(term.mean() for term in strong)
    if strong_s is not None:
        total += np.mean([-math.log(softmax(row)[y]) for row, y in zip(strong_s.logits, Y)]) / 9  # noqa: B905
    return total


REFERENCES = [
    (LogitMSE(), reference_logit_mse),
    (SP(), reference_sp),
    (CC(gamma=0.7, order=3), reference_cc),
    (PKT(), reference_pkt),
    (RKD(), reference_rkd),
    (NST(), reference_nst),
    (DKD(alpha=1.5, beta=3, temperature=2), reference_dkd),
    (DIST(beta=0.5, gamma=2, temperature=3), reference_dist),
    (LSKD(), reference_lskd),
    (MLKD(), reference_mlkd),
]


def some(seed, channels=6, scale=2.0, n=4, classes=10) -> Outputs:
    rng = np.random.default_rng(seed)
    features = [np.maximum(rng.normal(0, 1, (n, side, side, channels)), 0) for side in (8, 8, 4, 4)]
    features = [x.astype(np.float32) for x in features]
    return golden.outputs(rng.normal(0, scale, (n, classes)).astype(np.float32), features)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("method", "reference"), REFERENCES, ids=lambda x: type(x).__name__)
def test_it_equals_its_definition(method, reference, seed):
    student, teacher = some(2 * seed), some(2 * seed + 1, channels=9)
    found = jax.jit(lambda s, t: method(s, t, Y))(student, teacher)
    np.testing.assert_allclose(found, reference(student, teacher), rtol=2e-4)


def test_neighbours_in_the_batch_as_in_repdistiller():
    difference = np.abs(ES.astype(float) - ET16)
    expected = np.mean([sum(a * b) for a, b in itertools.pairwise(difference)])
    np.testing.assert_allclose(neighbour_loss(student=ES, teacher=ET16), expected, rtol=1e-5)
    assert neighbour_loss(student=ES[:1], teacher=ET16[:1]) == 0


# --- correlation congruence


def test_repdistillers_variant_trains_two_layers_of_its_own():
    method, student, teacher = CC(variant="repdistiller"), out(), out(embedding=ET)
    shapes = jax.eval_shape(lambda: (student, teacher))
    method.prepare(*shapes, nnx.Rngs(0), Y)
    assert method.of_student.kernel.shape == (16, 128)
    assert method.of_teacher.kernel.shape == (24, 128)
    gradient = nnx.grad(lambda m: m(student, teacher, Y))(method)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_the_weight_is_the_variants_unless_given():
    assert (CC().weight, CC(variant="repdistiller").weight, CC(beta=3).weight) == (100, 0.02, 3)


# --- extremes of relations


def test_pkt_is_finite_for_two_opposite_pictures():
    """Their cosine is -1, or by rounding below."""
    e, *others = jax.random.normal(jax.random.key(0), (3, 400, 5))
    loss = lambda pair, other: on_embeddings(PKT(), other)(pair)
    pairs = jnp.stack([e, -e], 1), jnp.stack(others, 1)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(loss)))(*pairs)
    assert np.isfinite(value).all() and np.isfinite(slope).all()


@pytest.mark.parametrize("method", [SP(), CC(), PKT(), RKD()], ids=lambda m: type(m).__name__)
def test_one_picture_has_no_relations(method):
    student, teacher = some(0, n=1), some(1, n=1)
    value, gradient = jax.value_and_grad(method)(student, teacher, Y[:1])
    assert abs(float(value)) < 1e-6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "method", [SP(), CC(), PKT(), RKD(), NST()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("case", ["dead", "twice"])
def test_a_dead_or_repeated_picture_does_not_explode(method, case):
    """One of the pictures all zero, or two of them equal: no length to divide by."""
    change = lambda x: x.at[2].set(0 if case == "dead" else x[1])
    student = jax.tree.map(lambda x: change(jnp.asarray(x)), some(0))
    value, gradient = jax.value_and_grad(method)(student, some(1), Y)
    assert np.isfinite(value)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e3


# --- decoupled distillation


def test_two_classes_have_no_others_to_compare():
    student, teacher = some(0, classes=2), some(1, classes=2)
    assert float(DKD(alpha=0, beta=8)(student, teacher, Y % 2)) == 0
    soft = SoftLogits(temperature=4)(student, teacher, Y)
    np.testing.assert_allclose(DKD()(student, teacher, Y % 2), soft, rtol=1e-4)


def test_its_parts_make_up_the_soft_logits():
    """KL = target part + (1 − p_t(label)) · non-target part: what the method takes apart."""
    student, teacher = some(0, n=1), some(1, n=1)
    label = Y[:1]
    target = DKD(alpha=1, beta=0)(student, teacher, label)
    rest = DKD(alpha=0, beta=1)(student, teacher, label)
    share = 1 - softmax(teacher.logits[0] / 4)[label[0]]
    soft = SoftLogits(temperature=4)(student, teacher, label)
    np.testing.assert_allclose(target + share * rest, soft, rtol=1e-4)


def test_its_knowledge_warms_up_over_20_of_240_epochs():
    assert [float(DKD().weights(e / 240)[1]) for e in (10, 20, 240)] == pytest.approx([0.5, 1, 1])


# --- correlations of predictions


def test_constant_predictions_correlate_with_nothing_and_give_no_gradient():
    student = some(0)._replace(logits=np.full((4, 10), 0.3, np.float32))
    value, gradient = jax.value_and_grad(DIST(temperature=1))(student, some(1), Y)
    np.testing.assert_allclose(value, 2.0, rtol=1e-6)
    assert not gradient.logits.any()


def test_one_picture_has_no_correlation_along_the_batch():
    student, teacher = some(0, n=1), some(1, n=1)
    assert float(DIST(beta=0)(student, teacher, Y[:1])) == 0
    assert float(DIST(gamma=0)(student, teacher, Y[:1])) > 0


# --- standardised logits


def test_standardised_rows_have_mean_0_and_deviation_1():
    z = np.asarray(standardise(logits=S))
    np.testing.assert_allclose(z.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(1, ddof=1), 1, rtol=1e-5)
    np.testing.assert_allclose(z, [standardised(row) for row in S], rtol=1e-4, atol=1e-6)
    constant = jnp.full((2, 10), 0.1)
    assert not standardise(logits=constant).any()
    assert not jax.grad(lambda z: (standardise(logits=z) * S[:2]).sum())(constant).any()


def test_any_distiller_of_logits_gets_standardised_ones():
    student, teacher = some(0), some(1)
    inner, outer = DKD(beta=8), LSKD(of=DKD(beta=8), scale=4)
    shaped = [x._replace(logits=standardise(logits=x.logits)) for x in (student, teacher)]
    np.testing.assert_allclose(outer(student, teacher, Y), inner(*shaped, Y), rtol=1e-6)
    assert (outer.ce_weight, outer.weight, outer.warmup) == (1, 4, 1 / 12)
    assert LSKD(of=LogitMSE(beta=0.5), scale=4).weight == 2
    slope, shift = np.array([[[3.0], [0.2], [1.0], [9.0]], [[5.0], [-1.0], [0.0], [20.0]]], "f")
    moved = student._replace(logits=slope * student.logits + shift)
    np.testing.assert_allclose(outer(moved, teacher, Y), outer(student, teacher, Y), rtol=1e-4)


def test_its_default_is_the_published_total():
    assert (LSKD().ce_weight, LSKD().weight) == (pytest.approx(0.1), 9)
    assert LSKD().spec == "LSKD(of=SoftLogits(temperature=2.0, alpha=1.0, gamma=0.1), scale=9.0)"
    assert LSKD(of=DIST(), scale=2).scheduled(pretrain=0.5).spec == (
        "LSKD(of=DIST(beta=1.0, gamma=1.0, scale=2.0, temperature=4.0), scale=2.0, pretrain=0.5)"
    )


def test_a_wrapped_distiller_keeps_its_variables_and_the_batch():
    class Probe(Distiller):
        contextual = True

        def prepare(self, student, teacher, rngs, labels):
            self.layer = nnx.Linear(student.logits.shape[-1], 3, rngs=rngs)

        def knowledge(self, student, teacher, labels, batch):
            return self.layer(student.logits).sum() * batch.progress

    method = LSKD(of=Probe())
    method.prepare(out(), out(logits=T), nnx.Rngs(0), Y)
    batch = Batch(images=None, labels=Y, progress=0.5)
    expected = method.of.layer(standardise(logits=S)).sum() / 2
    np.testing.assert_allclose(method(out(), out(logits=T), Y, batch), expected, rtol=1e-5)


# --- several levels


def two_views():
    return Batch(images=None, labels=Y, extra=(out(logits=S2), out(logits=T2)))


def test_strict_is_as_coded():
    method, ce = MLKD(strict=True), -np.mean([math.log(softmax(r)[y]) for r, y in zip(S, Y)])  # noqa: B905
    total = golden.minimised(method, ce, method(out(), out(logits=T), Y, two_views()))
    np.testing.assert_allclose(total, 0.6932739 + 22.45285 + 0.01658494 + 0.01074673, rtol=1e-4)


def test_as_intended_with_two_views():
    found = MLKD()(out(), out(logits=T), Y, two_views())
    expected = reference_mlkd(out(), out(logits=T), out(logits=S2), out(logits=T2))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
def test_without_a_second_view_the_first_is_used(strict):
    method, pair = MLKD(strict=strict), (out(), out(logits=T), Y)
    alone = method(*pair)
    np.testing.assert_allclose(method(*pair, two_views()._replace(extra=None)), alone, rtol=1e-6)
    assert float(method(*pair, two_views())) > float(alone)
    assert float(method(out(), out(), Y)) == 0


def test_pictures_the_teacher_is_sure_of_are_left_out():
    method = MLKD(temperatures=(4,))
    sure = int(np.max(jax.nn.softmax(T), -1).argmax())
    gradient = jax.grad(on_logits(method))(jnp.asarray(S))
    whole = jax.grad(on_logits(SoftLogits(temperature=4)))(jnp.asarray(S))
    assert float(jnp.abs(gradient[sure]).max()) < 0.1 * float(jnp.abs(whole[sure]).max())


def test_the_teachers_second_view_gets_no_gradient():
    def loss(extra):
        return MLKD()(out(), out(logits=T), Y, two_views()._replace(extra=extra))

    student, teacher = jax.grad(loss)(two_views().extra)
    assert student.logits.any() and not teacher.logits.any()


def test_standardised_logits_only_in_the_first_level():
    plain = levels(student_logits=S, teacher_logits=T, temperatures=(2,))
    shaped = levels(student_logits=S, teacher_logits=T, temperatures=(2,), standardised=True)
    np.testing.assert_allclose(shaped[0].mean(), 1.059588, rtol=1e-4)
    np.testing.assert_array_equal(plain[1], shaped[1])
    np.testing.assert_array_equal(plain[2], shaped[2])


# --- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CC(variant="rbf"), "'taylor' or 'repdistiller'"),
        (lambda: CC(order=0), "1 or more"),
        (lambda: DKD(temperature=0), "above 0"),
        (lambda: DIST(temperature=-1), "above 0"),
        (lambda: LSKD(of="SoftLogits"), "like SoftLogits()"),
        (lambda: LSKD(of=MLKD()), "standardised=True"),
        (lambda: MLKD(temperatures=()), "above 0"),
        (lambda: MLKD(beta=0), "above 0"),
    ],
)
def test_bad_settings_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
