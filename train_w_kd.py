"""Train a student with a teacher.

    python train_w_kd.py --student_arch ResNet32 --teacher_arch ResNet56 \\
        --teacher_param pretrained/res56_c10 --distiller SoftLogits --transfer Offline
    python train_w_kd.py --student_arch ResNet32 --distiller DML --transfer Online
    python train_w_kd.py --student_arch ResNet32 --distiller BYOT --transfer SelfDistillation
"""

from kdlib import cli


def main(arguments=None):
    parser = cli.training_parser("train_w_kd.py", __doc__.splitlines()[0])
    flag = parser.add_argument_group("student, teacher and what is taught").add_argument
    # fmt: off
    flag("--student_arch", default="ResNet32", help="ResNet32")
    flag("--teacher_arch", help="Offline: checked against the teacher's file; Online: the network "
         "that teaches by a distiller")
    flag("--teacher_param", default="pretrained/res56_c10",
         help="the teacher's checkpoint (%(default)s), ours or of others; only Offline needs one")
    flag("--teacher_normalise", **cli.NORMALISE)
    flag("--distiller", default="SoftLogits",
         help="what is taught: SoftLogits, 'SoftLogits(alpha=0.5) + AT(beta=500)', file.py:Name; "
              "or an online or self-distillation method, DML, 'BYOT(alpha=0.2)'")
    flag("--transfer", help="who teaches: Offline, Online, SelfDistillation, or Supervised for the "
         "baselines LabelSmoothing, Mixup, CutMix, EMA (the method's own; Offline for a distiller)")
    # fmt: on
    options = parser.parse_args(arguments)
    cli.choose_device(options.gpu_id, options.deterministic)

    from kdlib import models, transfer

    models.canonical(options.student_arch)
    method = transfer.make(
        options.distiller, family=options.transfer, teacher_arch=options.teacher_arch
    )
    data = cli.load_data(options)
    if method.family == "Offline":
        method.teacher, facts = cli.load_network(
            options.teacher_param, options.teacher_arch, options, data, options.teacher_normalise
        )
        options.teacher = {key: facts.get(key) for key in ("architecture", "normalise")}
        options.teacher["file"] = options.teacher_param
        if "normalise" in facts:
            print(f"teacher: {facts['architecture']}, inputs normalised by {facts['normalise']}")
    cli.train_and_report(options.student_arch, method, options, data)


if __name__ == "__main__":
    cli.run(main)
