//! Cutting a super-packet that the kernel gave into packets for the wire.
//!
//! This does what the kernel's own GSO does (`tcp_gso_segment`, `__udp_gso_segment`), and nothing
//! else: it neither checks the payload nor repairs headers that are copied. Only the kernel's word
//! for sizes is taken from the [`VnetHeader`]; where headers end is read from the packet itself.

use super::checksum::{self, word};
use super::{
    Layout, Malformed, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4, VnetHeader, ipv4, ipv6, put, tcp, u16_at, u32_at, udp,
};

/// The packets that one packet from the TUN stands for.
///
/// All of them are [`largest`](Self::largest) bytes long but the last, which may be shorter: the
/// very shape that UDP GSO wants.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    plan: Plan,
    count: usize,
    next: usize,
}

#[derive(Clone, Copy, Debug)]
enum Plan {
    /// One packet as it is.
    Whole,
    /// One packet whose checksum, at `at`, covers everything from `start` on.
    Complete { start: usize, at: usize },
    /// Segments of a super-packet.
    Cut(Cut),
}

/// What all segments share, so that the cost per segment is little more than its payload.
#[derive(Clone, Copy, Debug)]
struct Cut {
    layout: Layout,
    /// Payload bytes of a segment.
    size: usize,
    /// Sum of the IPv4 header without length, ID and checksum.
    ip_sum: u64,
    /// Sum of the pseudo-header and the transport header without what differs by segment.
    transport_sum: u64,
    /// IPv4 ID of the first segment.
    id: u16,
    /// Sequence number of the first segment.
    sequence: u32,
    /// TCP flags of the super-packet.
    flags: u8,
    /// UDP without a checksum, which only IPv4 allows.
    unchecked: bool,
}

impl<'a> Segments<'a> {
    /// Plans the cutting of `packet`, which followed `header`.
    ///
    /// # Errors
    /// [`Malformed`] when header and packet do not fit each other, in which case nothing can be
    /// sent: the packet is to be dropped and counted.
    pub fn new(header: &VnetHeader, packet: &'a [u8]) -> Result<Self, Malformed> {
        if packet.is_empty() {
            return Err(Malformed::Ip);
        }
        let needs_csum = header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        let csum_start = usize::from(header.csum_start);
        let csum_offset = usize::from(header.csum_offset);

        if header.gso_type == VIRTIO_NET_HDR_GSO_NONE {
            let plan = if needs_csum {
                let at = csum_start + csum_offset;
                if at + 2 > packet.len() {
                    return Err(Malformed::Checksum);
                }
                Plan::Complete {
                    start: csum_start,
                    at,
                }
            } else {
                Plan::Whole
            };
            return Ok(Self {
                packet,
                plan,
                count: 1,
                next: 0,
            });
        }

        let (want_v6, want_tcp) = match header.gso_type & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_TCPV4 => (Some(false), true),
            VIRTIO_NET_HDR_GSO_TCPV6 => (Some(true), true),
            VIRTIO_NET_HDR_GSO_UDP_L4 => (None, false),
            _ => return Err(Malformed::GsoType),
        };
        let size = usize::from(header.gso_size);
        if size == 0 {
            return Err(Malformed::GsoSize);
        }
        let layout = Layout::of(packet)?;
        if layout.tcp != want_tcp || want_v6.is_some_and(|v6| v6 != layout.v6) {
            return Err(Malformed::GsoType);
        }
        if needs_csum && (csum_start != layout.ip_len || csum_offset != layout.csum_offset()) {
            return Err(Malformed::Checksum);
        }
        let packet = &packet[..layout.total];
        Ok(Self {
            packet,
            count: (layout.total - layout.header_len).div_ceil(size).max(1),
            plan: Plan::Cut(Cut::new(packet, layout, size, needs_csum)),
            next: 0,
        })
    }

    /// How many segments are still to come.
    #[inline]
    pub const fn len(&self) -> usize {
        self.count - self.next
    }

    /// Whether [`next_into`](Self::next_into) has given all segments.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.next == self.count
    }

    /// Bytes of the largest segment, which is what has to fit the MTU.
    #[inline]
    pub fn largest(&self) -> usize {
        match self.plan {
            Plan::Whole | Plan::Complete { .. } => self.packet.len(),
            Plan::Cut(cut) => self.packet.len().min(cut.layout.header_len + cut.size),
        }
    }

    /// Bytes of the next segment; zero when there is none.
    #[inline]
    pub fn next_len(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        match self.plan {
            Plan::Whole | Plan::Complete { .. } => self.packet.len(),
            Plan::Cut(cut) => {
                let (start, end) = cut.payload(self.next);
                cut.layout.header_len + end - start
            }
        }
    }

    /// The packet as the kernel gave it: good for looking at addresses, not for sending.
    #[inline]
    pub const fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Writes the next segment to the beginning of `out` and says how long it is.
    ///
    /// Nothing comes, and nothing is used up, when there are no more segments
    /// ([`is_empty`](Self::is_empty)) or `out` is shorter than [`next_len`](Self::next_len).
    #[inline]
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let out = out.get_mut(..self.next_len())?;
        match self.plan {
            Plan::Whole => out.copy_from_slice(self.packet),
            Plan::Complete { start, at } => {
                let (before, covered) = self.packet.split_at(start);
                let (out_before, out_covered) = out.split_at_mut(start);
                out_before.copy_from_slice(before);
                let sum = checksum::copy_and_sum(covered, out_covered);
                // As skb_checksum_help does for every protocol: the two zeros are equal to all but
                // UDP, which takes one of them for "no checksum".
                put(out, at, checksum::checksum_not_zero(sum));
            }
            Plan::Cut(cut) => cut.write(self.packet, self.next, self.next + 1 == self.count, out),
        }
        self.next += 1;
        Some(out.len())
    }
}

impl Cut {
    fn new(packet: &[u8], layout: Layout, size: usize, needs_csum: bool) -> Self {
        let (ip, transport) = packet[..layout.header_len].split_at(layout.ip_len);
        let mut cut = Self {
            layout,
            size,
            ip_sum: 0,
            transport_sum: 0,
            id: 0,
            sequence: 0,
            flags: 0,
            unchecked: false,
        };
        if !layout.v6 {
            cut.id = u16_at(ip, ipv4::ID);
            cut.ip_sum = checksum::sum(&ip[..ipv4::LENGTH])
                + checksum::sum(&ip[ipv4::FRAGMENT..ipv4::CHECKSUM])
                + checksum::sum(&ip[ipv4::ADDRESSES..]);
        }
        cut.transport_sum = if needs_csum {
            // The kernel has put the pseudo-header's sum with the length of it all there, and has
            // kept it right where the addresses are not those of the IP header (routing headers).
            let partial = u16_at(transport, layout.csum_offset());
            word(partial) + word(!((layout.total - layout.ip_len) as u16))
        } else {
            layout.pseudo_header(packet)
        };
        if layout.tcp {
            cut.sequence = u32_at(transport, tcp::SEQUENCE);
            cut.flags = transport[tcp::FLAGS];
            cut.transport_sum += checksum::sum(&transport[..tcp::SEQUENCE])
                + checksum::sum(&transport[tcp::ACKNOWLEDGEMENT..tcp::DATA_OFFSET])
                + checksum::sum(&[transport[tcp::DATA_OFFSET], 0])
                + checksum::sum(&transport[tcp::WINDOW..tcp::CHECKSUM])
                + checksum::sum(&transport[tcp::URGENT..]);
        } else {
            cut.unchecked = !needs_csum && !layout.v6 && u16_at(transport, udp::CHECKSUM) == 0;
            cut.transport_sum += checksum::sum(&transport[..udp::LENGTH]);
        }
        cut
    }

    /// Where the payload of segment `index` is. The index is below the count of segments.
    #[inline]
    fn payload(&self, index: usize) -> (usize, usize) {
        let start = self.layout.header_len + index * self.size;
        (start, self.layout.total.min(start + self.size))
    }

    #[inline]
    fn write(&self, packet: &[u8], index: usize, last: bool, out: &mut [u8]) {
        let Layout {
            v6,
            tcp,
            ip_len,
            header_len,
            ..
        } = self.layout;
        let (start, end) = self.payload(index);
        let (header, payload) = out.split_at_mut(header_len);
        header.copy_from_slice(&packet[..header_len]);
        let mut sum = checksum::copy_and_sum(&packet[start..end], payload) + self.transport_sum;

        let (ip, transport) = header.split_at_mut(ip_len);
        let total = header_len + payload.len();
        if v6 {
            let length = (total - ipv6::PAYLOAD) as u16;
            put(ip, ipv6::LENGTH, length.to_be_bytes());
        } else {
            let length = total as u16;
            let id = self.id.wrapping_add(index as u16);
            put(ip, ipv4::LENGTH, length.to_be_bytes());
            put(ip, ipv4::ID, id.to_be_bytes());
            let sum = self.ip_sum + word(length) + word(id);
            put(ip, ipv4::CHECKSUM, checksum::checksum(sum));
        }

        let length = (total - ip_len) as u16;
        sum += word(length);
        if tcp {
            let sequence = self
                .sequence
                .wrapping_add((index as u32).wrapping_mul(self.size as u32));
            let mut flags = self.flags;
            if index > 0 {
                flags &= !tcp::CWR;
            }
            if !last {
                flags &= !(tcp::FIN | tcp::PSH);
            }
            put(transport, tcp::SEQUENCE, sequence.to_be_bytes());
            transport[tcp::FLAGS] = flags;
            sum += u64::from(sequence.to_be()) + word(u16::from(flags));
            put(transport, tcp::CHECKSUM, checksum::checksum(sum));
        } else {
            put(transport, udp::LENGTH, length.to_be_bytes());
            let checksum = if self.unchecked {
                [0, 0]
            } else {
                sum += word(length);
                checksum::checksum_not_zero(sum)
            };
            put(transport, udp::CHECKSUM, checksum);
        }
    }
}
