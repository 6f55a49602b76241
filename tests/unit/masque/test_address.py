"""ADDRESS_ASSIGN and ADDRESS_REQUEST: the RFC's layout byte by byte, and each of its rules."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.masque.address import (
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    IPNetwork,
    RequestedAddress,
)
from qvpn_core.masque.capsule import CapsuleDecoder, CapsuleError, CapsuleType
from qvpn_core.masque.varint import MAX_VARINT

networks = st.one_of(
    st.builds(
        lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda number, length: IPv6Network((number >> (128 - length) << (128 - length), length)),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)

# What both capsules consist of: the same entry, well formed and malformed in every way.
ENTRY_V4 = bytes.fromhex("01 04 c000020b 20")
MALFORMED = {
    "IP version 5": "01 05 c000020b 20",
    "prefix length 33": "01 04 c000020b 21",
    "prefix length 129": "01 06 20010db8000000000000000000000000 81",
    "bits set behind its prefix": "01 04 c000020b 18",
    "0.0.0.1/0 has bits set": "01 04 00000001 00",
    "truncated: 1 bytes missing": "01 04 c000020b",
    "truncated: 9 bytes missing": "01 06 20010db8000000",
    "truncated: inside a variable-length": "41",
    "truncated: inside": "01 04 c000020b 20 80",
}


def value_of(capsule: bytes, kind: CapsuleType) -> bytes:
    """The value of the one capsule in `capsule`, by the real decoder."""
    [decoded] = CapsuleDecoder().feed(capsule)
    assert decoded.type == kind
    return decoded.value


def test_the_layout_of_address_assign() -> None:
    assign = AddressAssign(
        (
            AssignedAddress(1, IPv4Network("192.0.2.11/32")),
            AssignedAddress(0, IPv6Network("2001:db8::/64")),
        )
    )
    value = ENTRY_V4 + bytes.fromhex("00 06 20010db8000000000000000000000000 40")
    assert assign.encode() == bytes((0x01, len(value))) + value
    assert AddressAssign.parse(value) == assign


def test_the_layout_of_address_request() -> None:
    request = AddressRequest((RequestedAddress(1, IPv4Network("192.0.2.11/32")),))
    assert request.encode() == bytes((0x02, len(ENTRY_V4))) + ENTRY_V4
    assert AddressRequest.parse(ENTRY_V4) == request


def test_an_empty_assignment_takes_everything_back() -> None:
    assert AddressAssign.parse(b"") == AddressAssign(())
    assert AddressAssign().encode() == b"\x01\x00"


def test_an_empty_request_is_malformed() -> None:
    with pytest.raises(CapsuleError, match="ADDRESS_REQUEST capsule: it asks for no address"):
        AddressRequest.parse(b"")


@pytest.mark.parametrize(("complaint", "value"), MALFORMED.items())
@pytest.mark.parametrize("capsule", [AddressAssign, AddressRequest])
def test_a_malformed_entry_is_refused_and_named(
    capsule: type[AddressAssign | AddressRequest], complaint: str, value: str
) -> None:
    with pytest.raises(CapsuleError, match=complaint):
        capsule.parse(bytes.fromhex(value))


def test_request_id_zero_means_unprompted_and_cannot_be_requested() -> None:
    unprompted = b"\0" + ENTRY_V4[1:]
    assert AddressAssign.parse(unprompted).addresses[0].request_id == 0
    with pytest.raises(CapsuleError, match="request ID 0"):
        AddressRequest.parse(unprompted)


def test_two_requests_in_one_capsule_need_two_request_ids() -> None:
    with pytest.raises(CapsuleError, match="occurs twice"):
        AddressRequest.parse(ENTRY_V4 * 2)


@pytest.mark.parametrize(
    ("wanted", "refusal"), [("10.0.0.0/24", "0.0.0.0/32"), ("2001:db8::/64", "::/128")]
)
def test_a_refusal_is_the_all_zero_address_in_full_length(wanted: str, refusal: str) -> None:
    network = IPv4Network if "." in wanted else IPv6Network
    answer = RequestedAddress(7, network(wanted)).refusal()
    assert answer == AssignedAddress(7, network(refusal))
    assert answer.refused
    assert not AssignedAddress(7, network(wanted)).refused


@given(entries=st.lists(st.tuples(st.integers(0, MAX_VARINT), networks), max_size=20))
def test_what_is_assigned_arrives(entries: list[tuple[int, IPNetwork]]) -> None:
    assign = AddressAssign(tuple(AssignedAddress(number, prefix) for number, prefix in entries))
    assert AddressAssign.parse(value_of(assign.encode(), CapsuleType.ADDRESS_ASSIGN)) == assign


@given(
    entries=st.dictionaries(st.integers(1, MAX_VARINT), networks, min_size=1, max_size=20),
)
def test_what_is_requested_arrives(entries: dict[int, IPNetwork]) -> None:
    request = AddressRequest(tuple(RequestedAddress(*entry) for entry in entries.items()))
    assert AddressRequest.parse(value_of(request.encode(), CapsuleType.ADDRESS_REQUEST)) == request
