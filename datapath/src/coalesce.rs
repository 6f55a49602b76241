//! Packets into super-packets: what a network card with GRO does, as a pure function.
//!
//! The inverse of `segment`: packets of one TCP or UDP flow that follow each other become one
//! super-packet for the kernel, without copying a payload. Only what segmentation gives back byte
//! for byte is merged, so checksums are proven first; the one exception is the identification of
//! IPv4 packets with DF, which means nothing (RFC 6864 section 4.1). Packets of one flow keep their
//! order; it refuses to hold any from one call to the next.

use std::ops::Range;

use crate::checksum;
use crate::ip;
use crate::virtio::{Gso, Header};

const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
const IPV4_DF: u8 = 0x40;
/// The largest IP packet, which a super-packet is to the kernel.
const MAX_SIZE: usize = 65535;
/// UDP_MAX_SEGMENTS before Linux 6.9; TCP gets there by MAX_SIZE.
const MAX_SEGMENTS: usize = 64;
/// Open flows that are looked through for each packet, the latest first.
const LOOK_BACK: usize = 16;

/// One write to the TUN: `header`, then `parts` of the buffer.
///
/// The first part is a whole packet, whose headers were made those of the super-packet.
#[derive(Debug)]
pub struct Group {
    pub header: Header,
    pub parts: Vec<Range<usize>>,
    flow: Option<Flow>,
}

/// What a packet must continue to be merged.
#[derive(Clone, Debug)]
struct Flow {
    transport: usize,
    headers: usize,
    protocol: u8,
    /// Payload bytes of each segment but the last, and of all.
    size: usize,
    total: usize,
    /// Nothing may follow: the last one was short or pushed, or something came between.
    closed: bool,
}

/// A packet that belongs to a flow; `mergeable` when it could be a segment.
struct Candidate {
    flow: Flow,
    mergeable: bool,
    pushed: bool,
}

/// Gathers groups over a buffer. Reused, so that nothing is allocated once it is warm.
#[derive(Debug, Default)]
pub struct Coalescer {
    groups: Vec<Group>,
    used: usize,
    /// Off when the kernel does not take UDP super-packets (before Linux 6.2).
    pub without_udp: bool,
}

impl Coalescer {
    /// Take the packet at `range` of `buffer`; it must be well-formed.
    pub fn push(&mut self, buffer: &mut [u8], range: Range<usize>) {
        let candidate = self.classify(&buffer[range.clone()]);
        if let Some(candidate) = &candidate {
            let from = self.used.saturating_sub(LOOK_BACK);
            let same = self.groups[from..self.used].iter_mut().rev().find(|group| {
                group.flow.as_ref().is_some_and(|flow| {
                    same_flow(flow, &buffer[group.parts[0].clone()], &buffer[range.clone()])
                        && flow.protocol == candidate.flow.protocol
                })
            });
            if let Some(group) = same
                && let Some(flow) = &mut group.flow
            {
                if continues(flow, candidate, &group.parts, buffer, range.clone()) {
                    let size = range.len() - flow.headers;
                    flow.total += size;
                    flow.closed = size < flow.size || candidate.pushed;
                    if candidate.pushed {
                        let flags = group.parts[0].start + flow.transport + 13;
                        buffer[flags] |= TCP_PSH;
                    }
                    group.parts.push(range.start + flow.headers..range.end);
                    return;
                }
                flow.closed = true;
            }
        }
        self.open(candidate, range);
    }

    fn open(&mut self, candidate: Option<Candidate>, range: Range<usize>) {
        if self.used == self.groups.len() {
            self.groups.push(Group { header: Header::PLAIN, parts: Vec::new(), flow: None });
        }
        let group = &mut self.groups[self.used];
        self.used += 1;
        group.header = Header::PLAIN;
        group.parts.clear();
        group.parts.push(range);
        group.flow = candidate.map(|candidate| Flow {
            closed: !candidate.mergeable || candidate.pushed,
            ..candidate.flow
        });
    }

    /// The groups, ready to be written, in the order of their first packets; then start anew.
    pub fn finish(&mut self, buffer: &mut [u8], mut write: impl FnMut(&Group, &[u8])) {
        for group in &mut self.groups[..self.used] {
            if let (Some(flow), true) = (&group.flow, group.parts.len() > 1) {
                group.header = merge(flow, &mut buffer[group.parts[0].clone()]);
            }
            write(group, buffer);
        }
        self.used = 0;
    }

    fn classify(&self, packet: &[u8]) -> Option<Candidate> {
        let (transport, protocol) = ip::transport(packet)?;
        let length = packet.len();
        let (headers, pushed, mergeable) = match protocol {
            ip::TCP if transport + 20 <= length => {
                let headers = transport + (usize::from(packet[transport + 12] >> 4) << 2);
                let flags = packet[transport + 13];
                // All ones as a checksum is zero to everybody, but would not come back.
                let plain = flags & !TCP_PSH == TCP_ACK
                    && headers >= transport + 20
                    && ip::word(packet, transport + 16) != 0xFFFF;
                (headers, flags & TCP_PSH != 0, plain)
            }
            ip::UDP if transport + 8 <= length => {
                let whole = ip::word(packet, transport + 4) == length - transport;
                // Without a checksum it would get one.
                let plain = whole && ip::word(packet, transport + 6) != 0 && !self.without_udp;
                (transport + 8, false, plain)
            }
            _ => return None,
        };
        let mergeable = mergeable
            && headers < length
            && ip::header_checksum_holds(packet)
            && checksum::add(
                checksum::pseudo_header(
                    ip::addresses(packet),
                    protocol,
                    (length - transport) as u32,
                ),
                checksum::sum(&packet[transport..]),
            ) == 0xFFFF;
        let size = length.saturating_sub(headers);
        let flow = Flow { transport, headers, protocol, size, total: size, closed: false };
        Some(Candidate { flow, mergeable, pushed })
    }
}

/// Whether two packets have the same addresses and ports.
#[inline]
fn same_flow(flow: &Flow, first: &[u8], packet: &[u8]) -> bool {
    let at = flow.transport;
    first[0] == packet[0] // version, and the length of the IPv4 header
        && ip::addresses(first) == ip::addresses(packet)
        && first[at..at + 4] == packet[at..at + 4]
}

/// Whether the packet at `range` is the next segment of a group.
fn continues(
    flow: &Flow,
    candidate: &Candidate,
    parts: &[Range<usize>],
    buffer: &[u8],
    range: Range<usize>,
) -> bool {
    let (first, packet) = (&buffer[parts[0].clone()], &buffer[range]);
    let size = candidate.flow.size;
    !flow.closed
        && candidate.mergeable
        && candidate.flow.headers == flow.headers
        && size <= flow.size
        && flow.headers + flow.total + size <= MAX_SIZE
        && parts.len() < MAX_SEGMENTS
        && same_ip_header(first, packet, parts.len())
        && (flow.protocol == ip::UDP || same_tcp_header(flow, first, packet))
}

/// Whether two IP headers differ only in length, checksum, and the IPv4 identification.
fn same_ip_header(first: &[u8], packet: &[u8], index: usize) -> bool {
    if first[0] >> 4 == 6 {
        // Traffic class, flow label; next header and hop limit.
        return first[..4] == packet[..4] && first[6..8] == packet[6..8];
    }
    let header = usize::from(first[0] & 0x0F) << 2;
    let consecutive = (ip::word(first, 4) + index) & 0xFFFF == ip::word(packet, 4);
    first[1] == packet[1]
        && first[6..10] == packet[6..10]
        && first[20..header] == packet[20..header]
        && (first[6] & IPV4_DF != 0 || consecutive)
}

/// Whether a TCP segment follows: sequence, acknowledgement, window and options.
fn same_tcp_header(flow: &Flow, first: &[u8], packet: &[u8]) -> bool {
    let at = flow.transport;
    ip::long(first, at + 4).wrapping_add(flow.total as u32) == ip::long(packet, at + 4)
        && first[at + 8..at + 13] == packet[at + 8..at + 13]
        && first[at + 14..at + 16] == packet[at + 14..at + 16]
        && first[at + 18..flow.headers] == packet[at + 18..flow.headers]
}

/// Make the headers of the first packet those of the super-packet.
fn merge(flow: &Flow, first: &mut [u8]) -> Header {
    let length = flow.headers + flow.total;
    let at = flow.transport;
    ip::set_length(first, length);
    ip::set_header_checksum(first);
    let pseudo = checksum::pseudo_header(ip::addresses(first), flow.protocol, (length - at) as u32);
    let (gso, field) = if flow.protocol == ip::TCP {
        (if first[0] >> 4 == 4 { Gso::Tcp4 } else { Gso::Tcp6 }, 16)
    } else {
        ip::set_word(first, at + 4, length - at);
        (Gso::Udp, 6)
    };
    ip::set_word(first, at + field, usize::from(pseudo));
    Header {
        needs_checksum: true,
        gso,
        gso_size: flow.size as u16,
        header_length: flow.headers as u16,
        checksum_start: at as u16,
        checksum_offset: field as u16,
    }
}
