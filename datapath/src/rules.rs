//! Which inner packets may pass: the rules of the reference datapath, for the case that all is well.
//!
//! A packet that fails is not judged here. It goes up, and the reference decides what is counted and
//! what is answered.

use std::collections::HashMap;

/// An address as a key: its length, then its bytes.
pub type AddressKey = [u8; 17];

/// The key of an address of 4 or 16 bytes.
pub fn key_of(address: &[u8]) -> Option<AddressKey> {
    if !matches!(address.len(), 4 | 16) {
        return None;
    }
    let mut key = [0; 17];
    key[0] = address.len() as u8;
    key[1..=address.len()].copy_from_slice(address);
    Some(key)
}

/// Whether version, header length and total length fit the buffer exactly.
pub fn well_formed(packet: &[u8]) -> bool {
    let size = packet.len();
    if size < 20 {
        return false;
    }
    match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0x0F) * 4;
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            (20..=size).contains(&header) && total == size
        }
        6 => size >= 40 && 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])) == size,
        _ => false,
    }
}

/// Source and destination of a well-formed packet, 4 or 16 bytes each.
pub fn addresses(packet: &[u8]) -> (&[u8], &[u8]) {
    if packet[0] >> 4 == 4 {
        (&packet[12..16], &packet[16..20])
    } else {
        (&packet[8..24], &packet[24..40])
    }
}

/// Destinations that packets may be forwarded to, as boundaries: each holds up to the next.
#[derive(Default)]
pub struct Destinations {
    starts: [Vec<AddressKey>; 2],
    forward: [Vec<bool>; 2],
}

impl Destinations {
    /// From boundaries of IPv4 and of IPv6, rising, each list beginning with the lowest address.
    /// `None` when they do not.
    pub fn new(ipv4: Vec<(AddressKey, bool)>, ipv6: Vec<(AddressKey, bool)>) -> Option<Self> {
        let mut made = Self::default();
        for (family, list) in [ipv4, ipv6].into_iter().enumerate() {
            if list.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
                return None;
            }
            (made.starts[family], made.forward[family]) = list.into_iter().unzip();
        }
        Some(made)
    }

    /// Whether a packet to this address (4 or 16 bytes) is forwarded.
    pub fn forwards(&self, address: &[u8]) -> bool {
        let Some(key) = key_of(address) else {
            return false;
        };
        let family = usize::from(address.len() == 16);
        let after = self.starts[family].partition_point(|start| *start <= key);
        after > 0 && self.forward[family][after - 1]
    }
}

/// What a session lets in from its peer.
pub enum Inbound {
    /// A client: packets to its own addresses.
    ToOwn,
    /// A gateway: packets from the device's addresses, to where it may send.
    FromOwn(Destinations),
}

/// The rules of one session.
pub struct Rules {
    /// The assigned addresses, 4 or 16 bytes each.
    pub own: Vec<Vec<u8>>,
    /// What may come in.
    pub inbound: Inbound,
}

impl Rules {
    fn is_own(&self, address: &[u8]) -> bool {
        self.own.iter().any(|own| own == address)
    }

    /// Whether a packet from the peer may go to the TUN.
    pub fn lets_in(&self, packet: &[u8]) -> bool {
        if !well_formed(packet) {
            return false;
        }
        let (source, destination) = addresses(packet);
        match &self.inbound {
            Inbound::ToOwn => self.is_own(destination),
            Inbound::FromOwn(allowed) => self.is_own(source) && allowed.forwards(destination),
        }
    }

    /// At a client: whether a packet from the TUN may go to the peer.
    pub fn lets_out(&self, packet: &[u8]) -> bool {
        self.is_own(addresses(packet).0)
    }
}

/// Which session holds an address.
pub type Routes = HashMap<AddressKey, usize>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipv4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet
    }

    #[test]
    fn a_packet_is_exactly_its_buffer() {
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2]);
        assert!(well_formed(&packet));
        assert!(!well_formed(&packet[..19]));
        assert!(!well_formed(&[packet.clone(), vec![0]].concat()));
        assert!(!well_formed(&[]));
    }

    #[test]
    fn a_client_takes_what_is_for_it_and_sends_what_is_from_it() {
        let rules = Rules {
            own: vec![vec![10, 0, 0, 2]],
            inbound: Inbound::ToOwn,
        };
        assert!(rules.lets_in(&ipv4([1, 1, 1, 1], [10, 0, 0, 2])));
        assert!(!rules.lets_in(&ipv4([1, 1, 1, 1], [10, 0, 0, 3])));
        assert!(rules.lets_out(&ipv4([10, 0, 0, 2], [1, 1, 1, 1])));
        assert!(!rules.lets_out(&ipv4([10, 0, 0, 3], [1, 1, 1, 1])));
    }

    #[test]
    fn a_gateway_looks_at_source_and_destination() {
        let key = |address: [u8; 4]| key_of(&address).unwrap();
        let allowed = Destinations::new(
            vec![
                (key([0; 4]), false),
                (key([10, 1, 0, 0]), true),
                (key([10, 2, 0, 0]), false),
            ],
            vec![],
        )
        .unwrap();
        let rules = Rules {
            own: vec![vec![10, 0, 0, 2]],
            inbound: Inbound::FromOwn(allowed),
        };
        assert!(rules.lets_in(&ipv4([10, 0, 0, 2], [10, 1, 0, 0])));
        assert!(rules.lets_in(&ipv4([10, 0, 0, 2], [10, 1, 255, 255])));
        assert!(!rules.lets_in(&ipv4([10, 0, 0, 2], [10, 2, 0, 0])));
        assert!(!rules.lets_in(&ipv4([10, 0, 0, 2], [9, 255, 255, 255])));
        assert!(!rules.lets_in(&ipv4([10, 0, 0, 3], [10, 1, 0, 0])));
    }

    #[test]
    fn boundaries_that_do_not_rise_are_refused() {
        let key = |last: u8| key_of(&[10, 0, 0, last]).unwrap();
        assert!(Destinations::new(vec![(key(2), true), (key(1), true)], vec![]).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_crash_the_rules(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            let rules = Rules { own: vec![vec![0; 4]], inbound: Inbound::FromOwn(Destinations::default()) };
            rules.lets_in(&packet);
        }
    }
}
