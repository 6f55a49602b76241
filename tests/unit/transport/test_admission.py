"""Who may start a handshake under load."""

from __future__ import annotations

import pytest

from qvpn_core.transport import admission, settings
from qvpn_core.transport.admission import Admission, Strangers, Verdict


def spend_what_is_free(door: Admission, now: float) -> None:
    for _ in range(int(admission.FREE_BURST)):
        assert door.judge("198.51.100.1", proven=False, now=now) is Verdict.ACCEPT


def test_at_rest_nobody_has_to_prove_an_address() -> None:
    door = Admission()
    for second in range(100):
        for _ in range(int(admission.FREE_RATE)):
            assert door.judge("192.0.2.1", proven=False, now=second) is Verdict.ACCEPT


def test_many_at_once_must_prove_their_addresses_until_it_is_quiet_again() -> None:
    door = Admission()
    spend_what_is_free(door, 1.0)
    assert door.judge("192.0.2.1", proven=False, now=1.0) is Verdict.RETRY
    assert door.judge("192.0.2.1", proven=True, now=1.0) is Verdict.ACCEPT
    assert door.judge("192.0.2.1", proven=False, now=2.0) is Verdict.ACCEPT


def test_half_open_connections_ask_for_proof_and_then_for_patience() -> None:
    door = Admission()
    door.half_open = settings.RETRY_ABOVE
    assert door.judge("192.0.2.1", proven=False, now=1.0) is Verdict.RETRY
    assert door.judge("192.0.2.1", proven=True, now=1.0) is Verdict.ACCEPT
    door.half_open = settings.HALF_OPEN_LIMIT
    assert door.judge("192.0.2.1", proven=False, now=1.0) is Verdict.DROP
    assert door.judge("192.0.2.1", proven=True, now=1.0) is Verdict.DROP


def test_one_address_cannot_take_the_share_of_another() -> None:
    door = Admission()
    verdicts = [door.judge("192.0.2.1", proven=True, now=1.0) for _ in range(2000)]
    assert verdicts.count(Verdict.ACCEPT) == admission.SOURCE_BURST
    assert door.judge("192.0.2.2", proven=True, now=1.0) is Verdict.ACCEPT


def test_a_customers_ipv6_prefix_is_one_source() -> None:
    door = Admission()
    verdicts = [
        door.judge(f"2001:db8:0:ff{i % 256:02x}::{i:x}", proven=True, now=1.0) for i in range(1000)
    ]
    assert verdicts.count(Verdict.ACCEPT) == admission.SOURCE_BURST
    assert door.judge("2001:db8:1::1", proven=True, now=1.0) is Verdict.ACCEPT


def test_forged_addresses_lock_nobody_out() -> None:
    door = Admission()
    for _ in range(2000):
        door.judge("192.0.2.1", proven=False, now=1.0)
    assert door.judge("192.0.2.1", proven=True, now=1.0) is Verdict.ACCEPT


def test_what_is_remembered_of_sources_is_bounded() -> None:
    door = Admission()
    for number in range(20_000):
        door.judge(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", proven=True, now=1.0)
    assert len(door._sources) == 4096


class Caller:
    def __init__(self, *, answered: bool) -> None:
        self.answered = answered


def test_of_strangers_the_oldest_that_was_answered_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "STRANGERS", 2)
    strangers = Strangers[Caller]()
    asking, old, new = Caller(answered=False), Caller(answered=True), Caller(answered=True)
    assert [strangers.meet(each) for each in (asking, old, old)] == [False, False, False]
    assert strangers.dismiss() is None
    assert strangers.meet(new)
    assert strangers.dismiss() is old
    assert strangers.dismiss() is None, "they are few enough now"


def test_without_an_answered_stranger_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "STRANGERS", 1)
    strangers = Strangers[Caller]()
    first, second = Caller(answered=False), Caller(answered=False)
    strangers.meet(first)
    assert strangers.meet(second)
    assert strangers.dismiss() is first


def test_who_got_a_tunnel_or_ended_is_no_stranger_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "STRANGERS", 1)
    strangers = Strangers[Caller]()
    device, other = Caller(answered=True), Caller(answered=True)
    strangers.meet(device)
    strangers.forget(device)
    strangers.forget(device)
    assert not strangers.meet(other)
