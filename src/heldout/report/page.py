"""Writes the report: one HTML file that opens offline, has no scripts, and runs nothing that a model wrote.

The template engine escapes every text from a run. As a second defence, the page's Content-Security-Policy allows only its one
style sheet, by hash: no scripts, event handlers, external links, images or requests.
"""

import base64
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from heldout.errors import InputError
from heldout.job.rollout_ids import short_id
from heldout.metrics.comparison import Comparison
from heldout.report.evaluation_page import evaluation_page
from heldout.report.page_records import Page
from heldout.report.policy_view import PolicyView
from heldout.report.run_page import run_page
from heldout.report.sanitizing import visible
from heldout.report.trajectory_html import readable
from heldout.runs.recordings import RecordedTrajectory
from heldout.runs.run import Run, write_whole

REPORT = "report.html"
_MOST_BYTES = 1_900_000
"""The largest page: it should open at once and fit into an e-mail."""
_MOST_CHARACTERS = 4_000
"""Characters shown of a message at first; halved until the page fits."""
_LEAST_CHARACTERS = 60


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # rewards near 1e308 overflow
def write_report(run: Run, *, training: str | None = None, path: Path | None = None) -> Path:
    """Write the report of one run to `path`, by default `report.html` in its folder. The file appears whole or not at all.

    training: a dataset that the policy was trained on, to search for held-out prompts. Raises RunError when the run holds no
    finished rollout, DatasetError when the training prompts cannot be read, StorageError when it cannot be written.
    """
    with PolicyView(run, "policy", "tuned", training) as view:
        html = _fitted(run_page(view), [view])
    return _written(path or run.folder / REPORT, html)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # rewards near 1e308 overflow
def write_evaluation_report(
    base: Run, fine_tuned: Run, comparison: Comparison, path: Path, *, training: str | None = None
) -> Path:
    """Write the report of two runs and their comparison to `path`. Raises the errors of `write_report`."""
    with ExitStack() as stack:
        views = [
            stack.enter_context(PolicyView(run, name, style, training))
            for run, name, style in (
                (base, visible(comparison.base), "base"),
                (fine_tuned, visible(comparison.fine_tuned), "tuned"),
            )
        ]
        html = _fitted(evaluation_page(views[0], views[1], comparison), views)
    return _written(path, html)


def _written(path: Path, html: str) -> Path:
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; give the file to write, such as {path / REPORT}")
    write_whole(path, html.encode())
    return path


def _fitted(page: Page, views: Sequence[PolicyView]) -> str:
    """Render the page, and cut its messages shorter until it is small enough."""
    played = [
        view.trajectories([one.trajectory_id for one in section.reading])
        for view, section in zip(views, page.policies, strict=True)
    ]
    most = _MOST_CHARACTERS
    while True:
        html = _rendered(page, played, most)
        if len(html.encode()) <= _MOST_BYTES or most <= _LEAST_CHARACTERS:
            return html
        most //= 2


def _rendered(page: Page, played: Sequence[Sequence[RecordedTrajectory]], most: int) -> str:
    reading = [
        (
            section.name,
            [
                readable(trajectory, one.why, f"t{number}-{place}", most)
                for place, (trajectory, one) in enumerate(zip(trajectories, section.reading, strict=True))
            ],
        )
        for number, (trajectories, section) in enumerate(zip(played, page.policies, strict=True))
    ]
    style = files("heldout.report").joinpath("templates/report.css").read_text("utf-8")
    return page_template().render(
        page=page,
        reading=reading,
        anchors=[{shown.trajectory_id: shown.anchor for shown in trajectories} for _, trajectories in reading],
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


@cache
def page_template() -> Template:
    """Compile the page's template once; it takes a tenth of a second."""
    environment = Environment(
        loader=PackageLoader("heldout.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short_id"] = short_id
    return environment.get_template("report.html")
