"""Numbers as people read them."""

_LONG = 1e12
"""From here on a number is a power of ten to its reader."""


def number(value: float) -> str:
    """A number with three significant digits, more only where they are before the point; below 1, three decimals."""
    size = abs(value)
    if size >= _LONG:
        return f"{value:.3g}"
    decimals = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{decimals}f}"


def interval_text(interval: tuple[float, float] | None) -> str:
    """`[low, high]`; empty when there is none."""
    return "" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def percent(value: float) -> str:
    """A share as a whole percentage, with one digit more where a whole one would hide it."""
    return f"{value:.0%}" if value in (0.0, 1.0) or 0.095 <= value <= 0.985 else f"{value:.1%}"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{'-' if value < 0 else '+'}{number(abs(value))}"


def signed_interval(interval: tuple[float, float] | None) -> str:
    """Of a difference; empty when there is none."""
    return "" if interval is None else f"[{signed(interval[0])}, {signed(interval[1])}]"
