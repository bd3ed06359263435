"""Everything that is shown while an evaluation plays and when it ends fits a terminal of 80 columns, numbers whole."""

from pathlib import Path

from rich.console import RenderableType

from heldout.metrics.settings import MetricSettings
from heldout.report import comparison_tables, live, terminal
from heldout.report.console import plain_console
from heldout.report.run_analysis import analyze
from heldout.runs.comparison import compare_runs
from heldout.runs.progress import Progress
from tests.support.report_runs import Play, written_run

LONG = "the share of moves that the engine of the tournament of 1997 would have played as well"


def lines(shown: RenderableType) -> list[str]:
    console = plain_console(width=80, color_system=None, force_terminal=True)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().splitlines()


def test_a_metric_with_a_long_name_keeps_its_numbers(tmp_path: Path) -> None:
    run = written_run(tmp_path, [[Play(1.0, metrics={LONG: 0.123}), Play(0.0, metrics={LONG: 0.125})]] * 8)
    shown = lines(terminal.results(*analyze(run), title="t", where="w", is_partial=False))
    assert max(map(len, shown)) <= 80
    assert any("0.124" in line for line in shown)


def test_a_comparison_shows_every_number(tmp_path: Path) -> None:
    metrics = [{LONG: 0.5}, {LONG: 1.5}]
    base, tuned = (
        written_run(tmp_path / name, [[Play(reward, metrics=metrics[0]), Play(0.0, metrics=metrics[1])]] * 12)
        for name, reward in (("base", 0.0), ("tuned", 1.0))
    )
    shown = lines(comparison_tables.comparison(compare_runs(base, tuned), {}))
    assert max(map(len, shown)) <= 80
    table = shown[: next(place for place, line in enumerate(shown) if "shared prompts" in line)]
    assert "…" not in "".join(table)
    assert any("+0.500" in line and "[" in line for line in shown)


def test_the_live_panel_shows_the_counts_below_its_bar_and_the_step() -> None:
    progress = Progress.of(25_000, 4, MetricSettings(pass_k_values=(1,), success_threshold=1.0), range(25_000))
    progress.scored, progress.step = 12_345, "2 of 2"
    title, bar, counts, *_ = lines(live.panel(progress, "evaluation/base-model-eval"))
    assert title.strip() == "evaluation/base-model-eval (2 of 2)"
    assert "rollouts" not in bar
    assert counts.startswith("rollouts")
    assert "12345/100000" in counts
