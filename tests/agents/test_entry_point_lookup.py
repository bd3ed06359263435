"""The check of an entry point before any of its code runs."""

from pathlib import Path

import pytest

from heldout.agents.entry_point_lookup import check_entry_point
from heldout.errors import ReferenceProblem


@pytest.mark.parametrize(
    "source",
    [
        "def solve(payload): ...",
        "async def solve(payload): ...",
        "class solve: ...",
        "solve = make()",
        "solve: object = make()",
        "first, solve = make()",
        "from elsewhere import solve",
        "from elsewhere import play as solve",
        "from elsewhere import *",
        "def __getattr__(name): ...",
        "try:\n    from fast import solve\nexcept ImportError:\n    def solve(payload): ...",
        "if True:\n    pass\nelse:\n    with open('x') as f:\n        solve = f",
        "with open('x') as solve:\n    pass",
        "for solve in makers if makers else []:\n    pass",
        "if this if that else other:\n    def solve(payload): ...",
        "try:\n    make()\nexcept* OSError:\n    def solve(payload): ...",
        "match kind:\n    case 'fast':\n        def solve(payload): ...",
        "raise SystemExit('run me and I say no')\ndef solve(payload): ...",
    ],
)
def test_a_name_that_a_file_binds_is_found_without_running_it(tmp_path: Path, source: str) -> None:
    (tmp_path / "maths.py").write_text(source)
    check_entry_point("maths.py:solve", working_directory=tmp_path)


@pytest.mark.parametrize("source", ["", "def f():\n    solve = 1", "print(solve)", "solve.x = 1", "import x.solve"])
def test_a_name_that_a_file_only_mentions_is_not_found(tmp_path: Path, source: str) -> None:
    (tmp_path / "maths.py").write_text(source)
    with pytest.raises(ReferenceProblem, match=r"maths\.py has no function 'solve'"):
        check_entry_point("maths.py:solve", working_directory=tmp_path)


def test_modules_are_found_in_the_working_directory_without_importing_their_packages(tmp_path: Path) -> None:
    (tmp_path / "pack" / "inner").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("raise ValueError('imported')")
    (tmp_path / "pack" / "inner" / "agent.py").write_text("def solve(payload): ...")
    check_entry_point("pack.inner.agent:solve", working_directory=tmp_path)
    check_entry_point("json:loads", working_directory=tmp_path)


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("math.py:slove", "agent 'math.py:slove' not found: math.py has no function 'slove'. Did you mean 'solve'?"),
        (
            "maht.py:solve",
            "agent 'maht.py:solve' not found: there is no file maht.py in {folder}. Did you mean 'math.py'?",
        ),
        ("no/such.py:solve", "agent 'no/such.py:solve' not found: there is no file no/such.py in {folder}."),
        ("pack.x:solve", "agent 'pack.x:solve' not found: there is no module pack in {folder} or installed"),
        ("__main__:solve", "agent '__main__:solve' not found: there is no module __main__ in {folder} or installed"),
        ("json.x:solve", "agent 'json.x:solve' not found: there is no module json.x in {folder} or installed"),
        ("bad.py:solve", "agent 'bad.py:solve' cannot be imported: SyntaxError: expected ':' (bad.py:2)"),
        (
            "math.py",
            "agent 'math.py' is not an entry point; expected file.py:function or package.module:function, as in math.py:FUNCTION",
        ),
        (
            "math:",
            "agent 'math:' is not an entry point; expected file.py:function or package.module:function, as in agent.py:solve",
        ),
    ],
)
def test_a_wrong_entry_point_gets_one_line_with_the_way_out(tmp_path: Path, entry_point: str, message: str) -> None:
    (tmp_path / "math.py").write_text("def solve(payload): ...")
    (tmp_path / "bad.py").write_text("\ndef solve(payload) ...")
    with pytest.raises(ReferenceProblem) as raised:
        check_entry_point(entry_point, working_directory=tmp_path)
    assert str(raised.value) == message.format(folder=tmp_path)
