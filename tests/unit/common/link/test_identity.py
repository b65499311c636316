from hypothesis import given
from hypothesis import strategies as st

from common import pki
from common.config import NAME_PATTERN
from common.link.identity import node_id, read_certificate


def test_a_node_id_is_the_top_63_bits_of_the_name_s_sha256() -> None:
    # printf A | sha256sum: 559aead08264d579...
    assert node_id("A") == 0x559AEAD08264D579 >> 1


@given(st.from_regex(NAME_PATTERN, fullmatch=True))
def test_a_node_id_is_neither_nobody_nor_the_server_and_fits_63_bits(site: str) -> None:
    assert 2 <= node_id(site) < 2**63


def test_a_certificate_gives_its_site_and_serial() -> None:
    root = pki.create_root("test")
    _, csr = pki.new_site_key_and_csr("bank-7")
    chain = pki.issue_site(csr, pki.create_intermediate(root))
    site, serial = read_certificate(chain)
    assert site == "bank-7"
    assert serial == pki.load_certificates(chain)[0].serial_number
