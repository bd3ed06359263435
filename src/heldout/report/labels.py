"""Metrics in the words and units of reports, as the catalog has them. Names that agents chose are made safe to show."""

from heldout.metrics import catalog
from heldout.report.numbers import number, percent
from heldout.report.sanitizing import visible


def label(name: str) -> str:
    """The metric's name in reports and comparisons: `success rate (pass@1)`."""
    return visible(catalog.label(name))


def heading(name: str) -> str:
    """The metric's name in the table of a run: `pass@1`."""
    metric = catalog.find(name)
    return label(name) if metric is None else visible(metric.heading)


def is_rate(name: str) -> bool:
    """Whether a metric is a share, shown as a percentage."""
    metric = catalog.find(name)
    return metric is not None and metric.is_share


def shown(name: str, value: float) -> str:
    """A metric's value in its unit."""
    return percent(value) if is_rate(name) else number(value)


def shown_interval(name: str, interval: tuple[float, float] | None) -> str:
    """Both ends in the metric's unit; empty when there is no interval."""
    if interval is None:
        return ""
    return f"{shown(name, interval[0])} to {shown(name, interval[1])}"
