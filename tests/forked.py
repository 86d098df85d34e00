"""Python processes that start in 30 ms: a server that has imported torch forks itself for each.

Most of what a test waits for when it starts streamkm in a process of its own is the import of
torch: a second of one core. A fork of a process that has imported it needs none. It is a process as
any other: it has a number, takes signals, can be killed, and ends with a status. (Not for tests of
how streamkm starts or what it imports.)

Tests start one by `Forked`, and let a shell start one by `command`. This file is also the server
and, in a shell, the client. A client stands for its process: it passes signals on, ends as the
process does, and takes it along when it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

# (The rest is imported where it is needed, pathlib too, since a client should start at once.)
# ruff: noqa: PTH100, PTH109, PTH119, PTH120, PTH123
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, NoReturn, TextIO

#: What a server imports.
IMPORTED = (
    "streamkm.cli", "streamkm.estimators", "streamkm.runs.evaluate", "streamkm.runs.fit",
    "streamkm.runs.info", "streamkm.runs.predict", "streamkm.runs.sweeping.sweep",
    "streamkm.sources",
    "torch.distributed.elastic.agent.server.local_elastic_agent", "torch.distributed.launcher.api",
    "h5py", "pyarrow.parquet", "zarr",
)  # fmt: skip
#: What OpenMP reads when it is loaded. A server has it in its name.
THREADS = "OMP_NUM_THREADS"
#: What else libraries read when they are loaded, the same in all servers.
ALIKE = {
    # Two threads that spin for each other take minutes on cores that are busy otherwise.
    "OMP_WAIT_POLICY": "passive",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

# ---- what tests use ----------------------------------------------------------

_servers: dict[str, Path] = {}


def server(threads: str) -> Path:
    """The socket of the server with `threads` threads, which ends with this process."""
    import atexit
    import subprocess
    import tempfile
    from pathlib import Path

    if threads not in _servers:
        folder = tempfile.TemporaryDirectory(prefix="forked-")
        path = Path(folder.name, threads or "any")
        environment = dict(os.environ) | ALIKE
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        if not threads:
            environment.pop(THREADS, None)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(path)],
            env=environment | ({THREADS: threads} if threads else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"listening\n"
        atexit.register(folder.cleanup)
        atexit.register(process.wait)
        atexit.register(process.stdin.close)  # At which it ends.
        _servers[threads] = path
    return _servers[threads]


def command(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What stands for ``python`` in a command that has this environment."""
    return [sys.executable, "-IS", __file__, str(server(environment.get(THREADS, "")))]


class Forked:
    """``python ARGUMENTS``; what tests use of ``subprocess.Popen``.

    It writes to `output`, or else to files of its own, which `communicate` reads.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        output: TextIO | None = None,
    ) -> None:
        import tempfile

        self.args = ["python", *map(str, arguments)]
        self.returncode: int | None = None
        self._files = [] if output else [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        request = {"arguments": self.args[1:], "environment": dict(environment)}
        said_to = [file.fileno() for file in self._files or (output, output) if file]
        with open(os.devnull) as nothing:
            self._socket, self.pid = ask(
                str(server(environment.get(THREADS, ""))),
                {**request, "cwd": str(cwd or os.getcwd())},
                [nothing.fileno(), *said_to],
            )

    def poll(self) -> int | None:
        """How it ended; None if it has not."""
        import select

        if self.returncode is None and select.select([self._socket], [], [], 0)[0]:
            return self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; minus the number of a signal that has ended it."""
        from subprocess import TimeoutExpired

        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                self.returncode = receive(self._socket)
            except TimeoutError as error:
                raise TimeoutExpired(self.args, timeout or 0) from error
            self._socket.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it said on stdout and stderr."""
        self.wait(timeout)
        said = []
        for file in self._files:
            with file:
                file.seek(0)
                said.append(file.read())
        self._files = []
        return (said[0], said[1]) if said else ("", "")

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


# ---- what goes through the socket --------------------------------------------

N_BYTES = 8


def ask(path: str, request: dict[str, Any], descriptors: list[int]) -> tuple[socket.socket, int]:
    """Ask the server for a process: where it will be told how that ended, and its number."""
    asking = socket.socket(socket.AF_UNIX)
    asking.connect(path)
    text = json.dumps(request).encode()
    socket.send_fds(asking, [len(text).to_bytes(N_BYTES, "big")], descriptors)
    asking.sendall(text)
    return asking, receive(asking)


def asked(asking: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What was asked for, and the descriptors of its input, output and errors."""
    length, descriptors, _, _ = socket.recv_fds(asking, N_BYTES, 3)
    text = asking.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
    return json.loads(text), descriptors


def send(asking: socket.socket, number: int) -> None:
    asking.sendall(number.to_bytes(N_BYTES, "big", signed=True))


def receive(answering: socket.socket) -> int:
    return int.from_bytes(answering.recv(N_BYTES, socket.MSG_WAITALL), "big", signed=True)


# ---- the server --------------------------------------------------------------


class Server:
    """Forks for whoever asks, until stdin is closed, with which the forks end too."""

    def __init__(self, path: str) -> None:
        import gc
        import importlib

        for name in IMPORTED:
            importlib.import_module(name)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        # The end of a fork wakes `select`.
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake)
        self._askers: dict[int, socket.socket] = {}
        gc.collect()
        gc.freeze()  # A collection in a fork would copy the memory that it shares.
        print("listening", flush=True)

    def serve(self) -> list[str]:
        """Returns in the forks, what each is to run."""
        import select

        while True:
            there = [asker for asker in self._askers.values() if asker.fileno() >= 0]
            ready = select.select([sys.stdin, self._woken, self._listener, *there], [], [])[0]
            for pid, asker in self._askers.items():
                if sys.stdin in ready or asker in ready:  # Who has asked for it is gone.
                    os.kill(pid, signal.SIGKILL)
                    asker.close()
            if sys.stdin in ready:
                sys.exit()
            if self._listener in ready:
                arguments = self._fork(self._listener.accept()[0])
                if arguments:
                    return arguments
            if self._woken in ready:
                os.read(self._woken, 1 << 10)
            self._tell_ends()

    def _fork(self, asker: socket.socket) -> list[str]:
        """In the fork, what it is to run; nothing in the server."""
        request, descriptors = asked(asker)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (self._listener, asker, *self._askers.values()):
                each.close()
            for standard, descriptor in enumerate(descriptors):
                os.dup2(descriptor, standard)
            for descriptor in (self._woken, self._wake, *descriptors):
                os.close(descriptor)
            os.fsync = lambda fd: None  # As in tests.conftest.
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["environment"])
            return list(request["arguments"])
        for descriptor in descriptors:
            os.close(descriptor)
        send(asker, pid)
        self._askers[pid] = asker
        return []

    def _tell_ends(self) -> None:
        for pid in list(self._askers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with self._askers.pop(pid) as asker:
                    if asker.fileno() >= 0:
                        send(asker, os.waitstatus_to_exitcode(status))


def run(arguments: list[str]) -> NoReturn:
    """Do what ``python ARGUMENTS`` does, and end.

    Python is not taken down: that would touch, and so copy, all the memory that forks share.
    """
    import atexit
    import traceback

    status: object = 0
    try:
        run_main(arguments)
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
    except BaseException:  # noqa: BLE001  as Python says it at its end
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else 1)


def run_main(arguments: list[str]) -> None:
    """Run the module, the code or the file that the arguments of Python name."""
    import runpy
    import types
    import warnings

    if os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(os.environ["PYTHONWARNINGS"])  # type: ignore[arg-type]
    first, *rest = arguments
    sys.path[0] = ""
    if first == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first in ("-", "-c"):
        code = sys.stdin.read() if first == "-" else rest.pop(0)
        sys.argv = [first, *rest]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


# ---- the client --------------------------------------------------------------


def stand_for(path: str, arguments: list[str]) -> int:
    """Ask for a process, pass signals on to it, and end as it does."""
    if os.path.basename(path) != os.environ.get(THREADS, "any"):
        os.execv(sys.executable, [sys.executable, *arguments])
    request = {"arguments": arguments, "environment": dict(os.environ), "cwd": os.getcwd()}
    answering, pid = ask(path, request, [0, 1, 2])
    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(pid, number))
    status = receive(answering)
    if status < 0:
        if -status in PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    _, socket_path, *words = sys.argv
    if words:
        sys.exit(stand_for(socket_path, words))
    run(Server(socket_path).serve())
