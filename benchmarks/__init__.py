"""Benchmarks, each with its own ``--help``; their records are in ``results`` and ``figures/cost``.

On a GPU nothing has been measured yet. What there is to run there, what matters most first; each
line's record grows with every call, so that a limit on a call's time only cuts it in pieces:

    python -m benchmarks.speed --steps 8 --rounds 1 --work plain --out /tmp/try.json  # does it run?
    python -m benchmarks.floor                     # floor, 5 seeds against 1, 200 epochs
    python -m benchmarks.speed --work "soft logits"        # then plain, attention, teacher
    python -m benchmarks.profile                   # which kernels take the time
    python -m benchmarks.cost --curve seeds depth  # then the others

Whether bfloat16 is as accurate as float32 (whose convolutions a GPU computes in TensorFloat-32) is
a comparison of two records, of the embedded set and, with ``--preset full`` and a teacher from
``train.py --arch ResNet56 --publish res56_c10``, of CIFAR-10:

    RUN="python -m kdlib.compare --preset workshop --seeds 10 --methods plain SoftLogits"
    $RUN --out runs/float32
    $RUN --out runs/bfloat16 --bf16

and then in Python, after ``from kdlib import report``:

    load = lambda n: report.Records.load(f"runs/{n}/figures").histories["SoftLogits"]
    print(report.results_table({n: load(n) for n in ("float32", "bfloat16")}))
"""
