//! The thread that moves packets: waits, reads and writes in batches, and asks the engine.
//!
//! The engine is locked while packets are sealed, opened and sent, not while they are read or
//! written to the TUN, so that whoever pushes keys waits for one batch at most. The thread ends when
//! it is told to, when the TUN is gone, or by a defect, which is caught and told.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use quinn_udp::RecvMeta;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write, writev};
use rustix::time::{ClockId, clock_gettime};

use crate::coalesce::{Coalescer, Group};
use crate::engine::Engine;
use crate::outbox::Target;
use crate::segment::Segments;
use crate::socket::Socket;
use crate::virtio;

/// Super-packets of up to 64 KB that one call receives.
const RECEIVE: usize = 8;
const SUPER_PACKET: usize = 65536;
/// Bytes that are read from the TUN before they are sealed: a few super-packets, or many small
/// packets.
const ARENA: usize = 6 * SUPER_PACKET;
/// Packets read from the TUN in one go; more would only delay what the sockets bring.
const BATCH: usize = 128;
/// How long packets from the TUN wait for whoever uses packet numbers; longer is a defect.
const PATIENCE: Duration = Duration::from_secs(5);

/// Microseconds of CLOCK_MONOTONIC, as Python's `time.monotonic` counts.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// What both sides of an engine share.
pub struct Shared {
    engine: Mutex<Engine>,
    /// Signalled when numbers are no longer reserved.
    committed: Condvar,
    /// Wakes the thread; tells the owner that there are events.
    wake: OwnedFd,
    news: OwnedFd,
    status: Mutex<Status>,
}

/// How the thread is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Status {
    Running,
    Closing,
    /// It ended by itself; why.
    Failed(String),
}

impl Shared {
    pub fn new(engine: Engine) -> std::io::Result<Self> {
        let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        Ok(Self {
            engine: Mutex::new(engine),
            committed: Condvar::new(),
            wake: event()?,
            news: event()?,
            status: Mutex::new(Status::Running),
        })
    }

    /// The engine, once the present batch is done.
    pub fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock()
    }

    /// Something changed that the thread must look at.
    pub fn wake(&self) {
        self.committed.notify_all();
        let _ = write(&self.wake, &1u64.to_ne_bytes());
    }

    /// The descriptor that is readable when there are events, and its reset.
    pub fn news(&self) -> &OwnedFd {
        &self.news
    }

    pub fn clear_news(&self) {
        let _ = read(&self.news, &mut [0; 8]);
    }

    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// Tell the thread to end. The engine's state stays readable.
    pub fn close(&self) {
        let mut status = self.status.lock();
        if *status == Status::Running {
            *status = Status::Closing;
        }
        drop(status);
        self.wake();
    }

    /// Make `news` readable.
    pub fn tell(&self) {
        let _ = write(&self.news, &1u64.to_ne_bytes());
    }
}

/// Start the thread. `tun` is a TUN with `IFF_VNET_HDR`, non-blocking.
pub fn start(shared: Arc<Shared>, tun: OwnedFd) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("qvpn-datapath".into()).spawn(move || {
        let worker = Worker { shared: &shared, tun: &tun };
        let ended = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => match panic.downcast_ref::<String>() {
                Some(text) => text.clone(),
                None => panic.downcast_ref::<&str>().map_or("a defect", |text| text).to_string(),
            },
        };
        *shared.status.lock() = Status::Failed(ended);
        shared.tell();
    })
}

struct Worker<'a> {
    shared: &'a Shared,
    tun: &'a OwnedFd,
}

/// Buffers for one call that receives.
struct Received {
    sealed: Vec<u8>,
    plain: Vec<u8>,
    metas: Vec<RecvMeta>,
    /// Where in `plain` packets for the TUN are.
    ranges: Vec<Range<usize>>,
    coalescer: Coalescer,
}

/// What was read from the TUN and is not sealed yet.
struct Arena {
    bytes: Vec<u8>,
    ranges: Vec<Range<usize>>,
}

impl Worker<'_> {
    fn run(&self) -> Result<(), Errno> {
        let mut received = Received {
            sealed: vec![0; RECEIVE * SUPER_PACKET],
            plain: vec![0; RECEIVE * SUPER_PACKET],
            metas: vec![RecvMeta::default(); RECEIVE],
            ranges: Vec::new(),
            coalescer: Coalescer::default(),
        };
        let mut arena = Arena { bytes: vec![0; ARENA], ranges: Vec::new() };
        let mut sockets: (u64, Vec<(usize, Arc<Socket>)>) = (u64::MAX, Vec::new());
        let mut deadline = None;
        while *self.shared.status.lock() != Status::Closing {
            let blocked = {
                let engine = self.shared.lock();
                if engine.sockets.version != sockets.0 {
                    sockets = (engine.sockets.version, engine.sockets.all());
                }
                engine.sockets.blocked()
            };
            let ready = self.wait(&sockets.1, blocked, deadline)?;
            for ((place, socket), ready) in sockets.1.iter().zip(&ready[2..]) {
                if ready.contains(PollFlags::IN) || ready.contains(PollFlags::ERR) {
                    self.receive(*place, socket, &mut received);
                }
            }
            if ready[1].intersects(PollFlags::ERR | PollFlags::NVAL) {
                return Err(Errno::NODEV);
            }
            if ready[1].contains(PollFlags::IN) {
                self.read_tun(&mut arena)?;
            }
            deadline = self.send(&mut arena);
        }
        Ok(())
    }

    /// Wait for descriptors: what is ready of the wake-up, the TUN, and each socket.
    fn wait(
        &self,
        sockets: &[(usize, Arc<Socket>)],
        blocked: bool,
        deadline: Option<u64>,
    ) -> Result<Vec<PollFlags>, Errno> {
        let mut waiting = vec![
            PollFd::new(&self.shared.wake, PollFlags::IN),
            PollFd::new(self.tun, PollFlags::IN),
        ];
        let wanted = if blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        waiting.extend(sockets.iter().map(|(_, socket)| PollFd::new(&**socket, wanted)));
        let timeout = deadline.map(|at| {
            let micros = at.saturating_sub(now());
            Timespec {
                tv_sec: (micros / 1_000_000) as i64,
                tv_nsec: (micros % 1_000_000 * 1_000) as i64,
            }
        });
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let ready: Vec<_> = waiting.iter().map(PollFd::revents).collect();
        if ready[0].contains(PollFlags::IN) {
            let _ = read(&self.shared.wake, &mut [0; 8]);
        }
        Ok(ready)
    }

    /// One call's worth of packets from a socket to the TUN.
    fn receive(&self, place: usize, socket: &Socket, received: &mut Received) {
        let Received { sealed, plain, metas, ranges, coalescer } = received;
        let mut slices: Vec<_> = sealed.chunks_mut(SUPER_PACKET).map(IoSliceMut::new).collect();
        let Ok(count) = socket.receive(&mut slices, metas) else {
            return; // nothing, or an ICMP error, which anybody can forge
        };
        ranges.clear();
        let time = now();
        let mut engine = self.shared.lock();
        for (index, meta) in metas[..count].iter().enumerate() {
            let start = index * SUPER_PACKET;
            let from = Target { socket: place, peer: meta.addr, local: meta.dst_ip };
            let mut at = start;
            while at < start + meta.len {
                let end = (at + meta.stride.max(1)).min(start + meta.len);
                engine.from_network(&from, &sealed[at..end], &mut plain[at..end], time, |range| {
                    ranges.push(at + range.start..at + range.end)
                });
                at = end;
            }
        }
        let events = engine.has_events();
        MutexGuard::unlock_fair(engine);
        if events {
            self.shared.tell();
        }
        for range in ranges.drain(..) {
            coalescer.push(plain, range);
        }
        let mut refused = 0;
        let mut without_udp = coalescer.without_udp;
        coalescer.finish(plain, |group, plain| {
            refused += self.write_tun(group, plain, &mut without_udp);
        });
        coalescer.without_udp = without_udp;
        if refused > 0 {
            self.shared.lock().drops.tun_refused += refused;
        }
    }

    /// Write one group; how many packets the kernel did not take.
    fn write_tun(&self, group: &Group, plain: &[u8], without_udp: &mut bool) -> u64 {
        let header = group.header.encode();
        let mut slices = Vec::with_capacity(1 + group.parts.len());
        slices.push(IoSlice::new(&header));
        slices.extend(group.parts.iter().map(|part| IoSlice::new(&plain[part.clone()])));
        if writev(self.tun, &slices).is_ok() {
            return 0;
        }
        if group.parts.len() == 1 {
            return 1;
        }
        // Refused together: an old kernel without UDP segmentation, or by chance.
        *without_udp |= group.header.gso == virtio::Gso::Udp;
        let whole: Vec<u8> =
            group.parts.iter().flat_map(|part| &plain[part.clone()]).copied().collect();
        let Some(segments) = Segments::new(&group.header, &whole) else {
            return group.parts.len() as u64;
        };
        let mut refused = 0;
        for index in 0..segments.count() {
            let mut packet = vec![0; virtio::SIZE + segments.length(index)];
            segments.write(index, &mut packet[virtio::SIZE..]);
            refused += u64::from(write(self.tun, &packet).is_err());
        }
        refused
    }

    /// Gather packets from the TUN. Fails when the device is gone.
    fn read_tun(&self, arena: &mut Arena) -> Result<(), Errno> {
        let mut at = arena.ranges.last().map_or(0, |range| range.end);
        while arena.ranges.len() < BATCH && at + SUPER_PACKET + virtio::SIZE <= ARENA {
            let room = &mut arena.bytes[at..at + SUPER_PACKET + virtio::SIZE];
            match read(self.tun, room) {
                Ok(0) => return Err(Errno::NODEV),
                Ok(length) => {
                    arena.ranges.push(at..at + length);
                    at += length;
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Seal and send what was read, and what time makes due; when to come back.
    fn send(&self, arena: &mut Arena) -> Option<u64> {
        let mut engine = self.shared.lock();
        let busy = !arena.ranges.is_empty() || engine.is_waiting();
        if busy && engine.reserved > 0 {
            self.shared.committed.wait_while_for(
                &mut engine,
                |engine| engine.reserved > 0,
                PATIENCE,
            );
            assert!(engine.reserved == 0, "packet numbers are reserved for too long");
        }
        let time = now();
        engine.resume(time);
        for range in arena.ranges.drain(..) {
            engine.from_tun(&arena.bytes[range], time);
        }
        let deadline = engine.finish(time);
        let events = engine.has_events();
        MutexGuard::unlock_fair(engine);
        if events {
            self.shared.tell();
        }
        deadline
    }
}
