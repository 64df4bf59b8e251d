"""Evaluate a checkpoint on a test set.

python evaluate.py --trained_param pretrained/res56_c10 --dataset CIFAR10
python evaluate.py --trained_param resnet56.th --normalise 0.485 0.456 0.406 0.229 0.224 0.225
"""

from kdlib import cli


def main(arguments=None):
    parser = cli.Parser(prog="evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--trained_param", required=True, help="the checkpoint, ours or of others")
    parser.add_argument("--normalise", **cli.NORMALISE)
    parser.add_argument("--arch", help="checked against the checkpoint")
    parser.add_argument("--dataset", default="CIFAR10", help="as in train.py (%(default)s)")
    parser.add_argument("--data_path", help="folder of prepared TFDS sets")
    parser.add_argument("--image_size", type=cli.positive, help="resize pictures to this side")
    parser.add_argument("--val_batch_size", type=cli.positive, default=250, help="250")
    parser.add_argument("--gpu_id", help="which GPU; noted and ignored without one")
    options = parser.parse_args(arguments)
    cli.choose_device(options.gpu_id, deterministic=False)

    from kdlib import data, train

    dataset = data.load(options.dataset, data_dir=options.data_path, image_size=options.image_size)
    model, facts = cli.load_network(
        options.trained_param, options.arch, options, dataset, options.normalise
    )
    if "normalise" in facts:
        print(f"inputs normalised by {facts['normalise']}")
    found = train.evaluate(model, dataset.test, options.val_batch_size)
    print(
        f"{facts['architecture']} on {dataset.source}, {len(dataset.test):,} test pictures: "
        f"accuracy {100 * found['accuracy']:.2f} %, loss {found['loss']:.4f} nats"
    )


if __name__ == "__main__":
    cli.run(main)
