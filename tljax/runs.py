"""What a config asks for: one network, or a teacher and its students."""

from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from tljax import train
from tljax.data.load import listing_once
from tljax.idle_fields import idle_fields
from tljax.recipe import choose
from tljax.report.console import make_console
from tljax.semi import rounds


def run(
    config: Any, workdir: Path, *, overwrite: bool = False, console: Console | None = None, **options: Any
) -> dict[str, Any]:
    """Chooses what the config leaves open, and says so, as well as which fields have no effect; then `train.run`, or
    `rounds.run` where `semi.method` is 'pseudo_label'. Both take the same options."""
    console = console or make_console(quiet=jax.process_index() != 0)
    with listing_once():
        config, choices = choose(config, None if overwrite else workdir)
        if choices:
            console.print("chosen for these images; a value that you set stands:")
        for choice in choices:
            console.print(f"  {choice}", markup=False)
        if not options.get("look_at_test"):  # a study's rows share fields on purpose
            for line in idle_fields(config):
                console.print(f"warning: {line}", markup=False)
        kind = rounds.run if config.semi.method == "pseudo_label" else train.run
        return kind(config, workdir, overwrite=overwrite, console=console, choices=choices, **options)
