"""Whatever a user can get wrong: one line, exit status 2, no traceback, nothing lost."""

import subprocess
import sys

import pytest

import tljax
from tests import commands, tiny
from tljax import inspect
from tljax.core.errors import UserError
from tljax.main import DEFAULT, main, make_flags
from tljax.settings.command_line import parse
from tljax.settings.fields import get_config

FOLDER = "configs/folder.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=10)


def parsed(*args):
    return parse(["main", *args], make_flags(), default=DEFAULT)


def test_overrides_by_dotted_name():
    config, path = parsed(
        "--config.optimizer.lr=0.5",
        "--config",
        FOLDER,
        "--config.model.last_stage=layer3",
        "--config.transfer.train=head,layer4",
        "--config.augment.scale=(0.5, 1.0)",
        "--config.seed",
        "7",
        "--config.model.blocks=(1,1)",
        "--config.augment.flip=False",
    )
    assert path.name == "folder.py"
    assert (config.optimizer.lr, config.model.last_stage, config.seed) == (0.5, "layer3", 7)
    assert (config.transfer.train, config.augment.scale) == ("head,layer4", (0.5, 1.0))
    assert (config.model.blocks, config.augment.flip) == ((1, 1), False)


def test_the_demo_is_the_default():
    config, path = parsed()
    assert config.run == "demo"
    assert path.name == "demo.py"


@pytest.mark.parametrize(
    "args,words",
    [
        (["--config.optimizer.lrr=1"], ["optimizer.lrr", "lr_decay, lr_groups", "did you mean lr"]),
        (["--config.optimiser.lr=1"], ["optimiser", "did you mean optimizer"]),
        (["--config.seed.x=1"], ["seed is a value"]),
        (["--config.optimizer.lr=fast"], ["optimizer.lr=fast"]),
        (["--config.epochs=1.5"], ["epochs=1.5", "such as 10"]),
        (["--config.model=x"], ["config.model=x", "stochastic_depth, weights"]),
        (["--config=configs/folder.py", "--config=configs/demo.py"], ["twice"]),
        (["--config.augment.flip=maybe"], ["maybe"]),
        (["--config=configs/foldr.py"], ["no such file", "did you mean configs/folder.py"]),
        (["--config"], ["--config is not followed"]),
        (["--config="], ["--config is not followed"]),
        (["--config.lr=1"], ["lr is not a field", "did you mean optimizer.lr?"]),
        (["--config.data.train_groups=1"], ["data has", "did you mean"]),
        (["--config.data.lr=1"], ["did you mean optimizer.lr?"]),
        (["--wrokdir=x"], ["wrokdir", "workdir"]),
        (["photos"], ["'photos' is not a flag"]),
        (["--processes=0"], ["processes"]),
    ],
)
def test_a_wrong_command_line_is_one_line(args, words):
    base = [] if any(a.split("=")[0] == "--config" for a in args) else ["--config", FOLDER]
    with pytest.raises(UserError) as caught:
        parsed(*base, *args)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text,word", [("def get_config(:", "SyntaxError"), ("x = 1", "get_config"), ("import nonsense", "nonsense"),
                  ("def get_config(): return 3", "ConfigDict")]
)  # fmt: skip
def test_a_broken_config_file_is_one_line(text, word, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # ml_collections loads every config into this one
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as caught:
        parsed(f"--config={tmp_path}/mine.py")
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def status_of(capsys, tmp_path, *args):
    status = main(["main", "--config", FOLDER, f"--workdir={tmp_path / 'run'}", *args])
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("tljax: ")
    assert not (tmp_path / "run").exists()
    return status, err


def test_a_config_that_an_older_version_wrote_is_read(tmp_path, monkeypatch):
    """As every `repeat.py` of one is: the fields lay in `configs/common.py`."""
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    old = tmp_path / "repeat.py"
    old.write_text("from configs import common\n\n\ndef get_config():\n    return common.get_config()\n")
    assert parsed(f"--config={old}")[0].to_dict() == get_config().to_dict()
    assert tljax.config("folder:photos", base=old).data.source == "folder:photos"


@pytest.mark.parametrize(
    "args,words",
    [
        (["--config.data.source=photos"], ["folder:PATH", "pets:PATH"]),
        (["--config.data.source=folder:nowhere"], ["nowhere"]),
        (["--config.data.source=shapes:circles"], ["shapes:target"]),
        (["--config.data.split=70/20"], ["70/20", "100"]),
        (["--config.data.split=official"], ["no official splits", "70/20/10"]),
        (["--config.data.split=98/1/1"], ["leaves val empty"]),
        (["--config.data.label=regex:^(.+"], ["regex"]),
        (["--config.data.resize=100"], ["data.resize=100", "data.size=224"]),
        (["--config.data.mean=(1.0,)"], ["data.mean", "three numbers"]),
        (["--config.model.name=vgg16"], ["vgg16", "resnet18"]),
        (["--config.model.weights=no/such.pth"], ["no/such.pth"]),
        (["--config.model.weights=imagenet-v2"], ["imagenet-v2", "resnet18"]),
        (["--config.model.last_stage=layer7"], ["layer7", "layer3"]),
        (["--config.transfer.train=layer7"], ["layer7", "layer3"]),
        (["--config.transfer.train=head"], ["fresh and frozen", "allow_fresh_frozen"]),
        (["--config.transfer.bn=frozen"], ["frozen", "torch_frozen_params"]),
        (["--config.transfer.moments=half"], ["half", "keep, fresh"]),
        (["--config.optimizer.name=lion"], ["lion", "adamw"]),
        (["--config.optimizer.lr=-1"], ["optimizer.lr"]),
        (["--config.optimizer.clip=-1"], ["optimizer.clip"]),
        (["--config.schedule.name=linear"], ["linear", "cosine"]),
        (["--config.loss.name=hinge"], ["hinge", "softmax"]),
        (["--config.loss.name=sigmoid"], ["two classes", "3"]),
        (["--config.epochs=0"], ["epochs=0"]),
        (["--minutes=soon"], ["minutes", "soon"]),
        (["--minutes=0"], ["minutes=0 is not a time"]),
        (["--minutes=5", "--config.epochs=3"], ["minutes=5", "epochs=3 is set already"]),
        (["--config.batch_size=-3"], ["batch_size=-3"]),
        (["--config.augment.crop=zoom"], ["zoom", "random_resized"]),
        (["--config.augment.rotation=900"], ["rotation"]),
        (["--config.augment.scale=(0.5,)"], ["augment.scale", "two numbers"]),
        (["--config.augment.ratio=('a','b')"], ["augment.ratio", "two numbers"]),
        (["--config.data.mean=('a','b','c')"], ["data.mean", "three numbers"]),
        (["--config.data.mean=(123.7,116.3,103.5)"], ["data.mean", "0 to 1"]),
        (["--config.data.std=(58.4,57.1,57.4)"], ["data.std", "0 to 1"]),
        (["--config.optimizer.lr_decay=nan"], ["lr_decay", "finite"]),
        (["--config.optimizer.momentum=5.0"], ["momentum"]),
        (["--config.model.width=0"], ["width"]),
        (["--config.model.blocks=()"], ["blocks"]),
        (["--config.model.dropout=2.0"], ["model.dropout"]),
        (["--config.transfer.fresh=layer7"], ["layer7"]),
        (["--config.run=fly"], ["fly", "demo"]),
    ],
)
def test_a_value_that_does_not_fit_names_what_would(args, words, photos, tmp_path, capsys):
    weights = [] if "weights" in args[0] else ["--config.model.weights=None"]
    train = [] if "transfer.train" in args[0] else ["--config.transfer.train=all"]
    status, err = status_of(capsys, tmp_path, f"--config.data.source=folder:{photos}", *weights, *train, *args)
    assert status == 2
    assert all(word in err for word in words), err


@pytest.mark.real_data
def test_weights_of_another_network(photos, tmp_path, capsys, shared):
    file = shared / "data" / "squeezenet1_0-imagenet.pth"
    status, err = status_of(capsys, tmp_path, f"--config.data.source=folder:{photos}", f"--config.model.weights={file}")
    assert status == 2
    assert "squeezenet1_0" in err
    assert "resnet18" in err


def test_no_weights_and_no_network_says_where_to_put_which_file(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TLJAX_WEIGHTS_URL", "http://127.0.0.1:9/")
    words = ["main", "--config", FOLDER, f"--config.data.source=folder:{photos}", f"--workdir={tmp_path / 'run'}"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert "resnet18-f37072fd.pth" in err
    assert str(tmp_path / "cache") in err


def test_help_shows_the_commands(capsys):
    assert main(["main", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--config configs/pets_ft.py" in out
    assert "--workdir" in out


@pytest.mark.slow
def test_inspect_as_a_command(finished):
    found = subprocess.run(
        [sys.executable, "-m", "tljax.inspect", finished], capture_output=True, text=True, check=False,
        env=commands.environment(),
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")
    assert "layer2" in found.stdout


@pytest.mark.parametrize("args,word", [(["/nowhere"], "not the folder of a run"), ([], "required")])
def test_inspect_of_nothing(capsys, args, word):
    try:
        status = inspect.main(args)
    except SystemExit as stop:  # argparse's
        status = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert word in line


def test_what_standard_output_cannot_hold_is_escaped():
    """Class names of another script on a terminal, or in a pipe, of another encoding than UTF-8."""
    done = subprocess.run(
        [sys.executable, "-c", SHOWN], capture_output=True, text=True, check=False, cwd=commands.ROOT,
        env=commands.environment(PYTHONIOENCODING="ascii"),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(r"r\xf6d\u2192") == 3
    assert "\\u2500" not in done.stdout  # lines of tables are drawn with what there is


SHOWN = r"""
from tljax.settings.command_line import exit_status
from tljax.report.console import make_console, print_table
print_table(make_console(), "r\xf6d\u2192", [{"class": "r\xf6d\u2192"}])
exit_status(lambda: print("r\xf6d\u2192"))
"""


def test_an_error_is_one_line_whatever_a_name_holds():
    assert str(UserError("no such folder: 'a\nb\udc80 é\u202e'")) == r"no such folder: 'a\nb\udc80 é\u202e'"
