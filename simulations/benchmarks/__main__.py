"""``python -m simulations.benchmarks NAME --json``: one benchmark, one JSON object on stdout."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from common.errors import InvalidInput, VeiltuneError

BENCHMARKS = {
    "link": "simulations.benchmarks.link",
}

Benchmark = Callable[[], dict[str, object]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that ``argv`` names and print what it measured."""
    try:
        options = _parse(argv)
        result = _find(options.name)()
    except VeiltuneError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 -- this is the command
        return 2
    print(_text(result, as_json=options.json))  # noqa: T201
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m simulations.benchmarks", description=__doc__)
    parser.add_argument("name", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="one JSON object, on one line")
    return parser.parse_args(argv)


def _find(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise InvalidInput(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {name!r}")
    # Imported by need: a benchmark may load torch and another must not pay for it.
    benchmark: Benchmark = importlib.import_module(BENCHMARKS[name]).benchmark
    return benchmark


def _text(result: dict[str, object], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(result)
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in result.items())


if __name__ == "__main__":
    sys.exit(main())
