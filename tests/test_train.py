"""Training: the step, resuming, seeds, fused programs, and what a record says."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, leaves_equal
from flax import nnx

import kdlib
from kdlib import checkpoint, models, tensorboard
from kdlib.data import Split
from kdlib.distillers import make
from kdlib.fingerprint import fingerprint
from kdlib.names import written
from kdlib.program import Program, Recipe
from kdlib.progress import Progress
from kdlib.train import fit
from kdlib.transfer import Offline, Supervised

QUICK = Recipe(epochs=2, batch_size=16, learning_rate=0.05, pad=1, eval_batch_size=16)
STUDENT = "ResNet8x0.25"


def build(seed):
    return models.build(STUDENT, CLASSES, seed=seed)


def variables(model):
    return nnx.to_pure_dict(nnx.state(model))


def quick_fit(data, transfer=None, recipe=QUICK, **kwargs):
    return fit(STUDENT, data, transfer, recipe, progress=False, **kwargs)


# --- the recipe


def test_defaults_are_the_original_recipe():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (200, 128, 5e-4)
    schedule = recipe.schedule(steps_per_epoch=390)
    rates = [float(schedule(epoch * 390)) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    np.testing.assert_allclose(
        rates, [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008], rtol=1e-5
    )


def test_the_optimizer_is_nesterov_sgd_with_decay_added_to_the_gradient():
    recipe = Recipe(epochs=10, decay_points=())
    tx, w, g = recipe.optimizer(5), np.array([[1.0, -2.0]], np.float32), np.array([[0.3, 0.1]])
    state, velocity, by_hand = tx.init(w), 0.0, w.copy()
    for _ in range(3):
        update, state = tx.update(jnp.asarray(g), state, jnp.asarray(w))
        w = w + np.asarray(update)
        gradient = g + 5e-4 * by_hand
        velocity = 0.9 * velocity + gradient
        by_hand = by_hand - 0.1 * (gradient + 0.9 * velocity)
    np.testing.assert_allclose(w, by_hand, rtol=1e-5)


def test_decay_can_spare_batch_norms_and_biases():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = Recipe(decay_all=False).optimizer(1)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert updates["kernel"].any() and not updates["bias"].any()


# --- learning


def test_it_memorises_sixteen_pictures(tiny):
    few = replace(tiny, train=tiny.train.take(slice(16)), test=tiny.train.take(slice(16)))
    recipe = Recipe(
        epochs=60, batch_size=16, pad=0, flip=0.0, weight_decay=0.0, decay_points=(),
    )  # fmt: skip
    history = quick_fit(few, recipe=recipe).history
    assert history.last()[0] == 1.0 and history.last("train_loss")[0] < 0.1


def test_a_step_equals_the_same_update_written_plainly(tiny, teacher):
    """One step against plain Flax and Optax, outside any of our jitted code."""
    transfer = Offline(teacher, make("SoftLogits(temperature=2, alpha=0.7) + AT(beta=10)"))
    recipe = replace(QUICK, pad=0, flip=0.0)
    program = Program(lambda name, seed: build(seed), tiny, transfer, recipe, fused=False)
    state = program.init(3)
    order = program.order(state)
    after, sums = program.step(state, order, program.frozen, program.pictures)
    images, labels = tiny.train.images[order[0]], tiny.train.labels[order[0]]
    student = build(3)
    student.train()
    graph, params, rest = nnx.split(student, nnx.Param, ...)
    shown = teacher(images)

    def objective(params):
        model = nnx.merge(graph, params, rest, copy=True)
        out = model(images)
        ce = optax.losses.softmax_cross_entropy_with_integer_labels(out.logits, labels).mean()
        p_t = jax.nn.softmax(shown.logits / 2)
        kl = (p_t * (jnp.log(p_t) - jax.nn.log_softmax(out.logits / 2))).sum(-1).mean()
        attention = kdlib.AttentionTransfer()(out, shown, labels)
        return 0.3 * ce + 0.7 * 4 * kl + 10 * attention, nnx.state(model, nnx.BatchStat)

    gradient, moved = jax.grad(objective, has_aux=True)(params)
    optimizer = recipe.optimizer(program.steps)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    expected = nnx.to_pure_dict(optax.apply_updates(params, updates))
    for one, other in zip(
        jax.tree.leaves(after.params["student"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    norm = nnx.to_pure_dict(moved)["stem_norm"]["mean"]
    np.testing.assert_allclose(
        after.rest["student"]["stem_norm"]["mean"], norm, rtol=1e-4, atol=1e-6
    )
    assert int(sums["count"]) == 16


def test_the_teacher_stays_bit_identical_and_the_students_statistics_move(tiny, teacher):
    before = jax.tree.map(np.asarray, variables(teacher))
    run = quick_fit(tiny, Offline(teacher, make("SoftLogits + AT")))
    assert leaves_equal(before, variables(teacher))
    fresh, trained = variables(build(0)), variables(run.student)
    assert not leaves_equal(fresh["stem_norm"], trained["stem_norm"])


def test_distillation_pulls_the_student_towards_its_teacher(tiny, teacher):
    """With no labels at all, the loss to minimise is the distance to the teacher."""
    run = quick_fit(tiny, Offline(teacher, make("SoftLogits(alpha=1)")), replace(QUICK, epochs=8))
    knowledge = run.history.curves["train_knowledge"][0]
    assert knowledge[-1] < 0.5 * knowledge[0]
    np.testing.assert_allclose(knowledge, run.history.curves["train_loss"][0], rtol=1e-4)


def test_an_epoch_is_one_trace_and_visits_every_picture_once(tiny):
    traces = []

    class Traced(Program):
        def _step(self, *arguments):
            traces.append(1)  # Python runs this once for each trace, not for each step
            return super()._step(*arguments)

    program = Traced(lambda name, seed: build(seed), tiny, Supervised(), QUICK, fused=False)
    state = program.init(0)
    silent = Progress("", 1, enabled=False)
    first = program.order(state)
    state, sums = program.run_epoch(state, silent)
    second = program.order(state)
    state, sums = program.run_epoch(state, silent)
    assert len(traces) == 1 and int(sums["count"]) == 64
    assert sorted(np.ravel(first)) == list(range(64)) == sorted(np.ravel(second))
    assert not np.array_equal(first, second)


# --- seeds and fused programs


@pytest.fixture(scope="module")
def looped(tiny, teacher):
    transfer = Offline(teacher, make("SoftLogits + AT(beta=10)"))
    return transfer, quick_fit(tiny, transfer, seeds=3, fused=False)


def test_three_vmapped_seeds_equal_three_single_runs(tiny, looped):
    transfer, run = looped
    together = quick_fit(tiny, transfer, seeds=3, fused=True)
    for one, other in zip(run.students, together.students, strict=True):
        for a, b in zip(
            jax.tree.leaves(variables(one)), jax.tree.leaves(variables(other)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)
    for name in ("train_loss", "test_loss", "train_knowledge"):
        np.testing.assert_allclose(run.history.curve(name), together.history.curve(name), rtol=1e-3)


def test_a_seed_gives_the_same_alone_and_among_others(tiny, looped):
    transfer, run = looped
    alone = quick_fit(tiny, transfer, seeds=[2], fused=False)
    assert leaves_equal(variables(alone.student), variables(run.students[2]))
    assert not leaves_equal(variables(run.students[0]), variables(run.students[1]))


def test_a_scanned_block_of_steps_equals_single_steps(tiny):
    loop = Program(lambda name, seed: build(seed), tiny, Supervised(), QUICK, fused=False)
    scan = Program(lambda name, seed: build(seed), tiny, Supervised(), QUICK, fused=True)
    state, silent = loop.init(0), Progress("", 1, enabled=False)
    stacked = jax.tree.map(lambda leaf: leaf[None], state)
    one, sums_one = loop.run_epoch(state, silent)
    many, sums_many = scan.run_epoch(stacked, silent)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(sums_one["loss"], sums_many["loss"][0], rtol=1e-5)


# --- evaluation


def test_evaluation_counts_the_last_incomplete_batch(tiny, teacher):
    logits = np.asarray(teacher(tiny.test.images).logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -log_p[np.arange(30), tiny.test.labels].mean()
    accuracy = (logits.argmax(-1) == tiny.test.labels).mean()
    for size in (7, 30, 250):
        found = kdlib.evaluate(teacher, tiny.test, batch_size=size)
        np.testing.assert_allclose(found["accuracy"], accuracy, rtol=1e-6)
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)


def test_a_record_holds_every_metric_of_every_epoch(tiny, looped):
    _, run = looped
    history = run.history
    assert history.curve("test_accuracy").shape == (3, 2) and history.epochs == 2
    assert {"train_loss", "train_cross_entropy", "train_knowledge", "validation_accuracy",
            "test_loss", "seconds"} <= set(history.curves)  # fmt: skip
    assert history.protocol["reported"] == "last epoch" and "cpu" in history.protocol["device"]
    assert history.protocol["parameters"] == models.cost(STUDENT, classes=CLASSES).parameters
    assert history.config["data"]["source"] == "test pictures"
    last = kdlib.evaluate(run.students[1], tiny.test)
    np.testing.assert_allclose(history.last()[1], last["accuracy"], rtol=1e-6)
    assert (history.best() >= history.last()).all()


# --- resuming


def test_resuming_gives_bit_for_bit_what_an_uninterrupted_run_gives(tiny, teacher, tmp_path):
    transfer = Offline(teacher, make("SoftLogits + AT"))
    recipe = replace(QUICK, epochs=4)
    whole = quick_fit(tiny, transfer, recipe, seeds=2, run_dir=tmp_path / "whole")
    state = tmp_path / "whole" / "state-seed-1.safetensors"

    class Killed(Exception):
        pass

    def killed_after(epoch):
        original = checkpoint.save_tree

        def save(path, tree, metadata):
            original(path, tree, metadata)
            if path.name == state.name and metadata["epoch"] == epoch:
                raise Killed

        return save

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "save_tree", killed_after(2))
        quick_fit(tiny, transfer, recipe, seeds=2, run_dir=tmp_path / "cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdlib.history, "code", lambda: "kdlib 12345678, jax 9")
        resumed = quick_fit(tiny, transfer, recipe, seeds=2, run_dir=tmp_path / "cut")
    assert resumed.history.protocol["code"] == f"{kdlib.history.code()}, then kdlib 12345678, jax 9"
    for one, other in zip(whole.students, resumed.students, strict=True):
        assert leaves_equal(variables(one), variables(other))
    for name in set(whole.history.curves) - {"seconds"}:
        np.testing.assert_array_equal(whole.history.curve(name), resumed.history.curve(name))
    a, b = (checkpoint.load_arrays(tmp_path / d / state.name)[0] for d in ("whole", "cut"))
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_fused_runs_resume_too(tiny, tmp_path):
    recipe = replace(QUICK, epochs=3)
    whole = quick_fit(tiny, None, recipe, seeds=2, fused=True)
    for _ in range(2):  # the second call finds the run finished
        again = quick_fit(tiny, None, recipe, seeds=2, fused=True, run_dir=tmp_path)
        assert all(
            leaves_equal(variables(a), variables(b))
            for a, b in zip(whole.students, again.students, strict=True)
        )


WORKER = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
import conftest, kdlib
from kdlib import Recipe, fit
recipe = Recipe(epochs=12, batch_size=8, pad=1)
print("ready", flush=True)
fit("ResNet8x0.25", conftest.make_tiny(), None, recipe, run_dir=sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_sigkill_at_a_random_step_loses_nothing(tmp_path):
    """Compiled as users compile, not as conftest has it."""
    run_dir, environment = tmp_path / "run", os.environ | {"XLA_FLAGS": ""}
    arguments = [sys.executable, "-c", WORKER, run_dir, pathlib.Path(__file__).parent]
    whole = [*arguments[:3], tmp_path / "whole", arguments[4]]
    subprocess.run(whole, check=True, capture_output=True, env=environment)
    kills, rng = 0, np.random.default_rng()
    while kills < 3:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=environment)  # fmt: skip
        process.stdout.readline()  # its imports are done
        deadline = time.monotonic() + 60
        seen = checkpoint_epoch(run_dir)
        while checkpoint_epoch(run_dir) == seen and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))  # into the middle of an epoch
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (run_dir / "final").exists()
    assert kills and checkpoint_epoch(run_dir) >= kills
    subprocess.run(arguments, check=True, capture_output=True, env=environment)
    files = [folder / "state-seed-0.safetensors" for folder in (tmp_path / "whole", run_dir)]
    assert leaves_equal(*(checkpoint.load_arrays(file)[0] for file in files))


def checkpoint_epoch(run_dir) -> int:
    file = run_dir / "state-seed-0.safetensors"
    return checkpoint.load_arrays(file)[1]["epoch"] if file.exists() else 0


def test_another_config_in_the_same_folder_is_refused_with_the_difference(tiny, tmp_path):
    quick_fit(tiny, run_dir=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError) as error:
        quick_fit(tiny, None, replace(QUICK, learning_rate=0.2), run_dir=tmp_path)
    assert "recipe.learning_rate is 0.05 there and 0.2 here" in str(error.value)
    assert "\n" not in str(error.value)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_a_truncated_state_is_refused_and_kept(tiny, tmp_path):
    quick_fit(tiny, run_dir=tmp_path)
    file = tmp_path / "state-seed-0.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated"):
        quick_fit(tiny, run_dir=tmp_path)
    assert len(file.read_bytes()) == 1000


# --- refusals


def test_a_batch_larger_than_the_data_is_refused(tiny):
    with pytest.raises(ValueError, match="batch of 65 is larger than the 64"):
        quick_fit(tiny, recipe=replace(QUICK, batch_size=65))


def test_a_teacher_of_other_classes_is_refused(tiny):
    stranger = models.build(STUDENT, 7)
    with pytest.raises(ValueError, match="teacher knows 7 classes and tiny has 4"):
        quick_fit(tiny, Offline(stranger, make("SoftLogits")))


@pytest.mark.parametrize("seeds", [[], [1, 1], [1, 2**32 + 1], [-(2**31)]])
def test_impossible_seeds_are_refused(tiny, seeds):
    with pytest.raises(ValueError, match="seeds"):
        quick_fit(tiny, seeds=seeds)


def test_only_the_seeds_asked_for_make_a_network(tiny):
    """One of them, not seed 0's, says how its convolutions pad, and has its weights on a disk."""
    there = {3: {"seed": 3, "same_padding": True}}
    student = lambda seed: models.build(STUDENT, CLASSES, **there[seed])
    run = fit(student, tiny, recipe=QUICK, seeds=[3], progress=False)
    assert run.student.same_padding and run.history.seeds == [3]


def test_without_validation_there_is_no_such_curve(tiny):
    history = quick_fit(replace(tiny, validation=None), recipe=replace(QUICK, epochs=1)).history
    assert "validation_accuracy" not in history.curves


def test_pictures_of_one_channel_train_too():
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
    split = Split(images, (np.arange(32) % 2).astype(np.int32))
    grey = kdlib.data.Dataset("grey", "test pictures", ("a", "b"), split, split)
    assert quick_fit(grey, recipe=replace(QUICK, epochs=1)).history.epochs == 1


def test_short_runs_drop_the_rate_between_epochs_and_drops_at_one_place_multiply():
    once = Recipe(epochs=1).schedule(10)
    assert float(once(9)) == pytest.approx(0.1)
    late = Recipe(epochs=90, decay_points=(0.7,)).schedule(1)  # 0.7 * 90 is a little below 63
    assert float(late(62)) == pytest.approx(0.1) and float(late(63)) == pytest.approx(0.02)
    twice = Recipe(epochs=2, decay_points=(0.6, 0.85)).schedule(10)
    assert float(twice(9)) == pytest.approx(0.1) and float(twice(10)) == pytest.approx(0.004)


def test_live_progress_shows_loss_accuracy_pace_and_time_left(tiny, monkeypatch):
    """A terminal's one line, with the bar replaced by a list of what it would show."""
    shown = []

    class Bar:
        def __init__(self, **kwargs): ...
        def update(self, pictures): ...
        def close(self): ...
        def set_description_str(self, line):
            shown.append(line)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(STUDENT, tiny, None, QUICK, label="mine")
    for part in (
        "mine  100 %",
        "epoch 2/2",
        "loss",
        "train",
        "validation",
        "test",
        "pictures/s",
        "left",
    ):
        assert part in shown[-1]


def test_events_of_several_seeds_wait_for_the_epochs_that_are_tested(tiny, tmp_path):
    recipe = replace(QUICK, epochs=3, test_every=2)
    log = tensorboard.Writer(tmp_path)
    run = quick_fit(tiny, recipe=recipe, seeds=2, run_dir=tmp_path, on_epoch=log, fused=False)
    for seed in (0, 1):
        assert list((tmp_path / "events" / f"seed-{seed}").glob("events.out.tfevents.*"))
        assert list(run.history.points("test_accuracy", seed)) == [2, 3]


def test_events_of_a_killed_run_are_written_anew(tiny, tmp_path, monkeypatch):
    """What was not yet written when it was killed is missing else; the old ones are purged."""
    import tensorboardX

    written = []

    class Events:
        def __init__(self, folder, purge_step):
            assert purge_step == 1
            self.seed = folder[-1]

        def add_scalar(self, name, value, epoch):
            written.append((self.seed, name, epoch))

        def flush(self):
            pass

    monkeypatch.setattr(tensorboardX, "SummaryWriter", Events)
    history = quick_fit(tiny, recipe=replace(QUICK, epochs=3, test_every=2), seeds=2).history
    log = tensorboard.Writer(tmp_path)
    log(history, 3, [1])  # seed 0 ended before the kill
    log(history, 3, [1])
    for seed in "01":
        epochs = lambda kind, seed=seed: [e for s, name, e in written if (s, name) == (seed, kind)]
        assert epochs("train/loss") == [1, 2, 3] and epochs("test/accuracy") == [2, 3]


def test_a_log_gets_one_line_per_epoch(tiny, capsys):
    fit(STUDENT, tiny, None, QUICK, label="mine")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("mine  seed 0  epoch") for line in lines)


@pytest.mark.parametrize("fused", [False, True])
def test_networks_can_be_watched_while_they_learn(tiny, fused):
    """After every epoch, the networks as they are: what is tested then, and not yet the last."""
    seen = {}

    def watch(record, epoch, seeds, networks):
        for seed, network in zip(seeds, networks(), strict=True):
            found = kdlib.evaluate(network, tiny.test)["accuracy"]
            assert found == pytest.approx(record.curves["test_accuracy"][seed][epoch - 1], abs=1e-6)
            seen[seed, epoch] = np.asarray(network.classifier.kernel[...])

    run = kdlib.fit("ResNet8x0.25", tiny, None, Recipe(epochs=2, batch_size=32), seeds=2,
                    fused=fused, on_epoch=watch, progress=False)  # fmt: skip
    assert sorted(seen) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for seed, network in enumerate(run.students):
        np.testing.assert_array_equal(seen[seed, 2], network.classifier.kernel[...])
        assert not np.array_equal(seen[seed, 1], seen[seed, 2])


# --- what a run's folder stands for


def test_another_teacher_other_pictures_and_changed_code_are_other_runs(tiny, teacher, tmp_path):
    """Names and sizes alone would resume the first run with the second one's teacher."""
    recipe, own = Recipe(epochs=1, batch_size=32), tmp_path / "own.py"
    loss = "def loss(student, teacher, labels):\n    return (student.logits - teacher.logits)"
    own.write_text(f"{loss}.var()\n")
    brighter = replace(tiny, train=Split(tiny.train.images // 2, tiny.train.labels))
    run = lambda teacher=teacher, data=tiny: fit(
        "ResNet8x0.25", data, Offline(teacher, make(f"{own}:loss")), recipe, progress=False,
        run_dir=tmp_path / "run",
    )  # fmt: skip
    first = run().history
    assert run().history.curves == first.curves  # the same again is the same
    stranger = models.build("ResNet8x0.25", CLASSES, mean=tiny.mean, std=tiny.std, seed=8)
    with pytest.raises(ValueError, match="teacher is"):
        run(teacher=stranger)
    with pytest.raises(ValueError, match=r"picture_mean is"):
        run(data=brighter)
    noisy = replace(tiny, train=Split(tiny.train.images, tiny.train.labels[::-1]))
    with pytest.raises(ValueError, match=r"labels is"):
        run(data=noisy)
    own.write_text(f"{loss}.std()\n")
    with pytest.raises(ValueError, match=r"own\.py is"):
        run()


def test_a_changed_test_set_is_another_run(tiny, tmp_path):
    run = lambda data: fit(STUDENT, data, recipe=QUICK, run_dir=tmp_path, progress=False)
    run(tiny)
    images, labels = tiny.test.images, tiny.test.labels
    others = {
        "picture_mean": Split(images // 2, labels), "labels": Split(images, labels[::-1]),
        "pictures": Split(images[::-1], labels),  # as when two folders' names are exchanged
    }  # fmt: skip
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"{name} is"):
            run(replace(tiny, test=other))


def test_other_validation_pictures_are_another_run(tiny, tmp_path):
    few, other = tiny.test.take(slice(16)), tiny.test.take(slice(1, 17))
    quick_fit(replace(tiny, validation=few), run_dir=tmp_path)
    with pytest.raises(ValueError, match="pictures is"):
        quick_fit(replace(tiny, validation=other), run_dir=tmp_path)


def test_points_of_the_schedule_are_shares():
    with pytest.raises(ValueError, match=r"decay_points=\(30, 60\): give shares"):
        Recipe(decay_points=(30, 60))


def test_a_function_is_a_distiller_to_offline_transfer(tiny, teacher):
    loss = lambda s, t, labels: ((s.logits - t.logits) ** 2).mean()
    given = quick_fit(tiny, Offline(teacher, loss)).history
    assert (
        given.curves["train_loss"]
        == quick_fit(tiny, Offline(teacher, kdlib.distillers.own(loss))).history.curves[
            "train_loss"
        ]
    )


def test_functions_of_one_name_are_told_apart_by_their_text(tiny, teacher, tmp_path):
    def loss(student, teacher, labels):
        return (student.logits - teacher.logits).var()

    taught = lambda loss: Offline(teacher, kdlib.distillers.own(loss))
    run = lambda loss: quick_fit(tiny, taught(loss), run_dir=tmp_path)
    first = run(loss).history
    assert run(loss).history.curves == first.curves

    def loss(student, teacher, labels):
        return (student.logits - teacher.logits).std()

    with pytest.raises(ValueError, match=r"own\..*loss is"):
        run(loss)


def test_students_of_one_name_are_told_apart_by_their_text(tiny, tmp_path):
    def network(seed):
        return models.build(STUDENT, CLASSES, seed=seed)

    run = lambda student: fit(student, tiny, recipe=QUICK, run_dir=tmp_path, progress=False)
    run(network)

    def network(seed):
        return models.build(STUDENT, CLASSES, seed=seed, zero_init=False)

    with pytest.raises(ValueError, match=r"own\..*network is"):
        run(network)


def test_what_has_one_name_is_told_apart_too(tiny, teacher):
    """Lambdas, what a call holds, and a transfer, a student or a partial function of one's own."""

    class Mine(Offline):
        pass

    class Maker:
        def __call__(self, seed):
            return build(seed)

    named = lambda student, taught=None: kdlib.train.configuration(
        student, tiny, taught or Supervised(), QUICK, 1
    )["own"]
    loss = kdlib.distillers.own(lambda s, t, labels: (s.logits - t.logits).var())
    one, other = (named(student, Offline(teacher, loss)) for student in (
        lambda seed: build(seed),
        lambda seed: build(seed + 5)))  # fmt: skip
    assert one != other
    assert any(name.endswith("Mine") for name in named(STUDENT, Mine(teacher, make("AT"))))
    assert any(name.endswith("Maker") for name in named(Maker()))
    assert "build" in named(functools.partial(build))
    nowhere = {}
    exec("def loss(s, t, labels): return (s.logits - t.logits).var()", nowhere)  # has no text
    assert list(named(STUDENT, Offline(teacher, kdlib.distillers.own(nowhere["loss"])))) == ["loss"]


def _written(text: str, name: str):
    """What text defines that is nowhere to be read, as a class in a notebook's cell."""
    place = {**globals()}
    exec(text, place)
    return place[name]


NETWORK = """
class Net(nnx.Module):
    def __init__(self, seed, width):
        self.network, self.scale = build(seed), width
    def __call__(self, images):
        return self.network(images)._replace(logits=SCALE * self.network(images).logits)
def student(seed):
    return Net(seed, width=4)
"""
HELPER = """
SCALE, WEIGHTS = 2.0, [1.0, 0.5]
def distance(s, t):
    return SCALE * ((s.logits - t.logits) ** 2).mean()
class Loss(kdlib.distillers.Distiller):
    tau = 4.0
    def __init__(self, beta=1.0):
        self.beta = beta
    @property
    def half(self):
        return 0.5
    def knowledge(self, s, t, labels):
        return self.half * self.beta * WEIGHTS[0] * distance(s, t)
def loss(s, t, labels):
    return (lambda: WEIGHTS[1] * distance(s, t))()
loss.weight = 3.0
class Mine(Offline):
    gain = 1.0
def student(seed):
    return build(seed)
"""


@pytest.mark.parametrize(("text", "name", "old", "new"), [
    (NETWORK, "student", "SCALE", "2 * SCALE"),  # a class that the function makes
    (NETWORK, "student", "width=4", "width=5"),
    (HELPER, "loss", ".mean()", ".sum()"), (HELPER, "loss", "1.0, 0.5", "1.0, 0.6"),
    (HELPER, "loss", "SCALE, W", "SCALE = 3.0; _, W"), (HELPER, "loss", "weight = 3", "weight = 4"),
    (HELPER, "loss", "lambda: W", "lambda: 2 * W"),
    (HELPER, "Loss", ".mean()", ".sum()"), (HELPER, "Loss", "tau = 4", "tau = 5"),
    (HELPER, "Loss", "return 0.5", "return 0.6"), (HELPER, "Loss", "beta=1.0", "beta=2.0"),
    (HELPER, "Mine", "gain = 1", "gain = 2"),
])  # fmt: skip
def test_code_that_cannot_be_read_is_told_apart(text, name, old, new, tiny, teacher):
    def key(text):
        made, student = _written(text, name), STUDENT
        if name == "student":
            student, transfer = made, Supervised()
        elif name == "Mine":
            transfer = made(teacher, make("AT"))
        else:
            transfer = Offline(teacher, kdlib.distillers.own(made))
        return kdlib.train.configuration(student, tiny, transfer, QUICK, 1)["own"]

    assert old in text
    assert key(text) == key(text.replace("\n", "  # a note\n")) != key(text.replace(old, new))
    assert list(key(text)) == [name]


def test_attributes_set_afterwards_are_told_apart(tiny, teacher):
    """Of a loss, a distiller and a transfer of one's own, and arguments of a maker of networks."""
    key = lambda transfer, student=STUDENT: kdlib.train.configuration(
        student, tiny, transfer, QUICK, 1
    )["own"]
    loss = lambda s, t, labels: s.logits.var()
    for make_one in (
        lambda: Offline(teacher, kdlib.distillers.own(loss)),
        lambda: Offline(teacher, kdlib.distillers.own(_written(HELPER, "Loss")())),
        lambda: _written(HELPER, "Mine")(teacher, make("AT")),
    ):
        before, changed = make_one(), make_one()
        of = changed if type(changed) is not Offline else changed.distiller
        of.weight = 100.0
        assert key(before) == key(make_one()) != key(changed)
    maker = lambda name: functools.partial(models.build, name, CLASSES)
    assert key(Supervised(), maker("ResNet8")) != key(Supervised(), maker("ResNet14"))


@pytest.mark.parametrize("name", [*kdlib.distillers.METHODS, "SoftLogits + AT"])
def test_a_distiller_of_ours_is_told_by_its_text_unless_it_was_altered(name, tiny, teacher):
    key = lambda made: kdlib.train.configuration(STUDENT, tiny, Offline(teacher, made), QUICK, 1)[
        "own"
    ]
    plain, altered = make(name), make(name)
    assert key(plain) == key(make(plain.spec)) == {}
    part = altered.parts[1] if "+" in name else getattr(altered, "of", altered)
    part.weight = 123.0
    assert altered.spec != plain.spec or key(altered) != {}  # the weight may be a setting


TEACHER = """
class Net(nnx.Module):
    def __init__(self, seed):
        self.network = build(seed)
    def __call__(self, images):
        shown = self.network(images)
        return shown._replace(logits=2 * shown.logits)
"""


def test_the_code_of_a_teacher_of_ones_own_is_told_apart(tiny):
    """Its weights are the same, and what it answers isn't."""

    def key(text, mode="eval"):
        teacher = _written(text, "Net")(3)
        getattr(teacher, mode)()
        return kdlib.train.configuration(
            STUDENT, tiny, Offline(teacher, make("SoftLogits")), QUICK, 1
        )

    assert key(TEACHER) == key(TEACHER, "train")  # whatever mode it was left in
    one, other = key(TEACHER), key(TEACHER.replace("2 *", "3 *"))
    assert one["teacher"] == other["teacher"] and one["own"] != other["own"]


def test_a_text_holds_no_address_and_a_fingerprint_no_identity_of_constants():
    """Both change from process to process, where the code is the same."""
    assert " at 0x" not in (text := written("Mine", {"act": object()})) and "act=<object" in text
    one, same, shared = map(tuple, ([1, 2],) * 3)
    assert one is not same and fingerprint([one, same]) == fingerprint([shared, shared])
    a, b = [1, 2], [1, 2]
    assert fingerprint([a, b, a]) != fingerprint([a, b, b])  # of what may change, which one counts


def test_modules_of_ones_own_are_part_of_what_reads_them(tmp_path, monkeypatch):
    (tmp_path / "my_helpers.py").write_text("def far(x):\n    return x - 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_helpers

    reads, before = lambda x: my_helpers.far(x), my_helpers.far
    one = fingerprint(reads)
    monkeypatch.setattr(my_helpers, "far", lambda x: x - 2)
    assert fingerprint(reads) != one
    monkeypatch.setattr(my_helpers, "far", before)
    assert fingerprint(reads) == one


def test_a_fingerprint_is_the_same_in_every_process():
    """Whatever the order of sets, the address of things, and whether code was compiled before."""
    program = (
        "import functools, jax, numpy as np, kdlib\n"
        "from kdlib.fingerprint import fingerprint\n"
        "def f(x, kinds=frozenset({'one', 'two', 'three'})):\n"
        "    return x in {'a', 'b', 'c'} or jax.numpy.exp(x)[1:2], object, (1, 2), (1, 2)\n"
        "class C:\n    at = object()\n    def __init__(self): self.me, self.s = self, {'q', 'r'}\n"
        "    def f(self): pass\n"
        "all = [f, C, C(), functools.partial(f, 1), jax.jit(f), kdlib.load, np.eye(3), C().f]\n"
        "print(*map(fingerprint, all))"
    )
    found = {
        subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed},
                       capture_output=True, text=True, check=True).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(found) == 1 and len(set(found.pop().split())) == 8


BETA = 1.0  # what a loss of one's own may read


def test_what_a_function_is_bound_to_tells_runs_apart(tiny, teacher, tmp_path, monkeypatch):
    """Arguments of a partial function, and plain values of the place where it was written."""

    def scaled(beta):
        return lambda s, t, labels: beta * (s.logits - t.logits).var()

    def loss(s, t, labels, beta):
        return beta * (s.logits - t.logits).var()

    reads = lambda s, t, labels: BETA * (s.logits - t.logits).var()
    taught = lambda loss: Offline(teacher, kdlib.distillers.own(loss))
    key = lambda loss: kdlib.train.configuration(STUDENT, tiny, taught(loss), QUICK, 1)["own"]
    assert key(scaled(2)) == key(scaled(2)) != key(scaled(3))
    some = lambda beta: functools.partial(loss, beta=beta)
    assert key(some(2)) == key(some(2)) != key(some(3))
    before = key(reads)
    monkeypatch.setitem(globals(), "BETA", 2.0)
    assert key(reads) != before
    quick_fit(tiny, taught(some(2)), run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"own\..*loss is"):
        quick_fit(tiny, taught(some(3)), run_dir=tmp_path)
    early = lambda s, t, labels: later * s.logits.var()
    unknown = key(early)  # it has no value yet
    later = 2.0
    assert key(early) != unknown


def test_networks_may_hold_what_cannot_be_hashed(tiny):
    class Net(nnx.Module):
        def __init__(self, seed):
            self.network, self.notes = build(seed), {"widths": {"stem": 4}}

        def __call__(self, images):
            return self.network(images)

    assert fit(Net, tiny, recipe=QUICK, progress=False).history.epochs == QUICK.epochs


def test_a_finished_run_whose_states_are_gone_is_not_overwritten(tiny, teacher, tmp_path):
    quick_fit(tiny, run_dir=tmp_path)
    for state in tmp_path.glob("state-*"):
        state.unlink()
    with pytest.raises(ValueError, match="holds another run"):
        quick_fit(tiny, Offline(teacher, make("AT")), run_dir=tmp_path)


def test_of_two_runs_begun_at_once_the_later_to_save_is_refused(tiny, tmp_path, monkeypatch):
    """Until an epoch is saved, a folder is anyone's: the other's config replaced ours meanwhile."""
    run_epoch, other = Program.run_epoch, replace(QUICK, learning_rate=0.1)

    def meanwhile(program, state, progress):
        monkeypatch.undo()
        quick_fit(tiny, recipe=other, run_dir=tmp_path)
        return run_epoch(program, state, progress)

    monkeypatch.setattr(Program, "run_epoch", meanwhile)
    with pytest.raises(ValueError, match=r"learning_rate is 0\.1 there and 0\.05 here"):
        quick_fit(tiny, run_dir=tmp_path)
    kept = kdlib.History.load(tmp_path / "history.json")
    assert kept.config["recipe"]["learning_rate"] == 0.1 and kept.epochs == QUICK.epochs
    whole = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"config\.json is damaged.*choose another folder"):
        quick_fit(tiny, run_dir=tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"without its config\.json"):
        quick_fit(tiny, run_dir=tmp_path)


def test_a_finished_run_says_what_it_was_trained_on(tiny, tmp_path, monkeypatch):
    """Asking for its record again, elsewhere or later, trains nothing."""
    run = lambda: quick_fit(tiny, seeds=2, run_dir=tmp_path).history.protocol
    first = run()
    monkeypatch.setattr(kdlib.history, "code", lambda: "kdlib 12345678, jax 9")
    monkeypatch.setattr(kdlib.history, "device", lambda count: "abacus")
    assert (run()["code"], run()["device"]) == (first["code"], first["device"])
    (tmp_path / "state-seed-1.safetensors").unlink()  # one of two seeds is trained anew
    assert run()["code"] == f"{first['code']}, then kdlib 12345678, jax 9"
    assert run()["device"] == f"{first['device']}, then abacus"


def test_a_run_that_trained_nothing_leaves_its_folder_free(tiny, teacher, tmp_path):
    """A mistake in a loss of one's own shows when it is traced: after config.json is written."""
    own = tmp_path / "own.py"
    run = lambda: fit(STUDENT, tiny, Offline(teacher, make(f"{own}:loss")), QUICK,
                      run_dir=tmp_path / "run", progress=False)  # fmt: skip
    own.write_text("def loss(student, teacher, labels):\n    return student.logit.var()\n")
    with pytest.raises(AttributeError):
        run()
    own.write_text("def loss(student, teacher, labels):\n    return student.logits.var()\n")
    assert run().history.epochs == QUICK.epochs


@pytest.mark.parametrize("setting", ["epochs", "batch_size", "eval_batch_size", "test_every"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3"])
def test_a_recipe_of_no_whole_numbers_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting}={value!r}: give an int above 0"):
        Recipe(**{setting: value})


@pytest.mark.parametrize("value", [0.1, 0.5, -0.01])
def test_momenta_of_one_and_more_are_refused(value):
    with pytest.raises(ValueError, match=r"give 0, or less than 1 - 0\.9 \(momentum\)"):
        Recipe(dot=value)
    assert Recipe(dot=0.075).dot == 0.075


def test_what_cannot_be_trained_is_named(tiny, teacher):
    too_few = lambda seed: models.build(STUDENT, CLASSES - 1, seed=seed)
    with pytest.raises(ValueError, match="the student knows 3 classes and tiny has 4"):
        fit(too_few, tiny, recipe=QUICK, progress=False)
    with pytest.raises(ValueError, match="needs a trained teacher"):
        quick_fit(tiny, Offline(None, make("AT")))
    with pytest.raises(ValueError, match=r"<class 'str'>: give what transfer\.make returns"):
        quick_fit(tiny, "AT")
    assert quick_fit(tiny, seeds=np.arange(1)).history.config["seeds"] == [0]


def test_a_checkpoint_may_be_read_by_whom_the_folder_lets(tmp_path):
    before = os.umask(0o022)
    checkpoint.save_tree(tmp_path / "state", {"a": np.zeros(2)}, {})
    os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o644


def test_a_teacher_may_hold_random_keys(tiny):
    class Dropping(nnx.Module):
        def __init__(self):
            self.network = models.build("ResNet8x0.25", CLASSES, mean=tiny.mean, std=tiny.std)
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, pictures):
            shown = self.network(pictures)
            return shown._replace(logits=self.dropout(shown.logits))

    run = fit("ResNet8x0.25", tiny, Offline(Dropping(), make("SoftLogits")),
              Recipe(epochs=1, batch_size=32), progress=False)  # fmt: skip
    assert np.isfinite(run.history.last("train_loss"))


def test_the_device_may_be_chosen_by_a_name(tiny):
    with jax.default_device("cpu"):
        assert kdlib.history.device().startswith("cpu, ")


def test_states_of_a_gpu_and_of_a_cpu_are_told_apart(tiny, tmp_path):
    """A fused program keeps one state for all seeds; the other kind would start afresh."""
    recipe = Recipe(epochs=1, batch_size=32)
    fit("ResNet8x0.25", tiny, recipe=recipe, fused=True, run_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match="fused is True there and False here"):
        fit("ResNet8x0.25", tiny, recipe=recipe, fused=False, run_dir=tmp_path, progress=False)


def test_a_refused_setting_leaves_the_folder_free(tiny, teacher, tmp_path):
    recipe = Recipe(epochs=1, batch_size=32)
    run = lambda spec: fit("ResNet8x0.25", tiny, Offline(teacher, make(spec)), recipe,
                           run_dir=tmp_path, progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="stages 1 to 3"):
        run("FitNet(stage=5)")
    run("FitNet(stage=2)")


def test_predictions_without_maps_are_the_same(tiny, teacher):
    whole, short = (kdlib.predict(teacher, tiny.test.images, maps=maps) for maps in (True, False))
    assert not short.features and not short.preacts
    np.testing.assert_allclose(short.logits, whole.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(short.embedding, whole.embedding, rtol=1e-5, atol=1e-6)


def test_a_record_counts_the_network_that_is_used(tiny, teacher):
    """SimKD leaves a projector and the teacher's classifier in use, OFD no connector."""
    recipe = Recipe(epochs=1, batch_size=32)
    facts, plain = (
        fit("ResNet8x0.25", tiny, Offline(teacher, make(name)), recipe,
            progress=False).history.protocol for name in ("SimKD", "OFD")
    )  # fmt: skip
    assert plain["deployed_parameters"] == plain["parameters"] == facts["parameters"]
    assert plain["trained_parameters"] > plain["deployed_parameters"]
    classifier = teacher.classifier.kernel.size + teacher.classifier.bias.size
    projector = 16 * 8 + 8 * 9 * 8 + 8 * 16 + 2 * (8 + 8 + 16)  # convolutions and batch norms
    body = facts["parameters"] - classifier  # its own one, of the same size, is not used
    assert facts["deployed_parameters"] == body + projector + classifier


TOLD_APART = """
def kl(x): return x
def mse(x): return x * x
TABLE = {"kl": kl, "mse": mse}
class ByName:
    def __init__(self, kind):
        self.function = TABLE[kind]
chosen = ByName("kl")
@jax.custom_vjp
def reversed(x): return x
reversed.defvjp(lambda x: (x, None), lambda kept, g: (-1.0 * g,))
class Jitted(nnx.Module):
    @nnx.jit
    def __call__(self, x): return 2.5 * x
schedule = optax.linear_schedule(1.0, 0.5, 100)
def twice(f):
    @functools.wraps(f)
    def wrapper(x): return 6 * f(x)
    return wrapper
wrapped = twice(jnp.mean)
axes = jax.vmap(kl, in_axes=7)
class Slots:
    __slots__ = ("beta",)
    def __init__(self): self.beta = 8
slots = Slots()
class Row(dict):
    def __getattr__(self, name): return 9 * self[name]
row = Row()
table = np.arange(6.0).reshape(2, 3)
"""


@pytest.mark.parametrize(("name", "old", "new"), [
    ("chosen", 'ByName("kl")', 'ByName("mse")'), ("reversed", "-1.0", "-2.0"),
    ("Jitted", "2.5", "3.5"), ("schedule", "100", "200"), ("wrapped", "6 *", "5 *"),
    ("axes", "in_axes=7", "in_axes=8"), ("slots", "beta = 8", "beta = 7"), ("row", "9 *", "8 *"),
    ("table", "(2, 3)", "(3, 2)"),
])  # fmt: skip
def test_what_libraries_wrap_and_objects_hold_is_told_apart(name, old, new):
    key = lambda text: fingerprint(_written(text, name))
    assert key(TOLD_APART) == key(TOLD_APART) != key(TOLD_APART.replace(old, new))


def test_a_fingerprint_raises_nothing():
    deep = []
    for _ in range(5000):
        deep = [deep]
    traced = []
    jax.jit(lambda x: traced.append(x) or x)(1.0)
    chain = "".join(f"def f{i}(x): return f{i + 1}(x)\n" for i in range(400))
    for thing in (deep, traced, _written(chain, "f0")):
        assert fingerprint(thing) == fingerprint(thing)
