"""Prompts: the dataset is played unchanged, and errors name file and line."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heldout.datasets.files import PromptDataset
from heldout.datasets.order import CHUNK_BYTES
from heldout.datasets.prompts import PROMPTS_SCHEMA, PromptReader, PromptSource, copy_prompts
from heldout.errors import DatasetError, InputError, ReferenceProblem, RunError
from heldout.job.json_values import read_json
from heldout.job.records import Prompt
from tests.support.s3_service import BUCKET, s3_client, s3_service, use_service

Row = dict[str, object]


def as_json_lines(rows: Sequence[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_json(rows: Sequence[Row]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: Sequence[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


WRITERS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    ".jsonl": as_json_lines,
    ".json": as_json,
    ".csv": as_csv,
    ".parquet": as_parquet,
}

# Everything UTF-8 can carry, and more of what tends to go wrong than chance would bring.
texts = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\r\n\t\0\",'\\\ufeff\u2028\U0001f3b2{}[]")),
    min_size=1,
)


def copied(
    tmp_path: Path,
    dataset: Path | str,
    limit: int | None = None,
    seed: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> list[Prompt]:
    source = PromptSource(str(dataset), limit, seed)
    copy_prompts(source, tmp_path / "prompts.parquet", shuffle_chunk_bytes=chunk_bytes)
    reader = PromptReader(tmp_path / "prompts.parquet")
    prompts = list(reader)
    reader.close()
    return prompts


def rows_of(tmp_path: Path, dataset: Path | str, limit: int | None = None) -> list[Prompt]:
    """The prompts in the order of the dataset's rows."""
    return sorted(copied(tmp_path, dataset, limit), key=lambda prompt: prompt.index)


def refusal(tmp_path: Path, dataset: Path | str) -> str:
    """The error line that a dataset ends in; nothing may be left of the copy."""
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    with pytest.raises(InputError) as caught:
        copy_prompts(PromptSource(str(dataset)), run / "prompts.parquet")
    assert list(run.iterdir()) == []
    line = str(caught.value)
    assert "\n" not in line
    return line


def text_file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("suffix", WRITERS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(texts, min_size=1, max_size=8))
def test_every_format_gives_the_same_prompts_back(tmp_path: Path, suffix: str, prompts: list[str]) -> None:
    data = WRITERS[suffix]([{"id": str(number), "prompt": text} for number, text in enumerate(prompts)])
    path = text_file(tmp_path, f"p{suffix}", data)
    expected = [
        Prompt(number, text, json.dumps({"id": str(number)}).replace(" ", "")) for number, text in enumerate(prompts)
    ]
    assert rows_of(tmp_path, path) == expected


def test_the_first_column_is_the_prompt_where_none_is_called_prompt(tmp_path: Path) -> None:
    for suffix, write in WRITERS.items():
        path = text_file(tmp_path, f"p{suffix}", write([{"question": "what?", "answer": "that"}]))
        assert copied(tmp_path, path) == [Prompt(0, "what?", '{"answer":"that"}')]


def test_a_folder_of_mixed_formats_is_read_in_name_order(tmp_path: Path) -> None:
    for number, suffix in enumerate(WRITERS):
        text_file(
            tmp_path, f"part-{number}{suffix}", WRITERS[suffix]([{"prompt": f"{number}a"}, {"prompt": f"{number}b"}])
        )
    text_file(tmp_path, "deeper/x.JSONL", '{"prompt": "deep"}')
    for ignored in ("README.md", ".hidden.jsonl", "_delta_log/0.json", ".git/x.csv", "_SUCCESS"):
        text_file(tmp_path, ignored, "not prompts")
    prompts = rows_of(tmp_path, tmp_path / "data")
    assert [prompt.text for prompt in prompts] == ["deep", "0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"]
    assert [prompt.index for prompt in prompts] == list(range(9))


def test_other_columns_travel_as_json(tmp_path: Path) -> None:
    row = '{"prompt": "p", "n": 123456789012345678901234567890, "é": [1.5, null, {"x": true}], "s": "\\u2028"}'
    path = text_file(tmp_path, "p.jsonl", row)
    expected = json.loads(row)
    del expected["prompt"]
    assert json.loads(copied(tmp_path, path)[0].columns) == expected


def test_parquet_values_that_json_lacks_become_plain_ones(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": pa.array(["p"]).dictionary_encode(),
            "score": [float("nan")],
            "image": [b"\xff\0"],
            "when": pa.array([0], pa.timestamp("ms", "UTC")),
            "price": pa.array([1], pa.decimal128(10, 2)),
            "tags": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    path = tmp_path / "p.parquet"
    pq.write_table(table, path)
    assert json.loads(copied(tmp_path, path)[0].columns) == {
        "score": None,
        "image": "/wA=",
        "when": "1970-01-01T00:00:00+00:00",
        "price": "1.00",
        "tags": [["a", 1]],
    }


def test_parquet_columns_that_python_has_no_values_for_become_text_with_and_without_pandas(tmp_path: Path) -> None:
    at = 1_700_000_000_123_456_789
    table = pa.table(
        {
            "prompt": ["p", "q"],
            "when": pa.array([at, None], pa.timestamp("ns", "UTC")),
            "local": pa.array([at, at], pa.timestamp("ns")),
            "seen": pa.array([[at], []], pa.list_(pa.timestamp("ns"))),
            "took": pa.array([{"ns": 5}, None], pa.struct([("ns", pa.duration("ns"))])),
            "far": pa.array([2**31 - 1, 0], pa.date32()),
            "size": [float("inf"), float("nan")],
            "id": pa.array([2**64 - 1, 0], pa.uint64()),
        }
    )
    path = tmp_path / "p.parquet"
    pq.write_table(table, path)
    script = (
        "from heldout.datasets.arrow import leave_pandas_out; leave_pandas_out()\n"
        "from heldout.datasets.files import PromptDataset\n"
        f"print([prompt.columns for prompt in PromptDataset({str(path)!r})])"
    )
    without_pandas = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    columns = [prompt.columns for prompt in PromptDataset(str(path))]
    assert without_pandas.strip() == str(columns)
    assert read_json(columns[0]) == {
        "when": "2023-11-14T22:13:20.123456789Z",
        "local": "2023-11-14T22:13:20.123456789",
        "seen": ["2023-11-14 22:13:20.123456789"],
        "took": {"ns": "5"},
        "far": "<value out of range: 2147483647>",
        "size": float("inf"),
        "id": 2**64 - 1,
    }
    assert read_json(columns[1])["size"] is None  # type: ignore[index]


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(twice, tmp_path / "p.parquet")
    assert "the file has column 'prompt' twice" in refusal(tmp_path, tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("row", "column", "nearest"),
    [
        ({"prompt": "a", "Prompt": "b"}, "prompt", None),
        ({"question": "a", "answer": "b"}, "question", None),
        ({"id": "1", "Prompt": "a"}, "id", "Prompt"),
        ({"id": "1", "PROMPTS": "a"}, "id", "PROMPTS"),
        ({"promt": "a"}, "promt", None),
    ],
)
def test_the_column_of_the_prompts_is_known_and_a_near_miss_is_named(
    tmp_path: Path, row: Row, column: str, nearest: str | None
) -> None:
    path = text_file(tmp_path, "p.jsonl", as_json_lines([row]))
    count = copy_prompts(PromptSource(str(path)), tmp_path / "out.parquet")
    assert (count.column, count.nearest_column) == (column, nearest)


def test_byte_order_marks_and_empty_lines_are_no_part_of_the_prompts(tmp_path: Path) -> None:
    for name, content in {
        "a.jsonl": '\ufeff{"prompt": "p"}\r\n\r\n',
        "b.json": '\ufeff \n[\n{"prompt": "p"}\n]\n',
        "c.csv": "\ufeffprompt\r\np\r\n\r\n",
    }.items():
        assert copied(tmp_path, text_file(tmp_path, name, content)) == [Prompt(0, "p")]


@pytest.mark.parametrize("suffix", WRITERS)
def test_prompts_of_megabytes_are_read(tmp_path: Path, suffix: str) -> None:
    rows: list[Row] = [{"prompt": letter * 3_000_000 + '\n"é'} for letter in "abc"]
    path = text_file(tmp_path, f"p{suffix}", WRITERS[suffix](rows))
    assert [prompt.text for prompt in rows_of(tmp_path, path)] == [row["prompt"] for row in rows]


def test_a_json_array_may_be_cut_anywhere_by_the_reading(tmp_path: Path) -> None:
    # Rows of many lengths, and a chunk boundary (1 MiB) somewhere in an escape, a number, a literal, a name.
    rows: list[Row] = [
        {"prompt": "\\" * n + "\ud83c\udfb2é\x01", "x": [1e-7, -12.5, True, None]} for n in range(1, 2500)
    ]
    path = text_file(tmp_path, "p.json", json.dumps(rows))
    assert [prompt.text for prompt in rows_of(tmp_path, path)] == [
        "\\" * n + "\N{GAME DIE}é\x01" for n in range(1, 2500)
    ]


ONE_PROMPT: list[Row] = [{"prompt": "a"}]
NUMBER_FIRST: list[Row] = [{"id": 7, "text": "a"}]
NULL_PROMPT: list[Row] = [{"prompt": None}]

# Rows by the keys that the Philox streams of numpy begin with: of key 2**64, and of key 1.
UNSEEDED_ORDER = [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]
SEED_1_ORDER = [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]

JSON_LINE_PROBLEMS = {
    '{"prompt": "a"}\n\nnonsense': "line 3: not JSON (expecting value, column 1)",
    '{"prompt": "a"}\n"a"': "line 2: a string where a row should be a JSON object",
    '{"prompt": "a"}\n["a"]': "line 2: an array where a row should be a JSON object",
    '{"prompt": "a", "x": NaN}': "line 1: not JSON (NaN is not a JSON value)",
    '{"prompt": 5}': "line 1: the prompt (column 'prompt') is a number (5); it must be a string",
    '{"prompt": [{"role": "user"}]}': "line 1: the prompt (column 'prompt') is an array ([{'role': 'user'}]); it must be",
    '{"prompt": true}': "is true or false (True); it must be a string",
    '{"prompt": null}': "line 1: the prompt (column 'prompt') is null; it must be a string",
    '{"prompt": ""}': "line 1: the prompt (column 'prompt') is empty",
    "{}": "line 1: the row has no columns",
    '{"q": "a"}\n{"a": "b", "q": "c"}': "line 2: the prompt would be column 'a', but it is 'q' in the rows before",
    '{"q": "a"}\n{"q": "a", "prompt": "c"}': "line 2: the prompt would be column 'prompt', but it is 'q' in the rows before",
    '{"prompt": "\\ud800"}': "line 1: a string has half of a surrogate pair, which UTF-8 cannot carry",
    '{"prompt": "a", "x": "\\udc00"}': "line 1: a string has half of a surrogate pair, which UTF-8 cannot carry",
}


@pytest.mark.parametrize("content", JSON_LINE_PROBLEMS)
def test_an_error_in_json_lines_names_its_line(tmp_path: Path, content: str) -> None:
    path = text_file(tmp_path, "p.jsonl", content)
    line = refusal(tmp_path, path)
    assert line.startswith(f"dataset file '{path}', line ")
    assert JSON_LINE_PROBLEMS[content] in line


@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_a_row_nested_without_end_is_refused(tmp_path: Path, name: str) -> None:
    path = text_file(tmp_path, name, '[{"prompt":'[name == "p.jsonl" :] + "[" * 100_000)
    assert "line 1: not JSON (maximum recursion depth exceeded" in refusal(tmp_path, path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "p.json",
            '{"prompt": "a"}\n{"prompt": "b"}',
            "line 1: the file is not a JSON array of objects (if it is JSON Lines",
        ),
        ("p.json", '[\n{"prompt": "a"}\n{"prompt": "b"}]', "line 3: '{' where ',' or ']' should follow a row"),
        ("p.json", '[\n{"prompt": "a"},\n{"prompt": b}]', "line 3: not JSON (expecting value"),
        ("p.json", '[{"prompt": "a"},]', "line 1: not JSON (expecting value"),
        ("p.json", '[\n{"prompt": "a"}', "line 2: the file ends where ',' or ']' should follow a row"),
        ("p.json", '[{"prompt": "a"', "line 1: not JSON (expecting ',' delimiter"),
        ("p.json", '[{"prompt": "a"}]\n]', "line 2: ']' after the end of the array"),
        ("p.json", '[\n\n"a"]', "line 3: a string where a row should be a JSON object"),
        ("p.json", b'[{"prompt": "\xff"}]', "line 1 or later: not UTF-8"),
        ("p.json", "[" + " " * 3_000_000 + "nonsense" + "x" * 3_000_000, "line 1: not JSON (expecting value"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', "line 2: not UTF-8"),
        ("p.csv", b"prompt\na\n\xff", "line 3: not UTF-8"),
        ("p.csv", 'prompt,x\n"a\nb",1\nc', "line 4: 1 fields where the header has 2 (is a quote missing?)"),
        ("p.csv", 'prompt\n"a" b', "line 2: not CSV (',' expected after '\"')"),
        ("p.csv", 'prompt\na\n"b', "line 3: not CSV (unexpected end of data)"),
        ("p.csv", "a,prompt,prompt\n1,2,3", "line 1: the header has column 'prompt' twice"),
        ("p.csv", 'prompt,x\n"",1', "line 2: the prompt (column 'prompt') is empty"),
        ("p.parquet", b"PAR1 but not really", "the file: not readable as Parquet ("),
        ("p.parquet", b"", "the file: not readable as Parquet ("),
        (
            "p.parquet",
            as_parquet(ONE_PROMPT * 400 + NULL_PROMPT),
            "row 401: the prompt (column 'prompt') is null",
        ),
        (
            "p.parquet",
            as_parquet(NUMBER_FIRST),
            "row 1: the prompt (column 'id') is a number (7); it must be a string",
        ),
    ],
)
def test_an_error_in_a_file_names_its_line(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    path = text_file(tmp_path, name, content)
    line = refusal(tmp_path, path)
    assert line.startswith(f"dataset file '{path}', {problem}")


def test_parquet_strings_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "p.parquet")
    assert "a string is not UTF-8" in refusal(tmp_path, tmp_path / "p.parquet")


def test_rows_that_differ_in_their_first_column_from_another_file_are_refused(tmp_path: Path) -> None:
    text_file(tmp_path, "a.csv", "question\nq\n")
    text_file(tmp_path, "b.csv", "text\nt\n")
    assert refusal(tmp_path, tmp_path / "data") == (
        f"dataset file '{tmp_path}/data/b.csv', line 2: the prompt would be column 'text', but it is 'question' in the rows "
        "before; name the prompt's column 'prompt' in every row"
    )


def test_a_missing_dataset_names_the_nearest_file(tmp_path: Path) -> None:
    path = text_file(tmp_path, "prompts.jsonl", "")
    assert refusal(tmp_path, path.with_name("promts.jsonl")) == (
        f"dataset '{path.with_name('promts.jsonl')}' not found: there is no such file, and no folder with files. "
        "Did you mean 'prompts.jsonl'?"
    )


def test_compressed_files_are_refused_rather_than_passed_over(tmp_path: Path) -> None:
    text_file(tmp_path, "prompts/a.jsonl", '{"prompt": "a"}')
    packed = text_file(tmp_path, "prompts/b.jsonl.gz", "")
    for dataset in (packed.parent, packed):
        assert refusal(tmp_path, dataset).startswith(f"dataset file '{packed}' is compressed; decompress it")


def test_an_empty_folder_is_not_its_own_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    assert refusal(tmp_path, tmp_path / "prompts") == (
        f"dataset '{tmp_path}/prompts' not found: there is no such file, and no folder with files."
    )


@pytest.mark.parametrize("content", ["", "\n", "\ufeff"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.json"])
def test_an_empty_dataset_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = text_file(tmp_path, name, content)
    assert refusal(tmp_path, path) == f"dataset '{path}' holds no prompts; it needs at least one row"


def test_a_header_alone_or_an_empty_array_holds_no_prompts(tmp_path: Path) -> None:
    assert "holds no prompts" in refusal(tmp_path, text_file(tmp_path, "p.csv", "prompt\n"))
    assert "holds no prompts" in refusal(tmp_path, text_file(tmp_path, "p.json", "[]"))


def test_a_file_of_another_kind_is_refused_with_the_kinds_there_are(tmp_path: Path) -> None:
    path = text_file(tmp_path, "prompts.txt", "")
    assert (
        refusal(tmp_path, path)
        == f"dataset '{path}' has none of the suffixes .csv, .json, .jsonl or .parquet; rename it by its format"
    )
    assert refusal(tmp_path, path.parent) == (
        f"dataset '{path.parent}' holds no .csv, .json, .jsonl or .parquet file "
        "(it holds 'prompts.txt', which has another suffix or is hidden)"
    )


def numbered(tmp_path: Path, number: int) -> Path:
    return text_file(tmp_path, "p.jsonl", as_json_lines([{"prompt": f"prompt {n}"} for n in range(number)]))


def test_a_limit_takes_the_first_prompts_and_reads_no_further(tmp_path: Path) -> None:
    path = text_file(tmp_path, "p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\nnonsense')
    assert [prompt.text for prompt in rows_of(tmp_path, path, limit=2)] == ["a", "b"]
    with pytest.raises(DatasetError, match="line 3"):
        rows_of(tmp_path, path, limit=3)


def test_prompts_play_in_a_random_order_that_is_the_same_each_time(tmp_path: Path) -> None:
    # Pinned: two runs of one dataset play it in the same order, on every machine.
    path = numbered(tmp_path, 10)
    order = [prompt.index for prompt in copied(tmp_path, path)]
    assert order == UNSEEDED_ORDER
    assert order == [prompt.index for prompt in copied(tmp_path, path, chunk_bytes=1)]


def test_a_limit_decides_which_prompts_play_and_not_in_which_order(tmp_path: Path) -> None:
    prompts = copied(tmp_path, numbered(tmp_path, 1000), limit=400)
    assert sorted(prompt.index for prompt in prompts) == list(range(400))
    # Of 100 drawn from 400 rows, the mean row is 199.5 with a standard error of 10.
    assert np.mean([prompt.index for prompt in prompts[:100]]) == pytest.approx(199.5, abs=40)


def test_the_order_of_play_can_be_read_alone(tmp_path: Path) -> None:
    prompts = copied(tmp_path, numbered(tmp_path, 3000))
    reader = PromptReader(tmp_path / "prompts.parquet")
    assert list(reader.indices()) == [prompt.index for prompt in prompts]
    reader.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**64 - 1), limit=st.integers(1, 50), number=st.integers(1, 40))
def test_a_shuffled_limit_is_the_beginning_of_the_whole_shuffle(
    tmp_path: Path, seed: int, limit: int, number: int
) -> None:
    path = numbered(tmp_path, number)
    everything = copied(tmp_path, path, seed=seed)
    assert sorted(prompt.index for prompt in everything) == list(range(number))
    assert all(prompt.text == f"prompt {prompt.index}" for prompt in everything)
    assert copied(tmp_path, path, limit=limit, seed=seed) == everything[:limit]


def test_a_seed_gives_the_same_order_on_every_machine(tmp_path: Path) -> None:
    # Pinned: a resumed or repeated evaluation elsewhere must play the same prompts.
    assert [prompt.index for prompt in copied(tmp_path, numbered(tmp_path, 10), seed=1)] == SEED_1_ORDER
    assert [prompt.index for prompt in copied(tmp_path, numbered(tmp_path, 10), seed=2)] != SEED_1_ORDER


def test_every_prompt_is_as_likely_as_any_other_to_be_among_a_shuffled_limit(tmp_path: Path) -> None:
    path = numbered(tmp_path, 8)
    seeds = 80
    chosen = [prompt.index for seed in range(seeds) for prompt in copied(tmp_path, path, limit=2, seed=seed)]
    # Binomial(80, 2/8): mean 20, standard deviation 3.9; four of them on each side.
    assert all(4 <= chosen.count(index) <= 36 for index in range(8))


def test_a_shuffle_larger_than_memory_allows_goes_through_the_disk_and_comes_out_the_same(tmp_path: Path) -> None:
    path = numbered(tmp_path, 5000)
    in_memory = copied(tmp_path, path, seed=3)
    assert copied(tmp_path, path, seed=3, chunk_bytes=40_000) == in_memory
    assert copied(tmp_path, path, seed=3, limit=700, chunk_bytes=40_000) == in_memory[:700]
    path.write_bytes(path.read_bytes() + b"nonsense")
    assert "line 5001: not JSON" in refusal(tmp_path, path)


def test_the_copy_counts_and_hashes_prompts(tmp_path: Path) -> None:
    lines = text_file(tmp_path, "a.jsonl", as_json_lines([{"prompt": text, "n": 1} for text in "abcab"]))
    table = text_file(tmp_path, "b.csv", as_csv([{"prompt": text} for text in "abcab"]))
    counts = [copy_prompts(PromptSource(str(path)), tmp_path / "p.parquet") for path in (lines, table)]
    assert counts[0].number == 5
    assert counts[0] == counts[1]
    first_four = copy_prompts(PromptSource(str(lines), limit=4), tmp_path / "p.parquet")
    assert first_four.content_hash != counts[0].content_hash
    assert len(first_four.content_hash) == 64


def test_the_copy_is_a_parquet_file_anyone_can_read(tmp_path: Path) -> None:
    copied(tmp_path, text_file(tmp_path, "p.csv", "prompt,x\nhello,1\n"))
    table = pq.read_table(tmp_path / "prompts.parquet")
    assert table.schema.equals(PROMPTS_SCHEMA)
    # sha256("hello") = 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824
    assert table.to_pylist() == [
        {"prompt_index": 0, "prompt": "hello", "columns": '{"x":"1"}', "prompt_hash": "2cf24dba5fb0a30e"}
    ]


def test_prompts_are_read_by_position_in_any_order(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": f"{n} " + "x" * 2000} for n in range(9000)]
    path = text_file(tmp_path, "p.jsonl", as_json_lines(rows))
    prompts = copied(tmp_path, path)
    reader = PromptReader(tmp_path / "prompts.parquet")
    assert len(reader) == 9000
    for position in (0, 8999, 4500, 2047, 2048, 2049, 8999, 1):
        assert reader.read(position) == prompts[position]
    for position in (-1, 9000):
        with pytest.raises(IndexError, match=f"prompt position {position} is outside 0 to 8999"):
            reader.read(position)
    reader.close()


def test_a_run_without_readable_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the run has no prompts"):
        PromptReader(tmp_path / "prompts.parquet")
    with pytest.raises(RunError, match=r"cannot be read: .*"):
        PromptReader(text_file(tmp_path, "prompts.parquet", "nonsense"))
    with pytest.raises(RunError, match=r"is not a run's prompts: it has columns \['a'\]"):
        PromptReader(text_file(tmp_path, "prompts.parquet", as_parquet([{"a": 1}])))


@pytest.mark.parametrize(("limit", "seed", "problem"), [(0, None, "limit is 0"), (None, -1, "shuffle seed is -1")])
def test_a_limit_or_seed_out_of_range_is_refused(limit: int | None, seed: int | None, problem: str) -> None:
    with pytest.raises(DatasetError, match=f"^{problem}; it must be an integer from"):
        PromptSource("p.csv", limit, seed)


def test_copying_prompts_does_not_import_pandas(tmp_path: Path) -> None:
    # More than a second before the first model call, where it is installed.
    path = numbered(tmp_path, 3)
    code = f"""
import sys
from pathlib import Path
from heldout.datasets.order import CHUNK_BYTES
from heldout.datasets.prompts import PromptReader, PromptSource, copy_prompts
for seed in (None, 1):
    copy_prompts(PromptSource({str(path)!r}, 2, seed), Path({str(tmp_path / "p.parquet")!r}))
    PromptReader(Path({str(tmp_path / "p.parquet")!r})).read(0)
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("prefix", "found"), [("par", ["1", "2", "3"]), ("parts/a-", ["1", "2"]), ("parts/b.jsonl", ["3"])]
)
def test_a_path_that_stands_for_an_s3_uri_may_be_how_names_begin(tmp_path: Path, prefix: str, found: list[str]) -> None:
    (tmp_path / "parts").mkdir()
    for name, prompt in (("a-1", "1"), ("a-2", "2"), ("b", "3")):
        (tmp_path / "parts" / f"{name}.jsonl").write_text(json.dumps({"prompt": prompt}))
    location = str(tmp_path / prefix)
    assert [prompt.text for prompt in PromptDataset(location, is_prefix=True)] == found
    if prefix != "parts/b.jsonl":
        with pytest.raises(DatasetError, match="not found"):
            next(iter(PromptDataset(location)))


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with s3_service() as url:
        yield url


def test_prompts_come_from_an_s3_object_or_prefix(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_service(monkeypatch, service)
    for suffix, write in WRITERS.items():
        body = write([{"prompt": f"{suffix} {n}", "x": "y"} for n in range(3)])
        s3_client(service).put_object(Bucket=BUCKET, Key=f"data/p{suffix}", Body=body)
    prompts = rows_of(tmp_path, f"s3://{BUCKET}/data")
    assert [prompt.text for prompt in prompts] == [f"{suffix} {n}" for suffix in sorted(WRITERS) for n in range(3)]
    assert rows_of(tmp_path, f"s3://{BUCKET}/data/p.csv") == prompts[:3]
    assert rows_of(tmp_path, f"s3://{BUCKET}/data/p.c") == prompts[:3]
    assert rows_of(tmp_path, f"s3://{BUCKET}/da") == prompts
    assert rows_of(tmp_path, f"s3://{BUCKET}") == prompts


def test_a_missing_s3_dataset_is_explained(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_service(monkeypatch, service)
    s3_client(service).put_object(Bucket=BUCKET, Key="there/prompts.csv", Body=b"prompt\n\xff")
    assert refusal(tmp_path, f"s3://{BUCKET}/there/promts.csv").endswith("Did you mean 'prompts.csv'?")
    assert refusal(tmp_path, f"s3://{BUCKET}/there").startswith(
        f"dataset file 's3://{BUCKET}/there/prompts.csv', line 2:"
    )
    with pytest.raises(ReferenceProblem, match="no bucket 'nowhere'"):
        copied(tmp_path, "s3://nowhere/p.csv")
    use_service(monkeypatch, "http://127.0.0.1:1")
    assert "cannot reach http://127.0.0.1:1" in refusal(tmp_path, "s3://b/p.csv")
