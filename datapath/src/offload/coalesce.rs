//! Joining packets from the wire into super-packets for the kernel.
//!
//! The packets stay where they were decrypted, in one arena. What this makes is a list of writes,
//! each of them a [`VnetHeader`] and the ranges of the arena that follow it: the headers of the
//! first packet, fixed up in place, and the payload of every packet.
//!
//! Two packets are joined only if [`Segments`](super::Segments) and the kernel's GSO would give
//! back exactly those two. So a tunnel that coalesces cannot be told from one that does not, but by
//! its speed, and nothing that was damaged on its way is made to look whole. Where the rule costs
//! something, it is kept: packets of a flow whose IPv4 ID stands still are not joined, for GSO would
//! count it up.
//!
//! The order within a flow (addresses, protocol, ports) is kept, that between flows is not.

use std::ops::Range;

use super::checksum::{self, word};
use super::{
    Layout, Malformed, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4, VnetHeader, ipv4, ipv6, put, tcp, u16_at,
    u32_at, udp,
};

/// How many packets one super-packet holds at most.
///
/// The kernel's own GRO stops at 64 datagrams, and those who read with `UDP_GRO` count on it. At
/// the usual packet sizes the 64 KiB of the IP header end earlier.
pub const MAX_SEGMENTS: usize = 64;

/// How many flows are looked after at once. When there are more, another is closed for each new
/// one, in turn, which costs joins but never order.
pub const MAX_OPEN: usize = 16;

/// The largest super-packet, headers included: IPv4 cannot say more, and for IPv6 it keeps to what
/// every kernel takes.
const MAX_TOTAL: usize = 65_535;

/// Ends a chain of pieces.
const NONE: u32 = u32::MAX;

/// Collects a batch of packets and joins those that belong together.
///
/// Use: [`add`](Self::add) for every packet, [`finish`](Self::finish) to write them all,
/// [`clear`](Self::clear), and again. Memory is kept between batches.
#[derive(Clone, Debug)]
pub struct Coalescer {
    join_tcp: bool,
    join_udp: bool,
    pieces: Vec<Piece>,
    joins: Vec<Join>,
    /// The first `open` of these can still grow.
    flows: [Flow; MAX_OPEN],
    open: usize,
    /// Where the last packet went: most often the next goes there too.
    recent: usize,
    /// Which made room last.
    oldest: usize,
}

/// A range of the arena, and the piece of the same write that follows it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    end: u32,
    next: u32,
}

/// One write: a packet, or several that were joined.
#[derive(Clone, Copy, Debug)]
struct Join {
    first: u32,
    last: u32,
    count: u32,
    total: u32,
    gso_size: u16,
    push: bool,
    layout: Layout,
}

/// Addresses, protocol and ports, in words that compare quickly.
#[derive(Clone, Copy, Debug)]
struct Key {
    /// Ports, protocol and IP version: what most often differs.
    ports: u64,
    addresses: [u64; 4],
}

/// What the next packet of a flow must be like.
#[derive(Clone, Copy, Debug)]
struct Flow {
    key: Key,
    /// Index of the write.
    join: usize,
    /// Where its first packet is in the arena.
    first: usize,
    /// Sum of the pseudo-header, which is the same for all packets but for their length.
    pseudo_header: u64,
    /// Whether the first packet's checksum has been looked at: it waits for a second packet.
    verified: bool,
    next_sequence: u32,
    next_id: u16,
}

/// What a packet needs to be joined at all, whatever it is joined to.
#[derive(Clone, Copy)]
struct Candidate {
    layout: Layout,
    payload: usize,
    sequence: u32,
    id: u16,
    push: bool,
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new()
    }
}

impl Coalescer {
    /// An empty batch. TCP and UDP are joined.
    pub const fn new() -> Self {
        const CLOSED: Flow = Flow {
            key: Key {
                ports: 0,
                addresses: [0; 4],
            },
            join: 0,
            first: 0,
            pseudo_header: 0,
            verified: false,
            next_sequence: 0,
            next_id: 0,
        };
        Self {
            join_tcp: true,
            join_udp: true,
            pieces: Vec::new(),
            joins: Vec::new(),
            flows: [CLOSED; MAX_OPEN],
            open: 0,
            recent: 0,
            oldest: 0,
        }
    }

    /// Says what the kernel takes: before 6.2 it has no `VIRTIO_NET_HDR_GSO_UDP_L4`. It holds for
    /// packets that are added from now on.
    pub const fn set_offloads(&mut self, tcp: bool, udp: bool) {
        self.join_tcp = tcp;
        self.join_udp = udp;
    }

    /// Takes the packet at `range` of the arena, which is one IP packet and nothing more.
    ///
    /// Gives `false`, and takes nothing, when the range is empty or not within the arena.
    pub fn add(&mut self, arena: &[u8], range: Range<usize>) -> bool {
        let Some(packet) = arena.get(range.clone()) else {
            return false;
        };
        if packet.is_empty() || u32::try_from(range.end).is_err() {
            return false;
        }
        let layout = match Layout::of(packet) {
            Ok(layout) => layout,
            Err(error) => {
                match error {
                    // Its flow, if it has one, is not any that is open.
                    Malformed::Protocol => {}
                    // Its ports are unknown: no packet with these addresses may overtake it.
                    Malformed::Fragment | Malformed::Transport => self.close_addresses(packet),
                    _ => self.open = 0,
                }
                self.push_alone(range);
                return true;
            }
        };

        let key = Key::of(packet, layout);
        let slot = self.find(&key);
        let wanted = if layout.tcp {
            self.join_tcp
        } else {
            self.join_udp
        };
        let candidate = if wanted {
            Candidate::of(packet, layout)
        } else {
            None
        };
        match (slot, candidate) {
            (Some(slot), Some(candidate)) => {
                if !self.join(slot, arena, packet, range.clone(), candidate) {
                    self.close(slot);
                    self.push_open(packet, range, key, candidate);
                }
            }
            (None, Some(candidate)) => self.push_open(packet, range, key, candidate),
            (slot, None) => {
                if let Some(slot) = slot {
                    self.close(slot);
                }
                self.push_alone(range);
            }
        }
        true
    }

    /// Ends the batch: fixes up the headers in the arena, which must be the one that the packets
    /// were added from, and gives what is to be written, in order.
    pub fn finish(&mut self, arena: &mut [u8]) -> Writes<'_> {
        self.open = 0;
        for join in &self.joins {
            if join.count > 1 {
                let first = self.pieces[join.first as usize];
                // The piece may end after the headers; there is nothing to do if it is not there.
                if let Some(packet) = arena.get_mut(first.start as usize..first.end as usize) {
                    join.fix_up(packet);
                }
            }
        }
        Writes {
            joins: self.joins.iter(),
            pieces: &self.pieces,
        }
    }

    /// Forgets the batch but keeps its memory.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.joins.clear();
        self.open = 0;
    }

    /// How many packets have been added since [`clear`](Self::clear).
    pub fn packets(&self) -> usize {
        self.pieces.len()
    }

    /// The open flow with this key.
    #[inline]
    fn find(&mut self, key: &Key) -> Option<usize> {
        let flows = &self.flows[..self.open];
        if flows.get(self.recent).is_some_and(|flow| flow.key.is(key)) {
            return Some(self.recent);
        }
        let slot = flows.iter().position(|flow| flow.key.is(key))?;
        self.recent = slot;
        Some(slot)
    }

    /// Lets nothing more be joined to a flow's write.
    #[inline]
    fn close(&mut self, slot: usize) {
        self.open -= 1;
        self.flows[slot] = self.flows[self.open];
    }

    /// Closes all flows with the addresses of a packet whose ports are unknown.
    fn close_addresses(&mut self, packet: &[u8]) {
        let (version, addresses) = addresses_of(packet);
        let mut slot = 0;
        while slot < self.open {
            let key = &self.flows[slot].key;
            if key.ports >> 40 == version && key.addresses == addresses {
                self.close(slot);
            } else {
                slot += 1;
            }
        }
    }

    /// A write of a packet that nothing will be joined to.
    #[inline]
    fn push_alone(&mut self, range: Range<usize>) {
        let layout = Layout {
            v6: false,
            tcp: false,
            ip_len: 0,
            header_len: 0,
            total: range.len(),
        };
        self.push(range, layout, 0);
    }

    #[inline]
    fn push(&mut self, range: Range<usize>, layout: Layout, gso_size: u16) {
        let index = self.pieces.len() as u32;
        self.joins.push(Join {
            first: index,
            last: index,
            count: 1,
            total: range.len() as u32,
            gso_size,
            push: false,
            layout,
        });
        self.pieces.push(Piece {
            start: range.start as u32,
            end: range.end as u32,
            next: NONE,
        });
    }

    /// A write of a packet that others may be joined to.
    #[inline]
    fn push_open(&mut self, packet: &[u8], range: Range<usize>, key: Key, candidate: Candidate) {
        let Candidate {
            layout, payload, ..
        } = candidate;
        if !candidate.push {
            let slot = if self.open < MAX_OPEN {
                self.open += 1;
                self.open - 1
            } else {
                self.oldest = (self.oldest + 1) % MAX_OPEN;
                self.oldest
            };
            self.recent = slot;
            self.flows[slot] = Flow {
                key,
                join: self.joins.len(),
                first: range.start,
                pseudo_header: layout.pseudo_header(packet),
                verified: false,
                next_sequence: candidate.sequence.wrapping_add(payload as u32),
                next_id: candidate.id.wrapping_add(1),
            };
        }
        self.push(range, layout, payload as u16);
    }

    /// Joins a packet to its flow's write if that changes nothing but the number of writes.
    #[inline]
    fn join(
        &mut self,
        slot: usize,
        arena: &[u8],
        packet: &[u8],
        range: Range<usize>,
        candidate: Candidate,
    ) -> bool {
        let Candidate {
            layout, payload, ..
        } = candidate;
        let flow = &mut self.flows[slot];
        let join = &mut self.joins[flow.join];
        let Some(first) = arena.get(flow.first..flow.first + join.layout.total) else {
            return false;
        };
        let total = join.total as usize + payload;
        if payload > usize::from(join.gso_size)
            || total > MAX_TOTAL
            || (layout.tcp && candidate.sequence != flow.next_sequence)
            || (!layout.v6 && candidate.id != flow.next_id)
            || layout.ip_len != join.layout.ip_len
            || layout.header_len != join.layout.header_len
            || !same_headers(first, packet, layout)
            || !is_intact(packet, layout, flow.pseudo_header)
        {
            return false;
        }
        if !flow.verified {
            if !is_intact(first, join.layout, flow.pseudo_header) {
                return false;
            }
            flow.verified = true;
        }

        let index = self.pieces.len() as u32;
        self.pieces.push(Piece {
            start: (range.start + layout.header_len) as u32,
            end: range.end as u32,
            next: NONE,
        });
        self.pieces[join.last as usize].next = index;
        join.last = index;
        join.count += 1;
        join.total = total as u32;
        join.push = candidate.push;
        flow.next_sequence = flow.next_sequence.wrapping_add(payload as u32);
        flow.next_id = flow.next_id.wrapping_add(1);
        if candidate.push
            || payload < usize::from(join.gso_size)
            || join.count as usize == MAX_SEGMENTS
        {
            self.close(slot);
        }
        true
    }
}

impl Key {
    #[inline]
    fn of(packet: &[u8], layout: Layout) -> Self {
        let (version, addresses) = addresses_of(packet);
        let ports = u64::from(u32_at(packet, layout.ip_len));
        Self {
            ports: version << 40 | u64::from(layout.tcp) << 32 | ports,
            addresses,
        }
    }

    /// Equality in registers. The derived one compares memory in words that are wider than those the
    /// key has just been stored in, and waits for the stores.
    #[inline]
    fn is(&self, other: &Self) -> bool {
        let differ = |at: usize| self.addresses[at] ^ other.addresses[at];
        self.ports == other.ports && differ(0) | differ(1) | differ(2) | differ(3) == 0
    }
}

/// IP version and addresses of a packet with a whole IP header.
#[inline]
fn addresses_of(packet: &[u8]) -> (u64, [u64; 4]) {
    let word = |at: usize| {
        let bytes = packet.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    if packet.first().is_some_and(|first| first >> 4 == 6) {
        (6, [8, 16, 24, 32].map(word))
    } else {
        (4, [word(ipv4::ADDRESSES), 0, 0, 0])
    }
}

impl Candidate {
    /// Everything but the transport checksum, which is looked at when there is something to join.
    #[inline]
    fn of(packet: &[u8], layout: Layout) -> Option<Self> {
        let payload = layout.total - layout.header_len;
        if layout.total != packet.len() || layout.total > MAX_TOTAL || payload == 0 {
            return None;
        }
        let (ip, transport) = packet[..layout.header_len].split_at(layout.ip_len);
        let id = if layout.v6 {
            0
        } else {
            let fragment = u16_at(ip, ipv4::FRAGMENT);
            // Zero and 0xffff mean the same in a checksum, but only one of them is ever computed.
            if fragment & !ipv4::DONT_FRAGMENT != 0
                || u16_at(ip, ipv4::CHECKSUM) == 0xffff
                || !checksum::is_intact(header_sum(ip))
            {
                return None;
            }
            u16_at(ip, ipv4::ID)
        };
        if layout.tcp {
            let flags = transport[tcp::FLAGS];
            if flags & !tcp::PSH != tcp::ACK
                || transport[tcp::DATA_OFFSET] & 0x0f != 0
                || u16_at(transport, tcp::CHECKSUM) == 0xffff
            {
                return None;
            }
            Some(Self {
                layout,
                payload,
                sequence: u32_at(transport, tcp::SEQUENCE),
                id,
                push: flags & tcp::PSH != 0,
            })
        } else {
            if usize::from(u16_at(transport, udp::LENGTH)) != layout.total - layout.ip_len
                || u16_at(transport, udp::CHECKSUM) == 0
            {
                return None;
            }
            Some(Self {
                layout,
                payload,
                sequence: 0,
                id,
                push: false,
            })
        }
    }
}

/// The sum of an IPv4 header, quicker for one without options because its length is known.
#[inline]
fn header_sum(ip: &[u8]) -> u64 {
    match ip.split_first_chunk::<{ ipv4::OPTIONS }>() {
        Some((header, [])) => checksum::sum(header),
        _ => checksum::sum(ip),
    }
}

/// Whether two packets of a flow and of the same layout have equal headers, but for what counts up
/// and what follows from the rest.
///
/// Compared in words of fixed size, for which the compiler calls no function; only options and
/// extension headers take one.
#[inline]
fn same_headers(a: &[u8], b: &[u8], layout: Layout) -> bool {
    let (a_ip, a) = a[..layout.header_len].split_at(layout.ip_len);
    let (b_ip, b) = b[..layout.header_len].split_at(layout.ip_len);
    let ip = if layout.v6 {
        same::<4>(a_ip, b_ip, 0)
            && same::<2>(a_ip, b_ip, ipv6::NEXT_HEADER)
            && same_rest(a_ip, b_ip, ipv6::PAYLOAD)
    } else {
        same::<2>(a_ip, b_ip, 0)
            && same::<4>(a_ip, b_ip, ipv4::FRAGMENT)
            && same_rest(a_ip, b_ip, ipv4::OPTIONS)
    };
    ip && (!layout.tcp
        || (same::<4>(a, b, tcp::ACKNOWLEDGEMENT)
            && same::<1>(a, b, tcp::DATA_OFFSET)
            && same::<2>(a, b, tcp::WINDOW)
            && same::<2>(a, b, tcp::URGENT)
            && same_rest(a, b, tcp::OPTIONS)))
}

#[inline]
fn same<const N: usize>(a: &[u8], b: &[u8], at: usize) -> bool {
    a[at..at + N] == b[at..at + N]
}

#[inline]
fn same_rest(a: &[u8], b: &[u8], at: usize) -> bool {
    a.len() == at || a[at..] == b[at..]
}

/// Whether a packet's transport checksum is right.
#[inline]
fn is_intact(packet: &[u8], layout: Layout, pseudo_header: u64) -> bool {
    let transport = &packet[layout.ip_len..layout.total];
    let length = word(transport.len() as u16);
    checksum::is_intact(pseudo_header + length + checksum::sum(transport))
}

impl Join {
    /// Turns the headers of the first packet into those of the super-packet.
    fn fix_up(&self, packet: &mut [u8]) {
        let Layout {
            v6, tcp, ip_len, ..
        } = self.layout;
        if packet.len() != self.layout.total {
            return;
        }
        let total = self.total as usize;
        if v6 {
            let length = (total - ipv6::PAYLOAD) as u16;
            put(packet, ipv6::LENGTH, length.to_be_bytes());
        } else {
            put(packet, ipv4::LENGTH, (total as u16).to_be_bytes());
            put(packet, ipv4::CHECKSUM, [0, 0]);
            let sum = checksum::sum(&packet[..ip_len]);
            put(packet, ipv4::CHECKSUM, checksum::checksum(sum));
        }
        let length = (total - ip_len) as u16;
        if tcp {
            if self.push {
                packet[ip_len + tcp::FLAGS] |= tcp::PSH;
            }
        } else {
            put(packet, ip_len + udp::LENGTH, length.to_be_bytes());
        }
        let partial = checksum::fold(self.layout.pseudo_header(packet) + word(length));
        put(packet, ip_len + self.layout.csum_offset(), partial);
    }

    const fn header(&self) -> VnetHeader {
        let layout = self.layout;
        if self.count == 1 {
            return VnetHeader {
                flags: 0,
                gso_type: 0,
                hdr_len: 0,
                gso_size: 0,
                csum_start: 0,
                csum_offset: 0,
            };
        }
        VnetHeader {
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
            gso_type: match (layout.tcp, layout.v6) {
                (true, false) => VIRTIO_NET_HDR_GSO_TCPV4,
                (true, true) => VIRTIO_NET_HDR_GSO_TCPV6,
                (false, _) => VIRTIO_NET_HDR_GSO_UDP_L4,
            },
            hdr_len: layout.header_len as u16,
            gso_size: self.gso_size,
            csum_start: layout.ip_len as u16,
            csum_offset: layout.csum_offset() as u16,
        }
    }
}

/// What is to be written for a batch.
#[derive(Clone, Debug)]
pub struct Writes<'a> {
    joins: std::slice::Iter<'a, Join>,
    pieces: &'a [Piece],
}

impl<'a> Iterator for Writes<'a> {
    type Item = Write<'a>;

    #[inline]
    fn next(&mut self) -> Option<Write<'a>> {
        let join = self.joins.next()?;
        Some(Write {
            header: join.header(),
            ranges: Ranges {
                pieces: self.pieces,
                next: join.first,
                left: join.count as usize,
            },
            total: join.total as usize,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.joins.size_hint()
    }
}

impl ExactSizeIterator for Writes<'_> {}

/// One write to the TUN: `header.to_bytes()`, then the ranges of the arena in their order.
///
/// There are never more than [`MAX_SEGMENTS`] ranges. If the kernel refuses a super-packet, gather
/// it into a buffer and let [`Segments`](super::Segments) cut it.
#[derive(Clone, Debug)]
pub struct Write<'a> {
    /// All zero for a single packet.
    pub header: VnetHeader,
    /// One range for each packet in it; the first has the headers too.
    pub ranges: Ranges<'a>,
    /// How many bytes the ranges have together.
    pub total: usize,
}

/// Ranges of the arena.
#[derive(Clone, Debug)]
pub struct Ranges<'a> {
    pieces: &'a [Piece],
    next: u32,
    left: usize,
}

impl Iterator for Ranges<'_> {
    type Item = Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let piece = self.pieces.get(self.next as usize)?;
        self.next = piece.next;
        self.left -= 1;
        Some(piece.start as usize..piece.end as usize)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Ranges<'_> {}
