"""The report: one small page that says the verdict first, opens offline, and in which nothing a model wrote can run."""

import base64
import hashlib
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from heldout.errors import InputError
from heldout.report.page import write_evaluation_report, write_report
from heldout.rescoring.rescoring import rescore
from heldout.runs.comparison import compare_runs
from heldout.runs.run import Run
from tests.support.browser import needs_browser, tab
from tests.support.report_runs import Play, call, written_run

HOSTILE = (
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "</pre></details></section><script>window.pwned=1</script><!--",
    "<svg/onload=window.pwned=1><style>*{display:none}</style>",
    '<meta http-equiv="refresh" content="0;url=http://127.0.0.1:9/"><base href="http://127.0.0.1:9/">',
    "[click](javascript:window.pwned=1) <a href='javascript:window.pwned=1'>x</a> {{ 7*7 }} {% raw %}",
    "\x00\x1b[2J\x1b]0;owned\x07 \u202egnp.exe\u2066 \U000e0041 \ufeff",
)
GOOD = Play(1.0, ("one", "two"))
BAD = Play(0.0, ("three", "four"))
TAGS = """html head meta title style body a header p svg circle nav fieldset legend label input main section h1 h2 h3 h4
 strong dl div dt dd span table caption thead tbody tr th td figure figcaption line text rect polygon polyline ul li br code
 details summary ol pre footer"""
ATTRIBUTES = """lang charset http-equiv content name class href id viewbox aria-hidden aria-label cx cy r type checked
 tabindex role scope x y x1 x2 y1 y2 width height rx points text-anchor dir open"""


class Page(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(run: Run) -> Page:
    return Page(write_report(run).read_text())


def hostile_run(folder: Path, run_name: str = "base-model-eval") -> Run:
    """A run in which everything that others write is hostile."""
    calls = [call(text, text) for text in HOSTILE]
    thought = {"role": "assistant", "content": HOSTILE[0], "reasoning_content": HOSTILE[2]}
    groups = [
        [Play(0.0, (text, calls[n], thought), hears=text, metrics={HOSTILE[1]: 1.0}, output=text, finish=text), GOOD]
        for n, text in enumerate(HOSTILE)
    ]
    groups[-1][0] = Play(-1.0, ("\n".join(HOSTILE),))
    groups[0][1] = Play(None, (HOSTILE[3],), failure=HOSTILE[1])
    columns = [{HOSTILE[3]: HOSTILE[n % 2]} for n in range(len(HOSTILE))]
    return written_run(folder, groups, prompts=HOSTILE, columns=columns, run_name=run_name)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Run, Run]:
    """A base that half succeeds and a fine-tuned policy that does on all prompts but one."""
    base = written_run(tmp_path / "base", [[GOOD, BAD]] * 12, run_name="base-model-eval")
    tuned = written_run(tmp_path / "tuned", [[GOOD, GOOD]] * 11 + [[BAD, BAD]], run_name="fine-tuned-model-eval")
    return base, tuned


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    text = page_of(written_run(tmp_path / "run", [[GOOD, BAD]] * 6 + [[BAD, BAD]] * 2)).text
    assert text.index("38% of rollouts succeed") < text.index("In pictures")
    assert "At least one of 2 tries solves 75% of the prompts (pass@2), and all 2 solve 0% (pass^2)." in text


def test_an_evaluation_says_whether_fine_tuning_helped_and_who_moved(pair: tuple[Run, Run], tmp_path: Path) -> None:
    compared = compare_runs(*pair)
    page = Page(write_evaluation_report(*pair, compared, tmp_path / "report.html").read_text())
    assert compared.verdict.removeprefix("fine-tuned") in page.text
    assert "11 prompts went better, 1 worse and 0 the same" in page.text
    assert page.text.count("prompt 11") >= 2
    assert "an ordinary rollout of the prompt that lost most by fine-tuned-model-eval" in page.text


def test_every_finding_links_to_a_trajectory_on_the_page(tmp_path: Path) -> None:
    page = page_of(written_run(tmp_path / "run", [[GOOD, Play(0.0, ("look",) * 4)]] * 8))
    links = {str(attributes["href"]) for tag, attributes in page.tags if tag == "a"}
    anchors = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert links <= anchors
    assert any(link.startswith("#t0-") for link in links)


def test_trajectories_are_shown_turn_by_turn_with_their_tool_calls(tmp_path: Path) -> None:
    said = (call("search", {"query": "capital of Peru"}), "It is Lima.")
    text = page_of(written_run(tmp_path / "run", [[Play(1.0, said, hears="Lima, Lima Province")]])).text
    for part in ("search", '"query"', "Lima, Lima Province", "It is Lima.", "turn 1"):
        assert part in text


def test_a_rescoring_is_shown_with_the_rollouts_that_disagree(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[GOOD, BAD]] * 4)
    (tmp_path / "judge.py").write_text("def strict(t):\n    return t.reward if t.prompt_index else 0\n")
    rescore(run, f"{tmp_path / 'judge.py'}:strict")
    text = page_of(run).text
    assert "Rescored by judge-strict" in text
    assert "on 1 only the reward says success" in text
    assert "reward 1.00, but judge-strict scores it 0.000" in text


def test_a_partial_run_is_marked(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[GOOD, BAD], [GOOD]], is_done=False)
    assert "partial, the run is InProgress; 1 rollouts have not been played" in page_of(run).text


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([[GOOD]], "100% of rollouts succeed"),
        ([[BAD]] * 3, "No rollout succeeded"),
        ([[Play(None, (), failure="boom")]] * 3, "No rollout counts"),
    ],
)
def test_runs_at_the_edges_have_a_page(tmp_path: Path, groups: list[list[Play]], said: str) -> None:
    assert said in page_of(written_run(tmp_path / "run", groups)).text


def test_a_run_whose_failures_are_left_out_may_have_nothing_to_say(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [[Play(None, (), failure="boom")]], failed_rollouts="exclude")
    assert "No rollout counts" in page_of(run).text


def test_a_thousand_long_rollouts_stay_under_two_megabytes(tmp_path: Path) -> None:
    rng = random.Random(0)
    long = tuple("<&\"'>" * 2_000 for _ in range(12))
    groups = [
        [Play(rng.random(), long if p == r == 0 or p % 25 == r else ("short", f"{rng.random()}")) for r in range(4)]
        for p in range(250)
    ]
    columns = [{"topic": f"topic {p % 9}", "text": "x" * 5000} for p in range(250)]
    path = write_report(written_run(tmp_path / "run", groups, columns=columns))
    assert path.stat().st_size < 2_000_000


def test_a_report_into_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give the file to write"):
        write_report(written_run(tmp_path / "run", [[GOOD]]), path=tmp_path)


def test_untrusted_text_never_becomes_markup(tmp_path: Path) -> None:
    base, tuned = hostile_run(tmp_path / "base"), hostile_run(tmp_path / "tuned", "fine-tuned-model-eval")
    path = write_evaluation_report(base, tuned, compare_runs(base, tuned), tmp_path / "report.html")
    for page in (page_of(base), Page(path.read_text())):
        assert {tag for tag, _ in page.tags} <= set(TAGS.split())
        assert {name for _, attributes in page.tags for name in attributes} <= set(ATTRIBUTES.split())
        assert all(str(a.get("href", "#")).startswith("#") for _, a in page.tags)
        assert HOSTILE[0] in page.text
        assert "{{ 7*7 }}" in page.text
        assert not re.search(
            r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]", page.text
        )
        assert "⟨U+202E⟩gnp.exe" in page.text


def test_the_pages_policy_allows_its_own_style_and_nothing_else(tmp_path: Path) -> None:
    html = write_report(written_run(tmp_path / "run", [[GOOD]])).read_text()
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html
    assert html.startswith("<!doctype html>")


@needs_browser
async def test_in_a_browser_hostile_output_does_nothing(tmp_path: Path) -> None:
    path = write_report(hostile_run(tmp_path / "run"))
    async with tab(tmp_path / "profile") as page:
        await page.open(path)
        await page.value("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert await page.value("window.pwned === undefined")
        assert await page.value("document.scripts.length + document.images.length + document.styleSheets.length") == 1
        assert await page.value("getComputedStyle(document.querySelector('.trajectory')).display") == "block"
        assert page.complaints == []
        assert page.requests == [path.as_uri()]


@needs_browser
async def test_in_a_browser_the_page_reads_in_light_dark_narrow_and_print(
    pair: tuple[Run, Run], tmp_path: Path
) -> None:
    path = write_evaluation_report(*pair, compare_runs(*pair), tmp_path / "report.html")
    colour = "getComputedStyle(document.body).backgroundColor"
    async with tab(tmp_path / "profile") as page:
        await page.open(path, width=360)
        assert await page.value("document.documentElement.scrollWidth") <= 360
        light = await page.value(colour)
        await page.emulate(scheme="dark")
        assert await page.value(colour) != light
        await page.value("document.getElementById('theme-light').click()")
        assert await page.value(colour) == light
        is_shown = "document.querySelector('.trajectory pre').checkVisibility({contentVisibilityAuto: true})"
        assert not await page.value(is_shown)
        await page.emulate(medium="print")
        await page.becomes(is_shown)


@needs_browser
async def test_in_a_browser_the_page_is_read_by_keyboard(tmp_path: Path) -> None:
    path = write_report(written_run(tmp_path / "run", [[GOOD, Play(0.0, ("look",) * 4)]] * 8))
    async with tab(tmp_path / "profile") as page:
        await page.open(path)
        await page.press("Tab", 9)
        assert await page.value("document.activeElement.className") == "skip"
        await page.value("document.querySelector('.trajectory summary').focus()")
        await page.press("Enter", 13)
        await page.becomes("document.querySelector('.trajectory').open")
        await page.value("document.querySelector('.findings a').focus()")
        await page.press("Enter", 13)
        await page.becomes("location.hash && document.querySelector(location.hash).closest('details').open")
        unnamed = "[...document.querySelectorAll('svg[role=img]')].filter(s => !s.getAttribute('aria-label')).length"
        assert await page.value(unnamed) == 0


def test_failures_are_listed_with_their_message_and_hint_and_an_incomplete_run_with_both_readings(
    tmp_path: Path,
) -> None:
    crash = Play(failure="KeyError: 'answer'")
    text = page_of(written_run(tmp_path / "run", [[GOOD, BAD, crash, GOOD]] * 8)).text
    assert "agent: raised; all: KeyError: 'answer'" in text
    assert "the agent reads a field that is not there" in text
    assert "incomplete: 8 of 32 rollouts failed" in text
    assert "with failed rollouts left out: pass@1 67%" in text


def test_a_comparison_that_cannot_be_made_says_so_first(tmp_path: Path) -> None:
    base = written_run(tmp_path / "base", [[GOOD, BAD]] * 12, run_name="base-model-eval")
    tuned = written_run(tmp_path / "tuned", [[Play(failure="boom")] * 2] * 12, run_name="fine-tuned-model-eval")
    compared = compare_runs(base, tuned)
    text = Page(write_evaluation_report(base, tuned, compared, tmp_path / "report.html").read_text()).text
    assert "Not comparable: 24 of 24 rollouts of fine-tuned-model-eval failed (agent: raised (24), all boom)" in text
    assert "With failed rollouts left out: no prompt has a scored rollout in both runs." in text
