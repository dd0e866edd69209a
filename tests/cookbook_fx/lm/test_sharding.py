"""Eight devices give what one gives; run in a process that pretends to have so many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.lm.sharding import make_mesh

REPOSITORY = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("on_eight_devices.py")
MESHES = ((8, 1), (1, 8), (2, 4))


@pytest.fixture(scope="module")
def differences(caches_home: Path) -> dict:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
        "JAX_COMPILATION_CACHE_DIR": str(caches_home / "compiled8"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [f"{data}x{fsdp}" for data, fsdp in MESHES])
def test_training_sampling_and_scoring_are_those_of_one_device(differences, mesh):
    found = differences[mesh]
    for what in found.keys() - {"parts", "restored", "tokens"}:
        assert found[what] < 1e-5, (what, found)
    assert found.get("tokens", 0) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "part"), [("8x1", 1), ("1x8", 8), ("2x4", 4)])
def test_weights_adapter_and_moments_are_divided(differences, mesh, part):
    divided = dict.fromkeys(("layers", "adapter", "moments"), part)
    assert differences[mesh]["parts"] == divided | {"restored": 1}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [f"{data}x{fsdp}" for data, fsdp in MESHES])
def test_a_state_saved_by_many_devices_is_read_by_one_to_the_bit(differences, mesh):
    assert differences[mesh]["restored"] == 0


@pytest.mark.slow
def test_bfloat16_weights_stay_near_float32(differences):
    assert differences["bfloat16"] < 0.05


def test_a_mesh_takes_the_devices_there_are():
    with pytest.raises(ConfigurationError, match="takes 4 devices, there are 1"):
        make_mesh(jax.devices()[:1], data=2, fsdp=2)
