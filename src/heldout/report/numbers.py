"""Numbers as people read them."""


def number(value: float) -> str:
    """A number with three significant digits, more only where they are before the point."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def interval_text(interval: tuple[float, float] | None) -> str:
    """`[low, high]`; empty when there is none."""
    return "" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def percent(value: float) -> str:
    """A share as a whole percentage, with one digit more where a whole one would hide it."""
    return f"{value:.0%}" if value in (0.0, 1.0) or 0.095 <= value <= 0.905 else f"{value:.1%}"
