"""Every distiller: golden values, independent references, and the contract they all keep."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdlib
from kdlib.distillers import DISTILLERS, Sum, attention_loss, make, soft_logit_loss
from kdlib.models import Outputs
from kdlib.transfer import cross_entropy

S, T, Y = golden.student_logits(), golden.teacher_logits(), golden.LABELS

CASES = {
    "cross-entropy": (lambda s: cross_entropy(s, Y), S),
    "soft logits, T 4": (
        lambda s: soft_logit_loss(student_logits=s, teacher_logits=T, temperature=4.0), S,
    ),
    "soft logits, T 1": (
        lambda s: soft_logit_loss(student_logits=s, teacher_logits=T, temperature=1.0), S,
    ),
    "0.1 CE + 0.9 soft logits": (
        lambda s: make("SoftLogits(temperature=4, alpha=0.9)").total(
            cross_entropy(s, Y),
            soft_logit_loss(student_logits=s, teacher_logits=T, temperature=4.0),
        ), S,
    ),
    "attention, one stage": (
        lambda f: attention_loss(student=f, teacher=golden.teacher_map(12, 8)),
        golden.student_map(6, 8),
    ),
    "attention, pooled 8 to 4": (
        lambda f: attention_loss(student=f, teacher=golden.teacher_map(12, 4)),
        golden.student_map(6, 8),
    ),
    "attention, paper": (
        lambda f: attention_loss(student=f, teacher=golden.teacher_map(12, 8), mode="paper"),
        golden.student_map(6, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", golden.GOLDEN)
def test_golden_value_and_gradient(name):
    loss, x = CASES[name]
    value, norm = golden.GOLDEN[name]
    found, gradient = jax.value_and_grad(loss)(jnp.asarray(x))
    np.testing.assert_allclose(found, value, rtol=1e-4)
    if norm is not None:
        np.testing.assert_allclose(jnp.linalg.norm(gradient), norm, rtol=1e-4)


# --- independent references: float64 loops, slow and obvious


def reference_soft_logits(s, t, temperature):
    total = 0.0
    for row_s, row_t in zip(s.astype(float), t.astype(float), strict=True):
        p_s = np.exp(row_s / temperature) / np.exp(row_s / temperature).sum()
        p_t = np.exp(row_t / temperature) / np.exp(row_t / temperature).sum()
        total += sum(q * (np.log(q) - np.log(p)) for p, q in zip(p_s, p_t, strict=True))
    return temperature**2 * total / len(s)


def reference_attention(f_s, f_t, mode):
    total = 0.0
    for one_s, one_t in zip(f_s.astype(float), f_t.astype(float), strict=True):
        maps = []
        for one in (one_s, one_t):
            flat = np.array([sum(v**2) / len(v) for v in one.reshape(-1, one.shape[-1])])
            maps.append(flat / np.sqrt(sum(flat**2)))
        square = (maps[0] - maps[1]) ** 2
        total += np.sqrt(square.sum()) if mode == "paper" else square.mean()
    return total / len(f_s)


@pytest.mark.parametrize("temperature", [0.5, 1, 3, 20])
def test_soft_logits_equal_their_definition(temperature):
    rng = np.random.default_rng(int(10 * temperature))
    s, t = rng.normal(0, 3, (2, 5, 7)).astype(np.float32)
    found = soft_logit_loss(student_logits=s, teacher_logits=t, temperature=temperature)
    np.testing.assert_allclose(found, reference_soft_logits(s, t, temperature), rtol=1e-4)


@pytest.mark.parametrize("mode", ["squared", "paper"])
def test_attention_equals_its_definition(mode):
    rng = np.random.default_rng(1)
    f_s = rng.normal(size=(3, 4, 4, 5)).astype(np.float32)
    f_t = rng.normal(size=(3, 4, 4, 9)).astype(np.float32)
    found = attention_loss(student=f_s, teacher=f_t, mode=mode)
    np.testing.assert_allclose(found, reference_attention(f_s, f_t, mode), rtol=1e-4)


def test_attention_stages_add_up():
    maps_s = [golden.student_map(6, 8), golden.student_map(6, 8), golden.student_map(8, 4)]
    maps_t = [golden.teacher_map(6, 8), golden.teacher_map(12, 8), golden.teacher_map(16, 4)]
    student, teacher = golden.outputs(S, maps_s), golden.outputs(T, maps_t)
    both = make("AT")(student, teacher, Y)
    parts = [make(f"AT(stages=({stage},))")(student, teacher, Y) for stage in (1, 2)]
    np.testing.assert_allclose(both, sum(parts), rtol=1e-6)


# --- the contract, for every distiller of the table

SPECS = [*DISTILLERS, "AT(mode='paper')", "SoftLogits(temperature=1, alpha=0.5)", "SoftLogits + AT"]


def some_outputs(seed, n=4, classes=10, scale=1.0, channels=6) -> Outputs:
    rng = np.random.default_rng(seed)
    features = [
        np.maximum(rng.normal(0, scale, (n, side, side, channels)), 0).astype(np.float32)
        for side in (8, 8, 4, 2)
    ]
    logits = rng.normal(0, scale, (n, classes)).astype(np.float32)
    return jax.tree.map(jnp.asarray, golden.outputs(logits, features))


def loss_of(spec):
    distiller = make(spec)
    return lambda s, t, y: distiller(s, t, y)


@pytest.mark.parametrize("spec", SPECS)
class TestContract:
    def test_zero_where_student_and_teacher_match(self, spec):
        x = some_outputs(0)
        if make(spec).zero_at_match:
            assert abs(float(loss_of(spec)(x, x, Y))) < 1e-6

    def test_positive_where_they_differ(self, spec):
        assert float(loss_of(spec)(some_outputs(0), some_outputs(1, channels=9), Y)) > 0

    def test_teacher_gets_no_gradient_and_student_some(self, spec):
        student, teacher = some_outputs(0), some_outputs(1)
        to_student, to_teacher = jax.grad(loss_of(spec), argnums=(0, 1))(student, teacher, Y)
        assert all(not leaf.any() for leaf in jax.tree.leaves(to_teacher))
        assert any(leaf.any() for leaf in jax.tree.leaves(to_student))

    @pytest.mark.parametrize(
        "case", ["large", "equal rows", "zero maps", "two classes", "one picture"]
    )
    def test_finite_at_extremes(self, spec, case):
        n, classes = (1 if case == "one picture" else 4), (2 if case == "two classes" else 10)
        scale = 1e4 if case == "large" else 1.0
        student = some_outputs(0, n, classes, scale)
        teacher = some_outputs(1, n, classes, scale)
        if case == "equal rows":
            student = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), student)
        if case == "zero maps":
            student = student._replace(features=jax.tree.map(jnp.zeros_like, student.features))
        labels = jnp.arange(n) % classes
        value, gradient = jax.value_and_grad(loss_of(spec))(student, teacher, labels)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))

    def test_gradient_is_finite_at_a_match(self, spec):
        x = some_outputs(0)
        gradient = jax.grad(loss_of(spec))(x, x, Y)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))

    def test_batch_order_does_not_matter(self, spec):
        student, teacher, order = some_outputs(0), some_outputs(1), np.array([2, 0, 3, 1])
        shuffle = functools.partial(jax.tree.map, lambda x: x[order])
        straight = loss_of(spec)(student, teacher, Y)
        shuffled = loss_of(spec)(shuffle(student), shuffle(teacher), Y[order])
        np.testing.assert_allclose(straight, shuffled, rtol=1e-5)

    def test_jit_and_vmap_agree_with_eager(self, spec):
        pairs = [(some_outputs(2 * i), some_outputs(2 * i + 1)) for i in range(3)]
        eager = [loss_of(spec)(s, t, Y) for s, t in pairs]
        jitted = [jax.jit(loss_of(spec))(s, t, Y) for s, t in pairs]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
        mapped = jax.vmap(loss_of(spec), in_axes=(0, 0, None))(*stacked, Y)
        np.testing.assert_allclose(jitted, eager, rtol=1e-5)
        np.testing.assert_allclose(mapped, eager, rtol=1e-5)

    def test_text_makes_it_again(self, spec):
        assert make(make(spec).spec).spec == make(spec).spec

    def test_it_splits_and_merges_like_any_module(self, spec):
        student, teacher = some_outputs(0), some_outputs(1)
        again = nnx.merge(*nnx.split(make(spec)))
        assert float(again(student, teacher, Y)) == float(make(spec)(student, teacher, Y))


# --- invariances


def test_soft_logits_ignore_a_constant_per_row():
    shift = np.array([[1.0], [-20.0], [5.0], [100.0]], np.float32)
    plain = soft_logit_loss(student_logits=S, teacher_logits=T, temperature=4.0)
    shifted = soft_logit_loss(student_logits=S + shift, teacher_logits=T - shift, temperature=4.0)
    np.testing.assert_allclose(plain, shifted, rtol=1e-4)


@pytest.mark.parametrize("mode", ["squared", "paper"])
def test_attention_ignores_the_scale_of_a_picture(mode):
    f_s, f_t = golden.student_map(6, 8), golden.teacher_map(12, 8)
    scale = np.array([0.1, 1.0, 3.0, 50.0], np.float32)[:, None, None, None]
    plain = attention_loss(student=f_s, teacher=f_t, mode=mode)
    scaled = attention_loss(student=f_s * scale, teacher=f_t / scale, mode=mode)
    np.testing.assert_allclose(plain, scaled, rtol=1e-4)


def test_soft_logits_gradient_keeps_its_size_as_the_temperature_grows():
    """What T² is for: without it, T 20 would leave 1/400 of the gradient."""

    def norm(temperature):
        loss = functools.partial(soft_logit_loss, teacher_logits=T, temperature=temperature)
        return float(jnp.linalg.norm(jax.grad(lambda s: loss(student_logits=s))(jnp.asarray(S))))

    assert 0.3 < norm(20.0) / norm(4.0) < 3


# --- sums and text


def test_a_sum_weighs_its_parts_and_multiplies_their_ce_weights():
    student, teacher = some_outputs(0), some_outputs(1)
    both = make("SoftLogits(alpha=0.9) + AT(beta=500)")
    assert isinstance(both, Sum) and len(both.parts) == 2
    soft, attention = make("SoftLogits(alpha=0.9)"), make("AT(beta=500)")
    expected = 0.9 * soft(student, teacher, Y) + 500 * attention(student, teacher, Y)
    np.testing.assert_allclose(both(student, teacher, Y), expected, rtol=1e-5)
    assert both.ce_weight == pytest.approx(0.1)
    np.testing.assert_allclose(both.total(2.0, 3.0), 0.1 * 2 + 3, rtol=1e-6)


def test_sums_of_sums_are_flat():
    parts = (make("SoftLogits") + make("AT") + make("AT(beta=1)")).parts
    assert [type(part).__name__ for part in parts] == [
        "SoftLogits", "AttentionTransfer", "AttentionTransfer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("SoftLogit", "unknown distiller 'SoftLogit': did you mean 'SoftLogits'?"),
        ("at", "unknown distiller 'at': did you mean 'AT'?"),
        ("SoftLogits(T=4)", "SoftLogits has no setting 'T': it takes temperature=4.0, alpha=0.9"),
        ("SoftLogits(4)", "write it like"),
        ("SoftLogits +", "write it like"),
        ("SoftLogits(temperature=open)", "must be a plain value"),
        ("SoftLogits(temperature=0)", "above 0"),
        ("SoftLogits(alpha=2)", "0 to 1"),
        ("AT(mode='sum')", "'squared' or 'paper'"),
        ("__import__('os')", "write it like"),
    ],
)
def test_bad_text_is_refused_in_one_line(spec, message):
    with pytest.raises(ValueError) as error:
        make(spec)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_stages_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="stages 1 to 3"):
        make("AT(stages=(4,))")(some_outputs(0), some_outputs(1), Y)


def test_maps_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="can't be pooled"):
        attention_loss(student=jnp.ones((2, 7, 7, 3)), teacher=jnp.ones((2, 5, 5, 3)))


def test_networks_with_other_numbers_of_stages_are_refused():
    short = some_outputs(1)
    short = short._replace(features=short.features[:3])
    with pytest.raises(ValueError, match="stages"):
        make("AT")(some_outputs(0), short, Y)


def test_every_distiller_is_documented_with_its_source():
    for cls in {*DISTILLERS.values()}:
        assert "Reference:" in cls.__doc__ and "Args:" in cls.__doc__
    assert kdlib.SoftLogits is DISTILLERS["SoftLogits"]
