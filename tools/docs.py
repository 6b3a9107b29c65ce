"""What mkdocs writes itself: fields, commands, notebooks, and pages that lie elsewhere. Used by mkdocs.yml."""

import html
import io
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the rest is tested without mkdocs
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"changelog.md": ROOT / "CHANGELOG.md", "speed.md": ROOT / "benchmarks" / "README.md"}
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


class Field(NamedTuple):
    """A field of tljax/settings/fields.py.

    Attributes:
      name: with dots, without `config.`.
      default: as it is written; empty for a part that has fields of its own.
      meaning: its comments, those above it first.
    """

    name: str
    default: str
    meaning: str


def read_fields(text: str) -> list[Field]:
    """The fields of a config file, in its order, with what its comments say of them."""
    comments: dict[int, tuple[bool, str]] = {}  # by line: whether it is alone there, and its words
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            comments[row] = (not token.line[:column].strip(), token.string.lstrip("# "))
    fields = []
    for row, line in enumerate(text.splitlines(), 1):
        code = line[: line.index("#")] if row in comments and not comments[row][0] else line
        found = re.match(r"    (\w+)\.(\w+) = (.+?)\s*$", code)
        if not found or (row in comments and comments[row][0]):
            continue
        above, i = [], row - 1
        while comments.get(i, (False, ""))[0]:
            above.insert(0, comments[i][1])
            i -= 1
        part, name, default = found.groups()
        meaning = " ".join([*above, *([comments[row][1]] if row in comments else [])])
        is_part = default.endswith("ConfigDict()")
        fields.append(Field(name if part == "config" else f"{part}.{name}", "" if is_part else default, meaning))
    return fields


def fields_page() -> str:
    """Every field in a table of its part."""
    out = [
        "# Config fields\n",
        "`--config FILE` names a config; `--config.x.y=VALUE` sets a field of it. A file of `configs/` starts from",
        "these defaults and changes some; a name that is not here is refused, with the nearest that is. Empty fields",
        "say in words what stands in for them.\n",
        "## The run",
    ]
    table = ["", '<div class="fields" markdown>', "", "| field | default | meaning |", "|---|---|---|"]
    out += table
    for field in read_fields((ROOT / "tljax" / "settings" / "fields.py").read_text(encoding="utf-8")):
        if not field.default:
            out += ["", "</div>", "", f"## {field.name}", "", _plain(field.meaning), *table]
            continue
        default = re.sub(r"placeholder\(\w+\)|^\"\"$|^\(\)$", "", field.default)
        shown = f"`{default}`" if default else "empty"
        anchor = f'<span id="{field.name}"></span>'
        out.append(f"| {anchor}`{field.name}` | {shown} | {_plain(field.meaning)} |")
    return "\n".join([*out, "", "</div>", ""])


def _plain(words: str) -> str:
    """As Markdown that shows these words, within a table, too."""
    return html.escape(words, quote=False).replace("|", "\\|").replace("*", "\\*")


def commands() -> list[str]:
    """The modules that are commands for people: `python -m tljax.X --help` says something."""
    files = {file.stem: file for file in (ROOT / "tljax").glob("*.py")}
    files |= {file.parent.name: file for file in (ROOT / "tljax").glob("*/__main__.py")}
    texts = {name: file.read_text(encoding="utf-8") for name, file in sorted(files.items())}
    return [
        name for name, text in texts.items() if '"__main__"' in text and re.search("OneLineParser|FlagValues", text)
    ]


def help_of(command: str, *parts: str) -> str:
    """What a command says of itself."""
    env = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    args = [sys.executable, "-m", f"tljax.{command}", *parts, "--help"]
    said = subprocess.run(args, capture_output=True, text=True, check=True, env=env, cwd=ROOT).stdout
    return said.replace(f"{ROOT}{os.sep}", "").strip()


def commands_page() -> str:
    """What `--help` prints, command by command."""
    out = [
        "# Commands\n",
        "What `--help` prints. A command ends with 0; with 1 if what it was asked about failed (no picture could",
        "be read, a study's runs failed); with 2 and one line after a mistake in what was asked, or where a disk takes",
        "no more; with 75 where another process of the same run is gone; with 128 plus the signal that ended it.\n",
    ]
    names = sorted(commands(), key=lambda name: (name != "main", name))
    for name in names:
        out += [f"## tljax.{name}\n", "```text", help_of(name), "```\n"]
        if name == "study":
            out += ["```text", help_of(name, "run"), "```\n"]
    return "\n".join(out)


def page_from(path: Path, pages: set[str]) -> str:
    """A page that lies outside of docs/; links to what is not on the site become words."""

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        if target.startswith("https:"):
            return found[0]
        there = os.path.relpath(path.parent / target.partition("#")[0], ROOT / "docs")
        return f"[{words}]({there})" if there in pages else words

    return LINK.sub(link, path.read_text(encoding="utf-8"))


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook and what it gives, as Markdown, and its pictures by name."""
    from nbconvert import MarkdownExporter

    from tools.notebooks import executed

    exporter: Any = MarkdownExporter()
    text, resources = exporter.from_notebook_node(executed(path), {"output_files_dir": f"{path.stem}_files"})
    return text, {name: bytes(data) for name, data in resources["outputs"].items()}


def on_files(files: "Files", *, config: Any) -> "Files":
    """Adds what is written here to the site's pages."""
    from mkdocs.structure.files import File

    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        text, pictures = notebook_page(Path(notebook.abs_src_path or ""))
        files.append(File.generated(config, notebook.src_uri.removesuffix(".ipynb") + ".md", content=text))
        folder = os.path.dirname(notebook.src_uri)
        for name, data in pictures.items():
            files.append(File.generated(config, os.path.join(folder, name), content=data))
    files.append(File.generated(config, "reference/config.md", content=fields_page()))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    pages = {file.src_uri for file in files if file.is_documentation_page()} | set(ELSEWHERE)
    for uri, path in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=page_from(path, pages)))
    return files


def on_page_markdown(markdown: str, **others: Any) -> str:
    """Leads links to notebooks to the pages they became."""
    del others
    return re.sub(r"(\]\((?!\w+:)[^)#\s]+)\.ipynb(?=[)#])", r"\1.md", markdown)


def on_post_page(output: str, *, page: Any, **others: Any) -> None:
    """Refuses a page that fetches something from elsewhere when it is looked at."""
    from mkdocs.exceptions import PluginError

    del others
    if found := fetched(output):
        raise PluginError(f"{page.file.src_uri} fetches {found} when it is looked at")


def fetched(page: str) -> str:
    """What an HTML page loads from elsewhere by itself, the first of it; empty for nothing."""
    found = re.search(r"""<(?!a\s)\w+\s[^>]*(?:src|href)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""", page)
    return found[1] if found else ""
