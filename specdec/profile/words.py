"""How a profile's figures and names are written, in a terminal and in a page alike."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len, set_cell_size

from specdec.profile.schema import Interval
from specdec.trace import CONTROLS

# What a name or a token may not do to the text around it: steer a terminal, turn its direction, or be unwritable.
_STEERING = [0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_UNSEEN: dict[int, int | str] = {
    **CONTROLS,
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD),
    **{code: f"[U+{code:04X}]" for code in _STEERING},
}


def clean(text: str) -> str:
    """Text that is safe to show: what steers, turns or cannot be written is replaced by a picture of it.

    Tabs and line ends stay.

    Example:
        >>> clean("red\\x1b[31m")
        'red␛[31m'
    """
    return text.translate(_UNSEEN)


def short(text: str, cells: int = 40) -> str:
    """A name on one line and at most so many terminal cells wide; what is cut ends in "..."."""
    line = " ".join(clean(text).split())
    return line if cell_len(line) <= cells else set_cell_size(line, cells - 3).rstrip() + "..."


def share(value: float) -> str:
    """A probability, an entropy: three digits behind the point."""
    return f"{value:.3f}"


def length(value: float) -> str:
    """Tokens a round."""
    return f"{value:.2f}"


def times(value: float) -> str:
    """A speed-up."""
    return f"{value:.2f}x"


def milliseconds(seconds: float) -> str:
    """Without a unit: columns name it."""
    value = 1000 * seconds
    return f"{value:.3f}" if 0 < abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def percent(ratio: float | None) -> str:
    """How far off, with its sign; "-" where that is not known."""
    return "-" if ratio is None else f"{100 * ratio:+.1f} %"


def part(value: float) -> str:
    """A part of a whole, without a sign."""
    return f"{100 * value:.1f} %"


def within(interval: Interval, write: Callable[[float], str] = share) -> str:
    """A figure with its interval; without where there was nothing to resample.

    Example:
        >>> within(Interval(0.8, 0.76, 0.84))
        '0.800 [0.760, 0.840]'
    """
    if interval.low == interval.value == interval.high:
        return write(interval.value)
    low, high = (write(v).rstrip("x") for v in (interval.low, interval.high))
    return f"{write(interval.value)} [{low}, {high}]"


def count(number: int, noun: str) -> str:
    """1 prompt, 1,200 prompts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: float, unit: str = "") -> str:
    """10.7 M, 1.2 G; the unit stands behind the letter."""
    for letter, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.1f} {letter}{unit}"
    return f"{number:.0f} {unit}".rstrip()


def money(value: float) -> str:
    """A price; the profile knows no currency."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def degrees(temperature: float) -> str:
    """A temperature as short as it can be."""
    return f"{temperature:g}"
