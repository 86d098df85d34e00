"""Two 'machines' for tests: namespaces with a host name and a network of their own, and a link.

A machine is there as long as the process that holds it, which ends with the test, however that
ends. With it go its other processes, its network and the link.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.distributed.launched import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

#: The first process of a machine. All others are killed when it ends, and it ends with its input.
HOLD = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
if [ -e /etc/resolv.conf ]; then mount --bind "$2/resolv.conf" /etc/resolv.conf; fi
ip link set lo up
echo up
exec cat
"""
#: What a machine has of its own.
APART = ("--net", "--uts", "--mount", "--pid")
#: Addresses of the two, which nobody else sees.
ADDRESSES = {"left": "10.99.0.1", "right": "10.99.0.2"}


def why_not() -> str:
    """Why there can be no machines here; empty if there can."""
    for program in ("unshare", "nsenter", "ip", "mount", "hostname"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    command = ["unshare", *APART, "--fork", "ip", "link", "add", "type", "veth"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"no namespaces or links: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """A host name, a network, /etc/hosts and processes of its own."""

    def __init__(self, name: str, etc: Path) -> None:
        self._started: list[subprocess.Popen[str]] = []
        command = ["unshare", *APART, "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*command, "sh", "-c", HOLD, "sh", name, str(etc)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"
        (self.pid,) = children(self._holder.pid)
        # A link lasts as long as both of its networks. This one outlives the last process.
        self._network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)

    def kill(self) -> None:
        """End whatever runs here, at once."""
        self._holder.communicate()  # Its input ends, and so does it.

    def close(self) -> None:
        self.kill()
        for process in self._started:
            process.communicate()
        os.close(self._network)

    def do(self, *command: object) -> None:
        subprocess.run(self._inside(*command), check=True, capture_output=True, text=True)

    def start(self, folder: Path, *command: object, **more: str) -> subprocess.Popen[str]:
        """A command in `folder`; what it says can be read. It ends with the machine at last."""
        process = subprocess.Popen(
            self._inside("env", f"--chdir={folder}", *command),
            env=environment(TMPDIR=str(folder), **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def _inside(self, *command: object) -> list[str]:
        return ["nsenter", "--target", str(self.pid), *APART, *map(str, command)]


class Pair:
    """Two machines, ``left`` and ``right``, and the link between them; for a ``with`` block.

    They know each other's names from /etc/hosts, which is the file `hosts`.
    """

    def __init__(self, folder: Path) -> None:
        self.hosts = folder / "hosts"
        self.hosts.write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        )
        (folder / "resolv.conf").write_text("")
        self._open = ExitStack()
        with ExitStack() as stack:
            machines = []
            for name in ADDRESSES:
                machines.append(Machine(name, folder))
                stack.callback(machines[-1].close)
            self.left, self.right = machines
            ends = [["wire", "netns", str(machine.pid)] for machine in machines]
            command = ["ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]]
            subprocess.run(command, check=True)
            for machine, address in zip(machines, ADDRESSES.values(), strict=True):
                machine.do("ip", "address", "add", f"{address}/24", "dev", "wire")
                machine.do("ip", "link", "set", "wire", "up")
            self._open = stack.pop_all()

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[Machine]:
        return iter((self.left, self.right))

    def cut(self) -> None:
        self.right.do("ip", "link", "set", "wire", "down")

    def mend(self) -> None:
        self.right.do("ip", "link", "set", "wire", "up")

    def queue(self, *discipline: str) -> str:
        """Let what is sent wait in a queue of this kind; why that cannot be, empty if it can."""
        try:
            for machine in self:
                words = discipline or ("pfifo",)
                machine.do("tc", "qdisc", "replace", "dev", "wire", "root", *words)
        except subprocess.CalledProcessError as error:
            return f"tc {discipline}: {error.stderr.strip()}"
        return ""


def children(process: int) -> list[int]:
    """The processes that `process` has started, by the numbers that they have here."""
    return [
        int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]
