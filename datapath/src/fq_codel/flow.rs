//! Headers of IP packets: what flow they belong to, and their ECN field.

const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ESP: u8 = 50;
const SCTP: u8 = 132;

/// The ECN field of IPv4's second byte; four bits higher in IPv6. Both bits: "Congestion
/// Experienced"; none: not ECN-capable.
const CE: u8 = 3;

/// Extension headers that are skipped at most.
const EXTENSIONS: usize = 8;

/// A number that packets of one flow share: of addresses, protocol and ports (or the SPI of ESP).
/// Fragments have no ports. Whatever is not IP is one flow.
pub fn flow_hash(packet: &[u8], seed: [u64; 2]) -> u64 {
    let Some((addresses, protocol, ports)) = tuple(packet) else {
        return mix(seed[0], seed[1]);
    };
    let mut hash = seed[0];
    let mut words = addresses.chunks_exact(8);
    for word in &mut words {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        hash = mix(hash ^ u64::from_le_bytes(bytes), seed[1]);
    }
    let rest = u64::from(protocol) << 32 | u64::from(ports);
    mix(mix(hash ^ rest, seed[1]), seed[0] | 1)
}

/// Both halves of a product, folded.
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b | 1);
    (product as u64) ^ (product >> 64) as u64
}

/// Source and destination, protocol, and both ports in one.
fn tuple(packet: &[u8]) -> Option<(&[u8], u8, u32)> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let addresses = packet.get(12..20)?;
            let protocol = packet[9];
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            let ports = if fragment {
                0
            } else {
                ports(packet, header, protocol)
            };
            Some((addresses, protocol, ports))
        }
        6 => {
            let addresses = packet.get(8..40)?;
            let (protocol, ports) = ipv6_ports(packet);
            Some((addresses, protocol, ports))
        }
        _ => None,
    }
}

/// The protocol behind the extension headers, and its ports.
fn ipv6_ports(packet: &[u8]) -> (u8, u32) {
    let mut protocol = packet.get(6).copied().unwrap_or(0);
    let mut at = 40;
    for _ in 0..EXTENSIONS {
        let Some(&[next, length]) = packet.get(at..at + 2) else {
            return (protocol, 0);
        };
        match protocol {
            // Hop-by-hop options, routing, destination options, mobility.
            0 | 43 | 60 | 135 => at += (usize::from(length) + 1) * 8,
            // Authentication: RFC 4302 section 2.2.
            51 => at += (usize::from(length) + 2) * 4,
            // Fragments.
            44 => return (next, 0),
            _ => break,
        }
        protocol = next;
    }
    (protocol, ports(packet, at, protocol))
}

fn ports(packet: &[u8], at: usize, protocol: u8) -> u32 {
    match (protocol, packet.get(at..at + 4)) {
        (TCP | UDP | DCCP | SCTP | ESP, Some(&[a, b, c, d])) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Marks a packet "Congestion Experienced" (RFC 3168 section 5), and says whether that was
/// possible: whether it came from an ECN-capable transport.
pub fn mark_ce(packet: &mut [u8]) -> bool {
    match packet {
        [first, tos, _, _, _, _, _, _, _, _, high, low, rest @ ..]
            if *first >> 4 == 4 && rest.len() >= 8 =>
        {
            if *tos & CE == 0 {
                return false;
            }
            let old = u16::from_be_bytes([*first, *tos]);
            *tos |= CE;
            let new = u16::from_be_bytes([*first, *tos]);
            // RFC 1624: HC' = ~(~HC + ~m + m').
            let sum =
                u32::from(!u16::from_be_bytes([*high, *low])) + u32::from(!old) + u32::from(new);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            [*high, *low] = (!(sum as u16)).to_be_bytes();
            true
        }
        [first, second, rest @ ..] if *first >> 4 == 6 && rest.len() >= 38 => {
            if *second & CE << 4 == 0 {
                return false;
            }
            *second |= CE << 4;
            true
        }
        _ => false,
    }
}
