"""The three scripts and the comparison, through their real command lines."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import evaluate
import kdlib
import train
import train_w_kd
from kdlib import checkpoint, cli, compare, files, models, report
from kdlib.history import History
from kdlib.presets import preset

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = "--batch_size 16 --train_epoch 2 --val_batch_size 16"


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of 8x8 pictures, two classes, 32 to train and 8 to test."""
    root, rng = tmp_path_factory.mktemp("data") / "pets", np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(0, 128, (8, 8, 3), np.uint8) + np.uint8(100 * label)
                Image.fromarray(picture).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory, pets):
    """A teacher trained by the real train.py."""
    out = tmp_path_factory.mktemp("teacher")
    train.main(
        f"--arch resnet-8x0.25 --dataset {pets} {TINY} --no-do_log --train_path {out}".split()
    )
    return out / "student-seed-0.safetensors"


def refused(main, arguments, capsys) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: main(shlex.split(arguments)))
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1 and message.startswith("error: ")
    return message


def distil(pets, teacher_file, out, extra="") -> list[str]:
    return shlex.split(
        f"--student_arch ResNet8x0.25 --teacher_arch ResNet8x0.25 --teacher_param {teacher_file} "
        f"--transfer Offline --dataset {pets} --train_path {out} {TINY} {extra}"
    )


def test_training_leaves_everything_and_evaluation_agrees(pets, teacher_file, tmp_path, capsys):
    out = tmp_path / "run"
    train_w_kd.main(distil(pets, teacher_file, out, "--distiller 'SoftLogits + AT' --seeds 2"))
    printed = capsys.readouterr().out
    assert "test accuracy" in printed and "2 seeds; last epoch reported" in printed
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "config.json", "history.json", "curves.png", "events", "state-seed-0.safetensors",
        "student-seed-0.safetensors", "student-seed-1.safetensors",
    }  # fmt: skip
    assert list((out / "events" / "seed-1").glob("events.out.tfevents.*"))
    history = kdlib.History.load(out / "history.json")
    assert history.config["distiller"].startswith(
        "SoftLogits(temperature=4.0, alpha=0.9, gamma=None) + "
    )
    assert history.epochs == 2 and history.seeds == [0, 1]
    evaluate.main(f"--trained_param {out}/student-seed-1 --dataset {pets}".split())
    assert f"accuracy {100 * history.last()[1]:.2f} %" in capsys.readouterr().out


def test_the_same_command_resumes_and_another_config_is_refused(
    pets, teacher_file, tmp_path, capsys
):
    out = tmp_path / "run"
    train_w_kd.main(distil(pets, teacher_file, out))
    before = {p: p.read_bytes() for p in out.glob("*.safetensors")}
    train_w_kd.main(distil(pets, teacher_file, out))
    assert before == {p: p.read_bytes() for p in out.glob("*.safetensors")}
    message = refused(
        train_w_kd.main, shlex.join(distil(pets, teacher_file, out, "--learning_rate 0.3")), capsys
    )
    assert "recipe.learning_rate is 0.1 there and 0.3 here" in message
    assert before == {p: p.read_bytes() for p in out.glob("*.safetensors")}


def test_what_cannot_be_is_refused_before_anything_is_trained(
    pets, teacher_file, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    for name in ("nets/mine", "mine.safetensors", "..", "."):
        command = shlex.join(distil(pets, teacher_file, out, f"--publish {name}"))
        assert "is not a bare name" in refused(train_w_kd.main, command, capsys)
    for more in ("SimKD", "'BornAgain(ensemble=True)' --transfer SelfDistillation"):
        command = shlex.join(distil(pets, teacher_file, out, f"--publish mine --distiller {more}"))
        assert "leave out --publish" in refused(train_w_kd.main, command, capsys)
    command = shlex.join(distil(pets, teacher_file, out, "--distiller no_such_module:loss"))
    assert "No module named 'no_such_module'" in refused(train_w_kd.main, command, capsys)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as where it isn't installed
    command = shlex.join(distil(pets, teacher_file, out))
    assert "tensorboardX" in refused(train_w_kd.main, command, capsys)
    assert not list(out.glob("*"))


def test_more_labels_than_there_are_are_refused_before_the_first_run(tmp_path, capsys):
    command = f"--preset smoke --methods plain --labels 64 20000 --out {tmp_path}/run"
    assert "20000 pictures asked of 16000" in refused(compare.main, command, capsys)
    assert not (tmp_path / "run").exists()


def test_fewer_labels_than_a_batch_are_refused_before_the_first_run(tmp_path, capsys):
    command = f"--preset smoke --methods plain --labels 64 31 --out {tmp_path}/run"
    assert "--labels 31: give 32, the size of a batch" in refused(compare.main, command, capsys)
    assert not (tmp_path / "run").exists()


def test_a_folder_s_own_config_is_not_overwritten(pets, teacher_file, tmp_path, capsys):
    """And files that begin like a run's don't make a folder one."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "history.txt").write_text("a note")
    (out / "stats.csv").write_text("a table")
    command = shlex.join(distil(pets, teacher_file, out))
    for text in ('{"model_type": "bert"}', "[1]", "{"):
        (out / "config.json").write_text(text)
        assert "config.json is" in refused(train_w_kd.main, command, capsys)
        assert (out / "config.json").read_text() == text
    (out / "config.json").unlink()
    train_w_kd.main(shlex.split(command))
    assert (out / "history.json").exists() and (out / "stats.csv").exists()


@pytest.mark.parametrize(("error", "shown"), [
    (MemoryError(), "error: out of memory"),
    (MemoryError("Unable to allocate 3 GiB"), "error: Unable to allocate 3 GiB"),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile"), "Out of memory while"),
])  # fmt: skip
def test_too_little_memory_is_said_in_one_line(error, shown, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit, match="2"):
        cli.run(main)
    assert shown in (text := capsys.readouterr().err) and text.count("\n") == 1


def test_what_nobody_can_mend_shows_where_it_was():
    def main():
        raise jax.errors.JaxRuntimeError("INTERNAL: no such kernel")

    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.run(main)


def test_a_tilde_is_ones_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = compare._parser().parse_args(["--out=~/runs", "--train_teacher=~/teacher"])
    assert (options.out, options.train_teacher) == (tmp_path / "runs", tmp_path / "teacher")


def test_a_run_may_start_from_given_weights(pets, teacher_file, tmp_path, capsys):
    arguments = f"--arch ResNet8x0.25 --dataset {pets} {TINY} --no-do_log --trained_param"
    train.main([*arguments.split(), str(teacher_file), "--train_path", str(tmp_path / "again")])
    record = json.loads((tmp_path / "again" / "config.json").read_text())
    assert record["student"].startswith(f"ResNet8x0.25 from {teacher_file} (")
    other = tmp_path / teacher_file.name  # another file there is another start
    shutil.copy(teacher_file, other)
    run = [*arguments.split(), str(other), "--train_path", str(tmp_path / "other")]
    train.main(run)
    network, facts = checkpoint.load_network(other)
    network.classifier.kernel[...] += 1.0
    checkpoint.save_network(other, network, facts)
    assert "student is" in refused(train.main, shlex.join(run), capsys)


def test_peers_start_afresh_beside_a_student_with_given_weights(pets, teacher_file, tmp_path):
    arguments = f"--student_arch ResNet8x0.25 --distiller DML --dataset {pets} {TINY} --no-do_log"
    given = ["--trained_param", str(teacher_file), "--train_path", str(tmp_path)]
    train_w_kd.main([*arguments.split(), *given])
    arrays, _ = checkpoint.load_arrays(tmp_path / "state-seed-0.safetensors")
    of = lambda name: arrays[f"params.{name}.classifier.kernel"]
    assert not np.allclose(of("student"), of("peer_1"), atol=1e-3)


def test_classes_named_by_numbers_are_names(pets, teacher_file, tmp_path):
    network, facts = checkpoint.load_network(teacher_file)
    checkpoint.save_network(tmp_path / "digits", network, facts | {"classes": ["0", "1"]})
    with pytest.raises(ValueError, match="knows 2 classes and the data has 2, not the same"):
        checkpoint.load_network(tmp_path / "digits", classes=["cat", "dog"])


def test_a_preset_takes_a_smaller_folder_whole_and_its_teacher_computes_as_asked(pets):
    small = compare.load_data(replace(preset("workshop"), data=str(pets)))
    assert len(small.train) == 32 and len(small.test) == 8
    half = replace(preset("workshop").recipe, bfloat16=True)
    chosen = replace(preset("workshop"), recipe=half)
    shapes = kdlib.load("shapes", subset=256)
    assert compare.load_teacher(chosen, shapes).stem_conv.dtype == jnp.bfloat16
    assert compare.load_teacher(preset("workshop"), shapes).stem_conv.dtype == jnp.float32


ORIGINAL = (
    "gpu_id student_arch teacher_arch teacher_param distiller transfer dataset train_path "
    "learning_rate weight_decay decay_points decay_rate train_epoch batch_size val_batch_size "
    "seed do_log deterministic trained_param data_path"
)


def test_every_flag_of_the_original_is_known():
    command = [sys.executable, ROOT / "train_w_kd.py", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in ORIGINAL.split():
        assert f"--{flag}" in text, flag


def test_recipe_flags_reach_the_recipe():
    flags = (
        "--train_epoch 7 --batch_size 3 --learning_rate 0.5 --decay_points 0.5 --decay_rate 0.3 "
        "--weight_decay 0 --val_batch_size 9 --bf16 --no-zero_init"
    )
    options = cli.training_parser("x", "y").parse_args(flags.split())
    assert cli.recipe_of(options) == kdlib.Recipe(
        epochs=7, batch_size=3, learning_rate=0.5, decay_points=(0.5,), decay_rate=0.3,
        weight_decay=0.0, eval_batch_size=9, bfloat16=True, zero_init=False,
    )  # fmt: skip
    assert cli.recipe_of(cli.training_parser("x", "y").parse_args([])) == kdlib.Recipe()


@pytest.mark.parametrize(
    ("flags", "logs"),
    [("", 1), ("--do_log", 1), ("--do_log 200", 200), ("--do_log 0", 0), ("--no-do_log", 0)],
)
def test_logging_is_asked_for_as_in_the_original_too(flags, logs):
    """There the number is that of the steps between two points; here a point is an epoch."""
    assert cli.training_parser("x", "y").parse_args(flags.split()).do_log == logs


def test_without_a_gpu_the_number_is_noted_and_the_run_goes_on(capsys):
    cli.choose_device("2", deterministic=False)
    assert "--gpu_id 2: this machine has no GPU" in capsys.readouterr().out


def test_deterministic_adds_its_flag_to_those_that_are_there(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    cli.choose_device(None, deterministic=False)
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=here"
    cli.choose_device(None, deterministic=True)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == ["--xla_dump_to=here", "--xla_gpu_deterministic_ops=true"]


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    class Gpu:
        def __init__(self, number):
            self.id = number

    monkeypatch.setattr("jax.devices", lambda kind=None: [Gpu(0), Gpu(1)])
    with pytest.raises(ValueError, match="--gpu_id 2: this machine has the GPUs 0, 1"):
        cli.choose_device("2", deterministic=False)


FORGETFUL = """
import kdlib

class Forgetful(kdlib.distillers.Distiller):
    def __init__(self, scale=2.0):
        self.weight = scale

    def knowledge(self, student, teacher, labels):
        return student.logits.var()
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--student_arch ResNet57", "did you mean 'ResNet56'?"),
        ("--teacher_arch ResNet20", "holds a ResNet8x0.25, not a ResNet20"),
        ("--distiller SoftLogit", "did you mean 'SoftLogits'?"),
        ("--distiller 'SoftLogits(T=3)'", "it takes temperature=4.0, alpha=0.9"),
        ("--transfer Ofline", "did you mean 'Offline'?"),
        ("--dataset cifa10", "did you mean 'cifar10'?"),
        ("--dataset ./nowhere", "no folder"),
        ("--teacher_param pretrained/nobody", "no checkpoint"),
        ("--batch_size 33", "a batch of 33 is larger than the 32 training pictures"),
        ("--batch_size 0", "not a whole number above 0"),
        ("--learning_rate -1", "not a number above 0"),
        ("--decay_points 1.5", "not a number from 0 to 1"),
        ("--subset 99", "from 1 to 31"),
        ("--no_such_flag", "unrecognized arguments"),
        ("--train_path README.md", "is a file"),
        ("--teacher_param ~no-such-user/teacher", "no checkpoint ~no-such-user/teacher"),
        ("--dataset ~no-such-user/pets", "no folder ~no-such-user/pets"),
        ("--distiller ~no-such-user/mine.py:loss", "no file ~no-such-user/mine.py"),
        ("--distiller prose.py:loss", "invalid syntax (prose.py, line 1)"),
        ("--distiller forgetful.py:Forgetful", "doesn't keep what it is given: set self.scale"),
        ("--trained_param ''", "empty name"),
        ("--seed 99999999999999999999", "each once, below 2**31"),
    ],
)
def test_bad_input_ends_in_one_line_before_anything_is_written(
    pets, teacher_file, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("README.md").write_text("a file")
    pathlib.Path("prose.py").write_text("a file")
    pathlib.Path("forgetful.py").write_text(FORGETFUL)
    arguments = shlex.join(distil(pets, teacher_file, tmp_path / "run"))
    assert message in refused(train_w_kd.main, f"{arguments} {change}", capsys)
    assert not (tmp_path / "run" / "history.json").exists()
    assert pathlib.Path("README.md").read_text() == "a file"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "truncated"),
        (lambda p: p.write_bytes(b"not a checkpoint"), "truncated or no safetensors"),
        (lambda p: shutil.copy(p.with_name("state-seed-0.safetensors"), p), "holds no network"),
        (lambda p: p.unlink(), "no checkpoint"),
    ],
)
def test_damaged_teachers_are_refused(pets, teacher_file, tmp_path, capsys, damage, message):
    shutil.copytree(teacher_file.parent, tmp_path / "copy")
    broken = tmp_path / "copy" / teacher_file.name
    damage(broken)
    arguments = shlex.join(distil(pets, broken, tmp_path / "run"))
    assert message in refused(train_w_kd.main, arguments, capsys)


def test_a_manifest_of_another_kind_is_named_or_leaves_a_checkpoint_alone(teacher_file, tmp_path):
    copy = shutil.copy(teacher_file, tmp_path)
    files.write_text(tmp_path / "MANIFEST.json", '{"student-seed-0": {"made by": "others"}}')
    assert checkpoint.load_network(copy)[1]["architecture"] == "ResNet8x0.25"
    files.write_text(tmp_path / "MANIFEST.json", "[1]")
    with pytest.raises(ValueError, match=r"MANIFEST\.json is damaged or of another kind"):
        checkpoint.load_network(copy)


def test_a_teacher_of_other_classes_is_refused(pets, tmp_path, capsys):
    model = kdlib.models.build("ResNet8x0.25", 3)
    facts = {"architecture": "ResNet8x0.25", "classes": ["a", "b", "c"]}
    checkpoint.save_network(tmp_path / "three", model, facts)
    arguments = shlex.join(distil(pets, tmp_path / "three", tmp_path / "run"))
    message = refused(train_w_kd.main, arguments, capsys)
    assert "knows 3 classes and the data has 2, not the same (a, b, c, cat)" in message


def test_naming_the_preset_s_own_data_keeps_its_teacher():
    choose = lambda flags: compare.choose(compare._parser().parse_args(flags.split()))
    own = choose("--preset workshop").pretrained
    assert own and choose("--preset workshop --dataset SHAPES").pretrained == own
    assert choose("--preset reduced --dataset CIFAR-10").pretrained == "res20_c10"
    assert choose("--preset workshop --dataset cifar10").pretrained is None
    assert choose("--preset workshop --train_teacher runs/teacher").pretrained is None
    trained = choose("--preset workshop --teacher_epochs 5")  # not noted and ignored
    assert trained.pretrained is None and trained.teacher_recipe.epochs == 5


def test_time_is_up_between_seeds_too_but_not_behind_the_last():
    stop, record = compare.deadline(1e-6), History({}, {"epochs": 2}, [0, 1])
    for epoch, seed in ((1, 0), (2, 0), (1, 1)):
        with pytest.raises(compare.TimeUp, match=f"epoch {epoch} of 2"):
            stop(record, epoch, [seed], None)
    stop(record, 2, [1], None)


def test_a_teacher_trained_before_is_not_reported_for_the_published_one(tmp_path, capsys):
    shown = tmp_path / "figures" / "labels-64" / compare.TEACHER
    for file in (tmp_path / "labels-64" / "teacher" / "history.json", shown):
        files.write_text(file, "what the same command left with --teacher_epochs")
    flags = "--preset workshop --methods plain --epochs 1 --seeds 1 --labels 64 --table offline"
    compare.main([*flags.split(), "--out", str(tmp_path)])
    assert "| teacher | 99.9" in capsys.readouterr().out and not shown.exists()


def test_a_record_is_taken_with_the_teacher_it_was_judged_by(tmp_path, capsys, monkeypatch):
    """Plain training has no teacher, but its record says how far it agrees with one."""
    chosen = replace(preset("smoke"), seeds=1)
    data, record = compare.load_data(chosen), tmp_path / "plain.json"
    teachers = [models.build("ResNet8x0.25", data.num_classes, seed=seed) for seed in (0, 1)]
    run = lambda teacher: compare.run_method("plain", chosen, data, teacher, tmp_path, record)
    run(teachers[0])
    assert "recorded in" not in capsys.readouterr().out
    assert run(teachers[0])[1] is None
    assert f"plain: recorded in {record}" in capsys.readouterr().out

    def trained(*args, **kwargs):
        raise KeyError("trained anew")

    monkeypatch.setattr(compare, "fit", trained)
    with pytest.raises(KeyError, match="trained anew"):
        run(teachers[1])
    older = History.load(record)
    del older.config["pictures"]  # as the first records, of whose pictures the means are known
    older.save(record)
    assert run(teachers[0])[1] is None
    del older.config["teacher"]  # one that doesn't say who taught
    older.save(record)
    with pytest.raises(KeyError, match="trained anew"):
        run(teachers[0])


@pytest.mark.slow
def test_the_demo_prints_a_table_writes_figures_and_resumes(tmp_path, capsys):
    arguments = ["--preset", "smoke", "--out", str(tmp_path), "--methods", "plain", "SoftLogits"]
    compare.main(arguments)
    printed = capsys.readouterr().out
    assert "| method" in printed and "SoftLogits" in printed and "2 seeds" in printed
    assert "ECE" in printed
    figures = tmp_path / "figures"
    assert {p.name for p in figures.iterdir()} == {
        "records.json", "plain.json", "SoftLogits.json", "table.md", "curves.png", "comparison.png",
        "attention.png", "teacher.json",
    }  # fmt: skip
    records = (figures / "SoftLogits.json").read_text()
    compare.main(arguments)
    assert (figures / "SoftLogits.json").read_text() == records
    with pytest.raises(ValueError, match="unknown method"):
        compare.main(["--preset", "smoke", "--methods", "Wishful"])


@pytest.mark.slow
def test_a_comparison_stops_in_time_and_goes_on_to_the_same_numbers(tmp_path, capsys):
    """In pieces of an epoch each: the teacher's and the students' curves are those of one run.

    Two tables share the time and their methods' runs, so the second one trains nothing.
    """
    arguments = ["--preset", "smoke", "--dataset", "shapes", "--methods", "plain", "SoftLogits",
                 "--seeds", "1", "--epochs", "2", "--teacher_epochs", "2", "--table", "online",
                 "offline"]  # fmt: skip

    def command(out, *more):
        folders = ["--out", out, "--figures", out / "figures", "--train_teacher", out / "above"]
        compare.main([*arguments, *map(str, folders), *more])

    command(tmp_path / "whole")
    pieces = 0
    for _ in range(20):
        try:
            command(tmp_path / "pieces", "--time_budget", "0.0001")
            break
        except SystemExit as end:
            assert end.code == 75
            assert "stopped in time after epoch" in capsys.readouterr().out
            pieces += 1
    assert pieces == 3  # a teacher and two students, each after the first of two epochs
    for table in ("online", "offline"):
        for name in ("teacher", "plain", "SoftLogits"):
            whole, parts = (History.load(tmp_path / kind / "figures" / table / f"{name}.json")
                            for kind in ("whole", "pieces"))  # fmt: skip
            for metric in ("train_loss", "test_loss"):
                np.testing.assert_array_equal(whole.curve(metric), parts.curve(metric))


@pytest.mark.slow
def test_a_table_takes_records_that_are_there_and_own_methods(tmp_path, capsys, monkeypatch):
    mine = tmp_path / "mine.py"
    mine.write_text("def gap(student, teacher, labels):\n"
                    "    return ((student.logits - teacher.logits) ** 2).mean()\n")  # fmt: skip
    arguments = ["--preset", "smoke", "--table", "offline", "--seeds", "1", "--labels", "64", "96",
                 "--out", str(tmp_path), "--methods", "plain", f"{mine}:gap"]  # fmt: skip
    compare.main(arguments)
    assert capsys.readouterr().out.count("gap") >= 2
    assert (tmp_path / "figures" / "efficiency.png").exists()
    assert "64 training" in (tmp_path / "figures" / "labels-64" / "table.md").read_text()
    fits = []
    real = compare.fit
    monkeypatch.setattr(compare, "fit", lambda *a, **k: fits.append(k["label"]) or real(*a, **k))
    compare.main(arguments)  # nothing is trained again; the teacher's run is found finished
    assert set(fits) == {"teacher"} and "gap" in capsys.readouterr().out
    mine.write_text(mine.read_text().replace(".mean()", ".var()"))
    shutil.rmtree(tmp_path / "labels-64" / report.record_file(f"{mine}:gap")[:-5])
    compare.main([*arguments[:7], "64", *arguments[9:]])
    assert fits[-1] == f"{mine}:gap"  # another loss by the same name is another run


@pytest.mark.slow
@pytest.mark.tfds
def test_the_original_command_trains_evaluates_and_resumes_on_cifar10(cifar10, tmp_path):
    """The command of the original README, on fewer pictures and for fewer epochs."""
    teacher = ROOT / "pretrained" / "res56_c10.safetensors"
    if not teacher.exists():
        pytest.skip("pretrained/res56_c10 is not there")
    command = (
        f"{sys.executable} train_w_kd.py --gpu_id 2 --student_arch ResNet32 "
        "--teacher_arch ResNet56 --teacher_param pretrained/res56_c10 --distiller SoftLogits "
        f"--transfer Offline --dataset CIFAR10 --train_path {tmp_path}/test "
        "--train_epoch 1 --subset 256"
    )
    for _ in range(2):  # the second time finds the run finished
        reply = subprocess.run(
            shlex.split(command), capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert "no GPU that JAX can use" in reply.stdout and "test accuracy" in reply.stdout
        assert "256 training, 10,000 test pictures" in reply.stdout
