"""Train a student with a teacher.

    python train_w_kd.py --student_arch ResNet32 --teacher_arch ResNet56 \\
        --teacher_param pretrained/res56_c10 --distiller SoftLogits --transfer Offline
"""

from kdlib import cli


def main(arguments=None):
    parser = cli.training_parser("train_w_kd.py", __doc__.splitlines()[0])
    teaching = parser.add_argument_group("student, teacher and what is taught")
    teaching.add_argument("--student_arch", default="ResNet32", help="ResNet32")
    teaching.add_argument("--teacher_arch", default=None, help="checked against the teacher's file")
    teaching.add_argument("--teacher_param", default="pretrained/res56_c10",
                          help="the teacher's checkpoint (%(default)s)")  # fmt: skip
    teaching.add_argument(
        "--distiller",
        default="SoftLogits",
        help="what is taught, e.g. AT, 'SoftLogits(alpha=0.5) + AT(beta=500)'",
    )
    teaching.add_argument("--transfer", default="Offline", help="who teaches: Offline")
    options = parser.parse_args(arguments)
    cli.choose_device(options.gpu_id, options.deterministic)

    from kdlib import distillers, models
    from kdlib.transfer import make

    models.canonical(options.student_arch)
    distiller = distillers.make(options.distiller)
    data = cli.load_data(options)
    teacher = cli.load_network(options.teacher_param, options.teacher_arch, options, data)
    transfer = make(options.transfer, teacher, distiller)
    cli.train_and_report(options.student_arch, transfer, options, data)


if __name__ == "__main__":
    cli.run(main)
