"""Real images, real ImageNet weights, the commands that users type."""

import hashlib
import json
import subprocess
import sys

import jax
import pytest

from tests import commands
from tests.local_tfds import prepare_pets
from tljax.models import create_model, init_variables
from tljax.weights.torch_names import to_torch
from tljax.weights.weights_file import write_safetensors

pytestmark = pytest.mark.real_data


def result_of(found, workdir):
    assert found.returncode == 0, found.stderr
    return json.loads((workdir / "result.json").read_text())


def test_cartoons_by_a_squeezenet_head(shared, tmp_path):
    """One epoch of what reaches 78 to 87% in six."""
    data = shared / "data"
    result = result_of(commands.run("configs/pacs_cartoon.py", tmp_path / "run", {
        "data.source": f"folder:{data / 'pacs_cartoon'}", "model.weights": data / "squeezenet1_0-imagenet.pth",
        "epochs": 1}), tmp_path / "run")  # fmt: skip
    assert result["validation"]["seen"] == 466
    assert result["test"] is None
    assert result["validation"]["accuracy"] > 0.68


def test_pets_by_a_resnet_whose_last_stage_starts_fresh(shared, tmp_path):
    """Two epochs of what reaches 92 to 96% in eight, on four devices."""
    data = shared / "data"
    result = result_of(commands.run("configs/pets_ft.py", tmp_path / "run", {
        "data.source": f"pets:{data / 'oxford_pets_3breeds'}", "data.split": "official", "model.name": "resnet18",
        "model.weights": data / "resnet18_to_layer3-imagenet.pth", "transfer.fresh": "head,layer4",
        "transfer.bn": "train", "optimizer.lr": 1e-4, "epochs": 2, "cross_replica_bn": True}, devices=4),
        tmp_path / "run")  # fmt: skip
    assert result["test"]["seen"] == 298
    assert result["test"]["accuracy"] > 0.6
    assert set(result["weights"]["fresh"]) == {"head", "layer4"}


def test_weights_that_lack_a_stage_say_what_to_write(shared, tmp_path):
    data = shared / "data"
    found = commands.run("configs/pets_ft.py", tmp_path / "run", {
        "data.source": f"pets:{data / 'oxford_pets_3breeds'}", "data.split": "official", "model.name": "resnet18",
        "model.weights": data / "resnet18_to_layer3-imagenet.pth"})  # fmt: skip
    assert found.returncode == 2
    assert "transfer.fresh=head,layer4" in found.stderr
    assert found.stderr.count("\n") == 1


# The published weights cannot be fetched by a test, and their name holds their hash: a file of random weights takes
# their place in the table. The command line after it is the user's.
WITH_STAND_IN = """
import sys
from tljax import main
from tljax.weights import hub
hub.FILES["imagenet"]["resnet34"] = sys.argv.pop(1)
sys.exit(main.main(["main", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_the_users_command_on_tfds_own_pets(shared, tmp_path):
    prepare_pets(shared, tmp_path / "tfds")
    weights = tmp_path / "cache" / "weights" / "resnet34.pth"
    variables = init_variables(create_model("resnet34"), jax.random.key(0))
    write_safetensors(weights, to_torch(variables), {})
    name = f"resnet34-{hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}.pth"
    weights.rename(weights.with_name(name))
    environment = commands.environment(TFDS_DATA_DIR=str(tmp_path / "tfds"), TLJAX_CACHE=str(tmp_path / "cache"))
    found = subprocess.run(
        [sys.executable, "-c", WITH_STAND_IN, name, "--config", "configs/pets_ft.py", "--workdir", tmp_path / "run"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    result = result_of(found, tmp_path / "run")
    assert (result["train"]["images"], result["validation"]["seen"], result["test"]["seen"]) == (420, 119, 59)
    assert len(result["classes"]) == 37
    assert len(result["history"]) == 3


def test_without_network_and_data_there_is_one_line(tmp_path):
    found = commands.run("configs/pets_ft.py", tmp_path / "run", {"model.weights": "None", "transfer.train": "all"},
                         TFDS_DATA_DIR=str(tmp_path / "tfds"), http_proxy="http://127.0.0.1:9",
                         https_proxy="http://127.0.0.1:9")  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1, found.stderr
    assert "oxford_iiit_pet is not prepared" in found.stderr
    assert not (tmp_path / "run").exists()
