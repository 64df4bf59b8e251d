"""Networks: names, shapes, costs against the literature, and what a forward pass changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdlib import models


def evaluating(*args, **kwargs):
    model = models.build(*args, **kwargs)
    model.eval()
    return model


PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ResNet56", "ResNet56"), ("ResNet-56", "ResNet56"), ("resnet56", "ResNet56"),
        ("resnet-8x4", "ResNet8x4"), ("ResNet8x0.5", "ResNet8x0.5"), ("resnet20x1", "ResNet20"),
    ],
)  # fmt: skip
def test_spellings_of_a_name(text, name):
    assert models.canonical(text) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [("resnet57", "'ResNet56'"), ("vgg", "known are"), ("resnet18x2", "take a width")],
)
def test_unknown_networks_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        models.build(text, 10)


@pytest.mark.parametrize(
    ("name", "millions", "mega_multiply_adds"),
    # He et al. 2016, table 6, and akamaster/pytorch_resnet_cifar10; with projections instead of
    # padded shortcuts a network has 2.8 to 3.2 thousand parameters more.
    [
        ("ResNet20", 0.27, 41),
        ("ResNet32", 0.46, 69),
        ("ResNet56", 0.85, 126),
        ("ResNet110", 1.7, 253),
    ],
)
def test_costs_are_the_literature_s(name, millions, mega_multiply_adds):
    found = models.cost(name)
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.036)
    assert found.multiply_adds / 1e6 == pytest.approx(mega_multiply_adds, abs=0.6)


@pytest.mark.parametrize(
    ("name", "parameters", "giga_multiply_adds"),
    [
        ("ResNet18", 11_689_512, 1.81),
        ("ResNet34", 21_797_672, 3.66),
        ("ResNet50", 25_557_032, 4.09),
    ],
)
def test_imagenet_networks_have_their_published_size(name, parameters, giga_multiply_adds):
    found = models.cost(name, (224, 224, 3), classes=1000)
    assert found.parameters == parameters
    assert found.multiply_adds / 1e9 == pytest.approx(giga_multiply_adds, abs=0.01)


def test_wide_networks_have_the_literature_s_widths():
    out = jax.eval_shape(evaluating("ResNet8x4", 100), PICTURES)
    assert [f.shape[-1] for f in out.features] == [32, 64, 128, 256]


def test_outputs_have_the_promised_shapes():
    model = models.build("ResNet8x0.5", 7)
    model.eval()
    out = model(PICTURES)
    assert out.logits.shape == (2, 7) and out.embedding.shape == (2, 32)
    assert [f.shape[1:] for f in out.features] == [
        (32, 32, 8),
        (32, 32, 8),
        (16, 16, 16),
        (8, 8, 32),
    ]
    assert [p.shape for p in out.preacts] == [f.shape for f in out.features[1:]]
    for preact, feature in zip(out.preacts, out.features[1:], strict=True):
        np.testing.assert_array_equal(np.maximum(preact, 0), feature)
    np.testing.assert_allclose(out.embedding, out.features[-1].mean((1, 2)), rtol=1e-6)


def test_stride_2_pads_symmetrically():
    """A lone pixel in the corner is seen by the first output with the kernel's centre."""
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    make = models.network.Make(1, (0,), (1,), True, jnp.float32, nnx.Rngs(0))
    layer = make.conv(1, 1, 3, stride=2)
    layer.kernel[...] = kernel
    picture = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    assert float(layer(picture)[0, 0, 0, 0]) == kernel[1, 1, 0, 0]


def test_zero_init_starts_every_block_as_its_shortcut():
    model = models.build("ResNet8x0.25", 3)
    assert not model.stages[0].blocks[0].norm2.scale[...].any()
    assert (
        models.build("ResNet8x0.25", 3, zero_init=False).stages[0].blocks[0].norm2.scale[...].all()
    )


def test_batch_norm_moves_in_training_and_rests_in_evaluation():
    model = models.build("ResNet8x0.25", 3)
    before = np.asarray(model.stem_norm.mean[...])
    model.eval()
    model(PICTURES)
    np.testing.assert_array_equal(model.stem_norm.mean[...], before)
    model.train()
    model(PICTURES)
    assert not np.array_equal(model.stem_norm.mean[...], before)
    assert model.stem_norm.momentum == 0.9 and model.stem_norm.epsilon == 1e-5


def test_the_network_normalises_with_its_own_statistics():
    plain = models.build("ResNet8x0.25", 3, mean=(0, 0, 0), std=(1, 1, 1))
    scaled = models.build("ResNet8x0.25", 3, mean=(10, 20, 30), std=(2, 4, 8))
    plain.eval(), scaled.eval()
    by_hand = (PICTURES.astype(np.float32) - [10, 20, 30]) / np.array([2, 4, 8], np.float32)
    np.testing.assert_allclose(scaled(PICTURES).logits, plain(by_hand).logits, atol=1e-5)


def test_seeds_decide_the_weights():
    kernels = [models.build("ResNet8x0.25", 3, seed=s).stem_conv.kernel[...] for s in (0, 0, 1)]
    assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])


def test_bfloat16_computes_low_and_keeps_parameters_high():
    model = evaluating("ResNet8x0.25", 3, dtype=jnp.bfloat16)
    out = jax.eval_shape(model, PICTURES)
    assert out.features[1].dtype == jnp.bfloat16 and out.logits.dtype == jnp.float32
    assert model.stem_conv.kernel[...].dtype == jnp.float32
