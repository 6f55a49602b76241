//! The engine for Python: numbers, bytes and tuples. What they mean is in `qvpn_core/datapath/engine.py`.

// PyO3 hands arguments over.
#![allow(clippy::needless_pass_by_value)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use pyo3::exceptions::{PyKeyError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::engine::{Engine, Item, Role};
use crate::io::{duplicate, now};
use crate::quic::{Keys, MAX_CONNECTION_ID, Suite};
use crate::rules::{AddressKey, Destinations, Inbound, Rules, key_of};
use crate::session::{Event, KEY_LIMIT, Route, Session, Setup};

/// Key, IV and header protection key.
type Secrets = (Vec<u8>, Vec<u8>, Vec<u8>);
/// A lowest address, 4 or 16 bytes, and whether packets from there on are forwarded.
type Boundaries = Vec<(Vec<u8>, bool)>;

#[pyclass(name = "Engine", module = "qvpn_datapath")]
struct PyEngine {
    engine: Engine,
    key_limit: u64,
}

fn refuse(what: &'static str) -> PyErr {
    PyValueError::new_err(what)
}

fn os_error(error: io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, error.to_string())),
        None => PyOSError::new_err(error.to_string()),
    }
}

fn gone() -> PyErr {
    PyKeyError::new_err("no such session")
}

fn keys(suite: u16, secrets: &Secrets) -> PyResult<Keys> {
    let suite = Suite::from_number(suite).ok_or_else(|| refuse("unknown cipher suite"))?;
    Keys::new(suite, &secrets.0, &secrets.1, &secrets.2).ok_or_else(|| refuse("bad key lengths"))
}

fn ip(address: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(address) {
        return Some(Ipv4Addr::from(four).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into())
}

fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn rules(own: Vec<Vec<u8>>, destinations: Option<(Boundaries, Boundaries)>) -> PyResult<Rules> {
    if own.iter().any(|address| key_of(address).is_none()) {
        return Err(refuse("an address of neither 4 nor 16 bytes"));
    }
    let keyed = |list: Boundaries, size: usize| -> PyResult<Vec<(AddressKey, bool)>> {
        list.into_iter()
            .map(|(start, forward)| {
                let key = key_of(&start).filter(|_| start.len() == size);
                Ok((
                    key.ok_or_else(|| refuse("a boundary of the wrong family"))?,
                    forward,
                ))
            })
            .collect()
    };
    let inbound = match destinations {
        None => Inbound::ToOwn,
        Some((ipv4, ipv6)) => Inbound::FromOwn(
            Destinations::new(keyed(ipv4, 4)?, keyed(ipv6, 16)?)
                .ok_or_else(|| refuse("boundaries that do not rise"))?,
        ),
    };
    Ok(Rules { own, inbound })
}

fn checked_ids(ids: &[Vec<u8>]) -> PyResult<()> {
    if ids.iter().any(|id| id.len() > MAX_CONNECTION_ID) {
        return Err(refuse("a connection ID of more than 20 bytes"));
    }
    Ok(())
}

fn ranges(list: &[(u64, u64)]) -> PyResult<()> {
    // Inclusive and falling, so that nothing behind them has to check again.
    let rising = list
        .iter()
        .any(|(first, last)| first > last || *last >= 1 << 62)
        || list.windows(2).any(|pair| pair[1].1 >= pair[0].0);
    if rising {
        return Err(refuse("ranges that do not fall"));
    }
    Ok(())
}

#[pymethods]
impl PyEngine {
    /// `gateway`, else a client; `tun` is a descriptor that stays the caller's. After `key_limit`
    /// packets the engine asks for other keys.
    #[new]
    #[pyo3(signature = (gateway, tun, key_limit=KEY_LIMIT))]
    fn new(gateway: bool, tun: Option<RawFd>, key_limit: u64) -> PyResult<Self> {
        let role = if gateway { Role::Gateway } else { Role::Client };
        let tun = tun.map(duplicate).transpose().map_err(os_error)?;
        let engine = Engine::start(role, tun).map_err(os_error)?;
        Ok(Self { engine, key_limit })
    }

    fn fileno(&self) -> RawFd {
        self.engine.owner_bell().as_fd().as_raw_fd()
    }

    fn add_socket(&self, fd: RawFd) -> PyResult<usize> {
        let fd = duplicate(fd).map_err(os_error)?;
        self.engine
            .change(|state| state.add_socket(fd))
            .map_err(os_error)
    }

    fn remove_socket(&self, index: usize) {
        self.engine.change(|state| state.remove_socket(index));
    }

    #[allow(clippy::too_many_arguments)]
    #[pyo3(signature = (*, suite, phase, sealing, opening, own_ids, peer_id, prefix, packet_size, mtu,
        own, destinations, next_number, received, ack_waits, outstanding, ack_delay_exponent, max_ack_delay, rtt))]
    fn attach(
        &self,
        suite: u16,
        phase: bool,
        sealing: Secrets,
        opening: Secrets,
        own_ids: Vec<Vec<u8>>,
        peer_id: Vec<u8>,
        prefix: Vec<u8>,
        packet_size: usize,
        mtu: usize,
        own: Vec<Vec<u8>>,
        destinations: Option<(Boundaries, Boundaries)>,
        next_number: u64,
        received: Vec<(u64, u64)>,
        ack_waits: bool,
        outstanding: Vec<(u64, u64)>,
        ack_delay_exponent: u32,
        max_ack_delay: f64,
        rtt: f64,
    ) -> PyResult<u64> {
        checked_ids(&own_ids)?;
        checked_ids(std::slice::from_ref(&peer_id))?;
        ranges(&received)?;
        check_size(packet_size)?;
        if prefix.len() > 16 {
            return Err(refuse("no prefix of a datagram"));
        }
        let setup = Setup {
            sealing: keys(suite, &sealing)?,
            opening: keys(suite, &opening)?,
            phase,
            own_ids,
            peer_id,
            prefix,
            packet_size,
            mtu,
            rules: rules(own, destinations)?,
            next: next_number,
            received,
            outstanding,
            peer_delay_exponent: ack_delay_exponent,
            peer_max_delay: micros(max_ack_delay),
            rtt: micros(rtt),
            key_limit: self.key_limit,
        };
        let mut session = Session::new(setup, now());
        session.set_size(packet_size, mtu);
        if ack_waits {
            session.received.want_ack(now());
        }
        Ok(self.engine.change(|state| state.attach(session)))
    }

    /// Ends a session: next number, received ranges, which numbers of them were handed up of late,
    /// whether an ACK waits, and what was queued.
    fn detach<'py>(&self, py: Python<'py>, id: u64) -> PyResult<Bound<'py, PyTuple>> {
        let mut session = self
            .engine
            .change(|state| state.detach(id))
            .ok_or_else(gone)?;
        let now = now();
        let mut queued = Vec::new();
        while let Some(packet) = session.queue.dequeue(now) {
            queued.push(PyBytes::new(py, &packet));
        }
        (
            session.next_number(),
            session.received.ranges().to_vec(),
            Vec::from(session.handed_up),
            session.received.waiting() > 0,
            queued,
        )
            .into_pyobject(py)
    }

    fn set_keys(
        &self,
        id: u64,
        suite: u16,
        phase: bool,
        sealing: Secrets,
        opening: Secrets,
    ) -> PyResult<()> {
        let (sealing, opening) = (keys(suite, &sealing)?, keys(suite, &opening)?);
        self.engine
            .change(|state| {
                state
                    .session(id)
                    .map(|session| session.set_keys(sealing, opening, phase, now()))
            })
            .ok_or_else(gone)
    }

    fn set_ids(&self, id: u64, own_ids: Vec<Vec<u8>>, peer_id: Vec<u8>) -> PyResult<()> {
        checked_ids(&own_ids)?;
        checked_ids(std::slice::from_ref(&peer_id))?;
        self.engine
            .change(|state| state.set_ids(id, own_ids, peer_id))
            .ok_or_else(gone)
    }

    /// `usable` says whether packets may be sent there; `fresh`, that it is another path.
    #[allow(clippy::too_many_arguments)]
    fn set_route(
        &self,
        id: u64,
        socket: usize,
        host: &[u8],
        port: u16,
        local: Option<&[u8]>,
        usable: bool,
        fresh: bool,
    ) -> PyResult<()> {
        let host = ip(host).ok_or_else(|| refuse("no address"))?;
        let peer = SocketAddr::new(host, port);
        let local = local.and_then(ip);
        let route = usable.then_some(Route {
            socket,
            peer,
            local,
        });
        self.engine
            .change(|state| {
                state
                    .session(id)
                    .map(|session| session.set_route(route, peer, fresh, now()))?;
                state.release(id);
                Some(())
            })
            .ok_or_else(gone)
    }

    fn set_size(&self, id: u64, packet_size: usize, mtu: usize) -> PyResult<()> {
        check_size(packet_size)?;
        self.engine
            .change(|state| {
                state
                    .session(id)
                    .map(|session| session.set_size(packet_size, mtu))
            })
            .ok_or_else(gone)
    }

    fn set_rules(
        &self,
        id: u64,
        own: Vec<Vec<u8>>,
        destinations: Option<(Boundaries, Boundaries)>,
    ) -> PyResult<()> {
        let rules = rules(own, destinations)?;
        self.engine
            .change(|state| state.set_rules(id, rules))
            .ok_or_else(gone)
    }

    /// Packets for its addresses are another's from now on.
    fn unroute(&self, id: u64) -> PyResult<()> {
        self.engine
            .change(|state| state.unroute(id))
            .ok_or_else(gone)
    }

    /// Take the next packet number; the session sends nothing until `end_send`.
    fn begin_send(&self, id: u64) -> PyResult<u64> {
        self.engine
            .with(|state| {
                state.session(id).map(|session| {
                    session.held = true;
                    session.next_number()
                })
            })
            .ok_or_else(gone)
    }

    /// Numbers up to `next` were used.
    fn end_send(&self, id: u64, next: u64) -> PyResult<()> {
        self.engine
            .change(|state| {
                state.session(id).map(|session| session.end_hold(next))?;
                state.release(id);
                Some(())
            })
            .ok_or_else(gone)
    }

    /// The QUIC stack itself opened packets with numbers in these inclusive ranges.
    fn received(&self, id: u64, list: Vec<(u64, u64)>, eliciting: bool) -> PyResult<()> {
        self.engine
            .change(|state| {
                let now = now();
                state.session(id).map(|session| {
                    for (first, last) in list {
                        for number in first..=last.min(first.saturating_add(1 << 10)) {
                            session.note_opened(number, eliciting, now);
                        }
                    }
                })?;
                state.release(id);
                Some(())
            })
            .ok_or_else(gone)
    }

    /// See `SessionStats` in Python.
    fn stats<'py>(&self, py: Python<'py>, id: u64) -> PyResult<Bound<'py, PyTuple>> {
        self.engine
            .with(|state| {
                state.session(id).map(|session| {
                    let counters = &session.counters;
                    (
                        (
                            counters.tx_packets,
                            counters.tx_bytes,
                            counters.rx_packets,
                            counters.rx_bytes,
                            session.sender.lost_packets,
                            counters.bad_source,
                            session.queue.counters().codel,
                            session.queue.counters().full,
                        ),
                        (session.received.next(), session.largest_direct),
                        (
                            session.last_received as f64 / 1e6,
                            session.unanswered_since().map(|at| at as f64 / 1e6),
                            session.sender.rtt() as f64 / 1e6,
                        ),
                        session.next_number(),
                    )
                })
            })
            .ok_or_else(gone)?
            .into_pyobject(py)
    }

    /// Packets that the engine itself dropped, by reason.
    fn drops(&self) -> [(&'static str, u64); 4] {
        let drops = self.engine.with(|state| state.drops);
        [
            ("overload", drops.overload),
            ("tun-refused", drops.tun_refused),
            ("malformed", drops.malformed),
            ("send-refused", drops.send_refused),
        ]
    }

    /// What wants to go up: tuples that begin with what they are.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for item in self.engine.take() {
            let tuple = match item {
                Item::Udp(socket, sender, local, data) => {
                    let scope = match sender {
                        SocketAddr::V6(six) => six.scope_id(),
                        SocketAddr::V4(_) => 0,
                    };
                    let sender = (sender.ip().to_string(), sender.port(), scope);
                    let local = local.map(|local| PyBytes::new(py, &ip_bytes(local)));
                    let data = PyBytes::new(py, &data);
                    ("udp", socket, sender, local, data).into_pyobject(py)?
                }
                Item::Datagram(id, data) => {
                    ("datagram", id, PyBytes::new(py, &data)).into_pyobject(py)?
                }
                Item::Tun(data) => ("tun", PyBytes::new(py, &data)).into_pyobject(py)?,
                Item::Acked(id, ranges, delay) => {
                    ("acked", id, ranges, delay as f64 / 1e6).into_pyobject(py)?
                }
                Item::Event(id, event) => match event {
                    Event::KeyLimit => ("key-limit", id, 0).into_pyobject(py)?,
                    Event::Silent => ("silent", id, 0).into_pyobject(py)?,
                    Event::BlackHole => ("black-hole", id, 0).into_pyobject(py)?,
                    Event::TooLarge(size) => ("too-large", id, size).into_pyobject(py)?,
                },
                Item::TunGone => ("tun-gone",).into_pyobject(py)?,
                Item::Failed(words) => ("failed", words).into_pyobject(py)?,
            };
            list.append(tuple)?;
        }
        Ok(list)
    }

    /// End the thread; what is in the engine can still be detached.
    fn stop(&mut self) {
        self.engine.stop();
    }

    /// Fail by a defect at the next turn: for tests of what happens then.
    fn fail(&self) {
        self.engine.change(crate::engine::State::fail);
    }
}

fn check_size(packet_size: usize) -> PyResult<()> {
    if !(1200..=16_384).contains(&packet_size) {
        return Err(refuse("a packet size that no path has"));
    }
    Ok(())
}

fn micros(seconds: f64) -> u64 {
    (seconds.clamp(0.0, 1e6) * 1e6) as u64
}

/// The extension module.
#[pymodule]
fn qvpn_datapath(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEngine>()?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
