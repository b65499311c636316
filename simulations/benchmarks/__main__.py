"""``python -m simulations.benchmarks NAME --json``: one benchmark, one JSON object on stdout.

Without ``--json`` a benchmark that has a ``table`` is shown as one.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from rich.console import Console

from common.errors import InvalidInput, VeiltuneError

BENCHMARKS = {
    "aggregate": "simulations.benchmarks.aggregate",
    "dp-step": "simulations.benchmarks.dp_step",
    "link": "simulations.benchmarks.link",
    "link-scale": "simulations.benchmarks.link_scale",
    "scale": "simulations.benchmarks.scale",
    "sim-central": "simulations.benchmarks.sim_central",
    "sim-dp": "simulations.benchmarks.sim_dp",
    "sim-ray": "simulations.benchmarks.sim_ray",
    "sim-stack": "simulations.benchmarks.sim_stack",
    "wire": "simulations.benchmarks.wire",
}
# Which options a benchmark takes beside --json.
OPTIONS: dict[str, tuple[str, ...]] = {
    "aggregate": (),
    "dp-step": ("rounds", "targets"),
    "link": (),
    "link-scale": (),
    "scale": (),
    "sim-central": ("rounds",),
    "sim-dp": ("rounds",),
    "sim-ray": ("rounds",),
    "sim-stack": ("rounds",),
    "wire": ("rounds",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that ``argv`` names and print what it measured."""
    try:
        options = _parse(argv)
        benchmark = _find(options.name)
        result = benchmark.benchmark(**_own_options(options))
    except VeiltuneError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 -- this is the command
        return 2
    if hasattr(benchmark, "table") and not options.json:
        Console().print(benchmark.table(result))
    else:
        print(_text(result, as_json=options.json))  # noqa: T201
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m simulations.benchmarks", description=__doc__)
    parser.add_argument("name", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="one JSON object, on one line")
    parser.add_argument("--rounds", type=int, help="timed rounds")
    parser.add_argument("--targets", help="dp-step: qv, or all for every dense layer")
    return parser.parse_args(argv)


def _own_options(options: argparse.Namespace) -> dict[str, Any]:
    given = {k: v for k in ("rounds", "targets") if (v := getattr(options, k)) is not None}
    for option in given:
        if option not in OPTIONS[options.name]:
            raise InvalidInput(f"{options.name} must be run without --{option}, got one")
    return given


def _find(name: str) -> ModuleType:
    if name not in BENCHMARKS:
        raise InvalidInput(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {name!r}")
    # Imported by need: a benchmark may load torch and another must not pay for it.
    return importlib.import_module(BENCHMARKS[name])


def _text(result: dict[str, object], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(result)
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in result.items())


if __name__ == "__main__":
    sys.exit(main())
