"""Prepare a tiny TFDS set in the folder given: 16 grey 28x28 pictures under a real set's name.

TFDS prepares a set without TensorFlow if its examples are generated; reading follows the same path
as for any downloaded set.
"""

import io
import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class FashionMnist(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("3.0.1")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(names=["shirt", "shoe", "bag"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )  # fmt: skip

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            png = io.BytesIO()  # encoded here: TFDS itself would use TensorFlow for it
            Image.fromarray(np.full((28, 28), 10 * i, np.uint8)).save(png, "PNG")
            yield i, {"image": png.getvalue(), "label": i % 3}


builder = FashionMnist(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
