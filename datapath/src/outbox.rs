//! Sealed packets, gathered into runs that one system call sends (UDP_SEGMENT, linux/udp.h).
//!
//! A run is packets of one size to one peer, of which only the last may be shorter. They are built
//! where they are sent from; nothing is copied. It never waits: a `Wire` takes what it is given.

use std::net::{IpAddr, SocketAddr};

/// UDP_MAX_SEGMENTS before Linux 6.9.
const MAX_SEGMENTS: usize = 64;
/// Below the 16-bit length of the super-packet with its headers.
const MAX_RUN: usize = 65_000;
/// Room for the largest packet behind the largest run.
const SIZE: usize = MAX_RUN + 2 * MAX_PACKET;
/// More than any UDP payload that a path MTU search ends with.
pub const MAX_PACKET: usize = 4096;

/// Where packets go: the socket's place in the engine, the peer, and the address we have for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    pub socket: usize,
    pub peer: SocketAddr,
    pub local: Option<IpAddr>,
}

/// What sends.
pub trait Wire {
    /// Send `bytes` as packets of `segment` bytes, the last one possibly shorter.
    fn send(&mut self, target: &Target, bytes: &[u8], segment: usize);
}

/// One run, and room for the next packet behind it.
#[derive(Debug)]
pub struct Outbox {
    buffer: Box<[u8]>,
    target: Option<Target>,
    start: usize,
    end: usize,
    segment: usize,
    count: usize,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            buffer: vec![0; SIZE].into_boxed_slice(),
            target: None,
            start: 0,
            end: 0,
            segment: 0,
            count: 0,
        }
    }
}

impl Outbox {
    /// Where the next packet is built; `commit` says how long it became.
    #[inline]
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.end..self.end + MAX_PACKET]
    }

    /// The packet at the front of `room` is whole.
    pub fn commit(&mut self, size: usize, target: &Target, wire: &mut impl Wire) {
        // The run is over when its last packet was shorter than the others.
        let fits = self.target.as_ref() == Some(target)
            && size <= self.segment
            && (self.end - self.start) == self.count * self.segment
            && self.count < MAX_SEGMENTS
            && self.end - self.start + size <= MAX_RUN;
        if !fits {
            let end = self.end;
            self.send(wire);
            self.start = end;
            self.segment = size;
            self.target = Some(*target);
        }
        self.end = self.start + self.count * self.segment + size;
        self.count += 1;
        if self.end > MAX_RUN {
            self.flush(wire);
        }
    }

    /// Send what is there.
    pub fn flush(&mut self, wire: &mut impl Wire) {
        self.send(wire);
        self.start = 0;
        self.end = 0;
    }

    fn send(&mut self, wire: &mut impl Wire) {
        if let (Some(target), true) = (&self.target, self.count > 0) {
            wire.send(target, &self.buffer[self.start..self.end], self.segment);
        }
        self.count = 0;
        self.target = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Recorded(Vec<(u16, Vec<u8>, usize)>);

    impl Wire for Recorded {
        fn send(&mut self, target: &Target, bytes: &[u8], segment: usize) {
            self.0.push((target.peer.port(), bytes.to_vec(), segment));
        }
    }

    fn target(port: u16) -> Target {
        Target { socket: 0, peer: SocketAddr::from(([127, 0, 0, 1], port)), local: None }
    }

    #[test]
    fn equal_sizes_share_a_call_and_a_shorter_one_ends_it() {
        let (mut outbox, mut wire) = (Outbox::default(), Recorded::default());
        for size in [1400, 1400, 900, 1400, 1500] {
            outbox.commit(size, &target(1), &mut wire);
        }
        outbox.commit(1500, &target(2), &mut wire);
        outbox.flush(&mut wire);
        let lengths: Vec<_> = wire.0.iter().map(|(_, bytes, size)| (bytes.len(), *size)).collect();
        assert_eq!(lengths, [(3700, 1400), (1400, 1400), (1500, 1500), (1500, 1500)]);
    }

    proptest! {
        #[test]
        fn every_packet_arrives_in_order(
            packets in proptest::collection::vec((0u16..2, prop_oneof![Just(1400usize), 1usize..1500]), 0..300)
        ) {
            let (mut outbox, mut wire) = (Outbox::default(), Recorded::default());
            for (index, (port, size)) in packets.iter().enumerate() {
                outbox.room()[..*size].fill(index as u8);
                outbox.commit(*size, &target(*port), &mut wire);
            }
            outbox.flush(&mut wire);
            let mut sent = Vec::new();
            for (port, bytes, segment) in wire.0 {
                prop_assert!(bytes.len() <= 65_507 && bytes.len().div_ceil(segment) <= MAX_SEGMENTS);
                for packet in bytes.chunks(segment) {
                    let index = sent.len() as u8;
                    prop_assert!(packet.iter().all(|byte| *byte == index));
                    sent.push((port, packet.len()));
                }
            }
            prop_assert_eq!(sent, packets);
        }
    }
}
