"""Every metric: one row each, with its names, unit, range, direction and meaning, and the function that computes it.

Tables, reports, gates, comparisons, rankings, MLflow and the reference in the docs read these rows; no other module knows a
metric's wire name, label, unit or direction. To add a metric, write a pure function (see `heldout.metrics.definitions`) and one
row here. A package of your own adds one through the entry point group `heldout.metrics`: each entry names a `Metric` or a
`Family`, as the one of examples/extending/metric does.

Wire names are those of the multi-turn RL evaluation of Amazon SageMaker AI, as its documentation lists them (2026-06);
`agent/` is ours.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby

from heldout.errors import MetricError, did_you_mean, shown
from heldout.metrics import definitions
from heldout.metrics.installed import installed_rows
from heldout.metrics.metric import SHARE, Direction, Family, Metric, MetricTables, Section

MEAN_REWARD = "eval/reward/mean"
SUCCESS_RATE = "eval/reward/pass_at_1"
FIRST_ATTEMPT_SUCCESS = "eval/reward/first_attempt_pass_at_1"
ZERO_REWARD_SHARE = "eval/reward/zero_frac"
TURNS = "eval/turns/mean"
RESPONSE_TOKENS = "eval/tokens/response_mean"
PLANNED = (SUCCESS_RATE, MEAN_REWARD)
"""The metrics for whose difference an evaluation can be planned: `heldout.metrics.planning` knows how these spread."""

_AGENT = "agent/"
_PREFIXES = ("eval/reward/", "eval/turns/", "eval/tokens/", "eval/logprob/", "eval/", _AGENT, "timing_s/")
"""What a person may leave out of a wire name, in the order in which it is added: `mean` is `eval/reward/mean`."""


def pass_at(k: int | str) -> str:
    """The wire name of pass@k."""
    return f"eval/reward/pass_at_{k}"


def pass_power(k: int | str) -> str:
    """The wire name of pass^k."""
    return f"eval/reward/pass_power_{k}"


def agent_metric(name: str) -> str:
    """The wire name of a metric that the agent reports."""
    return _AGENT + name


def _pass_at(k: str) -> Metric:
    is_success_rate = k == "1"
    return Metric(
        name=pass_at(k),
        label="success rate (pass@1)" if is_success_rate else f"pass@{k}",
        short_name=f"pass@{k}",
        aliases=("success rate", "success") if is_success_rate else (),
        meaning="Share of a prompt's rollouts that succeed, averaged over prompts"
        if is_success_rate
        else f"Chance that at least one of {k} rollouts of a prompt succeeds, averaged over prompts",
        compute=lambda tables: definitions.pass_at(tables, int(k)),
        unit=SHARE,
        low=0,
        high=1,
        direction=Direction.HIGHER,
        section=Section.SUCCESS,
        is_hidden_when_absent=True,
        is_compared=True,
    )


def _pass_power(k: str) -> Metric:
    is_pass_at_1 = k == "1"  # the same number, which tables and comparisons show once
    return Metric(
        name=pass_power(k),
        label=f"pass^{k}",
        meaning=f"Chance that all of {k} rollouts of a prompt succeed, averaged over prompts",
        compute=lambda tables: definitions.pass_power(tables, int(k)),
        unit=SHARE,
        low=0,
        high=1,
        direction=Direction.HIGHER,
        section=None if is_pass_at_1 else Section.SUCCESS,
        is_hidden_when_absent=True,
        is_compared=not is_pass_at_1,
    )


def _agent_metric(name: str) -> Metric:
    return Metric(
        name=agent_metric(name),
        # Marked as the agent's: one called `turns` or `reward` cannot be mistaken for what Heldout counted.
        label=f"agent: {name.replace('_', ' ') or '(no name)'}",
        meaning=f"Mean of the metric {name} that the agent reports, over the rollouts that reported it",
        compute=lambda tables: definitions.agent_mean(tables, name),
        unit="",
        section=Section.AGENT,
        is_hidden_when_absent=True,
        is_compared=True,
    )


def _pass_k_values(tables: MetricTables) -> list[str]:
    return [str(k) for k in tables.settings.pass_k_values]


def _agent_names(tables: MetricTables) -> list[str]:
    return sorted(tables.agent_metrics)


BUILT_IN: tuple[Metric | Family, ...] = (
    Family(parameter="k", member=_pass_at, values=_pass_k_values),
    Family(parameter="k", member=_pass_power, values=_pass_k_values),
    Metric(
        name=FIRST_ATTEMPT_SUCCESS,
        label="success rate of first attempts",
        short_name="pass@1 of first attempts",
        meaning="Success rate without second chances: an attempt that the agent or the model failed decides its rollout",
        compute=definitions.first_attempt_success,
        unit=SHARE,
        low=0,
        high=1,
        direction=Direction.HIGHER,
        section=Section.SUCCESS,
        is_hidden_when_absent=True,
    ),
    Metric(
        name=MEAN_REWARD,
        label="mean reward",
        aliases=("reward",),
        meaning="Mean reward of a rollout",
        compute=definitions.mean_reward,
        unit="reward",
        direction=Direction.HIGHER,
        section=Section.REWARDS,
        is_compared=True,
    ),
    Metric(
        name="eval/reward/std",
        label="spread of rewards (std)",
        aliases=("spread of rewards",),
        meaning="Standard deviation of the rewards of all rollouts",
        compute=definitions.std_reward,
        unit="reward",
        low=0,
        section=Section.REWARDS,
    ),
    Metric(
        name=ZERO_REWARD_SHARE,
        label="share of zero rewards",
        meaning="Share of rollouts whose reward is exactly 0",
        compute=definitions.zero_reward_share,
        unit=SHARE,
        low=0,
        high=1,
        direction=Direction.LOWER,
        section=Section.REWARDS,
    ),
    Metric(
        name="eval/reward/min",
        label="lowest reward",
        meaning="Least reward of a rollout",
        compute=definitions.min_reward,
        unit="reward",
        direction=Direction.HIGHER,
    ),
    Metric(
        name="eval/reward/max",
        label="highest reward",
        meaning="Greatest reward of a rollout",
        compute=definitions.max_reward,
        unit="reward",
        direction=Direction.HIGHER,
    ),
    Metric(
        name="eval/reward/mean_within_groups",
        label="mean reward of a prompt",
        meaning="Mean over prompts of the mean reward of a prompt's rollouts",
        compute=definitions.mean_reward_within_groups,
        unit="reward",
        direction=Direction.HIGHER,
    ),
    Metric(
        name="eval/reward/min_within_groups",
        label="lowest reward of a prompt",
        meaning="Mean over prompts of the least reward of a prompt's rollouts",
        compute=definitions.min_reward_within_groups,
        unit="reward",
        direction=Direction.HIGHER,
    ),
    Metric(
        name="eval/reward/max_within_groups",
        label="highest reward of a prompt",
        meaning="Mean over prompts of the greatest reward of a prompt's rollouts",
        compute=definitions.max_reward_within_groups,
        unit="reward",
        direction=Direction.HIGHER,
    ),
    Metric(
        name="eval/reward/std_within_groups",
        label="spread of rewards of a prompt (std)",
        aliases=("spread of rewards of a prompt",),
        meaning="Mean over prompts of the standard deviation of the rewards of a prompt's rollouts",
        compute=definitions.std_reward_within_groups,
        unit="reward",
        low=0,
    ),
    Metric(
        name="eval/reward/succeeded_rollouts",
        label="succeeded rollouts",
        meaning="Rollouts whose reward is at least the success threshold",
        compute=definitions.succeeded_rollouts,
        unit="rollouts",
        low=0,
        direction=Direction.HIGHER,
    ),
    Metric(
        name="eval/reward/failed_rollouts",
        label="failed rollouts",
        meaning="Rollouts that failed for good, by a crash, a timeout or a missing reward; a low reward is no failure",
        compute=definitions.failed_rollouts,
        unit="rollouts",
        low=0,
        direction=Direction.LOWER,
    ),
    Metric(
        name="eval/reward/num_prompts",
        label="prompts",
        meaning="Prompts with at least one finished rollout",
        compute=definitions.num_prompts,
        unit="prompts",
        low=0,
    ),
    Metric(
        name="eval/reward/rollouts_per_prompt",
        label="rollouts a prompt",
        meaning="Finished rollouts over prompts",
        compute=definitions.rollouts_per_prompt,
        unit="rollouts",
        low=0,
    ),
    Metric(
        name="eval/reward/success_threshold",
        label="success threshold",
        meaning="The reward from which a rollout succeeds, as the job sets it",
        compute=definitions.success_threshold,
        unit="reward",
    ),
    Metric(
        name=TURNS,
        label="turns a rollout",
        short_name="turns",
        meaning="Mean number of turns of a rollout; a turn is a model call that was answered, and retries of a call count once",
        compute=definitions.mean_turns,
        unit="turns",
        low=0,
        section=Section.TURNS,
        is_compared=True,
    ),
    Metric(
        name="eval/turns/min",
        label="fewest turns",
        meaning="Fewest turns of a rollout",
        compute=definitions.min_turns,
        unit="turns",
        low=0,
    ),
    Metric(
        name="eval/turns/max",
        label="most turns",
        meaning="Most turns of a rollout",
        compute=definitions.max_turns,
        unit="turns",
        low=0,
    ),
    Metric(
        name="eval/tokens/prompt_mean",
        label="prompt tokens a turn",
        meaning="Mean number of prompt tokens of a turn, over the turns whose count is known",
        compute=definitions.mean_prompt_tokens,
        unit="tokens",
        low=0,
        section=Section.TURNS,
    ),
    Metric(
        name=RESPONSE_TOKENS,
        label="response tokens a turn",
        meaning="Mean number of response tokens of a turn, over the turns whose count is known",
        compute=definitions.mean_response_tokens,
        unit="tokens",
        low=0,
        section=Section.TURNS,
    ),
    Metric(
        name="eval/tokens/response_min",
        label="fewest response tokens",
        meaning="Fewest response tokens of a turn",
        compute=definitions.min_response_tokens,
        unit="tokens",
        low=0,
    ),
    Metric(
        name="eval/tokens/response_max",
        label="most response tokens",
        meaning="Most response tokens of a turn",
        compute=definitions.max_response_tokens,
        unit="tokens",
        low=0,
    ),
    Metric(
        name="eval/tokens/response_std",
        label="spread of response tokens (std)",
        aliases=("spread of response tokens",),
        meaning="Standard deviation of the response tokens of a turn",
        compute=definitions.std_response_tokens,
        unit="tokens",
        low=0,
    ),
    Family(parameter="name", member=_agent_metric, values=_agent_names),
    Metric(
        name="eval/logprob/nz_mean",
        label="log-probability a token",
        meaning="Mean log-probability of a response token, over the tokens whose log-probability is not exactly 0",
        compute=definitions.mean_logprob,
        unit="nats",
        section=Section.LOG_PROBABILITIES,
        is_hidden_when_absent=True,
    ),
    Metric(
        name="eval/logprob/nz_min",
        label="lowest log-probability",
        meaning="Least log-probability of a response token",
        compute=definitions.min_logprob,
        unit="nats",
    ),
    Metric(
        name="eval/logprob/nz_max",
        label="highest log-probability",
        meaning="Greatest log-probability of a response token that is not exactly 0",
        compute=definitions.max_logprob,
        unit="nats",
    ),
    Metric(
        name="eval/logprob/nz_std",
        label="spread of log-probabilities (std)",
        aliases=("spread of log-probabilities",),
        meaning="Standard deviation of the log-probabilities of response tokens that are not exactly 0",
        compute=definitions.std_logprob,
        unit="nats",
        low=0,
    ),
    Metric(
        name="eval/logprob/zero_count",
        label="tokens of log-probability 0",
        meaning="Response tokens whose log-probability is exactly 0",
        compute=definitions.zero_logprob_count,
        unit="tokens",
        low=0,
    ),
    Metric(
        name="eval/logprob/zero_frac",
        label="share of tokens of log-probability 0",
        meaning="Share of response tokens whose log-probability is exactly 0",
        compute=definitions.zero_logprob_share,
        unit=SHARE,
        low=0,
        high=1,
    ),
    Metric(
        name="eval/logprob/zero_per_group",
        label="tokens of log-probability 0 a prompt",
        meaning="Response tokens whose log-probability is exactly 0, over prompts",
        compute=definitions.zero_logprobs_per_prompt,
        unit="tokens",
        low=0,
    ),
    Metric(
        name="timing_s/eval",
        label="evaluation time",
        meaning="Wall-clock time of the evaluation",
        compute=definitions.evaluation_seconds,
        unit="seconds",
        low=0,
    ),
)


@lru_cache(maxsize=1)
def catalog() -> tuple[Metric | Family, ...]:
    """All rows: the built-in ones, then those of installed packages by the names of their entry points.

    Packages are looked for once a process. Raises MetricError when an entry point cannot be loaded, is neither a Metric nor a
    Family, or takes a wire name that another row has.
    """
    rows = list(BUILT_IN)
    for source, row in installed_rows():
        name = pattern(row).name
        if name in {pattern(other).name for other in rows}:
            raise MetricError(
                f"metric {shown(source)} has the wire name {name!r}, which another metric has; a metric needs a name of its own"
            )
        rows.append(row)
    return tuple(rows)


def pattern(row: Metric | Family) -> Metric:
    """The row itself, or the member of a family whose names show where the parameter stands: `pass@{k}`."""
    return row.pattern if isinstance(row, Family) else row


def metrics_of(tables: MetricTables) -> Iterator[Metric]:
    """Every metric that these tables ask for. Families with the same parameter take turns: pass@2, pass^2, pass@4, pass^4."""
    for parameter, group in groupby(catalog(), key=lambda row: row.parameter if isinstance(row, Family) else None):
        if parameter is None:
            yield from (row for row in group if isinstance(row, Metric))
            continue
        families = [row for row in group if isinstance(row, Family)]
        asked = {value: None for family in families for value in family.values(tables)}
        for value in asked:
            yield from (family.member(value) for family in families)


def shown_metrics(names: Iterable[str]) -> list[Metric]:
    """All single metrics, and of each family the members among these wire names, by number or by name; in the catalog's order."""
    given = list(names)
    found: list[Metric] = []
    for row in catalog():
        if isinstance(row, Metric):
            found.append(row)
        else:
            members = (member for name in given if (member := row.find(name)) is not None)
            found += sorted(members, key=lambda member: _natural(member.name))
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts `pass_at_4` before `pass_at_16`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def find(name: str) -> Metric | None:
    """The metric with this wire name; None for one that the catalog does not have, such as of a package that is gone."""
    for row in catalog():
        found = row.find(name) if isinstance(row, Family) else row if row.name == name else None
        if found is not None:
            return found
    return None


def label(name: str) -> str:
    """What reports call the metric with this wire name; a name that the catalog lacks without its underscores."""
    found = find(name)
    return name.removeprefix("eval/").replace("_", " ") if found is None else found.label


def uses(metric: Metric) -> tuple[str, ...]:
    """Where the metric applies: `run` and `gate` always, `comparison` and `plan` for some."""
    further = (("comparison", metric.is_compared), ("plan", metric.name in PLANNED))
    return ("run", "gate", *(use for use, applies in further if applies))


def resolve(typed: str, known: Iterable[str], *, problem: str = "is not known") -> str:
    """The wire name among `known` that a person means by `typed`.

    typed: the wire name, whole or without its first parts (`pass_at_1`, `turns/mean`), or the name that a table or report
    shows (`pass@1`, `turns`, `success rate (pass@1)`, `agent: tools used`). Case, and spaces, hyphens or underscores between
    words, do not matter for the latter.
    problem: what the error says of a name that is none of these.
    Raises MetricError when no metric is meant (with the nearest name), or two are.
    """
    names = list(known)
    if typed in names:
        return typed
    meant = list(dict.fromkeys([*_by_ending(typed, names), *_by_shown_name(typed, names)]))
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise MetricError(f"metric {shown(typed)} means {' or '.join(map(repr, meant))}; write which")
    hint = did_you_mean(typed, _all_spellings(names)) or f" There are: {', '.join(sorted(names))}"
    raise MetricError(f"metric {shown(typed)} {problem}.{hint}")


def spellings(metric: Metric, known: Iterable[str]) -> list[str]:
    """All names that mean this metric among the wire names `known`, the wire name and the label first."""
    names = list(known)
    endings = [metric.name.removeprefix(prefix) for prefix in _PREFIXES if metric.name.startswith(prefix)]
    shortest = [ending for ending in endings if _by_ending(ending, names) == [metric.name]][:1]
    return list(dict.fromkeys((metric.name, metric.label, metric.heading, *metric.aliases, *shortest)))


def _by_ending(typed: str, names: list[str]) -> list[str]:
    return [prefix + typed for prefix in _PREFIXES if prefix + typed in names][:1]


def _by_shown_name(typed: str, names: list[str]) -> list[str]:
    wanted = _folded(typed)
    return [name for name in names if wanted in map(_folded, _shown_names(name))]


def _shown_names(name: str) -> tuple[str, ...]:
    found = find(name)
    return (label(name),) if found is None else (found.heading, found.label, *found.aliases)


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text).strip().casefold()


def _all_spellings(names: list[str]) -> list[str]:
    endings = [name.removeprefix(prefix) for prefix in _PREFIXES for name in names if name.startswith(prefix)]
    return [*endings, *(spelling for name in names for spelling in _shown_names(name)), *names]
