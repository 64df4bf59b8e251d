"""Measure what a teacher's answers are worth on pictures that it has never seen.

    python -m figures.unseen               # minutes on a CPU core; the same again resumes

As in ``figures/unlabelled/labels-1024``, the teacher's answers alone for 1,024 pictures in 640
steps, ten seeds; but these pictures are drawn anew, by a seed that no training or test set has. The
story is in notebook 02.
"""

import pathlib
from dataclasses import replace

from kdlib import compare, evaluate, preset, report
from kdlib.data import Split, shapes

OUT = pathlib.Path(__file__).resolve().parent / "unlabelled" / "unseen-1024"
METHOD, PICTURES, DRAWN = "SoftLogits(alpha=1.0)", 1024, 2  # 0 and 1 are of training and test


def main():
    chosen = preset("workshop")
    chosen = replace(chosen, seeds=10, recipe=replace(chosen.recipe, epochs=20))
    data = compare.load_data(chosen)
    data = replace(data, train=Split(*shapes.render(PICTURES, seed=DRAWN)))
    teacher = compare.load_teacher(chosen, data)
    right = evaluate(teacher, data.train)["accuracy"]
    print(f"the teacher is right in {100 * right:.1f} % of the pictures it teaches with")
    record = OUT / report.record_file(METHOD)
    run = compare.run_method(METHOD, chosen, data, teacher, pathlib.Path("runs/unseen"), record)
    above = evaluate(teacher, data.test)["accuracy"]
    report.Records(above, {METHOD: run[0]}).save(OUT)
    print(f"students: {100 * run[0].last().mean():.1f} %; records: {OUT}")


if __name__ == "__main__":
    main()
