"""Numbers as papers print them."""

import re


def number(text: str) -> float:
    """The value of a number as printed; percentages become shares: '91.576 %' -> 0.91576."""
    value = float(re.sub(r"[%\s]", "", text))
    return value / 100 if "%" in text else value


def rounding(text: str) -> float:
    """Half a unit of the last digit printed: '91.576 %' -> 0.000005."""
    digits = re.sub(r"[%\s]", "", text).partition(".")[2]
    return 0.5 * 10.0 ** -len(digits) / (100 if "%" in text else 1)
