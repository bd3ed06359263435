"""The report page of one run, and the parts that the comparison page shows per run."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from heldout.metrics.catalog import MEAN_REWARD, RESPONSE_TOKENS, SUCCESS_RATE, TURNS, pass_at, pass_power
from heldout.metrics.failures import FailureReason
from heldout.metrics.table import FloatArray, Groups
from heldout.report.charts import Series, histogram, interval_bar, pass_curves, rate_bars, share_bar
from heldout.report.finding import Weight
from heldout.report.labels import label, shown, shown_interval
from heldout.report.numbers import interval_text, number, percent
from heldout.report.page_records import Chart, FindingCard, Page, PolicySection, RescoringCard, Row, Tile
from heldout.report.policy_view import PolicyView
from heldout.report.sanitizing import one_line, visible
from heldout.report.slices import Slice
from heldout.report.terminal import incomplete_lines
from heldout.report.worth_reading import choose

_LABEL_CHARACTERS = 90
_SHOWN_DISAGREEMENTS = 3
"""How many disagreements of each scorer are among the trajectories worth reading."""
_LISTED_DISAGREEMENTS = 10
_WEIGHT_WORDS = {Weight.DOUBT: "doubt", Weight.PATTERN: "pattern", Weight.NOTE: "note"}


def run_page(view: PolicyView) -> Page:
    """The page of one run."""
    summary = view.summary
    headline, sentences = _verdict(view)
    return Page(
        title=visible(view.title),
        kicker=f"{summary.num_prompts:,} prompts, {view.rows.num_rollouts:,} rollouts",
        headline=headline,
        tone="even",
        summary=sentences,
        notes=partial_notes([view]),
        tiles=_tiles(view),
        changes=[],
        charts=[*charts([view]), _prompt_chart(view)],
        gained=[],
        lost=[],
        policies=[section(view, rescored_disagreements(view))],
    )


def section(view: PolicyView, disagreements: list[tuple[str, str]]) -> PolicySection:
    reading = choose(view.rows, view.findings, disagreements)
    return PolicySection(
        name=view.name,
        style=view.style,
        facts=view.facts(),
        card=view.card(),
        findings=[
            FindingCard(
                _WEIGHT_WORDS[finding.weight], visible(finding.seen), visible(finding.advice), finding.trajectory_ids
            )
            for finding in view.findings
        ],
        failures=[
            Row(
                (_reason(reason), f"{reason.count:,}", percent(reason.count / view.rows.num_rollouts)),
                share_bar(reason.count / view.rows.num_rollouts, "failed"),
                visible(reason.hint),
            )
            for reason in view.failures()
        ],
        slices=[(column, [_slice_row(part, view.style) for part in parts]) for column, parts in view.slices()],
        rescorings=_rescorings(view),
        metrics=_metric_rows(view),
        reading=reading,
    )


def _reason(reason: FailureReason) -> str:
    """`agent: raised; 3 of 4: KeyError: 'answer'`."""
    kind = f"{reason.boundary}: {reason.kind}"
    if not reason.message:
        return visible(kind)
    share = "all" if reason.count == reason.message_count else f"{reason.message_count:,} of {reason.count:,}"
    return visible(f"{kind}; {share}: {reason.message}")


def charts(views: Sequence[PolicyView]) -> list[Chart]:
    """Draw each chart with all policies."""

    def series(values: Sequence[FloatArray]) -> list[Series]:
        return [Series(view.name, view.style, v) for view, v in zip(views, values, strict=True)]

    rows = [view.rows for view in views]
    threshold = views[0].settings.success_threshold
    return [
        Chart(
            "Rewards",
            "The share of scored rollouts at each reward.",
            histogram(series([r.reward for r in rows]), label="reward", threshold=threshold),
        ),
        Chart(
            "More tries, and every try",
            "Upper: at least one of k rollouts succeeds (pass@k). Lower: all k do (pass^k). Bands are intervals.",
            pass_curves([curve for view in views for curve in view.curves]),
        ),
        Chart(
            "Turns",
            "Model calls of each rollout; a pile at the right end is usually a limit.",
            histogram(series([r.turns.astype(np.float64) for r in rows]), label="turns"),
        ),
        Chart(
            "Tokens",
            "Response tokens of each rollout, all turns together.",
            histogram(series([r.response_tokens for r in rows]), label="response tokens"),
        ),
    ]


def partial_notes(views: Sequence[PolicyView]) -> list[str]:
    partial = [
        f"{view.name}: partial, the run is {view.run.state.status}"
        + (f"; {view.summary.missing:,} rollouts have not been played" if view.summary.missing else "")
        for view in views
        if view.is_partial
    ]
    incomplete = [f"{view.name}: {visible(line)}" for view in views for line in incomplete_lines(view.summary)]
    return [*partial, *incomplete]


def rescored_disagreements(view: PolicyView) -> list[tuple[str, str]]:
    """Choose the rollouts on which a scorer and the reward disagree most: reward hacking shows there."""
    found = [
        (
            one["trajectory_id"],
            f"reward {number(one['reward'])}, but {rescoring.scorer} scores it {number(one['score'])}",
        )
        for rescoring in view.rescorings()
        for one in rescoring.document["disagreements"][:_SHOWN_DISAGREEMENTS]
        if one["reward"] != one["score"]
    ]
    places = view.rows.places_of([trajectory_id for trajectory_id, _ in found])
    return [named for named, place in zip(found, places, strict=True) if place >= 0]


def _verdict(view: PolicyView) -> tuple[str, list[str]]:
    metrics, intervals = view.summary.metrics, view.summary.intervals
    level = f"{view.summary.confidence:.0%}"
    rate, mean = metrics.get(SUCCESS_RATE), metrics.get(MEAN_REWARD)
    if mean is None:
        return "No rollout counts: there is nothing to say yet", [view.summary.notes.get(MEAN_REWARD, "")]
    reward = f"The {label(MEAN_REWARD)} is {number(mean)} {interval_text(intervals.get(MEAN_REWARD))}".rstrip() + "."
    if not rate:
        return "No rollout succeeded", [reward, *_range(view, SUCCESS_RATE, level)]
    sentences = _range(view, SUCCESS_RATE, level)
    largest = max((k for curve in view.curves for k in curve.k), default=1)
    at, power = (curve.values[-1] if curve.k else None for curve in view.curves)
    if largest > 1 and at is not None and power is not None:
        sentences.append(
            f"At least one of {largest} tries solves {percent(at)} of the prompts (pass@{largest}), and all {largest} "
            f"solve {percent(power)} (pass^{largest})."
        )
    return f"{percent(rate)} of rollouts succeed", [*sentences, reward]


def _range(view: PolicyView, metric: str, level: str) -> list[str]:
    interval = view.summary.intervals.get(metric)
    if interval is None:
        why = visible(view.summary.no_interval.get(metric, "there is no interval"))
        return [f"{why[:1].upper()}{why[1:]}."]
    return [
        f"On prompts like these, the success rate lies between {percent(interval[0])} and {percent(interval[1])} "
        f"({level} interval, prompts as the unit)."
    ]


def _tiles(view: PolicyView) -> list[Tile]:
    metrics, intervals = view.summary.metrics, view.summary.intervals
    ks = [k for k in view.settings.pass_k_values if pass_at(k) in metrics]
    names = [MEAN_REWARD, SUCCESS_RATE]
    if ks and max(ks) > 1:
        names += [pass_at(max(ks)), pass_power(max(ks))]
    names += [TURNS, RESPONSE_TOKENS]
    return [
        Tile(label(name), shown(name, metrics[name]), shown_interval(name, intervals.get(name)))
        for name in names
        if name in metrics
    ]


def _prompt_chart(view: PolicyView) -> Chart:
    groups = Groups.of(view.rows.prompt_index)
    rates = groups.count(view.rows.is_success) / groups.count()
    return Chart(
        "Prompts",
        "Each bar is a prompt: the share of its rollouts that succeed, the easiest first.",
        rate_bars(
            rates,
            label=f"{groups.num_prompts:,} prompts",
            style=view.style,
            names=[f"prompt {index}" for index in groups.prompt_index],
        ),
        is_wide=True,
    )


def _slice_row(part: Slice, style: str) -> Row:
    picture = Markup() if part.success is None else interval_bar(part.success, part.success_interval, 0, 1, style)
    cells = (
        one_line(part.value, _LABEL_CHARACTERS),
        f"{part.num_prompts:,}",
        f"{part.num_rollouts:,}",
        "–" if part.success is None else percent(part.success),
        shown_interval(SUCCESS_RATE, part.success_interval),
        "–" if part.reward is None else number(part.reward),
    )
    return Row(cells, picture, part.note)


def _metric_rows(view: PolicyView) -> list[tuple[str, str, str, str, str]]:
    summary = view.summary
    names = sorted({*summary.metrics, *summary.notes}, key=lambda name: (name.startswith("agent/"), name))
    return [
        (
            label(name),
            visible(name),
            number(summary.metrics[name]) if name in summary.metrics else "–",
            interval_text(summary.intervals.get(name)),
            visible(summary.notes.get(name, "")),
        )
        for name in names
    ]


def _rescorings(view: PolicyView) -> list[RescoringCard]:
    cards = []
    for rescoring in view.rescorings():
        document, confusion = rescoring.document, rescoring.document["confusion"]
        if confusion is None:
            continue
        correlation = document["rank_correlation"]
        related = "" if correlation is None else f"; rank correlation {correlation:+.2f}"
        gamed = confusion["only_reward"]
        cards.append(
            RescoringCard(
                scorer=visible(rescoring.scorer),
                headline=f"reward and score agree on {percent(document['agreement'])} of rollouts{related}; on {gamed:,} "
                "only the reward says success",
                confusion=tuple((name.replace("_", " "), int(count)) for name, count in confusion.items()),
                disagreements=[
                    (str(one["trajectory_id"]), number(one["reward"]), number(one["score"]))
                    for one in document["disagreements"][:_LISTED_DISAGREEMENTS]
                ],
            )
        )
    return cards
