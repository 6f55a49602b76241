//! The engine: one thread between a TUN and UDP sockets, for any number of sessions.
//!
//! The thread and the callers from above share one [`State`] under one lock, which the thread gives up
//! between two batches to whoever waits. What it does not understand, or must not decide, goes up as
//! an [`Item`]; a bell tells that there are some. Everything is bounded.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use quinn_udp::RecvMeta;

use crate::Micros;
use crate::io::{Bell, RECEIVE_BATCH, SUPER_PACKET, Tun, Udp, interest, now, wait};
use crate::offload::{Coalescer, Segments, VnetHeader};
use crate::quic::{self, Frame};
use crate::rules::{self, AddressKey, Routes};
use crate::session::{Event, Opened, Session};
use crate::writer::Writer;

/// Bytes of our connection IDs.
pub const ID_SIZE: usize = 8;
/// Packets, and bytes, taken from the TUN before the sockets have their turn.
const TUN_BATCH: usize = 128;
const TUN_BYTES: usize = 8 * SUPER_PACKET;
/// Bytes that wait to go up, of UDP and of the TUN each.
const UP_BYTES: usize = 4 << 20;
/// Segments of a super-packet that go up because they are too big: the sender learns from one.
const TOO_BIG_SEGMENTS: usize = 2;
const ARENA: usize = RECEIVE_BATCH * SUPER_PACKET;

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One session, which all packets of the TUN belong to.
    Client,
    /// Packets of the TUN belong to the session that holds their destination.
    Gateway,
}

/// What goes up to the QUIC stack and its owners.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// A UDP payload that is not the engine's, untouched: socket, sender, local address, bytes.
    Udp(usize, SocketAddr, Option<IpAddr>, Vec<u8>),
    /// The payload of a DATAGRAM frame that did not pass the rules, or is not of the tunnel.
    Datagram(u64, Vec<u8>),
    /// A packet from the TUN that is no session's, or too big for its session.
    Tun(Vec<u8>),
    /// Packets of the QUIC stack were acknowledged: ranges, and the peer's delay in microseconds.
    Acked(u64, Vec<(u64, u64)>, Micros),
    /// Something happened.
    Event(u64, Event),
    /// The TUN is gone.
    TunGone,
    /// The engine failed by a defect and moves nothing any more.
    Failed(String),
}

#[derive(Default)]
struct Up {
    items: Vec<Item>,
    udp_bytes: usize,
    tun_bytes: usize,
}

impl Up {
    fn udp(&mut self, socket: usize, meta: &RecvMeta, data: &[u8]) -> bool {
        if self.udp_bytes + data.len() > UP_BYTES {
            return false;
        }
        self.udp_bytes += data.len();
        self.items
            .push(Item::Udp(socket, meta.addr, meta.dst_ip, data.to_vec()));
        true
    }

    fn datagram(&mut self, session: u64, data: &[u8]) -> bool {
        if self.udp_bytes + data.len() > UP_BYTES {
            return false;
        }
        self.udp_bytes += data.len();
        self.items.push(Item::Datagram(session, data.to_vec()));
        true
    }

    fn tun(&mut self, packet: Vec<u8>) -> bool {
        if self.tun_bytes + packet.len() > UP_BYTES {
            return false;
        }
        self.tun_bytes += packet.len();
        self.items.push(Item::Tun(packet));
        true
    }
}

/// Packets that the engine itself dropped, by reason.
#[derive(Clone, Copy, Default)]
pub struct Drops {
    /// The way up was full.
    pub overload: u64,
    /// The kernel did not take a packet for the TUN.
    pub tun_refused: u64,
    /// Nothing that a kernel sends.
    pub malformed: u64,
    /// No socket took it in time.
    pub send_refused: u64,
}

/// A session and what the engine knows of it besides.
pub struct Slot {
    /// A number that is never used again.
    pub id: u64,
    /// The session.
    pub session: Session,
    /// Whether a timer of it may be running.
    armed: bool,
}

/// Everything, under the lock.
#[allow(clippy::struct_excessive_bools)] // each stands for itself
pub struct State {
    role: Role,
    tun: Option<Arc<Tun>>,
    sockets: Vec<Option<Arc<Udp>>>,
    slots: Vec<Option<Box<Slot>>>,
    by_number: HashMap<u64, usize>,
    by_id: HashMap<[u8; ID_SIZE], usize>,
    routes: Routes,
    next_number: u64,
    armed: Vec<usize>,
    writer: Writer,
    up: Up,
    /// The owner was told of what is in `up`.
    rung: bool,
    /// What was dropped here.
    pub drops: Drops,
    stopped: bool,
    failed: bool,
    fail_next: bool,
    coalescer: Coalescer,
    /// Whether the kernel takes super-packets.
    joins: bool,
}

struct Inner {
    state: Mutex<State>,
    /// Callers from above that want the lock.
    waiting: AtomicUsize,
    /// Wakes the thread.
    thread_bell: Bell,
    /// Wakes the owner.
    owner_bell: Bell,
}

/// A running engine; it ends with [`Engine::stop`], or when it is dropped.
pub struct Engine {
    inner: Arc<Inner>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Engine {
    /// An engine with its thread, over a TUN or, for tests, none.
    ///
    /// # Errors
    /// Without free descriptors or threads.
    pub fn start(role: Role, tun: Option<OwnedFd>) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                role,
                tun: tun.map(|fd| Arc::new(Tun::new(fd))),
                sockets: Vec::new(),
                slots: Vec::new(),
                by_number: HashMap::new(),
                by_id: HashMap::new(),
                routes: Routes::new(),
                next_number: 1,
                armed: Vec::new(),
                writer: Writer::default(),
                up: Up::default(),
                rung: false,
                drops: Drops::default(),
                stopped: false,
                failed: false,
                fail_next: false,
                coalescer: Coalescer::new(),
                joins: true,
            }),
            waiting: AtomicUsize::new(0),
            thread_bell: Bell::new()?,
            owner_bell: Bell::new()?,
        });
        let of_thread = Arc::clone(&inner);
        let thread = thread::Builder::new()
            .name("qvpn datapath".into())
            .spawn(move || run(&of_thread))?;
        Ok(Self {
            inner,
            thread: Some(thread),
        })
    }

    /// The descriptor that is readable when there is something to [`Engine::take`].
    pub fn owner_bell(&self) -> &Bell {
        &self.inner.owner_bell
    }

    /// Use the state; the thread waits meanwhile.
    pub fn with<R>(&self, use_it: impl FnOnce(&mut State) -> R) -> R {
        self.inner.waiting.fetch_add(1, Ordering::SeqCst);
        let mut state = self.inner.lock();
        self.inner.waiting.fetch_sub(1, Ordering::SeqCst);
        use_it(&mut state)
    }

    /// The same for a change after which the thread may have something to do, or to wait for.
    pub fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = self.with(change);
        self.inner.thread_bell.ring();
        result
    }

    /// Everything that wants to go up.
    pub fn take(&self) -> Vec<Item> {
        self.inner.owner_bell.hush();
        self.with(|state| {
            state.rung = false;
            (state.up.udp_bytes, state.up.tun_bytes) = (0, 0);
            std::mem::take(&mut state.up.items)
        })
    }

    /// End the thread. What is in the state stays there.
    pub fn stop(&mut self) {
        self.change(|state| state.stopped = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // After a defect the state is still good enough to be handed back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(inner: &Inner) {
    let mut buffers = Buffers::new();
    let result = catch_unwind(AssertUnwindSafe(|| serve(inner, &mut buffers)));
    if let Err(panic) = result {
        let words = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let mut state = inner.lock();
        state.failed = true;
        state.up.items.push(Item::Failed(words));
        inner.owner_bell.ring();
    }
}

/// Memory that the thread works in.
struct Buffers {
    tun: Box<[u8]>,
    receive: Vec<Box<[u8]>>,
    meta: [RecvMeta; RECEIVE_BATCH],
    /// Where packets are opened, one behind the other.
    arena: Box<[u8]>,
}

impl Buffers {
    fn new() -> Self {
        Self {
            tun: vec![0; VnetHeader::LEN + SUPER_PACKET].into_boxed_slice(),
            receive: (0..RECEIVE_BATCH)
                .map(|_| vec![0; SUPER_PACKET].into_boxed_slice())
                .collect(),
            meta: [RecvMeta::default(); RECEIVE_BATCH],
            arena: vec![0; ARENA].into_boxed_slice(),
        }
    }
}

/// What is worth a look.
#[derive(Default)]
struct Ready {
    tun: bool,
    sockets: Vec<usize>,
    room: bool,
}

fn serve(inner: &Inner, buffers: &mut Buffers) {
    let mut ready = Ready::default();
    let mut open: Vec<(usize, Arc<Udp>)> = Vec::new();
    loop {
        let (tun, blocked, timeout) = {
            let state = inner.lock();
            if state.stopped {
                return;
            }
            // Their descriptors stay open while we wait, whatever is closed meanwhile.
            open.clear();
            for (index, socket) in state.sockets.iter().enumerate() {
                if let Some(socket) = socket {
                    open.push((index, Arc::clone(socket)));
                }
            }
            (
                state.tun.clone(),
                state.writer.blocked_on(),
                state.timeout(now()),
            )
        };
        wait_for(inner, tun.as_deref(), &open, blocked, timeout, &mut ready);
        drop(tun);
        while inner.waiting.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        let mut state = inner.lock();
        state.turn(&ready, buffers);
        if !state.up.items.is_empty() && !state.rung {
            state.rung = true;
            inner.owner_bell.ring();
        }
    }
}

fn wait_for(
    inner: &Inner,
    tun: Option<&Tun>,
    open: &[(usize, Arc<Udp>)],
    blocked: Option<usize>,
    timeout: Option<Micros>,
    ready: &mut Ready,
) {
    let mut fds = Vec::with_capacity(2 + open.len());
    fds.push(interest(inner.thread_bell.as_fd(), true, false));
    for (index, socket) in open {
        fds.push(interest(socket.as_fd(), true, blocked == Some(*index)));
    }
    if let Some(tun) = tun {
        // While the network takes nothing, the TUN's own queue is the place to wait.
        fds.push(interest(tun.as_fd(), blocked.is_none(), false));
    }
    wait(&mut fds, timeout);
    let is_ready = |fd: &rustix::event::PollFd<'_>| !fd.revents().is_empty();
    if is_ready(&fds[0]) {
        inner.thread_bell.hush();
    }
    ready.room = false;
    ready.sockets.clear();
    for ((index, _), fd) in open.iter().zip(&fds[1..]) {
        let events = fd.revents();
        ready.room |= events.contains(rustix::event::PollFlags::OUT);
        if !events.is_empty() && events != rustix::event::PollFlags::OUT {
            ready.sockets.push(*index);
        }
    }
    ready.tun = tun.is_some() && fds.last().is_some_and(is_ready);
}

impl State {
    /// Do what there is to do now.
    fn turn(&mut self, ready: &Ready, buffers: &mut Buffers) {
        assert!(!self.fail_next, "a fault was asked for");
        let now = now();
        if ready.room {
            self.writer.retry(&self.sockets);
        }
        for &socket in &ready.sockets {
            self.take_from_socket(socket, buffers, now);
        }
        if ready.tun && !self.writer.blocked() {
            self.take_from_tun(buffers, now);
        }
        self.on_timers(now);
        self.finish(now);
    }

    fn timeout(&self, now: Micros) -> Option<Micros> {
        self.armed
            .iter()
            .filter_map(|&index| self.slots[index].as_ref()?.session.timer(now))
            .min()
            // What waits for the kernel to have room is not due before that.
            .map(|at| {
                at.saturating_sub(now)
                    .max(if self.writer.blocked() { 1_000 } else { 0 })
            })
    }

    fn on_timers(&mut self, now: Micros) {
        let mut armed = std::mem::take(&mut self.armed);
        armed.retain(|&index| {
            let Some(slot) = self.slots[index].as_deref_mut() else {
                return false;
            };
            if slot.session.timer(now).is_some_and(|at| at <= now) {
                if let Some(event) = slot.session.on_timer(now) {
                    self.up.items.push(Item::Event(slot.id, event));
                }
                self.send_what_is_due(index, now);
            }
            let Some(slot) = self.slots[index].as_deref_mut() else {
                return false;
            };
            slot.armed = slot.session.timer(now).is_some();
            slot.armed
        });
        self.armed.append(&mut armed);
    }

    fn arm(&mut self, index: usize) {
        if let Some(slot) = self.slots[index].as_deref_mut()
            && !slot.armed
        {
            slot.armed = true;
            self.armed.push(index);
        }
    }

    // From the TUN

    fn take_from_tun(&mut self, buffers: &mut Buffers, now: Micros) {
        let mut bytes = 0;
        for _ in 0..TUN_BATCH {
            if bytes >= TUN_BYTES {
                break;
            }
            let Some(tun) = self.tun.as_deref() else {
                return;
            };
            let size = match tun.read(&mut buffers.tun) {
                Ok(Some(size)) => size,
                Ok(None) => break,
                Err(_) => {
                    self.tun = None;
                    self.up.items.push(Item::TunGone);
                    break;
                }
            };
            bytes += size;
            let (header, packet) = buffers.tun[..size].split_at(VnetHeader::LEN.min(size));
            let segments = VnetHeader::parse(header)
                .filter(|_| is_ip(packet))
                .and_then(|header| Segments::new(&header, packet).ok());
            match segments {
                Some(segments) => self.send_inner(packet, segments, now),
                None => self.drops.malformed += 1,
            }
            if self.writer.blocked() {
                break;
            }
        }
    }

    /// The session that a packet of the TUN is for.
    fn session_for(&self, packet: &[u8]) -> Option<usize> {
        match self.role {
            Role::Client => self.by_number.values().next().copied(),
            Role::Gateway => {
                let key = rules::key_of(rules::addresses(packet).1)?;
                self.routes.get(&key).copied()
            }
        }
    }

    fn send_inner(&mut self, packet: &[u8], mut segments: Segments<'_>, now: Micros) {
        let Some(index) = self.session_for(packet) else {
            self.pass_up(&mut segments, usize::MAX);
            return;
        };
        let Some(slot) = self.slots[index].as_deref_mut() else {
            return;
        };
        let session = &mut slot.session;
        if self.role == Role::Client && !session.rules.lets_out(packet) {
            session.counters.bad_source += 1;
            return;
        }
        if segments.largest() > session.mtu {
            self.pass_up(&mut segments, TOO_BIG_SEGMENTS);
            return;
        }
        if session.queue.is_empty() && session.may_send(now) {
            self.make_room_for(index, now);
            let Some(slot) = self.slots[index].as_deref_mut() else {
                return;
            };
            let session = &mut slot.session;
            let mut event = None;
            while let Some(size) = Some(segments.next_len()).filter(|size| *size > 0) {
                session.counters.tx_packets += 1;
                session.counters.tx_bytes += size as u64;
                let told = self
                    .writer
                    .put(session, index, &self.sockets, size, now, |out| {
                        segments.next_into(out);
                    });
                event = told.or(event);
            }
            let event = event.or_else(|| session.event());
            if let Some(event) = event {
                self.up.items.push(Item::Event(slot.id, event));
            }
        } else {
            let mut packet = vec![0; segments.largest()];
            while let Some(size) = segments.next_into(&mut packet) {
                session.queue.enqueue(packet[..size].to_vec(), now);
            }
        }
        self.arm(index);
    }

    fn pass_up(&mut self, segments: &mut Segments<'_>, most: usize) {
        let mut packet = vec![0; segments.largest()];
        for _ in 0..most {
            let Some(size) = segments.next_into(&mut packet) else {
                break;
            };
            if !self.up.tun(packet[..size].to_vec()) {
                self.drops.overload += 1;
                break;
            }
        }
    }

    /// The writer's buffer is of one session at a time.
    fn make_room_for(&mut self, index: usize, now: Micros) {
        if self.writer.is_of_another(index) {
            self.finish(now);
        }
    }

    /// Send what is in the writer's buffer.
    fn finish(&mut self, now: Micros) {
        let Some(index) = self.writer.session() else {
            return;
        };
        match self.slots[index].as_deref_mut() {
            Some(slot) => {
                let event = self.writer.finish(&mut slot.session, &self.sockets, now);
                slot.session.sender.note(now);
                slot.session.sender.left(!slot.session.queue.is_empty());
                if let Some(event) = event {
                    self.up.items.push(Item::Event(slot.id, event));
                }
            }
            None => self.writer.abandon(index),
        }
        self.drops.send_refused = self.writer.overflowed;
    }

    /// Send an ACK if one is due, and what waits if it may go now.
    fn send_what_is_due(&mut self, index: usize, now: Micros) {
        self.make_room_for(index, now);
        let Some(slot) = self.slots[index].as_deref_mut() else {
            return;
        };
        let session = &mut slot.session;
        let mut event = None;
        while !session.queue.is_empty() && session.may_send(now) && !self.writer.blocked() {
            let Some(packet) = session.queue.dequeue(now) else {
                break;
            };
            if packet.len() > session.mtu {
                self.up.tun(packet);
                continue;
            }
            session.counters.tx_packets += 1;
            session.counters.tx_bytes += packet.len() as u64;
            let told = self
                .writer
                .put(session, index, &self.sockets, packet.len(), now, |out| {
                    out.copy_from_slice(&packet);
                });
            event = told.or(event);
        }
        if session.route.is_some() && !session.held && session.ack_due(now) {
            self.writer.acknowledge(session, index, &self.sockets, now);
        }
        if let Some(event) = event.or_else(|| session.event()) {
            self.up.items.push(Item::Event(slot.id, event));
        }
        self.arm(index);
    }

    // From a socket

    fn take_from_socket(&mut self, socket: usize, buffers: &mut Buffers, now: Micros) {
        let Buffers {
            receive,
            meta,
            arena,
            ..
        } = buffers;
        let received = {
            let Some(udp) = self.sockets.get(socket).and_then(Option::as_deref) else {
                return;
            };
            let mut slices: [IoSliceMut<'_>; RECEIVE_BATCH] = {
                let mut each = receive.iter_mut();
                std::array::from_fn(|_| {
                    IoSliceMut::new(each.next().map_or(&mut [], |b| &mut b[..]))
                })
            };
            // An ICMP error about one peer says nothing about the socket.
            udp.receive(&mut slices, meta).unwrap_or(0)
        };
        let mut at = 0;
        let mut touched: Vec<usize> = Vec::new();
        for (meta, buffer) in meta[..received].iter().zip(&*receive) {
            let mut last: Option<([u8; ID_SIZE], usize)> = None;
            for packet in buffer[..meta.len].chunks(meta.stride.max(1)) {
                let index = quic::is_short(packet, ID_SIZE)
                    .then(|| packet[1..=ID_SIZE].try_into().ok())
                    .flatten()
                    .and_then(|id: [u8; ID_SIZE]| match last {
                        Some((same, index)) if same == id => Some(index),
                        _ => {
                            let index = self.by_id.get(&id).copied()?;
                            last = Some((id, index));
                            Some(index)
                        }
                    });
                let Some(index) = index else {
                    self.udp_up(socket, meta, packet);
                    continue;
                };
                if touched.last() != Some(&index) && !touched.contains(&index) {
                    touched.push(index);
                }
                at += self.receive(index, socket, meta, packet, &mut arena[..], at, now);
            }
        }
        self.write_to_tun(arena);
        for index in touched {
            self.send_what_is_due(index, now);
        }
    }

    fn udp_up(&mut self, socket: usize, meta: &RecvMeta, packet: &[u8]) -> bool {
        let taken = self.up.udp(socket, meta, packet);
        if !taken {
            self.drops.overload += 1;
        }
        taken
    }

    /// Handle a packet of a session; the bytes of the arena behind `at` that it needs to keep.
    #[allow(clippy::too_many_arguments)]
    fn receive(
        &mut self,
        index: usize,
        socket: usize,
        meta: &RecvMeta,
        packet: &[u8],
        arena: &mut [u8],
        at: usize,
        now: Micros,
    ) -> usize {
        let Some(slot) = self.slots[index].as_deref_mut() else {
            return 0;
        };
        let session = &mut slot.session;
        let (size, number) = match session.open(packet, ID_SIZE, &mut arena[at..], now) {
            Opened::Fresh(size, number) => (size, number),
            Opened::Duplicate => return 0,
            Opened::Unknown(number) => {
                if self.up.udp(socket, meta, packet) {
                    session.note_unopened(number, meta.ecn);
                } else {
                    self.drops.overload += 1;
                }
                return 0;
            }
        };
        let direct = session.known_peer == Some(meta.addr);
        let plain = &arena[at..at + size];
        if !direct || !quic::frames(plain, |_| {}) {
            // Acknowledged here, for it is as good as handled, and by nobody else.
            if self.up.udp(socket, meta, packet) {
                session.note_handed_up(number, meta.ecn, now);
                if direct {
                    session.largest_direct = session.largest_direct.max(number);
                }
            } else {
                self.drops.overload += 1;
            }
            return 0;
        }
        let mut eliciting = false;
        let (up, coalescer, drops) = (&mut self.up, &mut self.coalescer, &mut self.drops);
        let id = slot.id;
        quic::frames(plain, |frame| match frame {
            Frame::Datagram(range) => {
                eliciting = true;
                let payload = &plain[range.clone()];
                let inner = range.start + session.prefix.len();
                if payload.starts_with(&session.prefix)
                    && session.rules.lets_in(&plain[inner..range.end])
                {
                    session.counters.rx_packets += 1;
                    session.counters.rx_bytes += (range.end - inner) as u64;
                    coalescer.add(arena, at + inner..at + range.end);
                } else if !up.datagram(id, payload) {
                    drops.overload += 1;
                }
            }
            Frame::Ack(ack) => {
                let (stack, delay) = session.handle_ack(&ack, now);
                if !stack.is_empty() {
                    up.items.push(Item::Acked(id, stack, delay));
                }
            }
        });
        session.note_received(number, meta.ecn, eliciting, now);
        session.largest_direct = session.largest_direct.max(number);
        size
    }

    /// Hand what was received to the kernel, joined to super-packets where it can be.
    fn write_to_tun(&mut self, arena: &mut [u8]) {
        let State {
            coalescer,
            tun,
            drops,
            joins,
            ..
        } = self;
        if let Some(tun) = tun.as_deref() {
            let writes: Vec<_> = coalescer
                .finish(arena)
                .map(|write| (write.header, write.ranges.collect::<Vec<Range<usize>>>()))
                .collect();
            for (header, ranges) in writes {
                write_one(tun, &header, &ranges, arena, joins, drops);
            }
        }
        coalescer.clear();
    }
}

/// Write one packet or super-packet; apart, if the kernel refuses it whole.
fn write_one(
    tun: &Tun,
    header: &VnetHeader,
    ranges: &[Range<usize>],
    arena: &[u8],
    joins: &mut bool,
    drops: &mut Drops,
) {
    let bytes = header.to_bytes();
    let mut parts = Vec::with_capacity(1 + ranges.len());
    parts.push(IoSlice::new(&bytes));
    parts.extend(
        ranges
            .iter()
            .map(|range| IoSlice::new(&arena[range.clone()])),
    );
    if (*joins || ranges.len() == 1) && tun.write(&parts).is_ok() {
        return;
    }
    if ranges.len() == 1 {
        drops.tun_refused += 1;
        return;
    }
    *joins = false;
    let whole: Vec<u8> = ranges
        .iter()
        .flat_map(|range| &arena[range.clone()])
        .copied()
        .collect();
    let Ok(mut segments) = Segments::new(header, &whole) else {
        drops.tun_refused += 1;
        return;
    };
    let none = [0; VnetHeader::LEN];
    let mut packet = vec![0; segments.largest()];
    while let Some(size) = segments.next_into(&mut packet) {
        if tun
            .write(&[IoSlice::new(&none), IoSlice::new(&packet[..size])])
            .is_err()
        {
            drops.tun_refused += 1;
        }
    }
}

fn is_ip(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.len() >= 20,
        Some(6) => packet.len() >= 40,
        _ => false,
    }
}

// For callers from above

impl State {
    /// Receive from a socket, and send by it. Its index.
    ///
    /// # Errors
    /// When it is not a UDP socket.
    pub fn add_socket(&mut self, fd: OwnedFd) -> io::Result<usize> {
        let socket = Some(Arc::new(Udp::new(fd)?));
        let free = self.sockets.iter().position(Option::is_none);
        let index = free.unwrap_or(self.sockets.len());
        if index == self.sockets.len() {
            self.sockets.push(socket);
        } else {
            self.sockets[index] = socket;
        }
        Ok(index)
    }

    /// Give a socket back.
    pub fn remove_socket(&mut self, index: usize) {
        if let Some(socket) = self.sockets.get_mut(index) {
            *socket = None;
        }
    }

    /// Begin to carry a session. Its number.
    pub fn attach(&mut self, session: Session) -> u64 {
        let id = self.next_number;
        self.next_number += 1;
        let free = self.slots.iter().position(Option::is_none);
        let index = free.unwrap_or(self.slots.len());
        let slot = Some(Box::new(Slot {
            id,
            session,
            armed: false,
        }));
        if index == self.slots.len() {
            self.slots.push(slot);
        } else {
            self.slots[index] = slot;
        }
        self.by_number.insert(id, index);
        self.bind_ids(index);
        self.bind_addresses(index);
        id
    }

    fn bind_ids(&mut self, index: usize) {
        self.by_id.retain(|_, of| *of != index);
        let Some(slot) = self.slots[index].as_deref() else {
            return;
        };
        for id in &slot.session.own_ids {
            if let Ok(id) = <[u8; ID_SIZE]>::try_from(&id[..]) {
                self.by_id.insert(id, index);
            }
        }
    }

    fn bind_addresses(&mut self, index: usize) {
        self.routes.retain(|_: &AddressKey, of| *of != index);
        let Some(slot) = self.slots[index].as_deref() else {
            return;
        };
        for own in &slot.session.rules.own {
            if let Some(key) = rules::key_of(own) {
                self.routes.insert(key, index);
            }
        }
    }

    /// A session that is carried.
    pub fn session(&mut self, id: u64) -> Option<&mut Session> {
        let index = *self.by_number.get(&id)?;
        self.slots[index]
            .as_deref_mut()
            .map(|slot| &mut slot.session)
    }

    /// Use other connection IDs.
    pub fn set_ids(&mut self, id: u64, own: Vec<Vec<u8>>, peer: Vec<u8>) -> Option<()> {
        let index = *self.by_number.get(&id)?;
        let session = &mut self.slots[index].as_deref_mut()?.session;
        session.own_ids = own;
        session.set_peer_id(peer);
        self.bind_ids(index);
        Some(())
    }

    /// Use other rules, and route to the addresses in them.
    pub fn set_rules(&mut self, id: u64, rules: rules::Rules) -> Option<()> {
        let index = *self.by_number.get(&id)?;
        self.slots[index].as_deref_mut()?.session.rules = rules;
        self.bind_addresses(index);
        Some(())
    }

    /// Route nothing to a session any more; what its peer sends is still taken.
    pub fn unroute(&mut self, id: u64) -> Option<()> {
        let index = *self.by_number.get(&id)?;
        self.routes.retain(|_: &AddressKey, of| *of != index);
        Some(())
    }

    /// Carry a session no more, and return it.
    pub fn detach(&mut self, id: u64) -> Option<Session> {
        self.finish(now());
        let index = self.by_number.remove(&id)?;
        self.writer.abandon(index);
        let slot = self.slots[index].take();
        self.bind_ids(index);
        self.bind_addresses(index);
        self.armed.retain(|of| *of != index);
        slot.map(|slot| slot.session)
    }

    /// Let what waits for the QUIC stack's turn to be over go on.
    pub fn release(&mut self, id: u64) {
        if let Some(index) = self.by_number.get(&id).copied() {
            self.arm(index);
        }
    }

    /// Fail at the next turn: for tests of what happens then.
    pub fn fail(&mut self) {
        self.fail_next = true;
    }

    /// Whether the engine has failed.
    pub fn failed(&self) -> bool {
        self.failed
    }
}
