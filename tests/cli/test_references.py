"""`heldout metrics` and `heldout hyperparameters`: the references, as a table and as JSON."""

import json
import re

import pytest

from heldout.cli import evaluate
from heldout.job.hyperparameters import SPECIFICATIONS, canonical_name


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line prints; it exits with 0."""
    monkeypatch.setattr("sys.argv", ["heldout", *arguments])
    with pytest.raises(SystemExit) as ended:
        evaluate.run_command()
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def test_metrics_are_listed_with_names_unit_range_and_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(monkeypatch, capsys, "metrics")
    assert re.search(r"│ eval/turns/mean +│ turns, from 0 up +│ Mean number of turns", text)
    entries = {one["name"]: one for one in json.loads(printed(monkeypatch, capsys, "metrics", "--json"))}
    assert entries["eval/reward/pass_at_1"] == {
        "name": "eval/reward/pass_at_1",
        "label": "success rate (pass@1)",
        "spellings": ["pass@1", "success rate", "success", "pass_at_1"],
        "unit": "share",
        "range": "0 to 1",
        "direction": "higher is better",
        "meaning": "Share of a prompt's rollouts that succeed, averaged over prompts",
        "uses": ["run", "gate", "comparison", "plan"],
    }
    assert {"eval/reward/pass_at_{k}", "eval/reward/pass_power_{k}", "agent/{name}", "timing_s/eval"} <= entries.keys()


def test_hyperparameters_are_listed_with_spellings_default_range_and_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(monkeypatch, capsys, "hyperparameters")
    assert re.search(r"│ sampling_temperature +│ 0\.0 +│", text)
    entries = json.loads(printed(monkeypatch, capsys, "hyperparameters", "--json"))
    assert [one["name"] for one in entries] == list(SPECIFICATIONS)
    for one in entries:
        assert {canonical_name(spelling) for spelling in one["spellings"]} <= {one["name"]}
        assert one["default"] is not None
        assert one["range"]
        assert one["meaning"]
