"""Coverage-guided fuzzing of one parser, with atheris where it is installed.

    python -m tests.fuzz.harness NAME [libFuzzer's options, such as -runs=20000]

It ends with a trace at the first input whose error is not one of ours.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["common", "server", "client"]):
    from common.errors import VeiltuneError
    from tests.fuzz.parsers import parsers


def main(argv: list[str]) -> None:
    """Fuzz the parser that ``argv`` names, from the document that it takes."""
    parser = parsers()[argv[1]]

    def one(data: bytes) -> None:
        try:
            parser.read(data)
        except VeiltuneError:
            return

    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "whole").write_bytes(parser.whole)
        # What it finds is printed in base64; no file is left beside the source.
        atheris.Setup([argv[0], f"-artifact_prefix={corpus}/", *argv[2:], corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
