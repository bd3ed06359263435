"""The catalog: every metric has one row, no other module spells its names, and a person may type any of them."""

import ast
import re
from pathlib import Path

import pytest

import heldout
from heldout.cli.metrics import metric_entries
from heldout.errors import MetricError
from heldout.metrics.catalog import (
    BUILT_IN,
    PLANNED,
    agent_metric,
    find,
    label,
    pass_at,
    resolve,
)
from heldout.metrics.metric import Metric

SOURCE = Path(next(iter(heldout.__path__)))
SINGLE = [row for row in BUILT_IN if isinstance(row, Metric)]
RUN = [row.name for row in SINGLE] + [pass_at(k) for k in (1, 2, 16)] + ["eval/reward/pass_power_2", "agent/tools_used"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("eval/turns/mean", "eval/turns/mean"),
        ("turns", "eval/turns/mean"),
        ("turns a rollout", "eval/turns/mean"),
        ("turns/mean", "eval/turns/mean"),
        ("pass@1", "eval/reward/pass_at_1"),
        ("pass_at_1", "eval/reward/pass_at_1"),
        ("success rate (pass@1)", "eval/reward/pass_at_1"),
        ("Success Rate", "eval/reward/pass_at_1"),
        ("pass@16", "eval/reward/pass_at_16"),
        ("pass^2", "eval/reward/pass_power_2"),
        ("mean", "eval/reward/mean"),
        ("mean reward", "eval/reward/mean"),
        ("mean_reward", "eval/reward/mean"),
        ("std", "eval/reward/std"),
        ("agent: tools used", "agent/tools_used"),
        ("tools_used", "agent/tools_used"),
        ("log-probability a token", "eval/logprob/nz_mean"),
        ("evaluation time", "timing_s/eval"),
    ],
)
def test_a_metric_may_be_named_as_on_the_wire_or_as_tables_and_reports_show_it(typed: str, meant: str) -> None:
    assert resolve(typed, RUN) == meant


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("pas@1", "pass@1"), ("turn", "turns"), ("men reward", "mean reward"), ("eval/turn/mean", "eval/turns/mean")],
)
def test_a_wrong_name_gives_the_nearest_valid_one(typed: str, nearest: str) -> None:
    with pytest.raises(MetricError, match=re.escape(f"metric {typed!r} is not known. Did you mean {nearest!r}?")):
        resolve(typed, RUN)


def test_a_name_like_no_other_is_refused_with_those_there_are() -> None:
    with pytest.raises(MetricError, match=r"metric 'xyz' is not known\. There are: eval/reward/mean, eval/turns/mean"):
        resolve("xyz", ["eval/turns/mean", "eval/reward/mean"])


def test_a_name_that_heldout_and_the_agent_both_use_is_refused_until_it_says_which() -> None:
    known = ["eval/turns/mean", agent_metric("turns")]
    with pytest.raises(MetricError, match="metric 'turns' means 'agent/turns' or 'eval/turns/mean'; write which"):
        resolve("turns", known)
    assert resolve("agent: turns", known) == "agent/turns"
    assert resolve("turns a rollout", known) == "eval/turns/mean"


def test_a_metric_that_the_run_lacks_is_not_meant() -> None:
    with pytest.raises(MetricError, match="'pass@1' is not known"):
        resolve("pass@1", ["eval/reward/mean"])


def test_every_spelling_that_the_catalog_lists_means_its_metric() -> None:
    entries = metric_entries()
    names = [entry.name for entry in entries]
    for entry in entries:
        meant = {spelling: resolve(spelling, names) for spelling in (entry.name, entry.label, *entry.spellings)}
        assert set(meant.values()) == {entry.name}, meant


def test_every_metric_is_described() -> None:
    for entry in metric_entries():
        assert entry.label
        assert entry.meaning[0].isupper()
        assert not entry.meaning.endswith(".")
        assert entry.uses[:2] == ("run", "gate")


def test_a_name_that_the_catalog_lacks_is_shown_without_its_underscores() -> None:
    assert find("eval/other/new_metric") is None
    assert label("eval/other/new_metric") == "other/new metric"


def test_what_can_be_planned_may_be_named_as_tables_show_it() -> None:
    assert resolve("pass@1", PLANNED) == "eval/reward/pass_at_1"
    assert resolve("mean reward", PLANNED) == "eval/reward/mean"


def test_no_other_module_spells_a_metric_that_the_catalog_has() -> None:
    patterns = [
        re.escape(re.sub(r"\{.*", "", entry.name)) for entry in metric_entries() if entry.name.startswith("eval/")
    ]
    spelled = re.compile("|".join(patterns) + "|pass_at_|pass_power_")
    found = [
        f"{path.relative_to(SOURCE)}: {text}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts != ("metrics", "catalog.py")
        for text in texts_in(path)
        if spelled.search(text)
    ]
    assert [text for text in found if "lower(pass_at_1)" not in text] == []  # the example that errors and help give


def texts_in(path: Path) -> list[str]:
    """All texts of a module but its docstrings."""
    tree = ast.parse(path.read_text())
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [node.value for node in constants if isinstance(node.value, str) and id(node) not in documentation]
