//! Whose packet it is, and where it may go: exact addresses, and intervals of destinations.

use std::collections::HashMap;

/// From addresses, as they stand in a packet, to sessions.
#[derive(Debug, Default)]
pub struct Addresses {
    ipv4: HashMap<[u8; 4], usize>,
    ipv6: HashMap<[u8; 16], usize>,
}

impl Addresses {
    /// The session that has `address`, of 4 or 16 bytes.
    #[inline]
    pub fn find(&self, address: &[u8]) -> Option<usize> {
        if let Ok(address) = <&[u8; 4]>::try_from(address) {
            self.ipv4.get(address).copied()
        } else {
            self.ipv6.get(<&[u8; 16]>::try_from(address).ok()?).copied()
        }
    }

    /// From now on these addresses, and no others, are the session's; a former owner loses them.
    pub fn set(&mut self, session: usize, addresses: &[Vec<u8>]) {
        self.ipv4.retain(|_, owner| *owner != session);
        self.ipv6.retain(|_, owner| *owner != session);
        for address in addresses {
            if let Ok(address) = <[u8; 4]>::try_from(&address[..]) {
                self.ipv4.insert(address, session);
            } else if let Ok(address) = <[u8; 16]>::try_from(&address[..]) {
                self.ipv6.insert(address, session);
            }
        }
    }
}

/// Where a device may send: intervals of the address space, each allowed or not.
///
/// Made from `qvpn_server.destinations`, which knows why; what is not allowed is handed back to it.
#[derive(Debug)]
pub struct Destinations {
    ipv4: Vec<([u8; 4], bool)>,
    ipv6: Vec<([u8; 16], bool)>,
}

impl Destinations {
    /// Each interval begins at its address and ends before the next, in ascending order.
    pub fn new(ipv4: Vec<([u8; 4], bool)>, ipv6: Vec<([u8; 16], bool)>) -> Self {
        Self { ipv4, ipv6 }
    }

    /// Whether packets to `address`, of 4 or 16 bytes, are forwarded.
    #[inline]
    pub fn allow(&self, address: &[u8]) -> bool {
        if let Ok(address) = <[u8; 4]>::try_from(address) {
            look_up(&self.ipv4, address)
        } else {
            <[u8; 16]>::try_from(address).is_ok_and(|address| look_up(&self.ipv6, address))
        }
    }
}

fn look_up<T: Ord>(intervals: &[(T, bool)], address: T) -> bool {
    let after = intervals.partition_point(|(start, _)| *start <= address);
    after > 0 && intervals[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_owner() {
        let mut addresses = Addresses::default();
        addresses.set(1, &[vec![10, 0, 0, 1], vec![9; 16], vec![1, 2, 3]]);
        assert_eq!(addresses.find(&[10, 0, 0, 1]), Some(1));
        assert_eq!(addresses.find(&[9; 16]), Some(1));
        assert_eq!(addresses.find(&[1, 2, 3]), None, "no address at all");
        addresses.set(2, &[vec![10, 0, 0, 1]]);
        assert_eq!(addresses.find(&[10, 0, 0, 1]), Some(2));
        addresses.set(1, &[]);
        assert_eq!((addresses.find(&[9; 16]), addresses.find(&[10, 0, 0, 1])), (None, Some(2)));
    }

    #[test]
    fn intervals_end_where_the_next_begins() {
        let table = Destinations::new(
            vec![([0; 4], false), ([10, 0, 0, 0], true), ([10, 0, 1, 0], false)],
            vec![],
        );
        for (address, allowed) in [
            ([9, 255, 255, 255], false),
            ([10, 0, 0, 0], true),
            ([10, 0, 0, 255], true),
            ([10, 0, 1, 0], false),
            ([255; 4], false),
        ] {
            assert_eq!(table.allow(&address), allowed, "{address:?}");
        }
        assert!(!table.allow(&[0; 16]), "nothing is allowed where nothing is said");
    }
}
