"""What did the calibration find? Turns its results into the tables and the picture of docs/explanation/statistics.md.

python -m benchmarks.calibration.report [--folder benchmarks/results/calibration] [--docs docs/explanation]
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("svg")
import matplotlib.pyplot as plt

Row = dict[str, Any]
"""One setting of a part of the results."""
_RATE = re.compile(r"rate ([\d.]+), (\d+) rollouts, correlation ([\d.]+)")


def main() -> None:
    """Writes `calibration.svg` and the part of `statistics.md` between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results/calibration"))
    parser.add_argument("--docs", type=Path, default=Path("docs/explanation"))
    options = parser.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in options.folder.glob("*.json")}
    draw(results, options.docs / "calibration.svg")
    page = options.docs / "statistics.md"
    text = page.read_text()
    begin, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n{tables(results)}\n{end}{after}")


def tables(results: dict[str, Any]) -> str:
    """The measured part of the page, as Markdown."""
    rates, rows = results["rates"], {name: part["settings"] for name, part in results.items()}
    minutes = sum(part["cpu_seconds"] for part in results.values()) / 60

    def repeated(title: str, part: str) -> str:
        repeats = results[part]["repeats"]
        error = 100 * 1.96 * (0.95 * 0.05 / repeats) ** 0.5
        played = f"{min(repeats, _most_repeats(part)):,} evaluations a setting, +-{error:.1f} points"
        return f"{title} ({results[part]['date']}, {played})"

    parts = [
        f"Simulated evaluations; Python {rates['versions']['python']}, numpy {rates['versions']['numpy']}, scipy"
        f" {rates['versions']['scipy']}, {minutes:.0f} minutes of one core. Each title has the date, the number of"
        " evaluations and how precisely these know a coverage of 95%.",
        repeated("Success rates", "rates") + ".",
        _rates_table(rows["rates"]),
        _coverage_table(
            repeated("Mean rewards", "rewards"),
            rows["rewards"],
            key=lambda row: row["name"],
            columns=("coverage", "width", "clustered", "no_interval"),
        ),
        _coverage_table(
            repeated("pass@k and pass^k", "pass_k"), rows["pass_k"], key=lambda row: row["name"].split(",")[0]
        ),
        _coverage_table(
            repeated("Prompts that always or never succeed", "mixtures"),
            rows["mixtures"],
            key=lambda row: row["name"].rsplit(", ", 1)[0],
        ),
        _coverage_table(
            repeated("Success rates when difficulty is not beta-distributed", "other_difficulty"),
            rows["other_difficulty"],
            key=lambda row: f"{row['name'].split(',')[0]}, rate {_setting(row)[0]:g}",
        ),
        _size_table(rows["size"], results["size"]["repeats"]),
        *(
            _coverage_table(
                repeated(title, part),
                rows[part],
                key=lambda row: row["name"].split(", correlation")[0],
                columns=("coverage", "false_pass", "width", "flips_coverage", "flips_width"),
            )
            for part, title in (
                ("difference", "Intervals of a true difference"),
                ("edges", "Intervals of a true difference near 0 and 1"),
                ("moves", "Intervals of a true difference of two deterministic policies"),
            )
        ),
        _power_table(rows["power"]),
        *([_looking_table(rows["looking"])] if "looking" in rows else []),
    ]
    return "\n\n".join(parts)


def _most_repeats(part: str) -> int:
    """Parts whose settings cost much are played at most this often."""
    return 4_000 if part in ("rates", "rewards", "size") else 2_000


def _rates_table(rows: list[Row]) -> str:
    lines = [
        "**Success rates**, rates 0.01 to 0.99, 1 to 64 rollouts a prompt, correlation 0 to 0.9, beta-distributed difficulty:",
        "",
        "| prompts | settings | lowest coverage | mean coverage | settings below 94% | mean width, rates 0.1 to 0.9 | widest |"
        " lowest coverage, clustered SE | lowest coverage, naive SE |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for num_prompts, group in _by(rows, lambda row: row["num_prompts"]).items():
        coverage = np.array([row["coverage"] for row in group])
        width = np.array([row["width"] for row in group if 0.1 <= _setting(row)[0] <= 0.9])
        lines.append(
            f"| {num_prompts} | {len(group)} | {coverage.min():.3f} | {coverage.mean():.3f} | {(coverage < 0.94).sum()} |"
            f" {width.mean():.3f} | {width.max():.3f} | {min(row['clustered'] for row in group):.3f} |"
            f" {min(row['naive'] for row in group):.3f} |"
        )
    low = sorted((row for row in rows if row["num_prompts"] >= 30), key=lambda row: float(row["coverage"]))[:5]
    lines += ["", "The five lowest with 30 prompts or more: " + "; ".join(_named(row) for row in low) + "."]
    wide = sorted((row for row in rows if 0.1 <= _setting(row)[0] <= 0.9), key=lambda row: -float(row["width"]))[:5]
    widest = "; ".join(f"{row['name']}, {row['num_prompts']} prompts: {row['width']:.2f}" for row in wide)
    return "\n".join([*lines, "", f"The five widest with rates 0.1 to 0.9: {widest}."])


def _coverage_table(
    title: str,
    rows: list[Row],
    *,
    key: Callable[[Row], str],
    columns: tuple[str, ...] = ("coverage", "width"),
) -> str:
    """Lowest coverage and mean of the other columns, by key and number of prompts."""
    sizes = sorted({row["num_prompts"] for row in rows})
    shown = {
        "coverage": "lowest coverage",
        "width": "mean width",
        "clustered": "clustered SE",
        "no_interval": "share without an interval (left out before)",
        "false_pass": "most false passes of a gate",
        "flips_coverage": "sign-flip alone: lowest coverage",
        "flips_width": "mean width",
    }
    lines = [
        f"**{title}**; for each number of prompts: {', '.join(shown[column] for column in columns)}",
        "",
        "| | " + " | ".join(f"{size} prompts" for size in sizes) + " |",
        "| --- |" + " --- |" * len(sizes),
    ]
    for name, group in _by(rows, key).items():
        cells = []
        for size in sizes:
            same = [row for row in group if row["num_prompts"] == size]
            pick: dict[str, Callable[[list[float]], float]] = {
                "coverage": min,
                "width": _mean,
                "clustered": min,
                "no_interval": max,
                "false_pass": max,
                "flips_coverage": min,
                "flips_width": _mean,
            }
            cells.append(
                " / ".join(f"{pick[column]([row[column] for row in same]):.3f}" for column in columns) if same else ""
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _size_table(rows: list[Row], repeats: int) -> str:
    lines = [
        f"**False alarms of the comparison at 5%**, two equally good policies, {repeats:,} evaluations a setting; settings"
        " in which at least 99% of the evaluations have enough prompts that differ, and the rest:",
        "",
        "| prompts | rollouts | settings | lowest | mean | highest | too discrete: settings | highest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (num_prompts, size), group in _by(rows, lambda row: (row["num_prompts"], _setting(row)[1])).items():
        able = [row["rejected"] for row in group if row["can_reject"] >= 0.99]
        other = [row["rejected"] for row in group if row["can_reject"] < 0.99]
        shown = f"{min(able):.3f} | {np.mean(able):.3f} | {max(able):.3f}" if able else " | | "
        lines.append(
            f"| {num_prompts} | {size} | {len(able)} | {shown} | {len(other)} | {f'{max(other):.3f}' if other else ''} |"
        )
    return "\n".join(lines)


def _power_table(rows: list[Row]) -> str:
    lines = [
        "**Power of plans** made for 0.8*:",
        "",
        "| difference | settings | promised | found, lowest to highest | largest miss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for difference, group in _by(rows, lambda row: row["name"].split(",")[0]).items():
        found = [row["found"] for row in group]
        promised = [row["promised"] for row in group]
        miss = max((row["found"] - row["promised"] for row in group), key=abs)
        lines.append(
            f"| {difference} | {len(group)} | {min(promised):.3f} to {max(promised):.3f} |"
            f" {min(found):.3f} to {max(found):.3f} | {miss:+.3f} |"
        )
    far = sorted(rows, key=lambda row: -abs(row["found"] - row["promised"]))[:4]
    named = "; ".join(
        f"{row['name']}, {row['num_prompts']} prompts: {row['promised']:.3f} and {row['found']:.3f}" for row in far
    )
    return "\n".join([*lines, "", f"Farthest from their promise: {named}."])


def _looking_table(rows: list[Row]) -> str:
    lines = [
        "**The live interval, looked at after every prompt**: share of the evaluations in which some look misses; the first two"
        " must not exceed 0.05:",
        "",
        "| prompts | settings | true rate missed: mean, highest | final rate missed: mean, highest | missed by intervals for"
        " one look: mean, highest | width after the last prompt / width knowing the true error: mean, highest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for num_prompts, group in _by(rows, lambda row: row["num_prompts"]).items():
        cells = [
            f"{_mean([row[column] for row in group]):.{digits}f}, {max(row[column] for row in group):.{digits}f}"
            for column, digits in (("missed", 3), ("missed_final", 3), ("missed_one_look", 3), ("width", 2))
        ]
        lines.append(f"| {num_prompts} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Coverage of every setting of the success rate, ours beside the usual two, and the widths."""
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "heldout", "figure.constrained_layout.use": True})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(3, 2))
    kinds = (("naive", "#c44e52", "rollouts as independent"), ("clustered", "#dd8452", "clustered, normal"))
    rates = results["rates"]["settings"]
    for offset, (column, colour, label) in zip(
        (-0.25, 0.0, 0.25), (*kinds, ("coverage", "#3b75af", "Heldout")), strict=True
    ):
        places = {size: place for place, size in enumerate(sorted({row["num_prompts"] for row in rates}))}
        x = np.array([places[row["num_prompts"]] + offset for row in rates])
        jitter = np.random.default_rng(0).uniform(-0.08, 0.08, len(x))
        left.plot(x + jitter, [row[column] for row in rates], ".", ms=3, color=colour, alpha=0.6, label=label)
    left.axhline(0.95, color="grey", lw=0.8)
    left.axhline(0.94, color="grey", lw=0.8, ls=":")
    left.set_xticks(list(places.values()), [f"{size} prompts" for size in places])
    left.set(ylabel="coverage of 95% intervals", ylim=(0, 1.02), title="Every setting of the success rate")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)
    middle = [row for row in rates if 0.1 <= _setting(row)[0] <= 0.9]
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(middle))
    right.plot(
        [places[row["num_prompts"]] for row in middle] + jitter,
        [row["width"] for row in middle],
        ".",
        ms=3,
        color="#3b75af",
    )
    right.axhline(1.15, color="grey", lw=0.8, ls=":")
    right.set_xticks(list(places.values()), list(places))
    right.set(xlabel="prompts", ylabel="width / width knowing the true error", title="Rates 0.1 to 0.9")
    figure.savefig(path, metadata={"Date": None})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _by(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _setting(row: Row) -> tuple[float, int, float]:
    """Rate, rollouts and correlation from a setting's name."""
    found = _RATE.search(row["name"])
    if found is None:
        raise ValueError(f"setting {row['name']!r} names no rate, rollouts and correlation")
    return float(found[1]), int(found[2]), float(found[3])


def _named(row: Row) -> str:
    rate, size, correlation = _setting(row)
    return f"{row['coverage']:.3f} (rate {rate:g}, {row['num_prompts']} x {size}, correlation {correlation:g})"


if __name__ == "__main__":
    main()
