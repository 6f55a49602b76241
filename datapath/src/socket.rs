//! UDP sockets in batches, and what waits while the kernel takes no more.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use crate::outbox::{Target, Wire};

/// Runs that wait for a blocked socket; more are dropped.
const BACKLOG: usize = 64;
/// Refused sizes that are kept until somebody asks.
const MAX_REFUSED: usize = 64;

/// One socket, which somebody else bound and may also send on.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    state: UdpSocketState,
}

impl Socket {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&fd))?;
        Ok(Self { fd, state })
    }

    pub fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&self.fd), buffers, metas)
    }

    fn send_once(&self, target: &Target, bytes: &[u8], segment: usize) -> io::Result<()> {
        let transmit = Transmit {
            destination: target.peer,
            ecn: None,
            contents: bytes,
            segment_size: (segment < bytes.len()).then_some(segment),
            src_ip: target.local,
        };
        self.state.try_send(UdpSockRef::from(&self.fd), &transmit)
    }

    /// A connected socket reports an ICMP message about an earlier packet by failing the next call,
    /// whatever that sends. Reported once, it is gone; what concerns this packet fails again.
    fn send(&self, target: &Target, bytes: &[u8], segment: usize) -> io::Result<()> {
        match self.send_once(target, bytes, segment) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                self.send_once(target, bytes, segment)
            }
            done => done,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All sockets of an engine, by their place.
#[derive(Debug, Default)]
pub struct Sockets {
    sockets: Vec<Option<Arc<Socket>>>,
    backlog: VecDeque<(Target, Vec<u8>, usize)>,
    /// Packets that were not sent: no route, or a full backlog.
    pub errors: u64,
    /// Sizes that the local interface refuses, with the peer they were for.
    pub refused: Vec<(Target, usize)>,
    /// Rises when a socket comes or goes.
    pub version: u64,
}

impl Sockets {
    pub fn add(&mut self, socket: Socket) -> usize {
        self.version += 1;
        let free = self.sockets.iter().position(Option::is_none);
        let place = free.unwrap_or(self.sockets.len());
        if place == self.sockets.len() {
            self.sockets.push(None);
        }
        self.sockets[place] = Some(Arc::new(socket));
        place
    }

    pub fn remove(&mut self, place: usize) {
        if self.sockets.get_mut(place).and_then(Option::take).is_some() {
            self.version += 1;
            self.backlog.retain(|(target, _, _)| target.socket != place);
        }
    }

    /// The sockets there are, with their places.
    pub fn all(&self) -> Vec<(usize, Arc<Socket>)> {
        let named = self.sockets.iter().enumerate();
        named.filter_map(|(place, socket)| Some((place, socket.clone()?))).collect()
    }

    /// Whether something waits for the kernel; wait until the sockets are writable, then `resume`.
    pub fn blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Send what waited, as far as the kernel takes it.
    pub fn resume(&mut self) {
        while let Some((target, bytes, segment)) = self.backlog.pop_front() {
            if !self.try_send(&target, &bytes, segment) {
                self.backlog.push_front((target, bytes, segment));
                return;
            }
        }
    }

    /// False when the kernel takes nothing now.
    fn try_send(&mut self, target: &Target, bytes: &[u8], segment: usize) -> bool {
        let Some(Some(socket)) = self.sockets.get(target.socket) else {
            self.errors += 1;
            return true;
        };
        let socket = socket.clone();
        match socket.send(target, bytes, segment) {
            Ok(()) => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => {}
        }
        // Together refused; apart we see why: too large, or a driver without the offload, which
        // quinn-udp then no longer uses.
        for packet in bytes.chunks(segment) {
            match socket.send(target, packet, packet.len()) {
                Ok(()) => {}
                Err(error) if quinn_udp::is_msg_size_err(&error) => {
                    if self.refused.len() < MAX_REFUSED {
                        self.refused.push((*target, packet.len()));
                    }
                    return true; // the rest is as large, or can be spared
                }
                Err(_) => self.errors += 1,
            }
        }
        true
    }
}

impl Wire for Sockets {
    fn send(&mut self, target: &Target, bytes: &[u8], segment: usize) {
        if !self.backlog.is_empty() || !self.try_send(target, bytes, segment) {
            if self.backlog.len() < BACKLOG {
                self.backlog.push_back((*target, bytes.to_vec(), segment));
            } else {
                self.errors += bytes.len().div_ceil(segment) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    fn pair() -> (Sockets, Target, UdpSocket) {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let own = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sockets = Sockets::default();
        let socket = sockets.add(Socket::new(own.into()).unwrap());
        let target = Target { socket, peer: peer.local_addr().unwrap(), local: None };
        (sockets, target, peer)
    }

    #[test]
    fn a_run_arrives_as_packets() {
        let (mut sockets, target, peer) = pair();
        sockets.send(&target, &[7; 2500], 1000);
        let mut buffer = [0; 2000];
        let sizes: Vec<_> = (0..3).map(|_| peer.recv(&mut buffer).unwrap()).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
        assert!(!sockets.blocked());
    }

    #[test]
    fn a_size_that_is_refused_is_told_and_does_not_stop_others() {
        let (mut sockets, target, peer) = pair();
        sockets.send(&target, &vec![7; 65_530], 65_530);
        assert_eq!(sockets.refused, [(target, 65_530)]);
        sockets.send(&target, &[7; 10], 10);
        assert_eq!(peer.recv(&mut [0; 2000]).unwrap(), 10);
    }

    #[test]
    fn a_place_is_used_again_and_an_empty_one_sends_nothing() {
        let (mut sockets, target, _peer) = pair();
        sockets.remove(target.socket);
        sockets.send(&target, &[7; 10], 10);
        assert_eq!(sockets.errors, 1);
        let own = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(sockets.add(Socket::new(own.into()).unwrap()), target.socket);
        assert_eq!(sockets.all().len(), 1);
    }
}
