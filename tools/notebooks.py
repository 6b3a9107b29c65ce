"""Runs the tutorials: once, for the site and for the tests."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def executed(path: Path) -> Any:
    """A notebook with all that it gives, from an empty folder. It is kept in build/notebooks as long as neither it nor
    the code changes.

    Raises:
      nbclient.exceptions.CellExecutionError: where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    sources = [path, *sorted((ROOT / "tljax").rglob("*.py")), *sorted((ROOT / "configs").glob("*.py"))]
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    kept = ROOT / "build" / "notebooks" / f"{path.stem}-{digest}.ipynb"
    if not kept.is_file():
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        with tempfile.TemporaryDirectory() as folder:
            paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            env = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": "", "IPYTHONDIR": f"{folder}/.ipython"}
            client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}})
            client.execute(env=env)
        kept.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, kept)
    return nbformat.read(kept, nbformat.NO_CONVERT)
