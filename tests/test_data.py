"""Data: the embedded set, augmentation, splits, TFDS, the CIFAR archives, folders."""

import functools
import hashlib
import http.server
import io
import os
import pathlib
import socket
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kdlib import data
from kdlib.data import Dataset, Split, crop_and_flip, mix, shapes, sources, strong


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "file" / "below"))
    made = lambda: ("drawn", ("a", "b"), {"x": np.zeros(2)})
    assert sources.cached("key", made)[1] == ("a", "b")
    monkeypatch.setenv("KDLIB_CACHE", "")  # as if it weren't set
    assert sources.cache_dir() == pathlib.Path("~/.cache/kdlib").expanduser()


# --- the embedded set


def test_shapes_are_reproducible_and_independent_of_the_count():
    few, many = shapes.render(20, 3), shapes.render(40, 3)
    for one, other in zip(few, many, strict=True):
        np.testing.assert_array_equal(one, other[:20])
    assert not np.array_equal(few[0], shapes.render(20, 4)[0])


def test_shapes_are_pictures_with_masks(small_shapes):
    train = small_shapes.train
    assert train.images.dtype == np.uint8 and train.images.shape == (100, 32, 32, 3)
    assert train.labels.dtype == np.int32 and set(train.labels) == set(range(10))
    area = train.masks.mean((1, 2))
    largest = np.pi * (0.85 * shapes.WIDTH[1] / 2) ** 2 / shapes.SIDE**2  # the widest disc
    assert train.masks.dtype == bool and area.min() > 0.05 and area.max() < 1.02 * largest


def test_the_object_stands_out_from_the_ground_inside_its_mask(small_shapes):
    """If masks were shifted or of other pictures, the border between them would not be an edge."""
    images, masks = small_shapes.train.images.astype(float), small_shapes.train.masks
    shifted = np.roll(masks, (9, 9), (1, 2))

    def spread(chosen):  # the object has one colour: inside its mask the pixels differ little
        return np.mean([i[m].std(0).mean() for i, m in zip(images, chosen, strict=True) if m.any()])

    assert spread(masks) < 0.6 * spread(shifted)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_outline_is_a_distance(name):
    """Inside is negative, and no point is nearer than the gradient of a distance allows."""
    y, x = np.mgrid[-1.5:1.5:121j, -1.5:1.5:121j].astype(np.float32)
    distance = shapes.SHAPES[name](x, y)
    assert 0.05 < (distance < 0).mean() < 0.45
    step = 3 / 120
    assert np.abs(np.diff(distance, axis=0)).max() < 1.05 * step + 1e-4


def test_load_shapes_caches_and_is_fast_the_second_time(cache, monkeypatch):
    monkeypatch.setattr(data, "SHAPES_TRAIN", 300)
    monkeypatch.setattr(data, "SHAPES_TEST", 100)
    first = data.load("shapes")
    monkeypatch.setattr(shapes, "render", None)  # a second rendering would fail
    second = data.load("Shapes")
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert second.source == "embedded shapes" and second.train.masks.shape == (300, 32, 32)


def test_a_damaged_cache_is_made_anew(cache):
    made = []

    def make():
        made.append("now")
        return "a source", ["cat", "dog"], {"train_images": np.arange(6, dtype=np.uint8)}

    for _ in range(2):
        source, classes, arrays = sources.cached("some", make)
        assert (source, classes) == ("a source", ("cat", "dog"))
        np.testing.assert_array_equal(arrays["train_images"], np.arange(6))
    assert len(made) == 1
    (file,) = (cache / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    for _ in range(2):
        assert sources.cached("some", make)[2]["train_images"].dtype == np.uint8
    assert len(made) == 2


def test_no_picture_of_the_embedded_set_is_both_trained_and_tested_on(cache, monkeypatch):
    for name, value in (("SHAPES_TRAIN", 40), ("SHAPES_TEST", 20)):
        monkeypatch.setattr(data, name, value)
    monkeypatch.setattr(shapes, "CHUNK", 20)
    found = data.load("shapes")
    both = np.concatenate([found.train.images, found.test.images])
    assert len(np.unique(both, axis=0)) == 60


def test_shapes_are_noisy(monkeypatch):
    monkeypatch.setattr(shapes, "CHUNK", 100)
    noisy = shapes.render(100, 0)[0].astype(float)
    monkeypatch.setattr(shapes, "NOISE", 0.0)
    clean = shapes.render(100, 0)[0].astype(float)
    inner = (clean > 60) & (clean < 195)  # where nothing is clipped
    assert (noisy - clean)[inner].std() == pytest.approx(15, rel=0.02)


def test_an_object_has_another_colour_than_its_ground(monkeypatch):
    monkeypatch.setattr(shapes, "CHUNK", 300)
    monkeypatch.setattr(shapes, "NOISE", 0.0)
    images, _, masks = shapes.render(300, 0)
    colour = np.stack([np.median(i[m], 0) for i, m in zip(images, masks, strict=True)])
    ground = np.stack([i[~m].mean(0) for i, m in zip(images, masks, strict=True)])
    distance = np.sqrt(((colour - ground) ** 2).mean(-1))
    assert (distance > 60).mean() > 0.98  # 80, but for colours that end at 0 or 255


def test_objects_are_turned_a_little(monkeypatch):
    """A square fills its bounding box, and 64 % of it when it is turned by 0.3."""
    monkeypatch.setattr(shapes, "CHUNK", 500)
    _, labels, masks = shapes.render(500, 0)
    filled = []
    for mask in masks[labels == list(shapes.SHAPES).index("square")]:
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        filled.append(mask.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1))
    assert 0.55 < min(filled) < 0.72 and max(filled) > 0.95


# --- statistics and splits


def test_channel_statistics_are_computed_from_the_training_pictures(tiny):
    pixels = tiny.train.images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(tiny.mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(tiny.std, pixels.std(0), rtol=1e-9)


def test_subsets_and_validation_are_balanced_seeded_and_disjoint(small_shapes):
    held = small_shapes.hold_out(20, seed=1)
    assert len(held.train) == 80 and len(held.validation) == 20
    assert set(np.bincount(held.validation.labels)) == {2}
    both = np.concatenate([held.train.images, held.validation.images])
    assert len(np.unique(both, axis=0)) == len(np.unique(small_shapes.train.images, axis=0))
    part = small_shapes.subset(30, seed=0)
    assert set(np.bincount(part.train.labels)) == {3} and part.train.masks.shape[0] == 30
    again, other = small_shapes.subset(30, seed=0), small_shapes.subset(30, seed=1)
    assert np.array_equal(part.train.images, again.train.images)
    assert not np.array_equal(part.train.images, other.train.images)


@pytest.mark.parametrize("count", [0, 100, 1000, -1])
def test_impossible_subsets_are_refused(small_shapes, count):
    with pytest.raises(ValueError, match="from 1 to 99"):
        small_shapes.subset(count, seed=0)


def test_unequal_classes_still_give_the_count_asked_for():
    labels = np.repeat([0, 1, 2], [50, 5, 20]).astype(np.int32)
    images = np.zeros((75, 2, 2, 1), np.uint8)
    dataset = Dataset("x", "x", ("a", "b", "c"), Split(images, labels), Split(images, labels))
    assert list(np.bincount(dataset.subset(30, 0).train.labels)) == [13, 5, 12]
    assert list(np.bincount(dataset.hold_out(12, 0).validation.labels)) == [4, 4, 4]
    with pytest.raises(ValueError, match=r"15 pictures held out .* are all that there are of a"):
        dataset.hold_out(15, 0)


def test_a_channel_of_one_value_has_a_deviation_to_divide_by():
    split = Split(np.full((3, 4, 4, 3), [0, 77, 255], np.uint8), np.arange(3, dtype=np.int32))
    assert min(Dataset("x", "x", ("a", "b", "c"), split, split).std) > 0


# --- augmentation


def numbered(n=6, side=8):
    """Pictures whose every pixel says where it came from."""
    return jnp.arange(n * side * side, dtype=jnp.int32).reshape(n, side, side, 1)


def reference_views(picture, pad):
    """Every crop of a reflect-padded picture, plain and mirrored, by NumPy."""
    side = picture.shape[0]
    padded = np.pad(picture[..., 0], pad, mode="reflect")
    for oy in range(2 * pad + 1):
        for ox in range(2 * pad + 1):
            view = padded[oy : oy + side, ox : ox + side]
            yield (oy, ox, False), view
            yield (oy, ox, True), view[:, ::-1]


def test_augmented_pictures_are_reflect_padded_crops_and_every_offset_is_drawn():
    images, index = numbered(), jnp.zeros(3000, jnp.int32)
    views = {view.tobytes(): name for name, view in reference_views(np.asarray(images[0]), 2)}
    batch = np.asarray(crop_and_flip(jax.random.key(0), images, index, pad=2))
    drawn = [views[one[..., 0].tobytes()] for one in batch]  # a KeyError is no crop of the picture
    counts = {name: drawn.count(name) for name in views.values()}
    assert len(counts) == 50 and min(counts.values()) > 30 and max(counts.values()) < 95


def test_pictures_and_steps_are_augmented_independently():
    images, index = numbered(2), jnp.array([0, 1] * 100)
    first = np.asarray(crop_and_flip(jax.random.key(0), images, index, pad=2))
    second = np.asarray(crop_and_flip(jax.random.key(1), images, index, pad=2))
    relative = first.reshape(200, -1) - 64 * (np.arange(200) % 2)[:, None]
    assert len(np.unique(relative, axis=0)) > 40
    assert not np.array_equal(first, second)


def test_without_shift_and_mirroring_a_batch_is_the_data_itself():
    images, index = numbered(), jnp.array([4, 0, 4])
    batch = crop_and_flip(jax.random.key(0), images, index, pad=4, crop=0.0, flip=0.0)
    np.testing.assert_array_equal(batch, images[index])
    mirrored = crop_and_flip(jax.random.key(0), images, index, pad=0, flip=1.0)
    np.testing.assert_array_equal(mirrored, images[index][:, :, ::-1])


@pytest.mark.formula
@pytest.mark.parametrize(("crop", "flip"), [(0.3, 0.0), (0.0, 0.2)])
def test_each_picture_is_shifted_or_mirrored_with_the_probability_asked_for(crop, flip):
    images, index = numbered(1), jnp.zeros(2000, jnp.int32)
    batch = crop_and_flip(jax.random.key(0), images, index, pad=2, crop=crop, flip=flip)
    changed = (np.asarray(batch) != images[0]).any((1, 2, 3))
    assert changed.mean() == pytest.approx(crop * 24 / 25 + flip, abs=0.04)  # a shift may be by 0


@pytest.mark.formula
@pytest.mark.parametrize("cut", [False, True])
def test_mixing_keeps_the_share_of_every_picture_in_its_target(cut):
    """Pictures of one value each: what is left of the value must be what the target says."""
    values = jnp.array([0.0, 50.0, 100.0, 200.0])
    images = jnp.broadcast_to(values[:, None, None, None], (4, 32, 32, 3))
    for seed in range(5):
        mixed, targets = mix(jax.random.key(seed), images, jnp.eye(4), alpha=1.0, cut=cut)
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), targets @ values, rtol=1e-3, atol=0.01)
        if cut:  # a box of the other picture, nothing in between
            assert set(np.unique(mixed)) <= set(np.asarray(values).tolist())


@pytest.mark.formula
def test_the_share_of_a_mixture_is_drawn_anew_and_uniform():
    draw = lambda seed: mix(jax.random.key(seed), jnp.zeros((2, 4, 4, 1)), jnp.eye(2), alpha=1.0,
                            cut=False)[1].max()  # fmt: skip
    shares = np.array([draw(seed) for seed in range(60)])
    assert len(np.unique(shares)) > 20 and 0.6 < shares.mean() < 0.95


@pytest.mark.formula
@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_follow_the_beta_distribution_asked_for(alpha):
    images, targets = jnp.zeros((8, 1, 1, 1)), jnp.eye(8)
    own = lambda key: jnp.diagonal(mix(key, images, targets, alpha=alpha, cut=False)[1]).min()
    shares = jax.vmap(own)(jax.random.split(jax.random.key(0), 1000))
    np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.15)


@pytest.mark.formula
def test_the_strong_view_changes_every_picture_within_bounds():
    pictures = jnp.asarray(shapes.render(8, 0)[0])
    view = strong(jax.random.key(0), pictures)
    again = strong(jax.random.key(0), pictures)
    assert view.shape == pictures.shape and float(view.min()) >= 0 and float(view.max()) <= 255
    assert np.array_equal(view, again)
    change = np.abs(np.asarray(view) - np.asarray(pictures, float)).mean((1, 2, 3))
    assert (change > 10).all()
    hole = (np.asarray(view) == 127.5).all(-1).sum((1, 2))
    assert (hole >= 16).all() and (hole <= 64).all()  # up to 8x8 of 32x32


@pytest.fixture(scope="module")
def drawn():
    """What is drawn for each of 100 strong views by one key, measured on plain pictures."""
    n, side = 100, 48
    at = np.arange(side) - (side - 1) / 2  # distance from the middle
    grey = lambda values: np.broadcast_to(values, (side, side))[..., None]
    view = lambda picture: np.asarray(
        strong(jax.random.key(0), jnp.broadcast_to(jnp.float32(picture), (n, side, side, 3))), float
    )
    flat = view([70, 80, 90])
    holes = (flat == 127.5).all(-1)
    outside = np.ma.array(flat, mask=np.broadcast_to(holes[..., None], flat.shape))
    mean = np.asarray(np.ma.median(outside, (1, 2)))  # (n, 3), the one colour that is left
    halves = np.where(holes, np.nan, view(grey(np.where(at < 0, 75, 85)))[..., 0])
    step = np.nanmax(halves, (1, 2)) - np.nanmin(halves, (1, 2))
    found = {"holes": holes, "light": mean.mean(1) / 80, "contrast": step / 10 / mean.mean(1) * 80}
    found["colour"] = (mean[:, 2] - mean[:, 0]) / (2 * step)
    near = slice(side // 2 - 8, side // 2 + 8)  # from where no place falls beyond the border
    slopes = np.empty((2, n, 2))  # of the row and the column shown, along rows and columns
    for i, ramp in enumerate((at[:, None], at)):
        for j, picture in enumerate(view(grey(80 + ramp))):
            seen = np.argwhere(~holes[j, near, near])
            values = picture[near, near, 0][tuple(seen.T)]
            across = np.column_stack([seen, np.ones(len(seen))])
            slopes[i, j] = np.linalg.lstsq(across, values)[0][:2] * 10 / step[j]
    down, right = slopes[..., 0], slopes[..., 1]  # (2, n)
    found["scale"] = np.hypot(*right)
    found["turn"] = np.arctan2(-right[0], right[1])
    found["shear"] = (down * right).sum(0) / found["scale"] ** 2
    return found


@pytest.mark.formula
@pytest.mark.parametrize(
    ("change", "low", "high"),
    [
        ("turn", -0.5, 0.5), ("shear", -0.3, 0.3), ("scale", 0.8, 1.2),
        ("colour", 0.4, 1.6), ("contrast", 0.4, 1.6), ("light", 0.4, 1.6),
    ],
)  # fmt: skip
def test_every_strong_view_is_changed_by_what_is_drawn_for_it(drawn, change, low, high):
    values, width = drawn[change], high - low
    assert low - 0.03 * width < values.min() < low + 0.1 * width
    assert high - 0.1 * width < values.max() < high + 0.03 * width
    assert values.std() == pytest.approx(width / 12**0.5, rel=0.2)


@pytest.mark.formula
def test_holes_of_strong_views_may_be_anywhere(drawn):
    middle = lambda axis: [np.flatnonzero(inside).mean() for inside in drawn["holes"].any(axis)]
    rows, columns = middle(2), middle(1)
    for middles in (rows, columns):
        assert min(middles) < 8 and max(middles) > 39 and len(set(middles)) > 30
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.4


def test_uint8_stays_uint8():
    images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    assert crop_and_flip(jax.random.key(0), images, jnp.array([1])).dtype == jnp.uint8


# --- the CIFAR archives, from a local server that imitates the mirror


def cifar_archive(name) -> bytes:
    rng = np.random.default_rng(0)
    extra = 2 if name == "cifar100" else 1
    files = {"cifar10": [f"data_batch_{i}.bin" for i in range(1, 6)], "cifar100": ["train.bin"]}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:

        def add(file, content):
            info = tarfile.TarInfo(f"cifar/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for file in [*files[name], "test_batch.bin" if name == "cifar10" else "test.bin"]:
            record = rng.integers(0, 256, (20, extra + 3072), np.uint8)
            record[:, :extra] = np.arange(20)[:, None] % 10
            record[:, extra : extra + 1024] = 200  # the red plane
            add(file, record.tobytes())
        if name == "cifar100":
            add("fine_label_names.txt", "\n".join(f"fine{i}" for i in range(100)).encode())
    return out.getvalue()


@pytest.fixture
def mirror(tmp_path, monkeypatch, cache):
    """A local server with both archives, in the place of the public ones."""
    root = tmp_path / "mirror"
    root.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    monkeypatch.setattr(handler.func, "log_message", lambda *args: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing prepared"))
    address = f"http://127.0.0.1:{server.server_port}"
    table = {}
    for name in ("cifar10", "cifar100"):
        content = cifar_archive(name)
        (root / f"{name}.tar.gz").write_bytes(content)
        table[name] = {
            "urls": [f"{address}/missing.tar.gz", f"{address}/{name}.tar.gz"],
            "sha256": hashlib.sha256(content).hexdigest(), "megabytes": 1,
        }  # fmt: skip
    monkeypatch.setattr(sources, "CIFAR", table)
    yield root
    server.shutdown()


@pytest.mark.parametrize(("name", "coarse"), [("cifar10", b""), ("cifar100", b"\x13")])
def test_cifar_archives_are_fine_labels_and_planes_of_rows(name, coarse, tmp_path, monkeypatch):
    """In order of the files' names, wherever in the archive they are."""
    planes = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        for i, file in ((1, "batch_2"), (2, "batch_3"), (0, "batch_1"), (3, "test")):
            content = coarse + bytes([i]) + planes[i].tobytes()
            info = tarfile.TarInfo(f"cifar/{file}.bin")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(sources, "_download", lambda name: tmp_path / "archive")
    arrays = sources._read_cifar(name)[2]
    both = lambda kind: np.concatenate([arrays[f"train_{kind}"], arrays[f"test_{kind}"]])
    np.testing.assert_array_equal(both("images"), np.moveaxis(planes, 1, -1))
    np.testing.assert_array_equal(both("labels"), np.arange(4))


@pytest.mark.parametrize(
    ("name", "classes", "train"), [("cifar10", 10, 100), ("CIFAR-100", 100, 20)]
)
def test_cifar_comes_from_its_archive_where_tfds_has_none(mirror, capsys, name, classes, train):
    dataset = data.load(name)
    assert dataset.num_classes == classes and len(dataset.train) == train
    assert dataset.train.images.shape[1:] == (32, 32, 3)
    assert (dataset.train.images[..., 0] == 200).all()  # red first: planes became channels
    assert list(dataset.test.labels[:3]) == [0, 1, 2]
    printed = capsys.readouterr().out
    assert "downloading 1 MB" in printed and "minute" in printed


def test_a_second_load_needs_no_server(mirror):
    first = data.load("cifar10")
    for file in mirror.iterdir():
        file.unlink()
    np.testing.assert_array_equal(first.train.images, data.load("CIFAR10").train.images)


def test_a_damaged_download_is_refused_and_leaves_nothing(mirror, cache):
    (mirror / "cifar10.tar.gz").write_bytes(b"half an archive")
    with pytest.raises(FileNotFoundError, match="checksum"):
        data.load("cifar10")
    assert not list((cache / "downloads").iterdir())


def test_without_a_network_the_answer_comes_in_seconds(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    nobody = {"urls": ["http://127.0.0.1:9/x.tar.gz"], "sha256": "0", "megabytes": 170}
    monkeypatch.setattr(sources, "CIFAR", {"cifar10": nobody})
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match="--dataset shapes") as error:
        data.load("cifar10")
    assert time.monotonic() - started < 5 and "\n" not in str(error.value)


def test_a_server_that_stays_silent_is_given_up(cache, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT", 0.1)
    silent = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar.gz"
    silence = {"cifar10": {"urls": [url], "sha256": "0", "megabytes": 1}}
    monkeypatch.setattr(sources, "CIFAR", silence)
    hang_up = threading.Timer(3, silent.close)  # for whoever would wait
    hang_up.start()
    with pytest.raises(FileNotFoundError, match="timed out"):
        sources._download("cifar10")
    hang_up.cancel()
    silent.close()


# --- TFDS


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("cifar11", ValueError, "did you mean 'cifar10'"),
        ("shape", ValueError, "did you mean 'shapes'"),
        ("caltech101", FileNotFoundError, r'pip install -e "\.\[tensorflow\]"'),
    ],
)
def test_sets_that_cannot_be_had_say_what_to_do(cache, monkeypatch, tmp_path, name, kind, message):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(kind, match=message) as error:
        data.load(name)
    assert "\n" not in str(error.value)


def test_a_mistyped_folder_is_no_set_to_prepare_and_a_mistyped_place_is_not_passed_over(
    mirror, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(FileNotFoundError, match="no folder photos, and the TFDS set"):
        data.load("photos")
    data.load("cifar10")  # now cached
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere of TFDS sets"):
        data.load("cifar10", data_dir=str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny grey-scale TFDS set, prepared without TensorFlow."""
    root = tmp_path_factory.mktemp("tfds")
    script = pathlib.Path(__file__).parent / "make_tfds_set.py"
    subprocess.run([sys.executable, script, root], check=True, capture_output=True)
    return root


def test_any_prepared_tfds_set_is_read_and_then_cached(cache, prepared):
    dataset = data.load("fashion_mnist", data_dir=str(prepared))
    assert dataset.train.images.shape == (12, 28, 28, 1) and dataset.test.images.shape[0] == 4
    number = dataset.train.images[:, 0, 0, 0] // 10  # preparing shuffles them
    assert sorted(number) == list(range(12)) and dataset.num_classes == 10  # as TFDS says
    np.testing.assert_array_equal(dataset.train.labels, number % 3)
    code = (
        "import sys, kdlib; d = kdlib.load('fashion_mnist', data_dir=sys.argv[1]);"
        "assert len(d.train) == 12; assert 'tensorflow_datasets' not in sys.modules"
    )
    environment = os.environ | {"KDLIB_CACHE": str(cache)}
    subprocess.run([sys.executable, "-c", code, prepared], check=True, env=environment)


def test_every_size_of_a_tfds_set_is_cached_for_itself(cache, prepared):
    for side in (28, 14, 28):
        found = data.load("fashion_mnist", data_dir=str(prepared), image_size=side)
        assert found.image_shape == (side, side, 1)


def tfds_of(monkeypatch, splits, labelled=True):
    """In the place of TFDS: a set of these splits, each with so many pictures."""
    label = type("ClassLabel", (), {"names": ["cat", "dog"]})
    features = {"image": None, "label": label() if labelled else "a number"}
    info = types.SimpleNamespace(features=features, splits=splits, supervised_keys=(*features,))
    picture = {"image": np.zeros((4, 4, 3), np.uint8), "label": 1}
    source = lambda split: [picture] * splits[split]
    builder = types.SimpleNamespace(info=info, version="1.0.0", as_data_source=source)
    module = types.SimpleNamespace(
        builder=lambda name, data_dir: builder, features=types.SimpleNamespace(ClassLabel=label)
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)


@pytest.mark.parametrize(
    ("splits", "count"), [({"train": 5, "validation": 2}, 2),
                          ({"validation": 2, "test": 3, "train": 5}, 3)])  # fmt: skip
def test_without_a_test_split_the_validation_split_is_tested_on(monkeypatch, splits, count):
    tfds_of(monkeypatch, splits)
    _, classes, arrays = sources._read_tfds("pets", "root", None)
    assert len(arrays["train_labels"]) == 5 and len(arrays["test_images"]) == count
    assert classes == ["cat", "dog"] and set(arrays["test_labels"]) == {1}


@pytest.mark.parametrize(
    ("splits", "labelled", "message"),
    [({"train": 5, "test": 2}, False, "no image classification"), ({"train": 5}, True, "only")],
)
def test_tfds_sets_without_classes_or_test_are_refused(monkeypatch, splits, labelled, message):
    tfds_of(monkeypatch, splits, labelled)
    with pytest.raises(ValueError, match=message):
        sources._read_tfds("pets", "root", None)


def test_sets_are_prepared_in_a_format_that_is_read_without_tensorflow(monkeypatch, tmp_path):
    asked = []
    made = types.SimpleNamespace(download_and_prepare=lambda: None)
    builder = lambda name, **settings: asked.append(settings) or made
    sets = types.SimpleNamespace(builder=builder, list_builders=lambda: ["pets"])
    config = types.SimpleNamespace(set_visible_devices=lambda *devices: None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", sets)
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config))
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: True)
    sources._prepare_tfds("pets", tmp_path)
    assert asked == [{"data_dir": str(tmp_path), "file_format": "array_record"}]


# --- folders


def picture_folder(root, layout, side=12):
    rng = np.random.default_rng(0)
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            picture = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(picture).save(root / folder / f"{i:03}.png")
    return root


def test_a_folder_with_train_and_test(tmp_path):
    layout = {"train/cat": 6, "train/dog": 4, "test/cat": 2, "test/dog": 3}
    dataset = data.load(str(picture_folder(tmp_path / "pets", layout)))
    assert dataset.classes == ("cat", "dog") and dataset.name == "pets"
    assert list(np.bincount(dataset.train.labels)) == [6, 4]
    assert list(np.bincount(dataset.test.labels)) == [2, 3]


def test_a_folder_without_test_gives_a_fifth_of_every_class(tmp_path):
    dataset = data.load(str(picture_folder(tmp_path / "pets", {"cat": 10, "dog": 5})))
    assert list(np.bincount(dataset.train.labels)) == [8, 4]
    assert list(np.bincount(dataset.test.labels)) == [2, 1]


def test_the_first_test_pictures_of_a_folder_show_every_class(tmp_path):
    """Presets test on the first so many; in order of class that would be the first classes only."""
    dataset = data.load(str(picture_folder(tmp_path / "pets", {"cat": 100, "dog": 100})))
    assert set(dataset.test.labels[:10]) == {0, 1}


def test_every_picture_of_a_folder_is_used_once_and_keeps_its_label(tmp_path):
    root = picture_folder(tmp_path / "pets", {"cat": 30, "dog": 30})
    of = {np.asarray(Image.open(file)).tobytes(): file.parent.name for file in root.rglob("*.png")}
    dataset = data.load(str(root))
    for split in (dataset.train, dataset.test):
        names = [dataset.classes[label] for label in split.labels]
        assert names == [of.pop(picture.tobytes()) for picture in split.images]
    assert not of


def test_val_is_tested_on_only_without_test(tmp_path):
    layout = {"train/cat": 4, "train/dog": 4, "val/cat": 1, "val/dog": 2}
    root = picture_folder(tmp_path / "pets", layout)
    assert list(np.bincount(data.load(str(root)).test.labels)) == [1, 2]
    picture_folder(root, {"test/cat": 3, "test/dog": 1})
    assert list(np.bincount(data.load(str(root)).test.labels)) == [3, 1]


def test_pictures_deep_in_a_folder_and_in_capitals_count(tmp_path):
    root = picture_folder(tmp_path / "pets", {"cat": 5, "dog": 5, "dog/small/brown": 3})
    (root / "cat" / "004.png").rename(root / "cat" / "004.PNG")
    dataset = data.load(str(root))
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    assert list(np.bincount(labels)) == [5, 8]


def test_validation_and_subset_are_drawn_apart_by_the_seed(tmp_path):
    root = str(picture_folder(tmp_path / "pets", {"cat": 40, "dog": 40}))
    found = data.load(root, validation=20, subset=30, seed=5)
    expected = data.load(root).hold_out(20, 5).subset(30, 5)
    assert (len(found.train), len(found.validation)) == (30, 20)
    np.testing.assert_array_equal(found.train.images, expected.train.images)
    np.testing.assert_array_equal(found.validation.images, expected.validation.images)


def test_hidden_folders_and_the_test_set_are_no_classes(tmp_path):
    layout = {"cat": 5, "dog": 5, "test/cat": 2, "test/dog": 2, "val/cat": 1, ".cache": 1}
    dataset = data.load(str(picture_folder(tmp_path / "pets", layout)))
    assert dataset.classes == ("cat", "dog") and len(dataset.train) == 10


def test_pictures_are_resized_if_asked_and_mixed_sizes_refused_if_not(tmp_path):
    root = picture_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    Image.new("L", (40, 20)).save(root / "dog" / "grey.jpg")
    with pytest.raises(ValueError, match="image_size"):
        data.load(str(root))
    assert data.load(str(root), image_size=16).image_shape == (16, 16, 3)
    root = picture_folder(tmp_path / "two", {"train/cat": 4, "train/dog": 4})
    picture_folder(root, {"test/cat": 1, "test/dog": 1}, side=16)
    with pytest.raises(ValueError, match=r"\(12, 12, 3\), \(16, 16, 3\)"):
        data.load(str(root))
    with pytest.raises(ValueError, match="shapes stays at 32 pixels"):
        data.load("shapes", image_size=16)


def test_photographs_are_resized_one_after_the_other(tmp_path):
    """All of them at full size would fill the memory."""
    root = picture_folder(tmp_path / "pets", {"cat": 8, "dog": 8}, side=400)
    data.load(str(root), image_size=8)  # imports
    tracemalloc.start()
    data.load(str(root), image_size=8)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * 400 * 400 * 3  # 16 would be there at once


def test_a_folder_has_a_name_wherever_one_stands_and_hides_no_set(tmp_path, monkeypatch):
    root = picture_folder(tmp_path / "shapes", {"cat": 5, "dog": 5})
    monkeypatch.chdir(root)
    assert (found := data.load(".")).name == "shapes" and found.source == "folder shapes"
    monkeypatch.chdir(tmp_path)
    assert data.load("./shapes").source == "folder shapes"
    assert data.load("shapes").source == "embedded shapes"


def test_resized_pictures_are_smooth():
    stripes = np.tile(np.uint8([0, 255]), (16, 8))[..., None]
    shrunk = data.folder.stack([stripes], 8, "here")
    assert shrunk.min() > 80 and shrunk.max() < 175


PETS = {"train/cat": 5, "train/dog": 5}


@pytest.mark.parametrize(
    ("layout", "kind", "message"),
    [
        (None, FileNotFoundError, "no folder"),
        ({"cat": 0}, FileNotFoundError, "no pictures"),
        ({"cat": 5}, ValueError, "one class"),
        ({"cat": 5, "dog": 5, "eel": 0}, ValueError, "of eel; add some"),
        ({"cat": 5, "dog": 1, "eel": 1}, ValueError, "of dog, eel; add some"),
        (PETS | {"test/cat": 5, "test/dog": 5, "test/eel": 5}, ValueError, "of eel; add"),
        (PETS | {"test/cat": 5, "test/Dog": 5}, ValueError, "of Dog, dog; add"),
    ],
)
def test_unusable_folders_are_refused_in_one_line(tmp_path, layout, kind, message):
    root = tmp_path / "pets"
    if layout:
        picture_folder(root, layout)
    with pytest.raises(kind, match=message) as error:
        data.load(str(root))
    assert "\n" not in str(error.value)


def test_pictures_are_read_as_their_camera_was_held_and_hidden_copies_are_not(tmp_path):
    root = picture_folder(tmp_path / "pets", {"cat": 5, "dog": 5, "cat/.ipynb_checkpoints": 3})
    plain = data.load(str(root)).train
    turned, wide = Image.Exif(), Image.open(root / "dog" / "004.png")
    turned[0x0112] = 6  # to be turned by a quarter
    wide.save(root / "dog" / "004.png", exif=turned)
    found = data.load(str(root)).train
    assert len(found) == len(plain) == 8
    np.testing.assert_array_equal(found.images[-1], np.rot90(plain.images[-1], -1))


def test_an_unreadable_picture_is_named(tmp_path):
    root = picture_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    whole = (root / "cat" / "000.png").read_bytes()
    wide = io.BytesIO()
    Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(wide, "PNG")
    damaged = whole[:20] + b"????" + whole[24:]  # Pillow finds that a SyntaxError
    for content in (b"not a picture", whole[: len(whole) // 2], damaged, wide.getvalue()):
        (root / "cat" / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.png"):
            data.load(str(root))


# --- real CIFAR-10, where it is prepared


@pytest.mark.tfds
def test_real_cifar10_has_its_sizes_and_known_statistics(cifar10):
    assert len(cifar10.train) == 50_000 and len(cifar10.test) == 10_000
    assert cifar10.classes == tuple(sources.CIFAR_CLASSES)
    np.testing.assert_allclose(cifar10.mean, (125.3, 123.0, 113.9), atol=0.2)  # RGB, not BGR
    assert set(np.bincount(cifar10.train.labels)) == {5000}


@pytest.mark.tfds
def test_a_second_start_takes_under_two_seconds(cifar10):
    code = (
        "import time; import kdlib; t = time.time(); kdlib.load('cifar10'); print(time.time() - t)"
    )
    reply = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(reply.stdout) < 2
