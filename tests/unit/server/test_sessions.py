"""Live sessions: one per device, and an address always leads to the one that holds it."""

from ipaddress import ip_address

from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import integers

from qvpn_server.sessions import Session, SessionTable
from tests.unit.server.helpers import make_session


def test_a_reconnecting_device_takes_its_addresses_over() -> None:
    table = SessionTable()
    first, _ = make_session("alice", "10.86.0.2", "fd00:86::2")
    second, _ = make_session("alice", "10.86.0.2", "fd00:86::2")
    assert table.add(first) is None
    assert table.add(second) is first
    assert table.of_device(second.id) is second
    assert table.by_address[ip_address("10.86.0.2").packed] is second
    assert not table.remove(first), "its end must not take the new session out"
    assert table.by_address[ip_address("fd00:86::2").packed] is second
    assert table.remove(second)
    assert table.by_address == {}
    assert len(table) == 0


class Table(RuleBasedStateMachine):
    """Any order of arrivals and ends, late ends of replaced sessions included."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.table = SessionTable()
        self.live: dict[str, Session] = {}

    @rule(target=sessions, device=integers(0, 3))
    def arrive(self, device: int) -> Session:
        session, _ = make_session(f"d{device}", f"10.86.0.{device + 2}", f"fd00:86::{device + 2}")
        assert self.table.add(session) is self.live.get(session.device)
        self.live[session.device] = session
        return session

    @rule(session=sessions)
    def end(self, session: Session) -> None:
        was_live = self.live.get(session.device) is session
        assert self.table.remove(session) is was_live
        if was_live:
            del self.live[session.device]

    @invariant()
    def addresses_lead_to_the_live_sessions(self) -> None:
        assert set(self.table) == set(self.live.values())
        assert self.table.by_address == {
            address.packed: session
            for session in self.live.values()
            for address in session.addresses
        }


TestTable = Table.TestCase
