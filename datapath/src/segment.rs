//! Super-packets into packets: what a network card with TSO and USO does, as a pure function.
//!
//! The kernel hands over up to 64 KB of one flow under one header (linux/virtio_net.h); each segment
//! gets a copy of it with lengths, sequence number, flags, IPv4 identification and checksums as if
//! it had been sent alone. It holds no packet and allocates nothing.

use crate::checksum;
use crate::ip;
use crate::virtio::{Gso, Header};

const TCP_CWR: u8 = 0x80;
const TCP_PSH: u8 = 0x08;
const TCP_FIN: u8 = 0x01;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// The segments of one packet from a TUN; a plain packet has one.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    kind: Kind,
    /// Where the transport header begins, and where the payload does.
    transport: usize,
    headers: usize,
    /// Bytes of payload in each segment but the last.
    size: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Whole,
    /// Whole but for the checksum, whose field is at this place.
    Unsummed(usize),
    Tcp,
    Udp,
}

impl<'a> Segments<'a> {
    /// None when `header` and `packet` do not fit each other, or `packet` is not one IP packet.
    pub fn new(header: &Header, packet: &'a [u8]) -> Option<Self> {
        if !ip::well_formed(packet) {
            return None;
        }
        let transport = usize::from(header.checksum_start);
        let field = transport + usize::from(header.checksum_offset);
        let mut segments = Self { packet, kind: Kind::Whole, transport, headers: 0, size: 0 };
        if header.gso == Gso::None {
            if header.needs_checksum {
                if transport < 20 || field + 2 > packet.len() {
                    return None;
                }
                segments.kind = Kind::Unsummed(field);
            }
            return Some(segments);
        }
        // Behind IPv6 extension headers as well: the kernel says where the transport header is.
        let ipv4 = packet[0] >> 4 == 4;
        let minimum = if ipv4 { 20 } else { 40 };
        if transport < minimum || transport + 8 > packet.len() {
            return None;
        }
        (segments.kind, segments.headers) = match header.gso {
            Gso::Tcp4 | Gso::Tcp6 => {
                if ipv4 != (header.gso == Gso::Tcp4) || transport + 20 > packet.len() {
                    return None;
                }
                let length = usize::from(packet[transport + 12] >> 4) << 2;
                if length < 20 {
                    return None;
                }
                (Kind::Tcp, transport + length)
            }
            _ => (Kind::Udp, transport + 8),
        };
        segments.size = usize::from(header.gso_size);
        (segments.size > 0 && segments.headers < packet.len()).then_some(segments)
    }

    /// How many there are, at least one.
    pub fn count(&self) -> usize {
        match self.kind {
            Kind::Whole | Kind::Unsummed(_) => 1,
            Kind::Tcp | Kind::Udp => (self.packet.len() - self.headers).div_ceil(self.size),
        }
    }

    /// The length in bytes of segment `index`.
    #[inline]
    pub fn length(&self, index: usize) -> usize {
        match self.kind {
            Kind::Whole | Kind::Unsummed(_) => self.packet.len(),
            Kind::Tcp | Kind::Udp => {
                self.headers + self.size.min(self.packet.len() - self.headers - index * self.size)
            }
        }
    }

    /// Write segment `index` to `out`, of exactly its length.
    #[inline]
    pub fn write(&self, index: usize, out: &mut [u8]) {
        match self.kind {
            Kind::Whole => out.copy_from_slice(self.packet),
            Kind::Unsummed(field) => {
                out.copy_from_slice(self.packet);
                self.complete(field, true, out);
            }
            Kind::Tcp | Kind::Udp => self.write_segment(index, out),
        }
    }

    /// The field holds the pseudo-header's sum, so the sum over all is what is missing.
    ///
    /// `never_zero` is for UDP, where zero means no checksum (RFC 768), and for what may be UDP.
    fn complete(&self, field: usize, never_zero: bool, out: &mut [u8]) {
        let summed = checksum::finish(checksum::sum(&out[self.transport..]));
        let summed = if never_zero && summed == 0 { 0xFFFF } else { summed };
        ip::set_word(out, field, usize::from(summed));
    }

    fn write_segment(&self, index: usize, out: &mut [u8]) {
        let start = self.headers + index * self.size;
        let end = (start + self.size).min(self.packet.len());
        let length = out.len();
        out[..self.headers].copy_from_slice(&self.packet[..self.headers]);
        out[self.headers..].copy_from_slice(&self.packet[start..end]);
        ip::set_length(out, length);
        if out[0] >> 4 == 4 {
            let identification = ip::word(out, 4) + index;
            ip::set_word(out, 4, identification);
            ip::set_header_checksum(out);
        }
        let at = self.transport;
        let (protocol, field) = if self.kind == Kind::Tcp {
            let sequence = ip::long(out, at + 4).wrapping_add((index * self.size) as u32);
            ip::set_long(out, at + 4, sequence);
            if index > 0 {
                out[at + 13] &= !TCP_CWR; // only the first tells (RFC 3168 section 6.1.2)
            }
            if end < self.packet.len() {
                out[at + 13] &= !(TCP_FIN | TCP_PSH);
            }
            (ip::TCP, at + TCP_CHECKSUM)
        } else {
            ip::set_word(out, at + 4, length - at);
            (ip::UDP, at + UDP_CHECKSUM)
        };
        let pseudo = checksum::pseudo_header(ip::addresses(out), protocol, (length - at) as u32);
        ip::set_word(out, field, usize::from(pseudo));
        self.complete(field, self.kind == Kind::Udp, out);
    }
}
