"""What a config asks for: one network, or a teacher and its students."""

from pathlib import Path
from typing import Any

from tljax import train
from tljax.semi import rounds


def run(config: Any, workdir: Path, **options: Any) -> dict[str, Any]:
    """`train.run`, or `rounds.run` where `semi.method` is 'pseudo_label'; both take the same options."""
    return (rounds.run if config.semi.method == "pseudo_label" else train.run)(config, workdir, **options)
