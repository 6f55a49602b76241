//! The header in front of each packet of a TUN with `IFF_VNET_HDR` (linux/virtio_net.h).

/// Bytes of the header; the kernel's default, `TUNSETVNETHDRSZ` is not needed.
pub const SIZE: usize = 10;

const NEEDS_CSUM: u8 = 1; // VIRTIO_NET_HDR_F_NEEDS_CSUM
const GSO_ECN: u8 = 0x80; // VIRTIO_NET_HDR_GSO_ECN

/// `gso_type` without the ECN flag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gso {
    None,
    Tcp4,
    Tcp6,
    /// UDP segmentation of either IP version (VIRTIO_NET_HDR_GSO_UDP_L4).
    Udp,
}

/// What the header says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// The transport checksum holds only the pseudo-header's sum and is still to be completed.
    pub needs_checksum: bool,
    pub gso: Gso,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Bytes of all headers of a super-packet.
    pub header_length: u16,
    /// Where the transport header begins, and its checksum field within it.
    pub checksum_start: u16,
    pub checksum_offset: u16,
}

impl Header {
    /// For a packet that is whole and has its checksum.
    pub const PLAIN: Self = Self {
        needs_checksum: false,
        gso: Gso::None,
        gso_size: 0,
        header_length: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// None for a kind of offload that was not asked for. All fields are in host order.
    pub fn decode(bytes: &[u8; SIZE]) -> Option<Self> {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & !GSO_ECN {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            _ => return None,
        };
        Some(Self {
            needs_checksum: bytes[0] & NEEDS_CSUM != 0,
            gso,
            header_length: field(2),
            gso_size: field(4),
            checksum_start: field(6),
            checksum_offset: field(8),
        })
    }

    /// As the kernel reads it.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[0] = if self.needs_checksum { NEEDS_CSUM } else { 0 };
        bytes[1] = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
        };
        bytes[2..4].copy_from_slice(&self.header_length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            let header = Header {
                needs_checksum: true,
                gso,
                gso_size: 1380,
                header_length: 52,
                checksum_start: 20,
                checksum_offset: 16,
            };
            assert_eq!(Header::decode(&header.encode()), Some(header));
        }
    }

    #[test]
    fn an_unknown_offload_is_refused() {
        assert_eq!(Header::decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None, "UFO is long gone");
    }
}
