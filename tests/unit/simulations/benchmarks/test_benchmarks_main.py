import socket
import threading

import pytest

from simulations.benchmarks import sockets
from simulations.benchmarks.__main__ import BENCHMARKS, OPTIONS, main


@pytest.mark.parametrize("argv", [["nope", "--json"], ["../link"]])
def test_an_unknown_benchmark_is_one_line_that_names_the_known_ones(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, complaint = capsys.readouterr()
    assert out == ""
    known = ", ".join(BENCHMARKS)
    assert "dp-step" in BENCHMARKS
    assert complaint == f"error: benchmark must be one of {known}, got {argv[0]!r}\n"


def test_an_option_of_another_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "--rounds", "7"]) == 2
    assert capsys.readouterr().err == "error: link must be run without --rounds, got one\n"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--targets", "qk"], "targets must be one of qv, all, got 'qk'"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_runs(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dp-step", "--json", *argv]) == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"


@pytest.mark.parametrize("name", sorted(n for n, own in OPTIONS.items() if "rounds" in own))
@pytest.mark.parametrize("rounds", ["1", "0", "-1"])
def test_too_few_rounds_are_one_line_before_anything_runs(
    name: str, rounds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--rounds", rounds]) == 2
    out, complaint = capsys.readouterr()
    assert (out, complaint) == ("", f"error: rounds must be at least 2, got {rounds}\n")


def test_the_relay_counts_what_passes_both_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = sockets.CountingRelay("127.0.0.1", listener.getsockname()[1])
        with socket.create_connection(("127.0.0.1", relay.port), timeout=20) as near:
            far, _ = listener.accept()
            with far:
                up = threading.Thread(target=sockets.send, args=(near, b"x" * 300_000))
                up.start()
                assert sockets.receive(far) == b"x" * 300_000
                up.join()
                sockets.send(far, b"yz")
                assert sockets.receive(near) == b"yz"
        relay.close()
    # Eight bytes of length before each message.
    assert (relay.bytes_up, relay.bytes_down) == (300_008, 10)
