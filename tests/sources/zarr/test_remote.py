"""Zarr arrays on a real S3 server, which is made to fail in the ways that servers do."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import zarr
from obstore.store import from_url
from zarr.storage import ObjectStore

from streamkm.cli import main
from streamkm.config import ExecutionConfig
from streamkm.errors import ReadError, SourceError
from streamkm.runs.planning.memory import MAX_READ_THREADS, plan_memory
from streamkm.sources import objects, open_source
from streamkm.stream.plan import plan_reading
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


def put(url: str, array: np.ndarray, **options: Any) -> None:
    store: Any = ObjectStore(from_url(url))
    options = {"chunks": (50, array.shape[-1]), **options}
    zarr.create_array(store, data=array, overwrite=True, **options)


class TestRemote(SourceContract):
    @pytest.fixture(params=["v3", "v2, uncompressed", "sharded"])
    def case(self, request, proxy, tmp_path) -> Case:
        layouts: dict[str, dict[str, Any]] = {
            "v3": {},
            "v2, uncompressed": {"zarr_format": 2, "compressors": None},
            "sharded": {"shards": (100, 5)},
        }
        options = layouts[request.param]
        url = f"s3://bucket/{tmp_path.name}/x.zarr/a"
        array = numbers((211, 5))

        def store(changed: np.ndarray) -> None:
            put(url, changed, **options)

        store(array)
        return Case(array, "float32", store, lambda: open_source(url))


@pytest.fixture
def stored(proxy, tmp_path) -> tuple[str, np.ndarray]:
    """Address of an array of 8 chunks, none of which compresses well, and its rows."""
    url, array = f"s3://bucket/{tmp_path.name}/store.zarr/a", numbers((400, 50))
    put(url, array)
    return url, array


# Breaks when a failure that passes ends a run, or gives rows that are none.
@pytest.mark.parametrize("fault", ["500", "truncate", "silence"])
def test_failures_that_pass(proxy, stored, fault: str) -> None:
    url, array = stored
    source = open_source(url)
    failed: dict[str, int] = {}

    def sometimes(path: str) -> str | None:
        if "/c/" not in path:
            return None
        failed[path] = failed.get(path, 0) + 1
        # Silence costs its time, so only one chunk is met with it.
        limit = 1 if fault == "silence" and "/c/3/" not in path else 3
        return fault if failed[path] < limit else None

    proxy.fault = sometimes
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: read(source, 100 * i, 100 * i + 100), range(4)))
    assert same_bytes(np.concatenate(parts), array)
    assert max(failed.values()) == 3


# Breaks when a server that is gone makes a run hang, or fill values pass for data.
@pytest.mark.parametrize("fault", ["500", "truncate", "silence"])
def test_failures_that_stay(proxy, stored, monkeypatch, fault: str) -> None:
    monkeypatch.setattr(objects, "MAX_RETRIES", 2)
    url, array = stored
    source = open_source(url)
    proxy.fault = lambda path: fault if "/c/3/" in path else None
    proxy.requests.clear()
    assert same_bytes(read(source, 0, 150), array[:150])
    began = time.monotonic()
    with pytest.raises(ReadError, match=f"{url}: rows 100:200 cannot be read"):
        read(source, 100, 200)
    assert time.monotonic() - began < 15
    assert 2 <= sum("/c/3/" in path for path in proxy.requests) <= 4


@pytest.mark.parametrize("fault", ["500", "truncate", "silence"])
def test_server_that_fails_at_once(proxy, stored, monkeypatch, fault: str) -> None:
    monkeypatch.setattr(objects, "MAX_RETRIES", 1)
    proxy.fault = lambda path: fault
    with pytest.raises(SourceError, match=f"{stored[0]}: cannot be opened as Zarr") as caught:
        open_source(stored[0])
    assert "\n" not in str(caught.value)


# Breaks when more is asked at once than the readers that the memory plan allows.
# obstore shows the insides of its errors, a page of them.
def test_a_server_that_is_not_there_is_told_in_one_short_line(monkeypatch) -> None:
    monkeypatch.setattr(objects, "MAX_RETRIES", 0)
    with socket() as held:  # Bound and not listening: nobody else has the port meanwhile.
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/x.zarr"
        with pytest.raises(SourceError, match="cannot be opened as Zarr") as caught:
            open_source(url)
    text = str(caught.value)
    assert len(text) < 400
    assert "\n" not in text
    assert "Debug" not in text
    assert "{" not in text
    assert text.endswith("check the address, the network, and the credentials in the environment")


def test_requests_at_once_are_bounded(proxy, stored) -> None:
    url, array = stored
    source = open_source(url)
    plan = plan_reading(source.spec, batch_rows=50, seed=0)
    memory = plan_memory(source.spec, plan, ExecutionConfig(), fixed_bytes=0)
    assert memory.stream.n_readers == MAX_READ_THREADS

    def slowly(path: str) -> None:
        time.sleep(0.05)

    proxy.fault = slowly
    proxy.most_at_once = 0
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: read(source, 50 * i, 50 * i + 50), range(8)))
    assert same_bytes(np.concatenate(parts), array)
    assert 2 <= proxy.most_at_once <= 4


def test_missing_chunks_and_what_is_there(proxy, stored, capsys) -> None:
    url, array = stored
    from_url(url).delete("c/2/0")
    source = open_source(url)
    assert source.notes() == [
        f"{url}: 1 of 8 chunks were never written, their rows read as the fill value 0.0"
    ]
    expected = array.copy()
    expected[100:150] = 0
    assert same_bytes(read(source, 0, 400), expected)
    parent = url.rpartition("/")[0]
    zarr.create_group(ObjectStore(from_url(parent)), overwrite=False)
    with pytest.raises(SourceError, match=rf"{parent}: is a Zarr group.* it holds .* \(400, 50\)"):
        open_source(parent)
    with pytest.raises(SourceError, match="cannot be opened as Zarr"):
        open_source("s3://bucket/nothing")
    assert main(["info", url]) == 0
    assert "rows         400" in capsys.readouterr().out


# A web server gives single objects and no list: right rows, and a note of what is not known.
# Breaks when the address of X itself is read by position, while that of its store is read by name.
def test_the_address_of_x_has_the_names_of_its_anndata(proxy, tmp_path: Path) -> None:
    url = f"s3://bucket/{tmp_path.name}/cells.zarr"
    store: Any = ObjectStore(from_url(url))
    root = zarr.create_group(store, zarr_format=2, attributes={"encoding-type": "anndata"})
    root.create_array("X", data=numbers((20, 2)))
    root.create_group("layers").create_array("counts", data=numbers((20, 2)))
    root.create_array("obsm/X", data=numbers((20, 2)))
    var = root.create_group("var", attributes={"_index": "gene"})
    var.create_array("gene", shape=(2,), dtype=str)[:] = np.array(["Actb", "Xist"], object)
    for place in (f"{url}/X", f"{url}/layers/counts", f"{url}/"[:-1]):
        assert open_source(place).spec.feature_names == ("Actb", "Xist"), place
    assert open_source(f"{url}/obsm/X").spec.feature_names == ()


def test_over_http(tmp_path: Path) -> None:
    array = numbers((400, 50))
    zarr.create_array(tmp_path / "x.zarr/a", data=array, chunks=(50, 50))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/x.zarr/a"
        source = open_source(url)
        assert same_bytes(read(source, 20, 390), array[20:390])
        (note,) = source.notes()
        assert "of a web server nothing is watched" in note
        assert source.fingerprint() == open_source(url).fingerprint()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "s3://", "s3:///x", "://", "https://", "file:///x"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(SourceError, match="an address begins with s3://, gs://, http://, https://"):
        open_source(url)


def test_options_of_other_formats(proxy, stored) -> None:
    for options in ({"offset": 3}, {"columns": ["x"]}, {"dataset": "x"}, {"dtype": "float64"}):
        with pytest.raises(SourceError, match=stored[0]):
            open_source(stored[0], **options)


# A fit from end to end: sampling, training and saving, with a server that fails at times.
def test_fit_over_a_network(proxy, stored, tmp_path) -> None:
    url, _ = stored
    seen: dict[str, int] = {}

    def at_first(path: str) -> str | None:
        seen[path] = seen.get(path, 0) + 1
        return "500" if seen[path] == 1 else None

    proxy.fault = at_first
    run = tmp_path / "run"
    assert main(["fit", url, "--k", "3", "--out", str(run)]) == 0
    assert np.load(run / "centroids.npy").shape == (3, 50)


def test_without_obstore(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "streamkm.sources.zarr.remote")
    monkeypatch.delitem(sys.modules, "streamkm.sources.objects")
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    with pytest.raises(SourceError, match=r"needs obstore.*install streamkm\[s3\]"):
        open_source("s3://bucket/x")
