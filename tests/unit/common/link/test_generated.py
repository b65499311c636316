from pathlib import Path

import pytest

from common.link.generate import GENERATED, ROOT, generate


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools (extra 'dev') is not installed")
    generate(tmp_path)
    for name in GENERATED:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), name
