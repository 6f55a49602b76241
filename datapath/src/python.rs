//! The module that Python imports. Bytes and numbers in, bytes and numbers out; what they mean is in
//! qvpn_core/datapath/native.py. Waiting for the engine is done without the GIL.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::engine::{self, Event};
use crate::outbox::{MAX_PACKET, Target};
use crate::protection::{Keys, PacketKey, Phase, Suite, header_key};
use crate::received::Received;
use crate::routes;
use crate::sent::Sent;
use crate::session::{Session, Settings};
use crate::socket::Socket;
use crate::worker::{self, Shared, Status};

/// Key and IV to send, key and IV to receive.
type PhaseParts = (Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>);
/// Next number to be sent, ranges received, numbers that went up.
type Books = (u64, Vec<(u64, u64)>, Vec<u64>);
/// Host, port and for IPv6 the scope.
type Address = (String, u16, u32);

#[pyclass(frozen)]
struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Where a device may send; made once for a policy.
#[pyclass(frozen)]
struct Destinations(Arc<routes::Destinations>);

#[pymethods]
impl Destinations {
    /// Each interval is its first address and whether packets to it are forwarded, ascending.
    #[new]
    fn new(ipv4: Vec<([u8; 4], bool)>, ipv6: Vec<([u8; 16], bool)>) -> Self {
        Self(Arc::new(routes::Destinations::new(ipv4, ipv6)))
    }
}

#[pymethods]
impl Engine {
    /// Start an engine on a TUN with IFF_VNET_HDR; the descriptor is duplicated.
    #[new]
    fn new(tun: i32, gateway: bool) -> PyResult<Self> {
        let shared = Arc::new(Shared::new(engine::Engine::new(gateway))?);
        let thread = worker::start(shared.clone(), duplicate(tun)?)?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Readable when `events` has something.
    fn fileno(&self) -> i32 {
        self.shared.news().as_raw_fd()
    }

    /// None while it runs, else why it stopped by itself.
    fn failure(&self) -> Option<String> {
        match self.shared.status() {
            Status::Failed(why) => Some(why),
            Status::Running | Status::Closing => None,
        }
    }

    /// Receive on a bound UDP socket from now on, and send on it; the descriptor is duplicated.
    fn add_socket(&self, py: Python<'_>, fd: i32) -> PyResult<usize> {
        let socket = Socket::new(duplicate(fd)?)?;
        let place = py.detach(|| self.shared.lock().sockets.add(socket));
        self.shared.wake();
        Ok(place)
    }

    fn remove_socket(&self, py: Python<'_>, place: usize) {
        py.detach(|| self.shared.lock().sockets.remove(place));
        self.shared.wake();
    }

    /// Take over the 1-RTT packets of a connection. Nothing arrives before `set_ids`.
    ///
    /// `received` are the ranges of packet numbers that arrived, first and last, ascending, and those
    /// below `floor` count as received;
    /// `next_number` is the next to be sent, `foreign` those sent before and not acknowledged.
    #[allow(clippy::too_many_arguments)]
    fn attach(
        &self,
        py: Python<'_>,
        prefix: Vec<u8>,
        target: (usize, Address, Option<Vec<u8>>),
        peer_id: Vec<u8>,
        packet_size: usize,
        ack_delay_exponent: u32,
        suite: u16,
        headers: (Vec<u8>, Vec<u8>),
        generation: u64,
        current: PhaseParts,
        next: PhaseParts,
        received: Vec<(u64, u64)>,
        floor: u64,
        next_number: u64,
        foreign: Vec<u64>,
        rtt: f64,
    ) -> PyResult<usize> {
        let suite = Suite::from_number(suite).ok_or_else(|| invalid("cipher suite"))?;
        let header = |key: &[u8]| header_key(suite, key).ok_or_else(|| invalid("key"));
        let keys = Keys::new(
            (header(&headers.0)?, header(&headers.1)?),
            phase(suite, &current)?,
            phase(suite, &next)?,
            generation,
        );
        let settings = settings(target, peer_id, packet_size, ack_delay_exponent, &prefix)?;
        let session = Session::new(
            settings,
            keys,
            Received::new(&received, floor),
            Sent::new(next_number, foreign, (rtt * 1e6) as u64),
            prefix,
            worker::now(),
        );
        Ok(py.detach(|| self.shared.lock().attach(session)))
    }

    /// Give a connection back: the next packet number to be sent, the ranges of those that arrived,
    /// and of these the ones that went up and may still wait to be looked at.
    fn detach(&self, py: Python<'_>, place: usize) -> Option<Books> {
        let session = py.detach(|| self.shared.lock().detach(place))?;
        self.shared.wake();
        let ranges = session.received.ranges().to_vec();
        Some((session.sent.next(), ranges, session.went_up.into()))
    }

    /// Acknowledge packets that were received above: ranges, first and last of each.
    fn note_received(&self, py: Python<'_>, place: usize, ranges: Vec<(u64, u64)>) {
        py.detach(|| self.shared.lock().note_received(place, &ranges, worker::now()));
        self.shared.wake();
    }

    /// The path, the peer's connection ID or the packet size has changed.
    fn update(
        &self,
        py: Python<'_>,
        place: usize,
        target: (usize, Address, Option<Vec<u8>>),
        peer_id: Vec<u8>,
        packet_size: usize,
    ) -> PyResult<()> {
        let target = parse_target(target)?;
        py.detach(|| {
            if let Some(session) = self.shared.lock().session(place)
                && !session.change(target, peer_id, packet_size)
            {
                return Err(invalid("packet size or connection ID"));
            }
            Ok(())
        })
    }

    fn set_ids(&self, py: Python<'_>, place: usize, ids: Vec<engine::ConnectionId>) {
        py.detach(|| self.shared.lock().set_ids(place, ids));
    }

    /// Keys of `generation` and of the phase behind it; see `Keys::install`.
    fn set_keys(
        &self,
        py: Python<'_>,
        place: usize,
        suite: u16,
        generation: u64,
        current: PhaseParts,
        next: PhaseParts,
    ) -> PyResult<()> {
        let suite = Suite::from_number(suite).ok_or_else(|| invalid("cipher suite"))?;
        let (current, next) = (phase(suite, &current)?, phase(suite, &next)?);
        py.detach(|| {
            if let Some(session) = self.shared.lock().session(place) {
                session.keys.install(current, next, generation);
            }
        });
        Ok(())
    }

    /// The addresses of a session, of 4 or 16 bytes.
    fn set_addresses(&self, py: Python<'_>, place: usize, addresses: Vec<Vec<u8>>) {
        py.detach(|| self.shared.lock().addresses.set(place, &addresses));
    }

    fn set_destinations(&self, py: Python<'_>, place: usize, destinations: &Destinations) {
        let table = destinations.0.clone();
        py.detach(|| self.shared.lock().set_destinations(place, table));
    }

    /// Use the connection's packet numbers until `commit`: the next, and the keys' generation.
    fn reserve(&self, py: Python<'_>, place: usize) -> Option<(u64, u64)> {
        py.detach(|| self.shared.lock().reserve(place))
    }

    /// All packet numbers before `end` were used.
    fn commit(&self, py: Python<'_>, place: usize, end: u64) {
        py.detach(|| self.shared.lock().commit(place, end));
        self.shared.wake();
    }

    /// Up to `limit` events, oldest first; each a tuple with its name in front.
    fn events<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.shared.clear_news();
        let events: Vec<Event> = py.detach(|| {
            let mut engine = self.shared.lock();
            let events = std::iter::from_fn(|| engine.next_event()).take(limit).collect();
            if engine.has_events() {
                self.shared.tell();
            }
            events
        });
        events.into_iter().map(|event| event_tuple(py, event)).collect()
    }

    /// Of a session: packets and bytes sent, packets and bytes received, packets not sent, packets
    /// lost, the next packet number expected; RTT and time of the last packet in seconds.
    fn counters(&self, py: Python<'_>, place: usize) -> Option<(Vec<u64>, f64, f64)> {
        py.detach(|| {
            let mut engine = self.shared.lock();
            let session = engine.session(place)?;
            let counters = session.counters;
            Some((
                vec![
                    counters.tx_packets,
                    counters.tx_bytes,
                    counters.rx_packets,
                    counters.rx_bytes,
                    counters.unacknowledged,
                    counters.lost,
                    session.received.next(),
                ],
                session.sent.rtt.smoothed as f64 / 1e6,
                session.last_received as f64 / 1e6,
            ))
        })
    }

    /// Packets dropped that belong to no session, by reason.
    fn drops(&self, py: Python<'_>) -> Vec<(&'static str, u64)> {
        let (drops, errors) = py.detach(|| {
            let engine = self.shared.lock();
            (engine.drops, engine.sockets.errors)
        });
        vec![
            ("bad-source", drops.bad_source),
            ("bad-destination", drops.bad_destination),
            ("malformed", drops.malformed),
            ("tun-refused", drops.tun_refused),
            ("too-big", drops.too_big),
            ("slow-path-full", drops.queue_full),
            ("queue-expired", drops.queue_delay),
            ("queue-full", drops.queue_overflow),
            ("not-sent", errors),
        ]
    }

    /// Stop the thread and wait for its end. What it knew can still be read. Idempotent.
    fn close(&self, py: Python<'_>) {
        self.shared.close();
        if let Some(thread) = self.thread.lock().take() {
            let _ = py.detach(|| thread.join());
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.close();
    }
}

fn event_tuple(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyAny>> {
    let bytes = |data: &[u8]| PyBytes::new(py, data);
    let tuple = match event {
        Event::Datagram { from, data } => {
            let Target { socket, peer, local } = from;
            let scope = if let SocketAddr::V6(peer) = peer { peer.scope_id() } else { 0 };
            let local = local.map(|address| match address {
                IpAddr::V4(address) => bytes(&address.octets()),
                IpAddr::V6(address) => bytes(&address.octets()),
            });
            let peer = (peer.ip().to_string(), peer.port(), scope);
            ("datagram", socket, peer, local, bytes(&data)).into_pyobject(py)?.into_any()
        }
        Event::Ack { session, frame, at } => {
            ("ack", session, bytes(&frame), at as f64 / 1e6).into_pyobject(py)?.into_any()
        }
        Event::Keys { session, generation } => {
            ("keys", session, generation).into_pyobject(py)?.into_any()
        }
        Event::Inner { session, packet } => {
            ("inner", session, bytes(&packet)).into_pyobject(py)?.into_any()
        }
        Event::Tun { packet } => ("tun", bytes(&packet)).into_pyobject(py)?.into_any(),
        Event::Refused { session, size } => {
            ("refused", session, size).into_pyobject(py)?.into_any()
        }
        Event::UpdateDue { session } => ("update-due", session).into_pyobject(py)?.into_any(),
        Event::BlackHole { session } => ("black-hole", session).into_pyobject(py)?.into_any(),
    };
    Ok(tuple)
}

fn settings(
    target: (usize, Address, Option<Vec<u8>>),
    peer_id: Vec<u8>,
    packet_size: usize,
    ack_delay_exponent: u32,
    prefix: &[u8],
) -> PyResult<Settings> {
    if peer_id.len() > 20 || prefix.len() > 9 || !(256..=MAX_PACKET).contains(&packet_size) {
        return Err(invalid("packet size, connection ID or prefix"));
    }
    Ok(Settings {
        target: parse_target(target)?,
        peer_id,
        own_id_length: engine::ID_LENGTH,
        packet_size,
        ack_delay_exponent,
    })
}

fn parse_target(target: (usize, Address, Option<Vec<u8>>)) -> PyResult<Target> {
    let (socket, (host, port, scope), local) = target;
    let host: IpAddr = host.parse().map_err(|_| invalid("peer address"))?;
    let mut peer = SocketAddr::new(host, port);
    if let SocketAddr::V6(peer) = &mut peer {
        peer.set_scope_id(scope);
    }
    let local = match local {
        None => None,
        Some(bytes) => {
            Some(match (<[u8; 4]>::try_from(&bytes[..]), <[u8; 16]>::try_from(&bytes[..])) {
                (Ok(ipv4), _) => IpAddr::from(ipv4),
                (_, Ok(ipv6)) => IpAddr::from(ipv6),
                _ => return Err(invalid("local address")),
            })
        }
    };
    Ok(Target { socket, peer, local })
}

fn phase(suite: Suite, parts: &PhaseParts) -> PyResult<Phase> {
    let key = |key: &[u8], iv: &[u8]| PacketKey::new(suite, key, iv).ok_or_else(|| invalid("key"));
    Ok(Phase { send: key(&parts.0, &parts.1)?, receive: key(&parts.2, &parts.3)? })
}

fn duplicate(fd: i32) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyOSError::new_err("the descriptor is closed"));
    }
    // SAFETY: the caller's Python object keeps the descriptor open during this call, which holds
    // the GIL; a number that is not open makes the duplication fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(borrowed.try_clone_to_owned()?)
}

fn invalid(what: &str) -> PyErr {
    PyValueError::new_err(format!("invalid {what}"))
}

/// Rises whenever something above changes, so that a module of another version is not used.
const INTERFACE: u32 = 1;

#[pymodule]
fn qvpn_datapath(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", INTERFACE)?;
    module.add_class::<Engine>()?;
    module.add_class::<Destinations>()
}
