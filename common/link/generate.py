"""Write ``federation_pb2.py`` and its stub: ``python -m common.link.generate``.

No service stubs are generated: both ends register the two methods by name and parse frames
themselves, so that a frame which does not parse is refused in our words and not in gRPC's.
"""

from pathlib import Path

from common.errors import InvalidInput

ROOT = Path(__file__).parents[2]
PROTO = "common/link/federation.proto"
GENERATED = ("common/link/federation_pb2.py", "common/link/federation_pb2.pyi")
_STUB_HEADER = '# mypy: disable-error-code="type-arg"\n'  # protoc writes a bare Mapping


def generate(out: Path) -> None:
    """Write the generated modules below ``out``, under their package's path.

    Raises:
        InvalidInput: grpcio-tools (extra ``dev``) is absent, or the definition does not compile.
    """
    try:
        from grpc_tools import protoc  # type: ignore[import-untyped]
    except ImportError as error:
        raise InvalidInput("grpcio-tools must be installed (extra 'dev'), got none") from error
    code = protoc.main(
        ["protoc", f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}", str(ROOT / PROTO)]
    )
    if code != 0:
        raise InvalidInput(f"{PROTO} must compile, got exit code {code} from protoc")
    stub = out / GENERATED[1]
    stub.write_text(_STUB_HEADER + stub.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    generate(ROOT)
