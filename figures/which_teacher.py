"""Measure how much it matters who teaches: its size, its training, the pictures it has seen.

    python -m figures.which_teacher        # two hours on a CPU core; the same again resumes

Students of the workshop's demo (256 labelled pictures, soft logits), ten seeds, taught by teachers
of several kinds. The student of each seed has a teacher of that seed, so that what chance does to
teachers is in the intervals too. The story is in notebook 02.
"""

import pathlib
from dataclasses import replace
from typing import NamedTuple

import jax
from scipy.stats import entropy

from kdlib import SoftLogits, compare, fit, load, predict, preset, report
from kdlib.history import History

OUT, RUNS = pathlib.Path(__file__).resolve().parent / "which_teacher", pathlib.Path("runs/which")
SEEDS = range(10)
NOBODY = "plain"


class Kind(NamedTuple):
    """A kind of teacher: its network, and the epochs it has had of its pictures."""

    network: str
    epochs: int
    pictures: str  # "all" 16,000, or the "students'" 256


KINDS = {
    "the teacher of the demo": Kind("ResNet20x0.5", 9, "all"),
    "after 3 epochs instead of 9": Kind("ResNet20x0.5", 3, "all"),
    "after 1 epoch": Kind("ResNet20x0.5", 1, "all"),
    "as small as its student": Kind("ResNet8x0.5", 9, "all"),
    "with its student's pictures": Kind("ResNet20x0.5", 80, "students'"),
}


def trained(kind: Kind, seed: int, chosen, few):
    """A teacher of this kind: the run that made it."""
    many = replace(load(chosen.data), test=few.test)
    # On the students' pictures it is trained as they are.
    data, recipe = (many, chosen.teacher_recipe) if kind.pictures == "all" else (few, chosen.recipe)
    folder = RUNS / f"{kind.network}-{kind.epochs}-{len(data.train)}" / f"teacher-{seed}"
    return fit(kind.network, data, recipe=replace(recipe, epochs=kind.epochs), seeds=[seed],
               run_dir=folder, label=f"teacher {seed}, {kind.epochs} epochs")  # fmt: skip


def softness(teacher, images) -> float:
    """How much a teacher leaves open: the mean entropy in nats of its answers, softened as they are
    for its students, uint8 ``[n, h, w, c]`` pictures."""
    logits = predict(teacher, images, maps=False).logits / SoftLogits().temperature
    return float(entropy(jax.nn.softmax(logits), axis=-1).mean())


def together(each: list[History]) -> History:
    """One record of runs of a seed each, which differ in the seed and in who taught."""
    seeds = [seed for h in each for seed in h.seeds]
    config = each[0].config | {"seeds": seeds, "teacher": [h.config["teacher"] for h in each]}
    join = lambda of: {k: [value for h in each for value in of(h)[k]] for k in of(each[0])}
    protocol = {k: v for k, v in each[0].protocol.items() if k != "judge"}  # of one of them alone
    return History(config, protocol, seeds, join(lambda h: h.curves), join(lambda h: h.final))


def main():
    chosen = preset("workshop")
    few = compare.load_data(chosen)
    alone = [fit(chosen.student, few, recipe=chosen.recipe, seeds=[seed], label=NOBODY,
                 run_dir=RUNS / NOBODY / str(seed)) for seed in SEEDS]  # fmt: skip
    histories, best = {NOBODY: together([run.history for run in alone])}, 0.0
    for name, kind in KINDS.items():
        lessons, above = [], []
        for seed in SEEDS:
            teacher = trained(kind, seed, chosen, few)
            teacher.history.final = {"entropy": [softness(teacher.student, few.train.images)]}
            above.append(teacher.history)
            folder = RUNS / report.record_file(name).removesuffix(".json") / str(seed)
            lesson, _ = compare.run_method("SoftLogits", replace(chosen, seeds=[seed]), few,
                                           teacher.student, folder, None)  # fmt: skip
            lessons.append(lesson)
        histories[name] = together(lessons)
        together(above).save(OUT / "teachers" / report.record_file(name))
        print(f"{name}: {together(above).last().mean():.4f}, {histories[name].last().mean():.4f}")
        best = max(best, float(together(above).last().mean()))
        report.Records(best, histories).save(OUT)  # all so far


if __name__ == "__main__":
    main()
