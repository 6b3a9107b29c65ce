"""Command lines with a config: `--config FILE --config.x.y=VALUE`, and one line for whatever is wrong with them."""

import argparse
import difflib
import errno
import importlib.util
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from tljax.core.errors import UserError, one_line
from tljax.core.signals import Interrupted, handled, obey
from tljax.settings.dotted import field_of, flatten, similar_fields
from tljax.settings.fields import get_config
from tljax.settings.renamed import name_now
from tljax.settings.validate import check_fields, example

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def parse(argv: Sequence[str], values: flags.FlagValues, *, default: Path) -> tuple[ConfigDict, Path]:
    """Parses the flags of `values` and the config.

    Args:
      argv: the command line, its first word the command.
      values: the command's other flags; they hold their values afterwards.
      default: the config where none is named.

    Returns:
      The config with its overrides, and its file.

    Raises:
      UserError: for an unknown flag, file, field or value, with what there is instead.
    """
    chosen, others = _take_config(argv[1:])
    path = chosen or str(default)
    if not Path(path).is_file():
        raise UserError(f"--config={path}: there is no such file{_similar_file(path)}")
    argv = [*argv[:1], f"--config={path}", *others]
    config_flags.DEFINE_config_file("config", None, "the config file", flag_values=values)
    kept, sys.argv = sys.argv, argv  # config_flags looks there for overrides
    try:
        rest = values(argv)
        config = values.config
    except flags.Error as error:
        raise UserError(_wrong_value(path, str(error)) or one_line(error)) from None
    except UserError:
        raise
    except Exception as error:  # an unknown field, or whatever somebody's config file raises
        broken = f"--config={path} does not work: {reason(error)}"
        raise UserError(_unknown_field(path, others) or broken) from None
    finally:
        sys.argv = kept
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={path} has no get_config() that returns a ConfigDict; start from tljax/settings/fields.py"
        )
    check_fields(config, opened=flatten(config.to_dict()))  # what may be open is looked at with the rest
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; a config is given as --config FILE, a value as --config.x.y=VALUE")
    return config, Path(path)


def _take_config(args: Sequence[str]) -> tuple[str, list[str]]:
    """The config's file, empty if none is named, and all other arguments; overrides may stand before it."""
    path, others, wanted, named = "", [], False, False
    for arg in args:
        if wanted:
            path, wanted = arg, False
        elif arg.partition("=")[0] == "--config":
            if named:
                raise UserError("--config is given twice; one run has one config")
            path, wanted = arg.partition("=")[2], "=" not in arg
            named = True
        else:
            others.append(arg)
    if wanted or (named and not path):
        raise UserError("--config is not followed by a file")
    return path, others


def _similar_file(path: str) -> str:
    folder = Path(path).parent
    names = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
    close = difflib.get_close_matches(Path(path).name, names, 1)
    return f"; did you mean {folder / close[0]}?" if close else ""


def reason(error: Exception) -> str:
    """Why a config's file raises, on one line."""
    words = one_line(error)
    locked = re.search(r'Key "(\w+)" does not exist', words)  # as ml_collections words it
    if locked and (now := name_now(locked[1])):
        return f"what it calls {locked[1]} is {now} now"
    return f"{type(error).__name__}: {words}"


def load_config(path: str) -> ConfigDict:
    """The config that a file's `get_config` makes, without overrides."""
    spec = importlib.util.spec_from_file_location("tljax_config", path)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def _unknown_field(path: str, args: Sequence[str]) -> str:
    """Says which `--config.x.y` names nothing, and what there is at the last place that exists; empty if all exist."""
    try:
        config = load_config(path)
    except Exception:  # then the file itself is what is broken
        return ""
    for arg in args:
        name = arg.partition("=")[0].lstrip("-")
        parts = name.split(".")[1:] if name.startswith("config.") else []
        node: Any = config
        for depth, part in enumerate(parts):
            where = ".".join(parts[:depth]) or "the config"
            if not isinstance(node, ConfigDict):
                return f"--{name}: {where} is a value and has no field {part!r}"
            if part not in node:
                if now := name_now(".".join(parts)):
                    return f"--{name}: this field is called {now} now"
                here = difflib.get_close_matches(part, list(node), 1)
                close = here or similar_fields(".".join(parts), flatten(config.to_dict()))
                hint = f"; did you mean {' or '.join(close)}?" if close else ""
                return f"--{name} is not a field; {where} has {', '.join(sorted(node))}{hint}"
            node = node[part]
    return ""


def _wrong_value(path: str, message: str) -> str:
    """Says what would fit where a value does not; empty if the message is about something else."""
    found = re.match(r"flag --(config\.[\w.]+)=(.*?): ", message, re.DOTALL)
    if not found:
        return ""
    parts = found[1].split(".")[1:]
    node = field_of(load_config(path), parts)
    if node is None:  # open, or empty until set
        node = field_of(get_config(), parts)
    if isinstance(node, ConfigDict):
        wanted = f"it has fields of its own: {', '.join(sorted(node))}"
    else:
        wanted = f"it takes {example(node)}"
    return f"--{found[1]}={one_line(found[2])} does not fit; {wanted}"


def exit_status(command: Callable[[], int | None]) -> int:
    """Runs a command; returns its exit status: what it returns, else 0; 2 after a UserError or where a disk takes no
    more, 128 + a signal."""
    prepare_streams()
    try:
        with handled(obey):
            status = command() or 0
            sys.stdout.flush()  # what is wrong with a pipe or disk is to be found out here
            return status
    except UserError as error:
        print(f"tljax: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read what is printed has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes as it ends
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"tljax: {where}{error.strerror}; what was saved before is whole; with room the same command works, "
            "and a run goes on from there",
            file=sys.stderr,
        )
        return 2
    except Interrupted as interrupted:
        print(f"tljax: {interrupted}", file=sys.stderr)
        return 128 + interrupted.number
    except KeyboardInterrupt as interrupted:
        number = signal.Signals(getattr(interrupted, "number", signal.SIGINT))
        print(f"tljax: {number.name}: interrupted; what was saved stays", file=sys.stderr)
        return 128 + number


def prepare_streams() -> None:
    """Has standard files that were closed lead nowhere, so that no file of a run gets their numbers; and what their
    encoding cannot hold written as `\\u2192`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_flags(
    argv: Sequence[str] | None, values: flags.FlagValues, words: str | None,
    command: Callable[[Sequence[str], flags.FlagValues], int | None],
) -> int:  # fmt: skip
    """Runs a command whose flags absl reads, or shows its `words` and flags; returns the exit status."""
    argv = list(sys.argv if argv is None else argv)
    prepare_streams()
    if {"-h", "--help", "-help"} & set(argv[1:]):
        print(f"{words}\n{values.get_help()}")
        return 0
    return exit_status(lambda: command(argv, values))


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, as those of all our commands."""

    def parse_args(self, *args: Any, **options: Any) -> Any:
        prepare_streams()
        return super().parse_args(*args, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tljax: {message}; see {self.prog} --help\n")
