//! Super-packets of the kernel: segmentation and coalescing, as pure functions.
//!
//! A TUN with `IFF_VNET_HDR` and `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 |
//! TUN_F_USO6` exchanges packets of up to 64 KiB, each behind a `struct virtio_net_hdr`
//! ([`VnetHeader`]). [`Segments`] cuts one that was read into the packets that go over the wire.
//! [`Coalescer`] joins packets that came from the wire into ones to be written, without moving a
//! byte of payload. Each undoes the other: what the coalescer joined, and only that, is cut again
//! into exactly the packets that were joined.
//!
//! There is no input or output here, no allocation per packet, and no input that panics. What this
//! does not do: decide whether a packet may pass (addresses, hop limits and lengths against the MTU
//! are the caller's), reassemble or produce IP fragments, handle UFO (`VIRTIO_NET_HDR_GSO_UDP`) or
//! tunnels within tunnels, or repair a packet. A packet that arrived damaged leaves damaged.

pub mod checksum;
mod coalesce;
mod segment;

pub use coalesce::{Coalescer, MAX_OPEN, MAX_SEGMENTS, Ranges, Write, Writes};
pub use segment::Segments;

use std::fmt;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds no more than the pseudo-header's sum.
pub const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum has been verified.
pub const VIRTIO_NET_HDR_F_DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`: one packet as it goes over the wire.
pub const VIRTIO_NET_HDR_GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`: TCP segments in IPv4.
pub const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`: TCP segments in IPv6.
pub const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: UDP datagrams (not fragments of one) in IPv4 or IPv6.
pub const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: a bit beside a TCP type; the first segment has CWR.
pub const VIRTIO_NET_HDR_GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`, which precedes every packet on a TUN with `IFF_VNET_HDR`.
///
/// The numbers are in the byte order of the machine, as the kernel has them unless
/// `TUNSETVNETLE` or `TUNSETVNETBE` was used. The default is all zero: one packet, complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// How many bytes of headers each segment gets. A hint, and not always right.
    pub hdr_len: u16,
    /// How many bytes of payload each segment gets, but the last, which has what is left.
    pub gso_size: u16,
    /// Where the bytes that the checksum covers begin.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The size on the file descriptor. `TUNSETVNETHDRSZ` must not have asked for more.
    pub const LEN: usize = 10;

    /// Reads the header at the beginning of `bytes`; nothing when they are too few.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.first_chunk()?;
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: number(2),
            gso_size: number(4),
            csum_start: number(6),
            csum_offset: number(8),
        })
    }

    /// The header as the kernel wants it.
    #[inline]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        put(&mut bytes, 2, self.hdr_len.to_ne_bytes());
        put(&mut bytes, 4, self.gso_size.to_ne_bytes());
        put(&mut bytes, 6, self.csum_start.to_ne_bytes());
        put(&mut bytes, 8, self.csum_offset.to_ne_bytes());
        bytes
    }
}

/// Why a packet cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// Neither IPv4 nor IPv6, or no whole header of it.
    Ip,
    /// A header or the packet ends after the bytes that are there, or before its own header.
    Length,
    /// A fragment, which has no transport header to work with.
    Fragment,
    /// Neither TCP nor UDP.
    Protocol,
    /// No whole TCP or UDP header.
    Transport,
    /// A `gso_type` that is unknown, was not asked for, or does not fit the packet.
    GsoType,
    /// A `gso_size` of zero.
    GsoSize,
    /// `csum_start` and `csum_offset` lie outside of the packet or do not fit it.
    Checksum,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "not an IP packet",
            Self::Length => "a length does not fit the packet",
            Self::Fragment => "a fragment",
            Self::Protocol => "neither TCP nor UDP",
            Self::Transport => "the transport header is not whole",
            Self::GsoType => "gso_type does not fit the packet",
            Self::GsoSize => "gso_size is zero",
            Self::Checksum => "csum_start or csum_offset do not fit the packet",
        })
    }
}

impl std::error::Error for Malformed {}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Offsets in an IPv4 header (RFC 791).
mod ipv4 {
    pub const LENGTH: usize = 2;
    pub const ID: usize = 4;
    pub const FRAGMENT: usize = 6;
    pub const CHECKSUM: usize = 10;
    pub const ADDRESSES: usize = 12;
    pub const OPTIONS: usize = 20;
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// More fragments, and the fragment offset.
    pub const IS_FRAGMENT: u16 = 0x3fff;
}

/// Offsets in an IPv6 header (RFC 8200).
mod ipv6 {
    pub const LENGTH: usize = 4;
    pub const NEXT_HEADER: usize = 6;
    pub const ADDRESSES: usize = 8;
    pub const PAYLOAD: usize = 40;
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
}

/// Offsets in a TCP header (RFC 9293).
mod tcp {
    pub const SEQUENCE: usize = 4;
    pub const ACKNOWLEDGEMENT: usize = 8;
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const WINDOW: usize = 14;
    pub const CHECKSUM: usize = 16;
    pub const URGENT: usize = 18;
    pub const OPTIONS: usize = 20;
    pub const FIN: u8 = 0x01;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const CWR: u8 = 0x80;
}

/// Offsets in a UDP header (RFC 768).
mod udp {
    pub const LENGTH: usize = 4;
    pub const CHECKSUM: usize = 6;
    pub const PAYLOAD: usize = 8;
}

/// Where the headers of a TCP or UDP packet are. Whoever made it has proven that
/// `ip_len < header_len <= total <= packet.len()`, with room for each header's fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    v6: bool,
    tcp: bool,
    /// Up to the transport header, IPv4 options and IPv6 extension headers included.
    ip_len: usize,
    /// Up to the payload.
    header_len: usize,
    /// What the IP header says is the length of it all.
    total: usize,
}

impl Layout {
    fn of(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::of_ipv4(packet),
            Some(6) => Self::of_ipv6(packet),
            _ => Err(Malformed::Ip),
        }
    }

    #[inline]
    fn of_ipv4(packet: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; ipv4::OPTIONS] = packet.first_chunk().ok_or(Malformed::Ip)?;
        let ip_len = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16_at(header, ipv4::LENGTH));
        if ip_len < ipv4::OPTIONS || total < ip_len {
            return Err(Malformed::Length);
        }
        if u16_at(header, ipv4::FRAGMENT) & ipv4::IS_FRAGMENT != 0 {
            return Err(Malformed::Fragment);
        }
        let packet = packet.get(..total).ok_or(Malformed::Length)?;
        Self::of_transport(packet, false, header[9], ip_len)
    }

    #[inline]
    fn of_ipv6(packet: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; ipv6::PAYLOAD] = packet.first_chunk().ok_or(Malformed::Ip)?;
        let total = ipv6::PAYLOAD + usize::from(u16_at(header, ipv6::LENGTH));
        let packet = packet.get(..total).ok_or(Malformed::Length)?;
        let mut next_header = header[ipv6::NEXT_HEADER];
        let mut at = ipv6::PAYLOAD;
        loop {
            match next_header {
                ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::DESTINATION => {
                    let rest = packet.get(at..).unwrap_or_default();
                    let [next, length, ..] = *rest else {
                        return Err(Malformed::Length);
                    };
                    next_header = next;
                    at += (usize::from(length) + 1) * 8;
                }
                ipv6::FRAGMENT => return Err(Malformed::Fragment),
                _ => return Self::of_transport(packet, true, next_header, at),
            }
        }
    }

    #[inline]
    fn of_transport(
        packet: &[u8],
        v6: bool,
        protocol: u8,
        ip_len: usize,
    ) -> Result<Self, Malformed> {
        let transport = packet.get(ip_len..).ok_or(Malformed::Length)?;
        let (length, least) = match protocol {
            TCP => match transport.get(tcp::DATA_OFFSET) {
                Some(byte) => (usize::from(byte >> 4) * 4, tcp::OPTIONS),
                None => return Err(Malformed::Transport),
            },
            UDP => (udp::PAYLOAD, udp::PAYLOAD),
            _ => return Err(Malformed::Protocol),
        };
        if length < least || length > transport.len() {
            return Err(Malformed::Transport);
        }
        Ok(Self {
            v6,
            tcp: protocol == TCP,
            ip_len,
            header_len: ip_len + length,
            total: packet.len(),
        })
    }

    /// Where the transport checksum is, from the beginning of the transport header.
    const fn csum_offset(self) -> usize {
        if self.tcp {
            tcp::CHECKSUM
        } else {
            udp::CHECKSUM
        }
    }

    /// Addresses, source first.
    #[inline]
    fn addresses(self, packet: &[u8]) -> &[u8] {
        if self.v6 {
            &packet[ipv6::ADDRESSES..ipv6::PAYLOAD]
        } else {
            &packet[ipv4::ADDRESSES..ipv4::OPTIONS]
        }
    }

    /// The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) without its length.
    ///
    /// With a routing header the checksum covers the final destination, which is not in the IPv6
    /// header before the last hop. Such a packet's checksum looks wrong here, so it is not joined.
    #[inline]
    fn pseudo_header(self, packet: &[u8]) -> u64 {
        let protocol = if self.tcp { TCP } else { UDP };
        checksum::sum(self.addresses(packet)) + checksum::word(u16::from(protocol))
    }
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}
