"""The one error that a user's input can cause, and how errors are told."""


class UserError(ValueError):
    """Something the user gave does not fit.

    The message is one line that says what is wrong and what would be right. Commands print it after `tljax: ` and
    exit with status 2; a library user catches it like any ValueError.
    """


def one_line(error: BaseException | str) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())
