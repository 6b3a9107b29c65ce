"""A field that is set and changes nothing is said before the run; a field that counts is not."""

import importlib
import io

import pytest
from rich.console import Console

from tests import tiny
from tljax.settings.build import CONFIGS
from tljax.settings.dotted import with_fields
from tljax.settings.fields import get_config
from tljax.train import runs, single_run
from tljax.train.idle_fields import idle_fields

PHASES = {"transfer.phases": "head@1; head,layer4@1"}
PSEUDO = {"semi.method": "pseudo_label", "data.labels": "4"}
MATCH = {"semi.method": "fixmatch", "data.labels": "4"}


@pytest.mark.parametrize(
    ("field", "value", "counts_with"),
    [
        ("optimizer.momentum", 0.5, {"optimizer.name": "sgd"}),
        ("optimizer.momentum", 0.5, {"population.optimizer": ("adam", "sgd")}),
        ("optimizer.decay_all", True, {"optimizer.weight_decay": 0.1}),
        ("optimizer.decay_all", True, {"population.weight_decay": (0.0, 0.1)}),
        ("schedule.step_epochs", 2.0, {"schedule.name": "step"}),
        ("schedule.factor", 0.5, {"schedule.name": "step"}),
        ("augment.scale", (0.5, 1.0), {"augment.crop": "random_resized"}),
        ("augment.ratio", (1.0, 1.0), {"augment.crop": "random_resized"}),
        ("protocol.rotations", 2, {"augment.rotation": 10.0}),
        ("augment.rand_magnitude", 5.0, {"augment.rand_ops": 2}),
        ("protocol.color_after_normalization", True, {"augment.hue": 0.1}),
        ("transfer.moments", "fresh", PHASES),
        ("cache.seed", 3, {"cache.views": 2}),
        ("data.shapes_seed", 3, {"data.source": "shapes:target"}),
        ("data.tfds_dir", "sets", {"data.source": "tfds:cats_vs_dogs"}),
        ("data.val", 0.5, {"data.split": "official"}),
        ("data.labels_seed", 3, {"data.labels": "4"}),
        ("semi.weight", 2.0, MATCH),
        ("semi.threshold", 0.5, MATCH),
        ("semi.threshold", 0.5, {**PSEUDO, "semi.select": "threshold"}),
        ("semi.share", 0.5, {**PSEUDO, "semi.select": "top"}),
        ("semi.rounds", 2, PSEUDO),
        ("semi.decay", 0.9, {"semi.method": "mean_teacher", "data.labels": "4"}),
    ],
)
def test_a_field_is_idle_until_what_it_belongs_to_is_asked_for(field, value, counts_with):
    idle = {"data.source": "folder:photos", "data.split": "50/25/25", "augment.crop": "center", field: value}
    (line,) = idle_fields(with_fields(get_config(), idle))
    assert line.startswith(f"{field}={value!r} has no effect: ")
    assert idle_fields(with_fields(get_config(), idle | counts_with)) == []


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({**PHASES, "transfer.train": "all"}, "transfer.train"),
        ({"data.mean": (0.5, 0.5, 0.5), "data.std": (1.0, 1.0, 1.0), "data.normalize": "dataset"}, "data.normalize"),
        ({"data.source": "shapes:target", "data.label": "folder"}, "data.label"),
        ({**PSEUDO, "semi.decay": 0.9}, "semi.decay"),
        ({**PSEUDO, "semi.threshold": 0.5}, "semi.threshold"),
        ({**MATCH, "semi.rounds": 3}, "semi.rounds"),
    ],
)
def test_a_field_that_another_one_takes_the_place_of_is_idle(fields, idle):
    (line,) = idle_fields(with_fields(get_config(), fields))
    assert line.startswith(f"{idle}=")


def test_no_config_that_comes_with_tljax_has_an_idle_field():
    names = [path.stem for path in CONFIGS.glob("[a-z]*.py")]
    found = {name: idle_fields(importlib.import_module(f"configs.{name}").get_config()) for name in names}
    assert not any(found.values()), found


def test_a_run_begins_with_what_has_no_effect(photos, tmp_path, monkeypatch):
    console = Console(record=True, width=1000, file=io.StringIO())
    monkeypatch.setattr(single_run, "run", lambda *args, **options: {})
    runs.run(tiny.make_config(photos, optimizer__momentum=0.5), tmp_path, console=console)
    assert console.export_text() == (
        "warning: optimizer.momentum=0.5 has no effect: it is sgd's, and optimizer.name is another\n"
    )
