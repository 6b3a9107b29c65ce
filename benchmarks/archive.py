"""What a page of docs/results rests on, in one small file beside it: each run's answers and labels.

python benchmarks/archive.py pack FILE PART run 000-table2 --folder studies --data pets=pets:PATH
python benchmarks/archive.py unpack FILE FOLDER

An archive is JSON by line, compressed (`xzcat FILE | head`). A part is what one command ran: a line of its own, then a
line for each run, which names its images by their line. `pack` puts a part in place of the one of that name, from the
folder that the command gave; `unpack` makes such a folder again, FOLDER/PART, of which `python -m tljax.study report`
prints the tables. Whatever can be counted in answers is not kept, but counted again.
"""

import argparse
import dataclasses
import json
import lzma
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tljax.core.errors import UserError
from tljax.metrics.accuracy import predictions
from tljax.run_dir.files import (
    PREDICTIONS,
    RESULT,
    SPLITS,
    read_arrays,
    read_result,
    write_arrays,
    write_json,
    write_whole,
)
from tljax.settings.command_line import exit_status
from tljax.study.__main__ import Asked, asked, chosen, make_parser
from tljax.study.jobs import Run
from tljax.study.results import Findings, collect
from tljax.study.study import Look, Study

Line = dict[str, Any]
COUNTED = ("accuracy", "correct", "seen")
KEPT = ("classes", "preprocessing", "best_step", "best_by_test", "versions", "device")


@dataclasses.dataclass(frozen=True)
class Part:
    """What one command ran.

    Attributes:
      command: the arguments of `python -m tljax.study`, without folders of anybody's machine.
      runs: of each finished run `study`, `cell`, `seed`, `searched`, `result` and for each split that it answered
        `names`, `labels`, `answers` and `outputs`, how many logits there were.
    """

    command: tuple[str, ...]
    runs: tuple[Line, ...]


def pack(arguments: Sequence[str]) -> Part:
    """The part of a command, from the folder that it wrote.

    Args:
      arguments: of `python -m tljax.study`, with their paths.

    Raises:
      UserError: for a mistake in them, and where a run's answers are not those that its result counted.
    """
    args = make_parser().parse_args(arguments)
    runs = []
    for study in chosen(args.name):
        if isinstance(study, Look):
            path = args.folder / args.scale / study.name / RESULT
            runs.append({"study": study.name, "result": json.loads(path.read_text())})
            continue
        wanted = asked(args, study)
        for run, folder in _folders(wanted):
            if (result := read_result(folder)) is not None:
                who = {"study": study.name, "cell": run.cell, "seed": run.seed, "searched": dict(run.searched)}
                runs.append(who | _kept(study, result, folder))
    return Part(shareable(arguments), tuple(runs))


def _folders(wanted: Asked) -> Iterator[tuple[Run, Path]]:
    """Each run of a study, and where its files lie."""
    job_of = {key: job for job in wanted.jobs for key in job.members}
    return ((run, wanted.folder / job_of[run.key].folder_of(run.key)) for run in wanted.runs)


def shareable(arguments: Sequence[str]) -> tuple[str, ...]:
    """Arguments without the folder of runs, and without other folders of this machine."""
    at = arguments.index("--folder") if "--folder" in arguments else len(arguments)
    return tuple(_nameless(text) for text in (*arguments[:at], *arguments[at + 2 :]))


def _nameless(value: Any) -> Any:
    """A config or an argument with the last part of each path alone."""
    if isinstance(value, Mapping):
        return {name: _nameless(one) for name, one in value.items()}
    return re.sub(r"(^|[:=])[^:=]*/", r"\1", value) if isinstance(value, str) else value


def _kept(study: Study, result: Mapping[str, Any], folder: Path) -> Line:
    """What tables need of a run that cannot be counted in its answers, and these."""
    by_epoch = any(name.startswith("validation@") for name in study.measures)
    history = [{k: v for k, v in epoch.items() if k not in ("lr", "seconds")} for epoch in result["history"]]
    kept: Line = {name: result[name] for name in KEPT if name in result}
    kept |= {"config": _nameless(result["config"]), "history": history if by_epoch else history[-1:]}
    kept["train"] = {"images": result["train"]["images"]}
    if "seconds" in study.measures:
        kept["train"]["epochs"] = [{"seconds": epoch["seconds"]} for epoch in result["train"]["epochs"]]
    if "rounds" in result:
        kept["rounds"] = [{"labels": each["labels"]} for each in result["rounds"]]
    told: Line = {"result": kept}
    for split, name in SPLITS.items():
        counted = result[name]
        kept[name] = None
        if counted is None:
            continue
        kept[name] = {k: v for k, v in counted.items() if k in ("best_epoch", "chose_epoch", "loss")}
        names, labels, logits = read_arrays(
            folder / PREDICTIONS, f"{split}_names", f"{split}_labels", f"{split}_logits"
        )
        answers = predictions(logits)
        if (right := int((answers == labels).sum())) != counted["correct"]:
            raise UserError(f"{folder}: {right} answers are right, but its result has {counted['correct']}")
        told[split] = {
            "names": names.tolist(), "labels": labels.tolist(), "answers": answers.tolist(),
            "outputs": logits.shape[-1],
        }  # fmt: skip
    return told


def unpack(part: Part, folder: Path) -> list[Asked]:
    """Writes the runs of a part into a study's folder; returns its studies, for `collect`."""
    args = make_parser().parse_args([*part.command, "--folder", str(folder)])
    studies = []
    for study in chosen(args.name):
        if isinstance(study, Look):
            continue
        wanted = asked(args, study)
        there = {_place(run): run for run in part.runs if run["study"] == study.name}
        for run, where in _folders(wanted):
            line = there.pop((run.cell, run.seed, json.dumps(dict(run.searched))), None)
            if line is not None:
                _write(line, where)
        if there:
            raise UserError(f"{study.name} has no run {next(iter(there))} any more; pack it again")
        studies.append(wanted)
    return studies


def _place(run: Line) -> tuple[str, int, str]:
    return run["cell"], run["seed"], json.dumps(run["searched"])


def _write(line: Line, folder: Path) -> None:
    result, arrays = dict(line["result"]), {}
    for split, name in SPLITS.items():
        if (told := line.get(split)) is None:
            continue
        labels, answers = np.array(told["labels"]), np.array(told["answers"])
        correct = int((labels == answers).sum())
        counts = zip(COUNTED, (correct / len(labels), correct, len(labels)), strict=True)
        result[name] = {**result[name], **dict(counts)}
        arrays[f"{split}_names"], arrays[f"{split}_labels"] = np.array(told["names"]), labels
        one = told["outputs"] == 1
        arrays[f"{split}_logits"] = 2.0 * answers[:, None] - 1 if one else np.eye(told["outputs"])[answers]
    folder.mkdir(parents=True)
    write_json(folder / RESULT, result)
    write_arrays(folder / PREDICTIONS, **arrays)


def read_findings(parts: Mapping[str, Part], folder: Path) -> dict[str, Findings]:
    """What was found, by part; by `PART/STUDY`, too.

    Args:
      parts: of an archive.
      folder: an empty one that runs are unpacked into, and that has to stay as long as answers are asked for.
    """
    found = {}
    for name, part in parts.items():
        for wanted in unpack(part, folder / name):
            findings = collect(*wanted)
            found[f"{name}/{wanted.study.name}"] = findings
            found.setdefault(name, findings)
    return found


def write(path: Path, parts: Mapping[str, Part]) -> None:
    """Writes an archive; the same parts are the same bytes."""
    images: dict[str, int] = {}
    lines: list[Line] = []
    for name, part in parts.items():
        lines.append({"part": name, "command": part.command})
        for run in part.runs:
            line = dict(run)
            for split in SPLITS:
                if split in run:
                    told = {key: run[split][key] for key in ("names", "labels")}
                    text = json.dumps(told)
                    if text not in images:
                        images[text] = len(images)
                        lines.append({"images": images[text], **told})
                    rest = {key: value for key, value in run[split].items() if key not in told}
                    line[split] = {"images": images[text], **rest}
            lines.append(line)
    text = "\n".join(json.dumps(line, separators=(",", ":")) for line in lines) + "\n"
    write_whole(path, lzma.compress(text.encode(), preset=9))


def read(path: Path) -> dict[str, Part]:
    """The parts of an archive.

    Raises:
      UserError: for a file that is none.
    """
    parts: dict[str, tuple[tuple[str, ...], list[Line]]] = {}
    images: dict[int, Line] = {}
    runs: list[Line] = []
    try:
        for text in lzma.decompress(path.read_bytes()).decode().splitlines():
            line = json.loads(text)
            if "command" in line:
                runs = []
                parts[line["part"]] = tuple(line["command"]), runs
            elif "images" in line:
                images[line["images"]] = {key: line[key] for key in ("names", "labels")}
            else:
                told = {split: images[line[split]["images"]] | line[split] for split in SPLITS if split in line}
                for each in told.values():
                    del each["images"]
                runs.append(line | told)
    except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        raise UserError(f"{path} is no archive: {error}") from None
    return {name: Part(command, tuple(runs)) for name, (command, runs) in parts.items()}


def main() -> int:
    """Packs a part, or unpacks all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("file", type=Path)
    packing.add_argument("part")
    packing.add_argument("arguments", nargs=argparse.REMAINDER, help="of python -m tljax.study: run ...")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("file", type=Path)
    unpacking.add_argument("folder", type=Path)
    args = parser.parse_args()
    return exit_status(lambda: _pack(args) if args.command == "pack" else _unpack(args))


def _pack(args: argparse.Namespace) -> None:
    part = pack(args.arguments)
    if not part.runs:
        raise UserError("none of its runs is done")
    parts = read(args.file) if args.file.exists() else {}
    write(args.file, parts | {args.part: part})
    print(f"{args.file}: {args.part}, {len(part.runs)} runs; {args.file.stat().st_size:,} bytes in all")


def _unpack(args: argparse.Namespace) -> None:
    for name, part in read(args.file).items():
        unpack(part, args.folder / name)
        report = shlex.join(["report", *part.command[1:], "--folder", str(args.folder / name)])
        print(f"python -m tljax.study {report}")


if __name__ == "__main__":
    sys.exit(main())
