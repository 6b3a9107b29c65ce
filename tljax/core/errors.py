"""The one error that a user's input can cause, and how errors are told."""

from collections.abc import Sequence


class UserError(ValueError):
    """Something the user gave does not fit.

    The message is one line that says what is wrong and what would be right. Commands print it after `tljax: ` and
    exit with status 2; a library user catches it like any ValueError. What cannot be printed, such as the line break
    in the name of a folder, is escaped.
    """

    def __init__(self, message: str):
        super().__init__(shown(message))


def one_line(error: BaseException | str) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())


def shown(name: str) -> str:
    """A name on one line: as it is, but what cannot be printed escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)


def told(value: object) -> str:
    """A value as a message shows it: its `repr`, of a long one the first 60 characters."""
    try:
        words = one_line(repr(value))
    except Exception:  # whatever somebody's class raises; Python, for a number of over 4,300 digits
        words = f"a value of type {type(value).__name__}"
    return words if len(words) <= 60 else f"{words[:57]}..."


def shorten(parts: Sequence[str], limit: int) -> str:
    """'a, b', and of more than `limit` 'a, b and 3 more'."""
    return ", ".join(parts[:limit]) + (f" and {len(parts) - limit} more" if len(parts) > limit else "")


def counted(count: int, noun: str) -> str:
    """'1 image', '1,200 images', '3 classes'."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def are(count: int) -> str:
    """The verb of so many: 'is' or 'are'."""
    return "is" if count == 1 else "are"


def few(names: Sequence[str], most: int = 5) -> str:
    """Names in quotes on a line, and how many more there are."""
    return shorten([repr(name) for name in names], most)
