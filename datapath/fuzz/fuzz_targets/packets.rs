//! What a stranger may send: short headers, ciphertexts, frames, and inner packets, of any bytes.
//!
//! From the crate's folder: `cargo +nightly fuzz run packets`.

#![no_main]

use qvpn_datapath::quic::{self, Frame, Keys, Suite};
use qvpn_datapath::received::Received;
use qvpn_datapath::recovery::Recovery;
use qvpn_datapath::rules;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut recovery = Recovery::new(0);
    for number in 0..64 {
        recovery.sent(number, 1200, true, number);
    }
    quic::frames(data, |frame| match frame {
        Frame::Datagram(range) => assert!(range.end <= data.len()),
        Frame::Ack(ack) => {
            let mut before = u64::MAX;
            for (smallest, largest) in ack.ranges() {
                assert!(smallest <= largest && largest < before);
                before = smallest;
            }
            recovery.acked(ack.ranges(), ack.delay, 100);
        }
    });
    if rules::well_formed(data) {
        rules::addresses(data);
    }
    let keys = Keys::new(Suite::Aes128, &[7; 16], &[9; 12], &[3; 16]).unwrap();
    if quic::is_short(data, 8) {
        if let Some(header) = quic::unprotect(&keys, data, 8, 70_000) {
            let mut received = Received::new(&[(0, 69_999)], 0);
            received.add(header.number, true, 1);
            assert!(received.contains(header.number));
            quic::open(&keys, &header, data, &mut vec![0; data.len()]);
        }
    }
});
