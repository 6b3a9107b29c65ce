"""Runs the tutorials: once, for the site and for the tests."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def executed(path: Path) -> Any:
    """A notebook with all that it gives, from a folder with nothing in it but the network that all tutorials begin
    with, where another one has trained it. It is kept in build/notebooks as long as neither it nor the code changes.

    Raises:
      nbclient.exceptions.CellExecutionError: where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    code = [*sorted((ROOT / "tljax").rglob("*.py")), *sorted((ROOT / "configs").glob("*.py"))]
    build = ROOT / "build" / "notebooks"
    kept, source = build / f"{path.stem}-{digest(path, *code)}.ipynb", build / f"source-{digest(*code)}"
    if not kept.is_file():
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        with tempfile.TemporaryDirectory() as folder:
            paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            env = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": "", "IPYTHONDIR": f"{folder}/.ipython"}
            trained = Path(folder, "runs", "source")
            if source.is_dir():
                shutil.copytree(source, trained)
            client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}})
            client.execute(env=env)
            build.mkdir(parents=True, exist_ok=True)
            if trained.is_dir() and not source.is_dir():
                shutil.copytree(trained, part := source.with_suffix(".part"), dirs_exist_ok=True)
                part.rename(source)
        nbformat.write(notebook, kept)
    return nbformat.read(kept, nbformat.NO_CONVERT)


def digest(*files: Path) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
