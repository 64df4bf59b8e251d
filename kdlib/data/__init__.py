"""Data sets by name: TensorFlow Datasets, the embedded shapes, or a folder of pictures."""

import re

from kdlib.data import folder, shapes, sources
from kdlib.data.augment import Batch, Pictures, crop_and_flip, mix, strong
from kdlib.data.dataset import Dataset, Split
from kdlib.files import expand
from kdlib.names import require

SHAPES_TRAIN, SHAPES_TEST = 16_000, 2_000
KINDS = ("images", "labels", "masks")  # of arrays in a split


def load(name: str, *, validation: int = 0, subset: int | None = None, seed: int = 0,
         data_dir: str | None = None, image_size: int | None = None) -> Dataset:  # fmt: skip
    """Load a data set into memory; all but folders come from a cache the second time.

    Args:
        name: ``"shapes"`` (embedded, with object masks), a TFDS name (``"cifar10"``,
            ``"svhn_cropped"``; ``"CIFAR10"`` and ``"CIFAR-10"`` mean the same), or the path of a
            folder with a sub-folder of pictures per class; ``"./mnist"`` where a set has its name.
        validation, subset: numbers of training pictures to hold out, and to keep (None: all), in
            equal shares of every class; ``seed`` draws both choices.
        data_dir: of prepared TFDS sets; None: ``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
        image_size: side in pixels that pictures are resized to; None leaves them as they are.

    Raises:
        FileNotFoundError: the folder is missing or empty, or the set can neither be read nor
            fetched; the message says what to do.
        ValueError: an unknown name, more pictures asked for than there are, or a size for a set
            that can't be resized.
    """
    path, known = expand(name), name.lower() in sources.KNOWN
    if (path.is_dir() and not known) or "/" in name or "\\" in name:
        # "." has a name too.
        name, (source, classes, arrays) = path.absolute().name, folder.folder(path, image_size)
    elif name.lower() == "shapes":
        name = "shapes"
        source, classes, arrays = sources.cached(f"shapes-v{shapes.VERSION}", _render_shapes)
    else:
        name = re.sub(r"[\s-]", "", name.lower()) if "cifar" in name.lower() else name.lower()
        source, classes, arrays = sources.tfds(name, data_dir, image_size)
    train, test = (Split(*(arrays.get(f"{s}_{k}") for k in KINDS)) for s in ("train", "test"))
    side = train.images.shape[1]
    require(image_size in (None, side), f"{name} stays at {side} pixels: leave the image size out")
    data = Dataset(name, source, tuple(classes), train, test)
    data = data.hold_out(validation, seed) if validation else data
    return data.subset(subset, seed) if subset and subset != len(data.train) else data


def _render_shapes():
    arrays = {}
    for split, count, seed in (("train", SHAPES_TRAIN, 0), ("test", SHAPES_TEST, 1)):
        arrays |= zip((f"{split}_{k}" for k in KINDS), shapes.render(count, seed), strict=True)
    return "embedded shapes", tuple(shapes.SHAPES), arrays
