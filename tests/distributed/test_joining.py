"""Processes that meet, with a store that is late, taken, stopped or used before."""

from __future__ import annotations

from tests.distributed.launched import MEET, by_hand, script, torchrun


def test_a_process_without_process_0_says_so(tmp_path):
    (end,) = by_hand(script(tmp_path, MEET), [1], 2, TIMEOUT="2")
    assert "for 1 of 2 processes: number 0 did not come" in end.said
    assert end.said.count("\n") == 1
    assert (end.status, end.after_s < 15) == (1, True)


STOPPED = """
if os.environ["RANK"] == "0":
    held = dist.TCPStore(
        "127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=True, wait_for_workers=False
    )
    os.kill(os.getpid(), signal.SIGSTOP)
"""


# Breaks when a call to a store that never answers is waited for without end.
def test_a_process_0_that_is_stopped_while_they_join_is_named(tmp_path):
    _, end = by_hand(script(tmp_path, STOPPED + MEET), [0, 1], 2, TIMEOUT="2", timeout=40)
    assert end.status == 1, end.said
    assert "process 0 of 2 on 127.0.0.1 went away or does not answer" in end.said
    assert end.said.count("\n") == 1


def test_a_port_in_use_is_named(tmp_path):
    (end,) = by_hand(
        script(tmp_path, """
            import socket
            def main():
                with socket.socket() as taken:
                    taken.bind(("", int(os.environ["MASTER_PORT"])))
                    taken.listen()
                    with joined("cpu", 5):
                        pass
            ends(main)
        """),
        [0],
        2,
    )  # fmt: skip
    assert end.status == 2
    assert "cannot be used on" in end.said
    assert end.said.count("\n") == 1


# The store of the agent outlives an attempt: what the first one left must not let anybody in.
def test_processes_that_are_started_again_meet_again(tmp_path):
    done = torchrun(
        2,
        script(tmp_path, MEET + """
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    os.kill(os.getpid(), signal.SIGKILL)
print("again\\n", end="", flush=True)
"""),
        "--max-restarts", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 came") == 4
    assert done.stdout.count("again") == 2
