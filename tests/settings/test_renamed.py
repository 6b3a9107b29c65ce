"""Names that fields had before."""

import json
import shutil

import pytest

import tljax
from tljax.main import main
from tljax.run_dir.files import read_config
from tljax.settings.dotted import flatten
from tljax.settings.fields import get_config
from tljax.settings.renamed import RENAMED, with_names_of_now


def test_names_of_now_are_fields_and_names_of_before_are_none():
    fields = flatten(get_config().to_dict())
    assert set(RENAMED.values()) <= set(fields)
    assert not set(RENAMED) & set(fields)


@pytest.mark.parametrize("before, now", RENAMED.items())
def test_a_name_of_before_is_refused_with_that_of_now(before, now, capsys, tmp_path):
    for name in (before, before.rpartition(".")[2]):
        with pytest.raises(tljax.UserError, match=f"{name} is called {now} now"):
            tljax.config(**{name: 1})
    assert main(["main", f"--config.{before}=1", f"--workdir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == f"tljax: --config.{before}: this field is called {now} now\n"
    part, last = before.split(".")
    old = tmp_path / "old.py"
    old.write_text("from tljax.settings import fields\n\n\ndef get_config():\n    config = fields.get_config()\n"
                   f"    config.{part}.{last} = 1\n    return config\n")  # fmt: skip
    assert main(["main", f"--config={old}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert f"what it calls {last} is {now} now" in capsys.readouterr().err


def test_a_run_of_before_is_read_and_said_to_be_one(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    today = read_config(workdir)
    for file in ("config.json", "result.json"):
        content = json.loads((workdir / file).read_text())
        config = content if file == "config.json" else content["config"]
        for before, now in RENAMED.items():
            (part, last), (old_part, old_last) = now.split("."), before.split(".")
            config[old_part][old_last] = config[part].pop(last)
        del config["protocol"]
        (workdir / file).write_text(json.dumps(content))
    assert with_names_of_now(json.loads((workdir / "config.json").read_text())) == (today, list(RENAMED))
    capsys.readouterr()
    found = [tljax.load(folder).predict(finished / "curves.png") for folder in (workdir, finished, workdir)]
    assert found[0] == found[1] == found[2]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"tljax: an earlier version made {workdir}; ")
    assert all(f"{before} (now {now})" in said[0] for before, now in RENAMED.items())
