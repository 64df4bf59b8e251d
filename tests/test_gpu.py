"""What only a GPU can show: ``JAX_PLATFORMS=cuda python -m pytest -m gpu tests``."""

import jax
import numpy as np
import pytest

import kdlib

pytestmark = pytest.mark.gpu
RECIPE = kdlib.Recipe(epochs=2, batch_size=32, zero_init=False)
SPECS = ("SoftLogits + AT", "FT", "SimKD", "ReviewKD", "OFD", "CRD")


@pytest.fixture(autouse=True)
def gpu():
    """Skips where there is none."""
    if jax.default_backend() == "cpu":
        pytest.skip("needs a GPU")


def taught(data, teacher, spec="SoftLogits + AT", recipe=RECIPE, **settings):
    transfer = kdlib.transfer.make(spec, teacher)
    return kdlib.fit("ResNet8x0.25", data, transfer, recipe, progress=False, **settings)


@pytest.mark.parametrize("spec", SPECS)
def test_seeds_in_one_program_learn_as_each_alone(tiny, teacher, spec):
    together = taught(tiny, teacher, spec, seeds=2, fused=True).history
    alone = taught(tiny, teacher, spec, seeds=2, fused=False).history
    for name in ("train_loss", "test_loss"):  # rounding differs, and TensorFloat-32 takes part
        np.testing.assert_allclose(together.curve(name), alone.curve(name), rtol=0.05)


def test_a_stopped_run_goes_on_to_the_same_losses(tiny, teacher, tmp_path):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        taught(tiny, teacher, seeds=2, run_dir=tmp_path, on_epoch=stop)
    resumed, whole = (taught(tiny, teacher, seeds=2, **more).history
                      for more in ({"run_dir": tmp_path}, {}))  # fmt: skip
    np.testing.assert_allclose(resumed.curve("test_loss"), whole.curve("test_loss"), rtol=0.02)
