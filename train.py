"""Train a network on labels alone: a teacher, or the plain student to compare with.

python train.py --arch ResNet56 --dataset CIFAR10 --train_path runs/res56
"""

from kdlib import cli


def main(arguments=None):
    parser = cli.training_parser("train.py", __doc__.splitlines()[0])
    network = parser.add_argument_group("network")
    network.add_argument("--arch", "--student_arch", default="ResNet56", help="ResNet56")
    options = parser.parse_args(arguments)
    cli.choose_device(options.gpu_id, options.deterministic)

    from kdlib import models

    models.canonical(options.arch)
    cli.train_and_report(options.arch, None, options, cli.load_data(options))


if __name__ == "__main__":
    cli.run(main)
