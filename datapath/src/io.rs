//! Descriptors: the TUN, UDP sockets, and what waits for them. The only place with system calls.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};

use crate::Micros;

/// Bytes of the largest super-packet, in either direction.
pub const SUPER_PACKET: usize = 1 << 16;
/// Super-packets that one call takes from a socket.
pub const RECEIVE_BATCH: usize = 8;

/// `CLOCK_MONOTONIC`, which is also the clock of asyncio.
pub fn now() -> Micros {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as Micros * 1_000_000 + time.tv_nsec as Micros / 1_000
}

/// A descriptor of our own for what another owner's `fd` refers to.
///
/// # Errors
/// What dup(2) says, for example when `fd` is not open.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is not negative, and only borrowed for the call; a closed one makes dup fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?)
}

/// A TUN whose packets carry a `virtio_net_hdr`.
pub struct Tun(OwnedFd);

impl Tun {
    /// Over a descriptor of our own.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The next super-packet with its header; `None` when none waits.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.0, buffer) {
            Ok(size) => Ok(Some(size)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Hand a super-packet in parts to the kernel.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.0, parts)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A UDP socket that sends and receives super-packets.
pub struct Udp {
    fd: OwnedFd,
    state: UdpSocketState,
}

/// How sending went, where the caller has to do something about it.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// As far as anybody can tell.
    Done,
    /// The kernel has no room; try again when it has.
    Blocked,
    /// The interface does not take packets of this size.
    TooLarge,
}

impl Udp {
    /// Over a descriptor of our own.
    ///
    /// # Errors
    /// When it is not a UDP socket.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&fd))?;
        Ok(Self { fd, state })
    }

    /// Packets of one size that one call may carry.
    pub fn max_segments(&self) -> usize {
        self.state.max_gso_segments().max(1)
    }

    /// Send packets of `segment` bytes each, of which only the last may be shorter; with an ECN mark
    /// or without.
    pub fn send(
        &self,
        peer: SocketAddr,
        local: Option<IpAddr>,
        data: &[u8],
        segment: usize,
        mark: Option<EcnCodepoint>,
    ) -> Sent {
        let transmit = Transmit {
            destination: peer,
            ecn: mark,
            contents: data,
            segment_size: (segment < data.len()).then_some(segment),
            src_ip: local,
        };
        let result = self.state.try_send(UdpSockRef::from(&self.fd), &transmit);
        match result {
            Ok(()) => Sent::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Blocked,
            Err(error) if is_too_large(&error) => Sent::TooLarge,
            Err(_) if transmit.segment_size.is_some() => self.send_apart(&transmit),
            // A connected socket reports what ICMP said of an earlier packet; once told, it is gone.
            Err(_) => match self.state.try_send(UdpSockRef::from(&self.fd), &transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Blocked,
                Err(error) if is_too_large(&error) => Sent::TooLarge,
                _ => Sent::Done,
            },
        }
    }

    /// One by one: a driver refused them together, or the first call told an older error.
    fn send_apart(&self, transmit: &Transmit<'_>) -> Sent {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        for contents in transmit.contents.chunks(size) {
            let one = Transmit {
                contents,
                segment_size: None,
                ..transmit.clone()
            };
            if let Err(error) = self.state.try_send(UdpSockRef::from(&self.fd), &one)
                && is_too_large(&error)
            {
                return Sent::TooLarge;
            }
        }
        Sent::Done
    }

    /// Fill buffers with what waits; how many were filled.
    ///
    /// # Errors
    /// What the network reported, or that nothing waits.
    pub fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&self.fd), buffers, meta)
    }
}

/// Whether the kernel knows of a narrower link (EMSGSIZE).
fn is_too_large(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::MSGSIZE)
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Wakes somebody who waits for its descriptor.
pub struct Bell(OwnedFd);

impl Bell {
    /// A silent one.
    ///
    /// # Errors
    /// Without a free descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Wake whoever waits, now or next.
    pub fn ring(&self) {
        // Fails only when it rings already for all time.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Be silent again.
    pub fn hush(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Wait until a descriptor is ready, or until `timeout` microseconds are over.
pub fn wait(fds: &mut [PollFd<'_>], timeout: Option<Micros>) {
    let timeout = timeout.map(|micros| Timespec {
        tv_sec: (micros / 1_000_000).cast_signed(),
        tv_nsec: (micros % 1_000_000 * 1_000).cast_signed(),
    });
    // A signal ends it early, which the loop does not mind.
    let _ = poll(fds, timeout.as_ref());
}

/// Something to wait for: that it can be read or, where asked, written.
pub fn interest(fd: BorrowedFd<'_>, read: bool, write: bool) -> PollFd<'_> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, read);
    flags.set(PollFlags::OUT, write);
    PollFd::from_borrowed_fd(fd, flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    fn socket(any: &str) -> (Udp, SocketAddr) {
        let socket = UdpSocket::bind(any).unwrap();
        let address = socket.local_addr().unwrap();
        (Udp::new(socket.into()).unwrap(), address)
    }

    /// Alone and together, by both families.
    #[test]
    fn marks_arrive_as_they_were_sent() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let ((sending, _), (receiving, to)) = (socket(any), socket(any));
            for (mark, count) in [
                (None, 1),
                (Some(EcnCodepoint::Ect0), 1),
                (Some(EcnCodepoint::Ect0), 20),
                (None, 20),
                (Some(EcnCodepoint::Ce), 20),
            ] {
                let data = vec![7; 1200 * count];
                assert_eq!(sending.send(to, None, &data, 1200, mark), Sent::Done);
                let mut size = 0;
                let patience = Instant::now() + Duration::from_secs(5);
                while size < data.len() && Instant::now() < patience {
                    let mut buffer = vec![0; SUPER_PACKET];
                    let mut meta = [RecvMeta::default()];
                    let mut slices = [IoSliceMut::new(&mut buffer)];
                    if receiving.receive(&mut slices, &mut meta).is_ok() {
                        assert_eq!(meta[0].ecn, mark, "{any}, {count} packets");
                        size += meta[0].len;
                    }
                }
                assert_eq!(size, data.len());
            }
        }
    }
}
