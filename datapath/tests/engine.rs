//! An engine of a device and one of a gateway, with sockets between them and no thread.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::RecvMeta;
use qvpn_datapath::engine::{Engine, Event};
use qvpn_datapath::ip;
use qvpn_datapath::outbox::Target;
use qvpn_datapath::protection::{Keys, PacketKey, Phase, Suite, header_key};
use qvpn_datapath::received::Received;
use qvpn_datapath::routes::Destinations;
use qvpn_datapath::sent::Sent;
use qvpn_datapath::session::{Session, Settings};
use qvpn_datapath::socket::Socket;
use qvpn_datapath::virtio::{self, Gso, Header};

const DEVICE: [u8; 4] = [10, 9, 0, 2];
const NEIGHBOUR: [u8; 4] = [10, 9, 0, 3];
const SITE: [u8; 4] = [198, 51, 100, 7];
const FORBIDDEN: [u8; 4] = [192, 168, 1, 1];

struct End {
    engine: Engine,
    socket: UdpSocket,
    address: SocketAddr,
    place: usize,
    now: u64,
}

impl End {
    fn new(gateway: bool) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut engine = Engine::new(gateway);
        let place = engine.sockets.add(Socket::new(socket.try_clone().unwrap().into()).unwrap());
        socket.set_nonblocking(false).unwrap();
        let address = socket.local_addr().unwrap();
        Self { engine, socket, address, place, now: 1_000_000 }
    }

    fn attach(&mut self, peer: SocketAddr, own_id: u8, peer_id: u8, swap: bool) -> usize {
        let phase = |generation: u8| {
            let key = |salt: u8| {
                PacketKey::new(Suite::Aes128Gcm, &[generation ^ salt; 16], &[salt; 12]).unwrap()
            };
            let (send, receive) = if swap { (key(1), key(2)) } else { (key(2), key(1)) };
            Phase { send, receive }
        };
        let header = || header_key(Suite::Aes128Gcm, &[5; 16]).unwrap();
        let session = Session::new(
            Settings {
                target: Target { socket: self.place, peer, local: None },
                peer_id: vec![peer_id; 8],
                own_id_length: 8,
                packet_size: 1472,
                ack_delay_exponent: 3,
            },
            Keys::new((header(), header()), phase(10), phase(11), 0),
            Received::new(&[], 0),
            Sent::new(0, [], 0),
            vec![0, 0],
            0,
        );
        let place = self.engine.attach(session);
        self.engine.set_ids(place, vec![[own_id; 8]]);
        place
    }

    /// The TUN gives a packet.
    fn give(&mut self, header: Header, packet: &[u8]) {
        self.engine.from_tun(&[&header.encode()[..], packet].concat(), self.now);
        self.engine.finish(self.now);
    }

    /// Take `count` UDP payloads; what the TUN would get.
    fn take(&mut self, count: usize) -> Vec<Vec<u8>> {
        let (_, socket) = self.engine.sockets.all().remove(0);
        let (mut got, mut buffer, mut metas) = (Vec::new(), vec![0; 65536], [RecvMeta::default()]);
        let mut taken = 0;
        while taken < count {
            // Blocks, for five seconds at most.
            socket.receive(&mut [IoSliceMut::new(&mut buffer)], &mut metas).unwrap();
            for data in buffer[..metas[0].len].to_vec().chunks(metas[0].stride) {
                got.extend(self.receive(metas[0].addr, data));
                taken += 1;
            }
        }
        got
    }

    fn receive(&mut self, peer: SocketAddr, data: &[u8]) -> Vec<Vec<u8>> {
        let (mut plain, mut ranges) = (vec![0; data.len()], Vec::new());
        let from = Target { socket: self.place, peer, local: None };
        self.engine.from_network(&from, data, &mut plain, self.now, |range| ranges.push(range));
        ranges.into_iter().map(|range| plain[range].to_vec()).collect()
    }

    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.engine.next_event())
            .map(|event| match event {
                Event::Datagram { .. } => "datagram".into(),
                Event::Inner { session, packet } => format!("inner {session} {}", packet.len()),
                Event::Tun { packet } => format!("tun {}", packet.len()),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

/// A device with one address, and a gateway with its session and a neighbour's address.
fn ends() -> (End, End, usize) {
    let (mut device, mut gateway) = (End::new(false), End::new(true));
    let session = device.attach(gateway.address, 1, 2, false);
    device.engine.addresses.set(session, &[DEVICE.to_vec()]);
    let place = gateway.attach(device.address, 2, 1, true);
    gateway.engine.addresses.set(place, &[DEVICE.to_vec()]);
    let table = vec![([0; 4], true), (FORBIDDEN, false), ([192, 168, 1, 2], true)];
    gateway.engine.set_destinations(place, Arc::new(Destinations::new(table, vec![])));
    (device, gateway, place)
}

fn packet(source: [u8; 4], destination: [u8; 4], size: usize) -> Vec<u8> {
    let mut packet = vec![0; size];
    packet[0] = 0x45;
    packet[9] = 253;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    ip::set_length(&mut packet, size);
    ip::set_header_checksum(&mut packet);
    packet
}

#[test]
fn packets_pass_both_ways() {
    let (mut device, mut gateway, _) = ends();
    let out = packet(DEVICE, SITE, 100);
    device.give(Header::PLAIN, &out);
    assert_eq!(gateway.take(1), [out]);
    let back = packet(SITE, DEVICE, 200);
    gateway.give(Header::PLAIN, &back);
    assert_eq!(device.take(1), [back]);
    assert!(device.events().is_empty() && gateway.events().is_empty());
}

#[test]
fn a_super_packet_leaves_as_full_packets() {
    let (mut device, mut gateway, _) = ends();
    let mut whole = packet(DEVICE, SITE, 20 + 20 + 3500);
    whole[9] = 6;
    whole[32] = 0x50;
    let header = Header {
        needs_checksum: true,
        gso: Gso::Tcp4,
        gso_size: 1000,
        header_length: 40,
        checksum_start: 20,
        checksum_offset: 16,
    };
    device.give(header, &whole);
    let sizes: Vec<_> = gateway.take(4).iter().map(Vec::len).collect();
    assert_eq!(sizes, [1040, 1040, 1040, 540]);
}

#[test]
fn a_device_sends_only_from_its_address_and_takes_only_what_is_to_it() {
    let (mut device, mut gateway, _) = ends();
    device.give(Header::PLAIN, &packet(NEIGHBOUR, SITE, 100));
    device.give(Header::PLAIN, &packet([0; 4], SITE, 100));
    device.give(Header::PLAIN, b"\x45 not a packet");
    assert_eq!((device.engine.drops.bad_source, device.engine.drops.malformed), (2, 1));
    let place = gateway.engine.addresses.find(&DEVICE).unwrap();
    gateway.engine.addresses.set(place, &[DEVICE.to_vec(), NEIGHBOUR.to_vec()]);
    gateway.give(Header::PLAIN, &packet(SITE, NEIGHBOUR, 100));
    assert!(device.take(1).is_empty());
    assert_eq!(device.engine.drops.bad_destination, 1);
}

#[test]
fn what_a_device_must_not_send_goes_up_and_no_further() {
    let (mut device, mut gateway, place) = ends();
    let session = device.engine.addresses.find(&DEVICE).unwrap();
    let forged = vec![DEVICE.to_vec(), NEIGHBOUR.to_vec(), vec![0; 4]];
    device.engine.addresses.set(session, &forged);
    for (bad, size) in [
        (packet(NEIGHBOUR, SITE, 101), 101),
        (packet([0; 4], SITE, 102), 102),
        (packet(DEVICE, FORBIDDEN, 103), 103),
    ] {
        device.give(Header::PLAIN, &bad);
        assert!(gateway.take(1).is_empty());
        assert_eq!(gateway.events(), [format!("inner {place} {size}")]);
    }
    gateway.engine.addresses.set(place, &[]);
    device.give(Header::PLAIN, &packet(DEVICE, SITE, 104));
    assert!(gateway.take(1).is_empty(), "an address that was taken away");
}

#[test]
fn without_tables_nothing_is_forwarded() {
    let (mut device, mut gateway) = (End::new(false), End::new(true));
    let session = device.attach(gateway.address, 1, 2, false);
    device.engine.addresses.set(session, &[DEVICE.to_vec()]);
    let place = gateway.attach(device.address, 2, 1, true);
    gateway.engine.addresses.set(place, &[DEVICE.to_vec()]);
    device.give(Header::PLAIN, &packet(DEVICE, SITE, 100));
    assert!(gateway.take(1).is_empty());
}

#[test]
fn what_is_too_big_or_nobodys_goes_up_once() {
    let (_, mut gateway, place) = ends();
    gateway.give(Header::PLAIN, &packet(SITE, NEIGHBOUR, 100));
    gateway.give(Header::PLAIN, &packet(SITE, DEVICE, 1500));
    let mut whole = packet(SITE, DEVICE, 40 + 3 * 1460);
    whole[9] = 6;
    whole[32] = 0x50;
    let header = Header {
        needs_checksum: true,
        gso: Gso::Tcp4,
        gso_size: 1460,
        header_length: 40,
        checksum_start: 20,
        checksum_offset: 16,
    };
    gateway.give(header, &whole);
    assert_eq!(gateway.events(), ["tun 100", "tun 1500", "tun 1500"]);
    assert_eq!(gateway.engine.drops.too_big, 2);
    assert_eq!(gateway.engine.session(place).unwrap().counters.tx_packets, 0);
}

#[test]
fn what_is_not_of_this_path_goes_up_unopened() {
    let (mut device, mut gateway, _) = ends();
    device.give(Header::PLAIN, &packet(DEVICE, SITE, 100));
    let mut buffer = [0; 2000];
    let (length, _) = gateway.socket.recv_from(&mut buffer).unwrap();
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 9));
    assert!(gateway.receive(elsewhere, &buffer[..length]).is_empty());
    assert!(gateway.receive(device.address, &[0xC0; 1200]).is_empty());
    assert!(gateway.receive(device.address, &[]).is_empty());
    assert!(gateway.receive(device.address, &[0x40, 7, 7]).is_empty());
    assert_eq!(gateway.events(), ["datagram"; 4]);
    assert_eq!(gateway.receive(device.address, &buffer[..length]).len(), 1, "not marked as seen");
}

#[test]
fn what_goes_up_is_bounded() {
    let (device, mut gateway, _) = ends();
    for _ in 0..10_000 {
        gateway.receive(device.address, &[0xC0; 30]);
        gateway.give(Header::PLAIN, &packet(SITE, NEIGHBOUR, 60));
    }
    let events = gateway.events();
    assert_eq!(events.iter().filter(|event| *event == "datagram").count(), 4096);
    assert_eq!(events.len(), 4096 + 512);
    assert_eq!(gateway.engine.drops.queue_full, 20_000 - 4096 - 512);
}

#[test]
fn packets_that_nobody_can_open_go_up_at_a_limited_rate() {
    let (device, mut gateway, _) = ends();
    let mut forged = vec![0x40; 100];
    forged[1..9].fill(2);
    for _ in 0..1000 {
        gateway.receive(device.address, &forged);
    }
    assert_eq!(gateway.events().len(), 256);
    gateway.now += 1_000_000;
    gateway.receive(device.address, &forged);
    assert_eq!(gateway.events().len(), 1);
}

#[test]
fn nothing_of_a_session_is_left_when_it_goes() {
    let (mut device, mut gateway, place) = ends();
    gateway.engine.reserve(place);
    assert_eq!(gateway.engine.reserved, 1);
    assert!(gateway.engine.detach(place).is_some());
    assert!(gateway.engine.detach(place).is_none());
    assert_eq!(gateway.engine.reserved, 0);
    device.give(Header::PLAIN, &packet(DEVICE, SITE, 100));
    assert!(gateway.take(1).is_empty());
    gateway.give(Header::PLAIN, &packet(SITE, DEVICE, 100));
    assert_eq!(gateway.events(), ["datagram", "tun 100"]);
    assert_eq!(gateway.attach(device.address, 2, 1, true), place, "its place is used again");
}

#[test]
fn numbers_that_somebody_else_uses_are_left_to_them() {
    let (mut device, mut gateway, place) = ends();
    assert_eq!(gateway.engine.reserve(place), Some((0, 0)));
    gateway.engine.commit(place, 5);
    gateway.engine.commit(place, 9);
    assert_eq!(gateway.engine.session(place).unwrap().sent.next(), 5, "committed once");
    gateway.give(Header::PLAIN, &packet(SITE, DEVICE, 100));
    assert_eq!(device.take(1).len(), 1);
    assert_eq!(device.engine.session(0).unwrap().received.next(), 6);
}

#[test]
fn virtio_headers_are_the_size_that_the_kernel_has() {
    assert_eq!(Header::PLAIN.encode(), [0; virtio::SIZE]);
}
