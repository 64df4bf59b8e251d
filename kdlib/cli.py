"""Command lines of the three scripts: the original cookbook's flags, and ours.

the original cookbook's command works as written:
  python train_w_kd.py --gpu_id 2 --student_arch ResNet32 --teacher_arch ResNet56 \\
      --teacher_param pretrained/res56_c10 --distiller SoftLogits --transfer Offline \\
      --dataset CIFAR10 --train_path ~/test
the same command again resumes. Without a network, in a minute:
  python train_w_kd.py --student_arch ResNet8x0.5 --teacher_param pretrained/shapes_res20x0.5 \\
      --dataset shapes --subset 256 --batch_size 32 --train_epoch 20 --train_path runs/shapes
"""

import argparse
import contextlib
import os
import pathlib
import sys
from dataclasses import asdict, fields

import jax

from kdlib import checkpoint, metrics, models, report, tensorboard
from kdlib.data import Dataset, load
from kdlib.files import expand
from kdlib.names import require
from kdlib.train import Recipe, fit, networks

EXAMPLES = __doc__.partition("\n\n")[2]  # what --help ends with
NORMALISE = {"type": float, "nargs": 6, "metavar": ("MEAN",) * 3 + ("STD",) * 3, "help":
             "of a PyTorch file's inputs, pixels from 0 to 1 (those of its authors)"}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors :func:`run` shows."""

    def error(self, message):
        raise ValueError(message)


def run(main) -> None:
    """Call a script's main; what its user can mend ends in one line, exit status 2."""
    try:
        main()
    except (ValueError, OSError, ImportError, SyntaxError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise  # JAX's say so of memory
        print(f"error: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from the last finished epoch", file=sys.stderr)
        raise SystemExit(130) from None


def _checked(kind, accepts, what: str):
    def parse(text: str):
        with contextlib.suppress(ValueError):
            if accepts(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}")

    return parse


positive = _checked(int, lambda value: value > 0, "a whole number above 0")
share = _checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
above_zero = _checked(float, lambda value: 0 < value < float("inf"), "a number above 0")
bare = lambda text: text.removesuffix(checkpoint.SUFFIX).strip(".") == pathlib.Path(text).name != ""


def training_parser(prog: str, description: str) -> Parser:
    """The flags that ``train.py`` and ``train_w_kd.py`` share."""
    parser = Parser(prog=prog, usage="%(prog)s [options]", description=description, epilog=EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    switch = argparse.BooleanOptionalAction
    # fmt: off
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset", default="CIFAR10", help="TFDS name, shapes, or a folder (%(default)s)")
    flag("--data_path", help="folder of prepared TFDS sets (~/tensorflow_datasets)")
    flag("--subset", type=positive, help="train on so many pictures only")
    flag("--validation", type=positive, default=0, help="hold out so many training pictures")
    flag("--image_size", type=positive, help="resize pictures to this side")
    flag = parser.add_argument_group("recipe (the original's values by default)").add_argument
    flag("--train_epoch", dest="epochs", type=positive, metavar="EPOCHS", help="200")
    flag("--batch_size", type=positive, help="128")
    flag("--learning_rate", type=above_zero, help="0.1")
    flag("--decay_points", type=share, nargs="*", help="when the rate drops: 0.3 0.6 0.8")
    flag("--decay_rate", type=above_zero, help="by what factor: 0.2")
    flag("--weight_decay", type=share, help="5e-4")
    flag("--val_batch_size", dest="eval_batch_size", type=positive, help="250")
    flag("--zero_init", action=switch, help="start every residual block as the identity")
    flag("--dot", type=share, help="distillation-oriented training: 0.075 in the paper")
    flag("--test_every", type=positive, help="epochs between tests (1)")
    flag("--bf16", dest="bfloat16", action="store_true", help="compute in bfloat16")
    parser.set_defaults(**asdict(Recipe()))
    flag("--seed", type=int, default=0, help="the first seed (0)")
    flag("--seeds", type=positive, default=1, help="how many, counted from --seed")
    flag = parser.add_argument_group("machine and output").add_argument
    flag("--gpu_id", help="which GPU; noted and ignored without one")
    flag("--devices", type=positive, help="how many share the work: on GPUs and TPUs the seeds "
         "first, then the pictures of each batch (as many as deal the seeds out evenly)")
    flag("--deterministic", action="store_true", help="bit-identical runs on a GPU too")
    flag("--train_path", default="runs/test", type=expand, help="folder (%(default)s)")
    flag("--do_log", type=int, nargs="?", const=1, default=1, help="TensorBoard files (0: no)")
    flag("--no-do_log", dest="do_log", action="store_const", const=0, help=argparse.SUPPRESS)
    flag("--trained_param", help="start from the weights of this checkpoint")
    flag("--publish", type=_checked(str, bare, "a bare name"), help="also save pretrained/PUBLISH")
    # fmt: on
    return parser


def choose_device(gpu_id: str | None, deterministic: bool) -> None:
    """Restrict JAX to one GPU, before its back end starts; ValueError if only others are there."""
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{os.getenv('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    if gpu_id is None:
        return
    gpus = {}
    with contextlib.suppress(RuntimeError):  # JAX was built without GPUs or finds none
        gpus = {str(gpu.id): gpu for gpu in jax.devices("gpu")}
    if gpus:
        require(gpu_id in gpus, f"--gpu_id {gpu_id}: this machine has the GPUs {', '.join(gpus)}")
        jax.config.update("jax_default_device", gpus[gpu_id])
    else:
        print(f"--gpu_id {gpu_id}: this machine has no GPU that JAX can use; running on the CPU")


def recipe_of(options) -> Recipe:
    """The recipe that the flags describe."""
    given = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    return Recipe(**given | {"decay_points": tuple(options.decay_points)})


def load_data(options) -> Dataset:
    """The data set that the flags describe."""
    return load(options.dataset, validation=options.validation, subset=options.subset,
                data_dir=options.data_path, image_size=options.image_size)  # fmt: skip


def load_network(path, architecture, options, data, normalise=None):
    """A checkpoint for this data, computing as the flags say, and its metadata.

    ``normalise`` are the numbers of a flag :data:`NORMALISE`.
    """
    dtype = jax.numpy.bfloat16 if getattr(options, "bfloat16", False) else jax.numpy.float32
    given = normalise and (normalise[:3], normalise[3:])
    return checkpoint.load_network(path, architecture, data.classes, dtype, given)


def train_and_report(name: str, transfer, options, data) -> None:
    """Train, then leave networks, figures and a summary under ``--train_path``."""
    name = student = models.canonical(name)
    seeds = range(options.seed, options.seed + options.seeds)
    if options.trained_param is not None:
        fresh = networks(name, data, recipe_of(options))
        load = lambda: load_network(options.trained_param, name, options, data)[0]
        student = lambda seed: load() if seed in seeds else fresh(None, seed)  # peers start afresh
        # Its weights are read here too, so that errors come before any training.
        student.__name__ = f"{name} from {options.trained_param} ({checkpoint.digest(load())})"
    run_dir = options.train_path
    require(not run_dir.is_file(), f"--train_path {run_dir} is a file: give a folder")
    more = getattr(transfer, "ensemble", getattr(getattr(transfer, "distiller", 0), "deploys", 0))
    require(not (more and options.publish), "leave out --publish: what this trains has no name")
    method = getattr(options, "distiller", None)  # as it was typed
    log = tensorboard.Writer(run_dir) if options.do_log else None
    run = fit(student, data, transfer, recipe_of(options), seeds=seeds, run_dir=run_dir,
              label=method or name, devices=options.devices, on_epoch=log)  # fmt: skip
    history, config, protocol = run.history, run.history.config, run.history.protocol
    facts, kept = {"architecture": name, "classes": list(data.classes)}, config | protocol
    facts |= {k: kept[k] for k in "data recipe distiller device parameters versions".split()}
    taught = method if config["transfer"] == "Offline" else config["distiller"]
    facts |= {"teacher": getattr(options, "teacher", None), "method": taught}
    if not isinstance(run.student, models.Network):  # SimKD's, an ensemble: not to be built by name
        facts["architecture"] = f"{name} in {type(run.student).__name__}"
    for place, (seed, network) in enumerate(zip(history.seeds, run.students, strict=True)):
        facts |= {"seed": seed, "test_accuracy": round(history.last()[place], 4)}
        checkpoint.save_network(run_dir / f"student-seed-{seed}", network, facts)
        if options.publish and place == 0:
            checkpoint.publish(options.publish, network, facts)
    from kdlib import plots  # and matplotlib: not at the start

    plots.use_style()
    plots.save(plots.curves({f"{name}, {config['distiller']}": history}), run_dir / "curves.png")
    print(f"test accuracy {metrics.interval(history.last())} % (last epoch)")
    print(report.protocol(history))
    print(f"config, history, networks and curves.png: {run_dir}/")
