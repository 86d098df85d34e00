"""A real S3 server on this machine, and a proxy before it that misbehaves on purpose."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What the proxy does to a request: let it through (None), answer 500, stop half way
#: through the body, or say nothing until the client has gone.
Fault = str | None


@contextlib.contextmanager
def moto_server() -> Iterator[int]:
    """Port of moto's server, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < until, "moto's server does not answer"
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


class Proxy:
    """Passes requests on to `port`; `fault` says for each key what goes wrong."""

    def __init__(self, port: int) -> None:
        self.fault: Callable[[str], Fault] = lambda key: None
        self.requests: list[str] = []
        self.gone = threading.Event()
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                # A client that gives up is no error of the server.
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def do_GET(self) -> None:
                with lock:
                    proxy.requests.append(self.path)
                    proxy.at_once += 1
                    proxy.most_at_once = max(proxy.most_at_once, proxy.at_once)
                try:
                    self.answer(proxy.fault(self.path))
                finally:
                    with lock:
                        proxy.at_once -= 1

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def answer(self, fault: Fault) -> None:
                if fault == "silence":
                    proxy.gone.wait(60)
                    self.close_connection = True
                    return
                length = int(self.headers.get("Content-Length") or 0)
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                upstream.request(
                    self.command, self.path, self.rfile.read(length), dict(self.headers)
                )
                reply = upstream.getresponse()
                body = reply.read()
                upstream.close()
                if fault == "500":
                    reply.status, body = 500, b"<Error><Code>InternalError</Code></Error>"
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                of_head = reply.getheader("Content-Length") or "0"
                self.send_header(
                    "Content-Length", of_head if self.command == "HEAD" else str(len(body))
                )
                self.end_headers()
                if fault == "truncate":
                    body = body[: len(body) // 2]
                    self.close_connection = True
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """End what is left of a test: its faults, and the requests that got no answer."""
        self.fault = lambda key: None
        self.gone.set()
        until = time.monotonic() + 30
        while self.at_once and time.monotonic() < until:
            time.sleep(0.005)
        self.gone = threading.Event()
        self.most_at_once = 0

    def close(self) -> None:
        self.gone.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()
