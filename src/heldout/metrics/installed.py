"""Metrics of installed packages, found through the entry points of the group `heldout.metrics`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from heldout.errors import MetricError, shown
from heldout.metrics.metric import Absent, Family, Metric, MetricTables, Result

ENTRY_POINT_GROUP = "heldout.metrics"


def installed_rows() -> Iterator[tuple[str, Metric | Family]]:
    """The `module:NAME` and the row of each entry point, in the order of the entry points' names.

    A function of such a row that raises makes its own metric absent, with the error as the reason.
    Raises MetricError when an entry point cannot be loaded or is neither a Metric nor a Family.
    """
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        yield entry.value, _loaded(entry)


def _loaded(entry: EntryPoint) -> Metric | Family:
    try:
        row = entry.load()
    except Exception as error:  # other people's module: what it raises on import is theirs
        raise MetricError(
            f"metric {shown(entry.value)} cannot be loaded ({type(error).__name__}: {error}); correct or uninstall its package"
        ) from error
    if isinstance(row, Metric):
        return _guarded(row)
    if isinstance(row, Family):
        return replace(row, member=partial(_guarded_member, row.member))
    raise MetricError(
        f"metric {shown(entry.value)} is {shown(row)}; it must be a heldout.metrics.metric.Metric or Family"
    )


def _guarded_member(member: Callable[[str], Metric], value: str) -> Metric:
    return _guarded(member(value))


def _guarded(metric: Metric) -> Metric:
    return replace(metric, compute=partial(_compute_guarded, metric))


def _compute_guarded(metric: Metric, tables: MetricTables) -> Result:
    try:
        return metric.compute(tables)
    except Exception as error:  # noqa: BLE001  # other people's function: a run's other numbers must not be lost with it
        return Absent(f"its function raised {type(error).__name__}: {error}")
