//! Packets in words, and the bytes that they are, made without the code under test.

use qvpn_datapath::offload::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4, VnetHeader,
};

use crate::harness::slow_checksum;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// A packet in words, from which bytes are made without the code under test.
#[derive(Clone, Debug)]
pub struct Packet {
    pub v6: bool,
    pub tcp: bool,
    pub hosts: (u8, u8),
    pub ports: (u16, u16),
    pub tos: u8,
    pub ttl: u8,
    pub flow_label: u32,
    pub id: u16,
    pub fragment: u16,
    pub ip_options: Vec<u8>,
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
    pub unchecked: bool,
}

impl Packet {
    pub fn new(v6: bool, tcp: bool, payload: usize) -> Self {
        Self {
            v6,
            tcp,
            hosts: (1, 2),
            ports: (40_000, 443),
            tos: 0,
            ttl: 64,
            flow_label: 0xbeef,
            id: 0xfffe,
            fragment: 0x4000,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            sequence: 0xffff_fc00,
            acknowledgement: 0x0102_0304,
            flags: ACK,
            window: 501,
            urgent: 0,
            tcp_options: Vec::new(),
            payload: bytes(payload, 7),
            unchecked: false,
        }
    }

    fn addresses(&self) -> Vec<u8> {
        let (a, b) = self.hosts;
        if self.v6 {
            let mut addresses = vec![0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a];
            addresses.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, b]);
            addresses
        } else {
            vec![10, 0, 0, a, 192, 0, 2, b]
        }
    }

    pub fn ip_len(&self) -> usize {
        if self.v6 {
            40 + self
                .extensions
                .iter()
                .map(|(_, body)| body.len() + 2)
                .sum::<usize>()
        } else {
            20 + self.ip_options.len()
        }
    }

    pub fn header_len(&self) -> usize {
        self.ip_len()
            + if self.tcp {
                20 + self.tcp_options.len()
            } else {
                8
            }
    }

    /// The packet, with its checksum as it goes over the wire.
    pub fn wire(&self) -> Vec<u8> {
        self.build(false)
    }

    /// The packet as the kernel gives it with `NEEDS_CSUM`.
    pub fn partial(&self) -> Vec<u8> {
        self.build(true)
    }

    fn build(&self, partial: bool) -> Vec<u8> {
        let protocol = if self.tcp { 6 } else { 17 };
        let mut transport = Vec::new();
        transport.extend(self.ports.0.to_be_bytes());
        transport.extend(self.ports.1.to_be_bytes());
        let field = if self.tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.acknowledgement.to_be_bytes());
            transport.push((((20 + self.tcp_options.len()) / 4) << 4) as u8);
            transport.push(self.flags);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0, 0]);
            transport.extend(self.urgent.to_be_bytes());
            transport.extend(&self.tcp_options);
            16
        } else {
            transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            transport.extend([0, 0]);
            6
        };
        transport.extend(&self.payload);
        let length = (transport.len() as u32).to_be_bytes();
        let pseudo = [&self.addresses()[..], &length, &[0, protocol]].concat();
        let sum = if partial {
            !slow_checksum(&[&pseudo])
        } else if self.unchecked {
            0
        } else {
            match slow_checksum(&[&pseudo, &transport]) {
                0 if !self.tcp => 0xffff,
                sum => sum,
            }
        };
        transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());

        let mut packet = Vec::new();
        if self.v6 {
            let word = 6 << 28 | u32::from(self.tos) << 20 | self.flow_label;
            packet.extend(word.to_be_bytes());
            let length = self.ip_len() - 40 + transport.len();
            packet.extend((length as u16).to_be_bytes());
            let kinds = self.extensions.iter().map(|(kind, _)| *kind);
            let kinds: Vec<u8> = kinds.chain([protocol]).collect();
            packet.extend([kinds[0], self.ttl]);
            packet.extend(self.addresses());
            for ((_, body), next) in self.extensions.iter().zip(&kinds[1..]) {
                packet.extend([*next, ((body.len() + 2) / 8 - 1) as u8]);
                packet.extend(body);
            }
        } else {
            packet.extend([0x40 | (self.ip_len() / 4) as u8, self.tos]);
            packet.extend(((self.ip_len() + transport.len()) as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend(self.fragment.to_be_bytes());
            packet.extend([self.ttl, protocol, 0, 0]);
            packet.extend(self.addresses());
            packet.extend(&self.ip_options);
            let sum = slow_checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        packet.extend(transport);
        packet
    }

    /// What the kernel says before it.
    pub fn header(&self, gso_size: usize) -> VnetHeader {
        VnetHeader {
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
            gso_type: match (self.tcp, self.v6) {
                (true, false) => VIRTIO_NET_HDR_GSO_TCPV4,
                (true, true) => VIRTIO_NET_HDR_GSO_TCPV6,
                (false, _) => VIRTIO_NET_HDR_GSO_UDP_L4,
            },
            hdr_len: self.header_len() as u16,
            gso_size: gso_size as u16,
            csum_start: self.ip_len() as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// The packets that this one stands for, in words.
    pub fn segments(&self, gso_size: usize) -> Vec<Self> {
        let chunks: Vec<&[u8]> = if self.payload.is_empty() {
            vec![&[]]
        } else {
            self.payload.chunks(gso_size).collect()
        };
        let last = chunks.len() - 1;
        chunks
            .iter()
            .enumerate()
            .map(|(index, chunk)| {
                let mut segment = self.clone();
                segment.payload = chunk.to_vec();
                segment.id = self.id.wrapping_add(index as u16);
                segment.sequence = self.sequence.wrapping_add((index * gso_size) as u32);
                if index > 0 {
                    segment.flags &= !CWR;
                }
                if index < last {
                    segment.flags &= !(FIN | PSH);
                }
                segment
            })
            .collect()
    }

    pub fn wires(packets: &[Self]) -> Vec<Vec<u8>> {
        packets.iter().map(Self::wire).collect()
    }
}

pub fn bytes(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32)
        .map(|at| {
            ((at ^ seed << 4)
                .wrapping_add(seed)
                .wrapping_mul(2_654_435_761)
                >> 11) as u8
        })
        .collect()
}

/// Every combination of family, protocol, and headers that are not the shortest.
pub fn shapes() -> Vec<Packet> {
    let mut shapes = Vec::new();
    for tcp in [false, true] {
        let tcp_options: &[usize] = if tcp { &[0, 4, 12, 40] } else { &[0] };
        for tcp_options in tcp_options {
            for ip_options in [0, 4, 40] {
                let mut packet = Packet::new(false, tcp, 0);
                packet.ip_options = vec![1; ip_options];
                packet.tcp_options = bytes(*tcp_options, 3);
                shapes.push(packet);
            }
            let none = Vec::new();
            let hop_by_hop = (0, bytes(6, 1));
            let destination = (60, bytes(14, 2));
            let routing = (43, vec![4, 0, 0, 0, 0, 0]);
            for extensions in [
                none,
                vec![hop_by_hop.clone()],
                vec![destination.clone()],
                vec![hop_by_hop, destination.clone(), routing, destination],
            ] {
                let mut packet = Packet::new(true, tcp, 0);
                packet.extensions = extensions;
                packet.tcp_options = bytes(*tcp_options, 3);
                shapes.push(packet);
            }
        }
    }
    shapes
}
