"""Storage: the same calls on a local folder and on s3://, and errors with a remedy."""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heldout.errors import ReferenceProblem, RunError, StorageError
from heldout.storage import FileInfo, Storage, discard_partial_files, is_remote, open_atomic, split_location
from heldout.storage.lock import FolderLock
from heldout.storage.storage import expanded
from tests.support.faulty_s3 import faulty_service
from tests.support.s3_service import BUCKET, forget_aws, s3_client, s3_service, use_service


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with s3_service() as url:
        yield url


@pytest.fixture
def s3(service: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Storage:
    use_service(monkeypatch, service)
    return Storage.at(f"s3://{BUCKET}/{request.node.name}/")


@pytest.fixture(params=["local", "file-uri", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        s3: Storage = request.getfixturevalue("s3")
        return s3
    return Storage.at(f"{'file://' if request.param == 'file-uri' else ''}{tmp_path / 'root'}")


def test_written_data_is_read_back(storage: Storage) -> None:
    storage.write("runs/a b/é.json", b"first")
    storage.write("runs/a b/é.json", b"second\0\r\n")
    assert storage.read("runs/a b/é.json") == b"second\0\r\n"
    assert storage.exists("runs/a b/é.json")
    assert not storage.exists("runs/a b")


def test_list_gives_every_file_below_a_folder_in_name_order(storage: Storage) -> None:
    for name in ("b/2", "b/10", "b-2", "a", "b/c/d", "bb/e"):
        storage.write(name, name.encode())
    assert list(storage.list()) == [FileInfo(n, len(n)) for n in ("a", "b-2", "b/10", "b/2", "b/c/d", "bb/e")]
    assert [file.name for file in storage.list("b")] == ["b/10", "b/2", "b/c/d"]
    assert list(storage.list("nothing")) == []
    assert list(storage.children()) == ["a", "b", "b-2", "bb"]
    assert list(storage.children("b/")) == ["10", "2", "c"]


def test_deleting_a_file_twice_is_not_an_error(storage: Storage) -> None:
    storage.write("a", b"1")
    storage.delete("a")
    storage.delete("a")
    assert not storage.exists("a")


def test_an_uploaded_file_can_be_read_in_parts(storage: Storage, tmp_path: Path) -> None:
    data = os.urandom(1024) * (10 * 1024)
    (tmp_path / "big").write_bytes(data)
    storage.upload("big", tmp_path / "big")
    with storage.open("big") as file:
        assert file.seek(-3, os.SEEK_END) == len(data) - 3
        assert file.read() == data[-3:]
        assert file.seek(5_000_000) == 5_000_000
        assert file.read(9) == data[5_000_000:5_000_009]
        file.seek(0)
        assert file.read() == data
        assert file.read() == b""


def test_pyarrow_reads_an_opened_file(storage: Storage) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": list(range(1000))}), sink)
    storage.write("t.parquet", sink.getvalue().to_pybytes())
    with storage.open("t.parquet") as file:
        assert pq.ParquetFile(file).read().column("a").to_pylist() == list(range(1000))


def test_a_missing_file_names_the_nearest_one(storage: Storage) -> None:
    storage.write("runs/metrics.json", b"{}")
    for read in (storage.read, storage.open):
        with pytest.raises(
            StorageError, match=r"^no (file|object) 'runs/metric.json' in .* Did you mean 'metrics.json'\?$"
        ):
            read("runs/metric.json")


def test_a_tilde_is_the_home_of_an_existing_user_and_otherwise_part_of_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Storage.at("~/folder").write("a", b"1")
    Storage.at("~no-such-user").write("a", b"2")
    assert (tmp_path / "folder" / "a").read_bytes() == b"1"
    assert (tmp_path / "~no-such-user" / "a").read_bytes() == b"2"


def test_an_unreadable_folder_is_an_error_and_not_empty(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"^cannot list '.*x': File name too long$"):
        list(Storage.at(str(tmp_path)).list("x" * 1000))


def test_linked_folders_are_followed_unless_they_form_a_cycle(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root, elsewhere):
        folder.mkdir()
        (folder / "prompts.csv").write_text("prompt\n")
    (root / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "itself").symlink_to(root)
    assert [file.name for file in Storage.at(str(root)).list("")] == ["more/prompts.csv", "prompts.csv"]


def test_partial_files_of_a_killed_writer_are_never_listed(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    (tmp_path / ".a.1234.heldout-partial").write_bytes(b"half")
    storage.write("a", b"whole")
    assert [file.name for file in storage.list()] == list(storage.children()) == ["a"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a/../b", "a//b", "./a"])
def test_a_name_that_leads_out_of_the_root_is_refused(storage: Storage, name: str) -> None:
    with pytest.raises(ReferenceProblem, match="must be a relative path"):
        storage.write(name, b"")


@pytest.mark.parametrize("location", ["gs://bucket/x", "https://host/x", "hf://datasets/x", "s3://", "s3:///x", ""])
def test_an_unsupported_location_is_refused(location: str) -> None:
    with pytest.raises(ReferenceProblem, match=r"expected .*s3://bucket/prefix"):
        Storage.at(location)


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("s3://bucket/a/b.csv", ("s3://bucket/a", "b.csv")),
        ("s3://bucket/a/", ("s3://bucket", "a")),
        ("s3://bucket", ("s3://bucket", "")),
        ("b.csv", (".", "b.csv")),
        ("/b.csv", ("/", "b.csv")),
        ("file:///b.csv", ("file:///", "b.csv")),
        ("file:///a/b.csv", ("file:///a", "b.csv")),
        ("a/..", ("a/..", "")),
        ("/", ("/", "")),
    ],
)
def test_a_location_splits_into_its_folder_and_its_name(location: str, parts: tuple[str, str]) -> None:
    assert split_location(location) == parts
    assert is_remote(location) == location.startswith("s3://")


def test_an_atomic_file_appears_only_when_its_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a"
    with open_atomic(path) as file:
        file.write(b"old")
        assert list(Storage.at(str(tmp_path)).list()) == []
    with pytest.raises(TypeError), open_atomic(path) as file:
        file.writelines([b"half of the new", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = f"""
import os, signal
from pathlib import Path
from heldout.storage import open_atomic
with open_atomic(Path({str(path)!r})) as file:
    file.write(b"new"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert path.read_bytes() == b"old"
    assert [file.name for file in Storage.at(str(tmp_path)).list()] == ["a"]


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"^cannot write '.*/file/x': (Not a directory|File exists)$"):
        Storage.at(str(tmp_path / "file")).write("x", b"")


def test_a_missing_bucket_is_named_with_the_endpoint(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_service(monkeypatch, service)
    storage = Storage.at("s3://no-such-bucket/x")
    for attempt in (lambda: storage.write("a", b""), lambda: list(storage.list()), lambda: storage.read("a")):
        with pytest.raises(
            ReferenceProblem, match=rf"^no bucket 'no-such-bucket' at {service} \(looked for s3://.*\)$"
        ):
            attempt()


def test_an_endpoint_where_nothing_listens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_service(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"^cannot reach http://127.0.0.1:1 for s3://b/a; .* AWS_ENDPOINT_URL"):
        Storage.at("s3://b").read("a")


def test_missing_credentials_name_the_places_that_were_searched(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_aws(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", service)
    with pytest.raises(
        ReferenceProblem, match=r"^no AWS credentials to reach s3://b/p .*AWS_ACCESS_KEY_ID.*~/.aws/credentials"
    ):
        Storage.at("s3://b/p").read("a")


def test_an_unknown_profile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_aws(monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ReferenceProblem, match=r"cannot be used to reach s3://b: .*nobody"):
        Storage.at("s3://b").read("a")


def test_credentials_region_and_endpoint_come_from_the_shared_files(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forget_aws(monkeypatch)
    (tmp_path / "config").write_text(f"[profile mine]\nregion = eu-west-1\nendpoint_url = {service}\n")
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    storage = Storage.at(f"s3://{BUCKET}/shared-files")
    storage.write("a", b"1")
    assert storage.read("a") == b"1"


def test_an_object_replaced_while_it_is_read_is_an_error_and_never_a_mixture(s3: Storage) -> None:
    s3.write("a", b"1" * 20_000_000)
    with s3.open("a") as file:
        assert file.read(1) == b"1"
        s3.write("a", b"2" * 20_000_000)
        with pytest.raises(StorageError, match=r"/a was replaced while it was being read; start again$"):
            file.read()


@pytest.mark.usefixtures("s3")
def test_a_folder_mark_of_a_console_is_not_a_file(service: str) -> None:
    s3_client(service).put_object(Bucket=BUCKET, Key="marked/", Body=b"")
    s3_client(service).put_object(Bucket=BUCKET, Key="marked/a", Body=b"1")
    assert [file.name for file in Storage.at(f"s3://{BUCKET}/marked").list()] == ["a"]
    assert list(Storage.at(f"s3://{BUCKET}").children("marked")) == ["a"]


def test_objects_are_encrypted_with_the_key_asked_for(s3: Storage, service: str, tmp_path: Path) -> None:
    key = "arn:aws:kms:us-east-1:123456789012:key/1234abcd"
    (tmp_path / "large").write_bytes(b"x" * 12_000_000)
    storage = Storage.at(s3.location, kms_key=key)
    storage.write("small", b"x")
    storage.upload("large", tmp_path / "large")
    for name in ("small", "large"):
        head = s3_client(service).head_object(Bucket=BUCKET, Key=f"{s3.location.split('/')[3]}/{name}")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key)


def test_a_key_for_a_local_folder_is_refused() -> None:
    with pytest.raises(ReferenceProblem, match="local path"):
        Storage.at("runs", kms_key="arn")


def test_partial_files_of_a_writer_that_is_alive_stay_and_those_of_a_killed_one_go(tmp_path: Path) -> None:
    killed = tmp_path / ".a.1234.heldout-partial"
    killed.write_bytes(b"half")
    with open_atomic(tmp_path / "scores.parquet") as file:
        file.write(b"scores")
        discard_partial_files(tmp_path)  # as a resume of the run does, while its rollouts are scored again
        assert not killed.exists()
    assert (tmp_path / "scores.parquet").read_bytes() == b"scores"


def test_a_lock_is_taken_although_processes_ask_for_its_holder_for_some_time(tmp_path: Path) -> None:
    FolderLock.take(tmp_path).release()
    # As processes that look at the same folder in turn, or one that is stopped in the middle of its look.
    asking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    ended = threading.Timer(0.5, os.close, (asking,))
    ended.start()
    lock = FolderLock.take(tmp_path)
    with pytest.raises(RunError, match="is being worked on"):
        FolderLock.take(tmp_path)
    lock.release()
    ended.join()


@pytest.mark.parametrize("name", ["a", "big"])
def test_a_body_that_is_cut_short_is_read_again(
    service: str, monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path
) -> None:
    data = os.urandom(10_000_000 if name == "big" else 1000)
    use_service(monkeypatch, service)
    Storage.at(f"s3://{BUCKET}/cut").write(name, data)
    with faulty_service(service) as faulty:
        use_service(monkeypatch, faulty.url)
        storage = Storage.at(f"s3://{BUCKET}/cut")

        def version(name: str) -> bytes:
            found = storage.read_version(name)
            assert found is not None
            return found.data

        for read in (storage.read, version, lambda name: storage.open(name).read()):
            fault = faulty.add("GET", name, times=1, body_bytes=500)
            assert read(name) == data
            assert fault.met == 1


@pytest.mark.parametrize("location", ["file://{}/out", "file:{}/out", "file://localhost{}/out"])
def test_a_file_uri_names_the_folder_of_its_path(tmp_path: Path, location: str) -> None:
    assert expanded(location.format(tmp_path)) == f"{tmp_path}/out"
