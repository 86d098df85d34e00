"""Files on a real S3 server: one by one, below a prefix, by a pattern, and with failures."""

from __future__ import annotations

import io
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.exceptions import BaseError
from obstore.store import from_url
from safetensors.numpy import save

from streamkm.cli import main
from streamkm.errors import ReadError, SourceError
from streamkm.sources import objects, open_source
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes
from tests.sources.zarr.s3 import Proxy, moto_server


@pytest.fixture(scope="module")
def server():
    with moto_server() as port:
        proxy = Proxy(port)
        with urlopen(Request(f"{proxy.url}/bucket", method="PUT")):
            pass
        yield proxy
        proxy.close()


@pytest.fixture
def proxy(server, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    # As patient as users want it, a test of every failure would take minutes.
    for name, seconds in {"FIRST_WAIT_S": 0.01, "LONGEST_WAIT_S": 0.05, "REQUEST_S": 1.0}.items():
        monkeypatch.setattr(objects, name, seconds)
    yield server
    server.forget()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def parquet(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    table = pa.table({f"f{i}": array[:, i] for i in range(array.shape[1])})
    pq.write_table(table, file, row_group_size=50)
    return file.getvalue()


def arrow(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    table = pa.table({f"f{i}": array[:, i] for i in range(array.shape[1])})
    with pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=50)
    return file.getvalue()


def fbin(array: np.ndarray) -> bytes:
    return np.array(array.shape, "<u4").tobytes() + array.tobytes()


def fvecs(array: np.ndarray) -> bytes:
    lengths = np.full((len(array), 1), array.shape[1], "<i4").view(np.uint8)
    return np.hstack((lengths, array.view(np.uint8))).tobytes()


FORMS: dict[str, Any] = {
    ".npy": npy,
    ".npz": npz,
    ".parquet": parquet,
    ".feather": arrow,
    ".fbin": fbin,
    ".fvecs": fvecs,
    ".safetensors": lambda array: save({"x": array}),
}


def put(url: str, content: bytes) -> None:
    root, _, key = url.partition("bucket/")
    from_url(f"{root}bucket").put(key, content)


class TestObject(SourceContract):
    @pytest.fixture(params=FORMS)
    def case(self, request, proxy, tmp_path) -> Case:
        url = f"s3://bucket/{tmp_path.name}/x{request.param}"
        array = numbers((211, 5))

        def store(changed: np.ndarray) -> None:
            put(url, FORMS[request.param](changed))

        store(array)
        return Case(array, "float32", store, lambda: open_source(url))


class TestFortranObject(SourceContract):
    @pytest.fixture
    def case(self, proxy, tmp_path) -> Case:
        url = f"s3://bucket/{tmp_path.name}/x.npy"
        array = np.asfortranarray(numbers((211, 5)))

        def store(changed: np.ndarray) -> None:
            put(url, npy(np.asfortranarray(changed)))

        store(array)
        return Case(array, "float32", store, lambda: open_source(url))


class TestPrefix(SourceContract):
    """Shards of several lengths below a prefix, in natural order."""

    @pytest.fixture(params=["prefix", "pattern", "deep pattern", "list"])
    def case(self, request, proxy, tmp_path) -> Case:
        base = f"s3://bucket/{tmp_path.name}"
        array = numbers((100, 5))
        location: Any = {
            "prefix": f"{base}/d/",
            "pattern": f"{base}/d/part-*.npy",
            "deep pattern": f"{base}/**/*.npy",
            "list": [f"{base}/d/part-{i}.npy" for i in (2, 9, 10)],
        }[request.param]

        def store(changed: np.ndarray) -> None:
            for index, rows in zip((2, 9, 10), np.split(changed, [7, 60]), strict=True):
                put(f"{base}/d/part-{index}.npy", npy(rows))

        store(array)
        put(f"{base}/d/_temporary/part-1.npy", b"")
        put(f"{base}/d/_SUCCESS", b"")
        return Case(array, "float32", store, lambda: open_source(location))


@pytest.fixture
def stored(proxy, tmp_path) -> tuple[str, np.ndarray]:
    """Address of a ``.npy`` of several megabytes, and its rows."""
    url, array = f"s3://bucket/{tmp_path.name}/x.npy", numbers((20_000, 50))
    put(url, npy(array))
    return url, array


# Breaks when a failure that passes ends a run, or gives rows that are none.
@pytest.mark.parametrize("fault", ["500", "truncate", "silence"])
def test_failures_that_pass(proxy, stored, fault: str) -> None:
    url, array = stored
    source = open_source(url)
    failed: list[str] = []

    def once(path: str) -> str | None:
        failed.append(path)
        return fault if len(failed) == 1 else None

    proxy.fault = once
    assert same_bytes(read(source, 5000, 15_000), array[5000:15_000])
    assert len(failed) >= 2


# Breaks when a server that is gone makes a run hang, or other bytes pass for rows.
@pytest.mark.parametrize(
    ("suffix", "fault"),
    [(".npy", "500"), (".npy", "silence"), (".parquet", "truncate"), (".feather", "500")],
)
def test_failures_that_stay(proxy, tmp_path, monkeypatch, suffix: str, fault: str) -> None:
    monkeypatch.setattr(objects, "MAX_RETRIES", 1)
    url = f"s3://bucket/{tmp_path.name}/x{suffix}"
    put(url, FORMS[suffix](numbers((5000, 5))))
    source = open_source(url)
    proxy.fault = lambda path: fault
    with pytest.raises(ReadError) as caught:
        read(source, 100, 5000)
    proxy.fault = lambda path: None
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
    proxy.fault = lambda path: fault
    with pytest.raises(SourceError, match=re.escape(url)) as opened:
        open_source(url)
    assert "\n" not in str(opened.value)


# Breaks when rows of an object that was replaced under a run pass for those of the first.
def test_an_object_that_is_replaced(proxy, stored) -> None:
    url, array = stored
    source = open_source(url)
    put(url, npy(array + 1))
    with pytest.raises(ReadError, match="has been replaced since it was opened"):
        read(source, 0, 100)


def test_what_is_not_there(proxy, stored, tmp_path, capsys) -> None:
    base = f"s3://bucket/{tmp_path.name}"
    for location, says in {
        f"{base}/none.npy": "does not exist; check the address",
        f"{base}/none/": "no object below this address that ends in .npy",
        f"{base}/*.parquet": "no object below this address",
        "s3://no-such-bucket/x.npy": "s3://no-such-bucket/x.npy",
        "ftp://host/x.npy": "an address begins with s3://",
    }.items():
        assert main(["info", location]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert says in said
    put(f"{base}/y.parquet", parquet(numbers((5, 5))))
    with pytest.raises(SourceError, match=r"must be of one kind, .* differ; choose with a pattern"):
        open_source(f"{base}/")
    with pytest.raises(SourceError, match=r"columns is for \.parquet"):
        open_source(stored[0], columns=["a"])


# Breaks when rows of deeper folders are left out without a word.
def test_folders_below_a_prefix_are_told(proxy, tmp_path) -> None:
    base = f"s3://bucket/{tmp_path.name}"
    for name in ("d/x.npy", "d/k=1/y.npy", "d/k=2/deep/z.npy", "d/_tmp/y.npy", "e/k=1/y.npy"):
        put(f"{base}/{name}", npy(numbers((5, 5))))
    source = open_source(f"{base}/d/")
    assert source.spec.n_rows == 5
    assert [note.partition("/d/: ")[2] for note in source.notes()] == [
        "2 folders below it not read: k=1, k=2"
    ]
    with pytest.raises(SourceError, match=r"in its folders give a pattern, such as '.*/e/\*\*/\*"):
        open_source(f"{base}/e/")
    with pytest.raises(SourceError, match=r"\.safetensors$"):
        open_source(f"{base}/none/")


def test_access_that_is_denied(proxy, stored, monkeypatch, capsys) -> None:
    def denied(*_: object) -> None:
        raise BaseError("Client error with status 403 Forbidden: AccessDenied")

    class Store:
        head = staticmethod(denied)
        list_with_delimiter = staticmethod(denied)

    monkeypatch.setattr(objects, "open_store", lambda url: Store())
    for url in (stored[0], "s3://bucket/d/"):
        assert main(["info", url]) == 2
        said = capsys.readouterr().err
        assert url in said
        assert "403 Forbidden" in said
        assert said.endswith("and the credentials in the environment\n")
        assert said.count("\n") == 1


# A fit from end to end, with labels, from shards in a bucket on a server that fails at times.
def test_fit_and_predict_over_a_network(proxy, tmp_path, capsys) -> None:
    rows, base = numbers((4000, 5)), f"s3://bucket/{tmp_path.name}/rows"
    for index, part in enumerate(np.split(rows, [1500])):
        put(f"{base}/{index}.parquet", parquet(part))
    np.save(tmp_path / "x.npy", rows)
    seen: dict[str, int] = {}

    def at_first(path: str) -> str | None:
        seen[path] = seen.get(path, 0) + 1
        return "500" if seen[path] == 1 else None

    proxy.fault = at_first
    run = tmp_path / "run"
    assert main(["fit", f"{base}/", "--k", "3", "--out", str(run)]) == 0
    for source, name in ((f"{base}/*.parquet", "there"), (str(tmp_path / "x.npy"), "here")):
        labels = ["--labels", str(tmp_path / f"{name}.npy")]
        assert main(["predict", str(run), source, *labels]) == 0
    assert np.array_equal(np.load(tmp_path / "there.npy"), np.load(tmp_path / "here.npy"))


# A web server gives ranges or does not: rows, or one line that says so.
@pytest.mark.parametrize("ranges", [True, False])
def test_over_http(tmp_path: Path, ranges: bool) -> None:
    array = numbers((4000, 5))
    np.save(tmp_path / "x.npy", array)

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if not ranges or asked is None:
                return super().do_GET()
            whole = (tmp_path / self.path[1:]).read_bytes()
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(whole))
            self.send_response(206)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(whole)}")
            self.send_header("Last-Modified", self.date_time_string(0))
            self.end_headers()
            self.wfile.write(whole[start:stop])
            return None

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/x.npy"
        if ranges:
            source = open_source(url)
            assert same_bytes(read(source, 20, 3900), array[20:3900])
            assert source.spec.is_remote
            return
        with pytest.raises(SourceError, match=re.escape(url)) as caught:
            open_source(url)
        assert "\n" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_patterns_in_a_bucket() -> None:
    def fits(pattern: str, key: str) -> bool:
        return objects._expression(pattern).fullmatch(key) is not None

    assert fits("d/*.npy", "d/x.npy")
    assert not fits("d/*.npy", "d/e/x.npy")
    assert not fits("d/*.npy", "d/x.npyz")
    assert fits("d/**/*.npy", "d/x.npy")
    assert fits("d/**/*.npy", "d/e/f/x.npy")
    assert fits("d/y=*/part-?.npy", "d/y=1/part-2.npy")
    assert not fits("d/y=*/part-?.npy", "d/y=1/part-23.npy")
    assert fits("d/[ab].npy", "d/a.npy")
    assert not fits("d/[ab].npy", "d/c.npy")
