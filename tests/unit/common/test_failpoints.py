import subprocess
import sys

import pytest

from common import failpoints

CODE = """
from common import failpoints
failpoints.register("b", "a")
for visit in range(1, 4):
    failpoints.reach("a")
    print(visit, flush=True)
print(*failpoints.registered())
"""


@pytest.mark.parametrize(
    ("armed", "code", "said"),
    [
        ("", 0, "1 2 3 a b"),
        ("b", 0, "1 2 3 a b"),
        ("a", -9, ""),
        ("a:1", -9, ""),
        ("a:3", -9, "1 2"),
        ("a:4", 0, "1 2 3 a b"),
    ],
)
def test_a_process_dies_at_the_armed_visit_alone(armed: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={failpoints.VARIABLE: armed, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.split() == said.split()


def test_a_place_that_no_test_could_find_is_refused() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        failpoints.reach("nowhere")
