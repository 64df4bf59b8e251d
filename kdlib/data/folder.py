"""A data set of one's own: a folder of pictures, one sub-folder per class."""

import pathlib

import numpy as np

from kdlib.names import require

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm"}


def folder(path: pathlib.Path, image_size: int | None):
    """Read pictures from one sub-folder per class, optionally below ``train/`` and ``test/``.

    Without a ``test`` folder every fifth picture of a class, in order of name, is its test set.

    Raises FileNotFoundError if there is no folder or no picture in it, ValueError for fewer than
    two classes, too few pictures of one, an unreadable picture, or pictures of several sizes and no
    ``image_size``.
    """
    require(path.is_dir(), f"no folder {path}: give a set's name or a folder", FileNotFoundError)
    train = path / "train" if (path / "train").is_dir() else path
    held = path / "test", path / "val"
    test = next(filter(pathlib.Path.is_dir, held), None)
    inside = [p for root in (train, test or train) for p in root.glob("[!.]*") if p.is_dir()]
    classes = sorted({p.name for p in inside if p not in held})  # also what only one of them has
    found, kinds = _list_pictures(train, classes), " ".join(sorted(PICTURES))
    require(any(found), f"no pictures ({kinds}) in {train}/CLASS/", FileNotFoundError)
    require(len(classes) > 1, f"{train} has one class, {classes}: make one sub-folder per class")
    held_out = _list_pictures(test, classes) if test else [files[::5] for files in found]
    kept = found if test else [[f for i, f in enumerate(files) if i % 5] for files in found]
    few = [name for name, *both in zip(classes, kept, held_out, strict=True) if not all(both)]
    require(not few, f"{path}: too few to train and test on of {', '.join(few)}; add some or test/")
    both, arrays = (kept, held_out), {}
    pictures = (_open(file) for split in both for files in split for file in files)
    pictures = np.split(stack(pictures, image_size, str(path)), [sum(map(len, kept))])
    for split, found, images in zip(("train", "test"), both, pictures, strict=True):
        arrays[f"{split}_images"], counts = images, [len(files) for files in found]
        arrays[f"{split}_labels"] = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    order = np.random.default_rng(0).permutation(len(arrays["test_labels"]))  # no class comes first
    arrays |= {name: arrays[name][order] for name in ("test_images", "test_labels")}
    return f"folder {path.absolute().name}", tuple(classes), arrays


def _list_pictures(root, classes):
    """A list of files per class, in order of name."""
    # And in no hidden folder: Jupyter keeps copies in one.
    wanted = lambda p: p.suffix.lower() in PICTURES and "/." not in f"/{p.relative_to(root)}"
    return [sorted(filter(wanted, (root / name).rglob("*"))) for name in classes]


def _open(file):
    from PIL import Image, ImageOps

    try:
        require((image := Image.open(file)).mode[0] not in "IF", "more than 8 bits for a colour")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # as its camera was held
    except Exception as error:  # each of Pillow's readers has its own
        raise ValueError(f"{file} is no picture ({error}): remove or replace it") from error


def stack(pictures, image_size: int | None, where: str) -> np.ndarray:
    """Pictures of one size as uint8 ``[n, h, w, c]``, each resized to a square if asked."""
    if image_size:
        from PIL import Image

        # One after the other: photographs of full size would fill the memory.
        images = (Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pictures)
        images = (np.asarray(image.resize((image_size, image_size))) for image in images)
        pictures = (p[..., None] if p.ndim == 2 else p for p in images)
    pictures = list(pictures)
    shapes = sorted({p.shape for p in pictures})
    some = ", ".join(map(str, shapes[:3]))
    require(len(shapes) == 1, f"{where} has pictures of several sizes ({some}): give an image_size")
    return np.stack(pictures).astype(np.uint8)
