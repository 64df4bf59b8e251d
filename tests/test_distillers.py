"""Every distiller: golden values, independent references, and the contract they all keep."""

import functools
import itertools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdlib
from kdlib import check
from kdlib.data import Batch
from kdlib.distillers import DISTILLERS, METHODS, Sum, attention_loss, make, soft_logit_loss
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
        lambda s: golden.minimised(
            make("SoftLogits(temperature=4, alpha=0.9)"), cross_entropy(s, Y),
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

SPECS = [
    *DISTILLERS, "AT(mode='paper')", "SoftLogits(temperature=1, alpha=0.5)", "SoftLogits + AT",
    "CC(variant='repdistiller')", "MLKD(strict=True)", "FitNet(original=True) + SoftLogits",
    "FSP(original=True)", "FT(mode='vector')", "LSKD(of=DKD)", "CATKD(pool=4, normalise=True)",
]  # fmt: skip
some_outputs = check.outputs


VERSIONED = "gradient", "jit and vmap", "state"  # what another JAX or Flax could break
PROMISES = [
    pytest.param(promise, marks=[] if promise in VERSIONED else pytest.mark.formula)
    for promise in check.CONTRACT
]


@pytest.mark.parametrize("spec", SPECS)
class TestContract:
    @pytest.mark.parametrize("promise", PROMISES)
    def test_promise(self, spec, promise):
        check.CONTRACT[promise](lambda: make(spec))

    def test_positive_where_they_differ(self, spec):
        if make(spec).zero_at_match:
            student, teacher = some_outputs(0), some_outputs(1)
            assert float(check.loss_of(make(spec), student, teacher)(student, teacher)) > 0

    def test_text_makes_it_again(self, spec):
        assert make(make(spec).spec).spec == make(spec).spec

    def test_other_channels_are_bridged(self, spec):
        """A student with other channels than its teacher: every method has an answer to it."""
        student, teacher = some_outputs(0, channels=6), some_outputs(1, channels=9)
        assert np.isfinite(check.loss_of(make(spec), student, teacher)(student, teacher))


COUNTER = itertools.count(1)
# What is wrong on purpose, and the promise that must notice.
BROKEN = {
    "zero at a match": lambda s, t, y: ((s.logits - t.logits) ** 2).mean() + 1,
    "gradient": lambda s, t, y: ((jax.lax.stop_gradient(s.logits) - t.logits) ** 2).mean(),
    "extremes": lambda s, t, y: jnp.sqrt(((s.logits - t.logits) ** 2).sum(-1)).mean(),
    "batch order": lambda s, t, y: ((s.logits - t.logits)[0] ** 2).mean(),
    "jit and vmap": lambda s, t, y: next(COUNTER) * ((s.logits - t.logits) ** 2).mean(),
    "invariances": lambda s, t, y: ((s.logits - t.logits) ** 2).mean(),
}
BROKEN["invariances"].invariances = ("affine per row of logits",)


@pytest.mark.parametrize("promise", BROKEN)
def test_the_contract_notices_a_broken_promise(promise):
    rows = str(check.check_distiller(BROKEN[promise])).splitlines()[2:]
    kept = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in rows}
    assert kept[promise] == "no"


def test_state_that_does_not_survive_is_noticed():
    class Forgetful(kdlib.distillers.Distiller):
        calls = 0

        def knowledge(self, student, teacher, labels):
            Forgetful.calls += 1
            return Forgetful.calls * ((student.logits - teacher.logits) ** 2).mean()

    assert "| state           | no" in str(check.check_distiller(Forgetful))


def squares(s, t, y):
    return ((s.logits - t.logits) ** 2).mean(-1)


class Pleased(kdlib.distillers.Distiller):
    def __call__(self, student, teacher, labels, batch=None):
        return squares(student, teacher, labels).mean()


# What is all but right, the promise that must notice, and what it must say.
NEARLY = [
    ("zero at a match", lambda *x: squares(*x).mean() + 0.01, "it is 0.01 where both"),
    ("gradient", Pleased, "the teacher gets a gradient"),
    ("extremes", lambda *x: squares(*x).mean() / (abs(x[0].logits).max() < 1e3), "the loss is inf"),
    ("extremes", lambda *x: (squares(*x) ** 2).mean(), "the gradient reaches"),
    ("batch order", lambda *x: squares(*x).mean() + 0.02 * squares(*x)[0], "depends on the order"),
]


@pytest.mark.parametrize(("promise", "lesson", "message"), NEARLY)
def test_the_contract_names_what_is_all_but_right(promise, lesson, message):
    with pytest.raises(AssertionError, match=message):
        check.CONTRACT[promise](lambda: kdlib.distillers.own(lesson))


@pytest.mark.parametrize(("call", "message"), [(3, "jit gives"), (4, "vmap over seeds gives")])
def test_jit_and_vmap_are_compared_with_three_plain_calls(call, message):
    calls = itertools.count()
    lesson = lambda *x: squares(*x).mean() + (next(calls) == call)
    with pytest.raises(AssertionError, match=message):
        check.CONTRACT["jit and vmap"](lambda: kdlib.distillers.own(lesson))


@pytest.mark.parametrize("change", check.CHANGES)
def test_a_lesson_that_looks_at_everything_notices_every_change(change):
    along = lambda x: (x * jnp.arange(x.size).reshape(x.shape)).mean()
    lesson = lambda s, t, y: along(s.logits) + along(s.embedding) + along(s.features[1])
    lesson.invariances = (change,)
    with pytest.raises(AssertionError, match="it does notice a"):
        check.CONTRACT["invariances"](lambda: kdlib.distillers.own(lesson))


def test_a_loss_of_absolute_distances_is_blind_to_an_order_of_dimensions_and_to_no_rotation():
    lesson = lambda s, t, y: jnp.abs(s.embedding - t.embedding[: len(s.embedding)]).mean()
    lesson.invariances = ("rotation of the embedding",)
    with pytest.raises(AssertionError, match="it does notice a rotation"):
        check.CONTRACT["invariances"](lambda: kdlib.distillers.own(lesson))


def test_the_state_compared_is_the_one_restored(monkeypatch):
    forget = lambda path, like: (jax.tree.map(jnp.zeros_like, like), {})
    monkeypatch.setattr(check.checkpoint, "restore_tree", forget)
    with pytest.raises(AssertionError, match="saved and restored"):
        check.CONTRACT["state"](lambda: make("FitNet"))


def test_a_distiller_of_ones_own_by_address(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def cosine(student, teacher, labels):\n    return student.logits.max()\n")
    made = make(f"{file}:cosine + AT")
    assert made.spec.startswith(f"{file}:cosine + ")
    assert float(made(some_outputs(0), some_outputs(1), Y)) > 0
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        make(f"{file}:cosin")
    with pytest.raises(FileNotFoundError, match="no file"):
        make(f"{tmp_path}/yours.py:cosine")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        make("no_such_module:cosine")


# --- schedules


def test_files_of_ones_own_may_have_spaces_and_functions_that_make_distillers(tmp_path):
    file = tmp_path / "my losses" / "mine.py"
    file.parent.mkdir()
    file.write_text(
        "from kdlib.distillers import AttentionTransfer\nTHREE = 3\n"
        "def loss(s, t, labels):\n    return (s.logits - t.logits).var()\n"
        "def pair(beta=2.0):\n    return AttentionTransfer(beta)\n"
    )
    assert make(f"AT + {file}:loss").spec.endswith(f" + {file}:loss")
    assert make(f"{file}:pair()").weight == 2.0 and make(f"{file}:pair(beta=3)").weight == 3.0
    assert make(make(f"{file}:pair(beta=3, warmup=0.5)").spec).weights(0.25) == (1.0, 1.5)
    assert make(f"{file}:pair()").spec != make(f"{file}:pair(beta=3)").spec
    with pytest.raises(ValueError, match=r"mine.py:loss has no setting 'beta'"):
        make(f"{file}:loss(beta=2)")
    with pytest.raises(ValueError, match="THREE is 3: give a function or a class"):
        make(f"{file}:THREE")


@pytest.mark.parametrize("result", ["None", "s.logits.mean(-1)"])
def test_a_loss_that_is_no_scalar_is_named(result, tmp_path):
    (tmp_path / "mine.py").write_text(f"def loss(s, t, labels):\n    return {result}\n")
    with pytest.raises(ValueError, match=r"mine.py:loss is .*: give a scalar"):
        make(f"{tmp_path}/mine.py:loss")(some_outputs(0), some_outputs(1), Y)


@pytest.mark.parametrize(
    "spec",
    [
        "DML(distiller=5)", "Online(distiller=DML)", "BornAgain(distiller='AT')", "DML(peers=2)",
        "SoftLogits(gamma='much')", "SoftLogits(temperature=None)", "EMATeacher(decay='0.9')",
    ],
)  # fmt: skip
def test_a_setting_of_another_kind_is_named(spec):
    from kdlib import transfer

    with pytest.raises(ValueError, match=r"takes .*, not \w+="):
        transfer.make(spec)
    assert transfer.make("SoftLogits(temperature=2, gamma=1)").distiller.temperature == 2
    assert transfer.make("DML(peers=['ResNet8'], distiller=AT)").peers == ("ResNet8",)


def test_the_schedule_of_a_function_of_ones_own_is_part_of_its_text(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def f(s, t, labels):\n    return ((s.logits - t.logits) ** 2).mean()\n")
    assert make(f"{file}:f").spec == f"{file}:f"
    ramped = make(f"{file}:f(warmup=0.5)")
    assert ramped.spec == f"{file}:f(warmup=0.5)"
    assert make(ramped.spec).weights(0.25) == (1.0, 0.5)
    file.write_text(file.read_text() + "f.warmup = 0.5\n")
    assert make(f"{file}:f").weights(0.25) == (1.0, 0.5)
    assert make(f"{file}:f").spec == f"{file}:f(warmup=0.5)"


# Published settings, typed from the papers' code (the docstrings name it), not read from ours:
# whoever writes a bare name gets these. Beside them the weights of cross-entropy and knowledge.
@pytest.mark.parametrize(("name", "settings", "weights"), [
    ("SoftLogits", {"temperature": 4, "alpha": 0.9}, (0.1, 0.9)),
    ("LogitMSE", {}, (1, 0.1)),
    ("LSKD", {"scale": 9}, (0.1, 9)),
    ("DKD", {"alpha": 1, "beta": 2, "temperature": 4}, (1, 1)),
    ("TfKDSelf", {"alpha": 0.95, "temperature": 6, "multiplier": 50}, (0.05, 47.5)),
    ("FunMatch", {"mixup": 1}, (0, 1)),
    ("DIST", {"beta": 1, "gamma": 1, "temperature": 4}, (1, 2)),
    ("MLKD", {"temperatures": (4, 3, 5, 2, 6)}, (0.1, 0.9)),
    ("FitNet", {"stage": 2}, (1, 100)),
    ("AT", {"mode": "squared", "stages": None}, (1, 1000)),
    ("NST", {"stages": None}, (1, 50)),
    ("FT", {"k": 0.5, "mode": "attention"}, (1, 200)),
    ("AB", {"margin": 1}, (1, 0.003)),
    ("OFD", {}, (1, 0.001)),
    ("VID", {}, (1, 1)),
    ("ReviewKD", {}, (1, 0.6)),
    ("CATKD", {"pool": 2, "normalise": False}, (1, 0.7)),
    ("FSP", {}, (1, 1)),
    ("SP", {}, (1, 3000)),
    ("CC", {"gamma": 0.4, "order": 2}, (1, 100)),
    ("CC(variant='repdistiller')", {}, (1, 0.02)),
    ("RKD", {"distance": 25, "angle": 50}, (1, 1)),
    ("PKT", {}, (1, 30_000)),
    ("CRD", {"temperature": 0.07, "negatives": 16_384, "dim": 128, "momentum": 0.5}, (1, 0.8)),
    ("SRRL", {"alpha": 1, "beta": 1}, (1, 1)),
    ("SimKD", {"factor": 2}, (0, 1)),
])  # fmt: skip
def test_defaults_are_the_published_ones(name, settings, weights):
    made = make(name)
    assert {key: getattr(made, key) for key in settings} == settings
    np.testing.assert_allclose((made.ce_weight, made.weight), weights, rtol=1e-6)


def test_every_default_is_held_to_the_published_one():
    cases = test_defaults_are_the_published_ones.pytestmark[0].args[1]
    assert {name.partition("(")[0] for name, *_ in cases} == {*METHODS}


def test_warm_up_and_pre_training_weigh_the_two_losses():
    warm = make("AT(beta=10, warmup=0.5)")
    assert [float(golden.minimised(warm, 1.0, 1.0, p)) for p in (0.25, 0.5, 1.0)] == [6, 11, 11]
    staged = make("AT(beta=10, pretrain=0.5)")
    assert [float(golden.minimised(staged, 1.0, 1.0, p)) for p in (0.5, 0.75)] == [10, 11]
    with pytest.raises(ValueError, match="share of the run"):
        make("AT(warmup=20)")


def test_in_a_sum_others_are_silent_while_one_is_pre_trained():
    student, teacher = some_outputs(0), some_outputs(1)
    both = make("AT(beta=10, pretrain=0.5) + SoftLogits(alpha=0.5)")
    batch = Batch(None, Y, progress=jnp.float32(0.4))
    at, soft = (make(t)(student, teacher, Y) for t in ("AT", "SoftLogits"))
    np.testing.assert_allclose(both(student, teacher, Y, batch), 10 * at, rtol=1e-5)
    assert float(golden.minimised(both, 1.0, 0.0, batch.progress)) == 0
    later = both(student, teacher, Y, batch._replace(progress=jnp.float32(0.6)))
    np.testing.assert_allclose(later, 10 * at + 0.5 * soft, rtol=1e-5)


def test_pictures_that_are_mixed_have_no_label_in_the_first_phase_neither():
    mixed, plain = make("FunMatch + FT(pretrain=0.5)"), make("LogitMSE + FT(pretrain=0.5)")
    assert float(golden.minimised(plain, 1.0, 0.0, 0.4)) == 1
    assert [float(golden.minimised(mixed, 1.0, 0.0, p)) for p in (0.4, 0.6)] == [0, 0]


def test_a_schedule_of_a_sum_is_that_of_its_parts_and_in_its_text():
    both = (make("AT(beta=10)") + make("SoftLogits")).scheduled(warmup=0.5)
    assert make(both.spec).spec == both.spec and both.spec.count("warmup=0.5") == 2
    student, teacher = some_outputs(0), some_outputs(1)
    early, late = (
        both(student, teacher, Y, Batch(None, Y, progress=jnp.float32(p))) for p in (0.25, 1.0)
    )
    np.testing.assert_allclose(2 * early, late, rtol=1e-6)


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
    np.testing.assert_allclose(golden.minimised(both, 2.0, 3.0), 0.1 * 2 + 3, rtol=1e-6)


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
