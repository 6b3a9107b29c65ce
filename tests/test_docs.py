"""What the documentation tells people to type exists."""

import functools
import importlib
import re
import shlex
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pytest

from tljax.settings.fields import get_config
from tools import docs

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
CONFIG = get_config()
PARTS = [name for name in CONFIG if hasattr(CONFIG[name], "keys")]
# What tools/docs.py writes; --strict looks after links to it.
MADE = {"reference/config.md", "reference/commands.md", "changelog.md", "speed.md"}
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def code_of(page: Path) -> list[str]:
    """Lines and spans of code, lines that end in a backslash joined."""
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^(?: {4,}\S.*\n)+", text, re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", text)
    return [line for block in [*fences, *indented] for line in re.sub(r"\\\n\s*", " ", block).splitlines()] + spans


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    """(X, its words) of every `python -m tljax.X`; what follows a wide gap or a # is a remark."""
    found = []
    for code in code_of(page):
        for name, rest in re.findall(r"python -m tljax\.(\w+)([^|;\n]*)", code):
            words = re.split(r"\s{3,}|\s#\s", rest)[0]
            try:
                found.append((name, shlex.split(words)))
            except ValueError:
                found.append((name, words.split()))
    return found


@functools.cache
def flags_of(name: str, part: str = "") -> frozenset[str]:
    """The flags that a command's --help shows."""
    out = StringIO()
    module = importlib.import_module(f"tljax.{name}")
    main = (importlib.import_module(f"tljax.{name}.__main__") if hasattr(module, "__path__") else module).main
    with redirect_stdout(out), suppress(SystemExit):
        main(["tljax.main", "--help"] if name == "main" else [*filter(None, [part]), "--help"])
    flags = set(re.findall(r"(--?(?:\[no\])?[a-z][\w-]*)", out.getvalue()))
    return frozenset(flag.replace("[no]", "") for flag in flags) | {"--help"}


def fields() -> set[str]:
    inner = {f"{part}.{name}" for part in PARTS for name in CONFIG[part]}
    return inner | set(CONFIG)


def unknown_flags(name: str, words: list[str]) -> list[str]:
    """What among a command's words is neither a flag of it nor a field."""
    if not any((ROOT / "tljax" / file).is_file() for file in (f"{name}.py", f"{name}/__main__.py")):
        return [f"tljax.{name}"]
    wrong = []
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--config."):
            if flag.removeprefix("--config.") not in fields():
                wrong.append(flag)
        elif flag.startswith("--") and flag not in ("--", "--config"):
            part = words[0] if name == "study" and words else ""
            if flag not in flags_of(name, part):
                wrong.append(flag)
    return wrong


def unknown_fields(page: Path) -> list[str]:
    """Names such as `data.x`, or `--config.x`, of no field; `x.y` stands for any."""
    found = []
    for code in code_of(page):
        found += re.findall(r"--config\.([\w.]*\w)=", code)
        found += re.findall(rf"(?<![\w./-])((?:{'|'.join(PARTS)})\.[a-z]\w*)(?=[=,;:)]|\s(?!=)|$)", code)
    return [name for name in found if name not in fields() | {"x.y"} and not name.endswith(".py")]


@each_page
def test_commands_and_flags_exist(page):
    assert [(name, wrong) for name, words in commands_of(page) if (wrong := unknown_flags(name, words))] == []


@each_page
def test_fields_exist(page):
    assert unknown_fields(page) == []


@each_page
def test_config_files_make_targets_and_extras_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for code in code_of(page):
        for file in re.findall(r"\b((?:configs|tools|benchmarks)/\w+\.py)\b", code):
            assert (ROOT / file).is_file() or file == "configs/x.py", file
        for target in re.findall(r"(?:^|\s)make ([a-z]+)\b", code):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        for extras in re.findall(r"\.\[([a-z,]+)\]'", code):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


@each_page
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:", target):
            there = (page.parent / target).resolve()
            made = ROOT / "docs" in there.parents and str(there.relative_to(ROOT / "docs")) in MADE
            assert there.exists() or made, target


def test_every_field_is_on_its_page_with_its_default():
    told = {
        field.name: field for field in docs.read_fields((ROOT / "tljax" / "settings" / "fields.py").read_text("utf-8"))
    }
    assert set(told) == fields()
    assert told["data.val"].default == "0.2"
    assert told["data.val"].meaning == "share of train that becomes validation where the split has none"
    assert told["data.split"].meaning.startswith("official; percentages A/B/C or A/B;")  # the line above it
    page = docs.fields_page()
    assert all(f"`{name}`" in page for name in told if name not in PARTS)


def test_pages_that_fetch_something_are_found():
    assert docs.fetched('<p><a href="https://semver.org">x</a><img src="mark.svg"></p>') == ""
    assert docs.fetched('<script defer src="https://cdn.example/x.js"></script>') == "https://cdn.example/x.js"
    assert docs.fetched('<link rel="stylesheet" href=//fonts.example/css>') == "//fonts.example/css"


def test_the_check_finds_what_is_wrong(tmp_path):
    page = tmp_path / "wrong.md"
    page.write_text(
        "`python -m tljax.predict run --fomat csv` and `python -m tljax.telepathy run`\n\n"
        "    python -m tljax.main --config configs/folder.py \\\n      --config.data.sorce=folder:x --workdirr y\n\n"
        "```bash\npython -m tljax.study run all --seed 3\n```\n`optimizer.rate=3` but `optimizer.lr=3`\n",
        encoding="utf-8",
    )
    found = [wrong for name, words in commands_of(page) for wrong in unknown_flags(name, words)]
    assert sorted(found) == ["--config.data.sorce", "--fomat", "--seed", "--workdirr", "tljax.telepathy"]
    assert unknown_fields(page) == ["data.sorce", "optimizer.rate"]
