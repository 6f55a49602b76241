//! A virtio_net_hdr and a packet, both of any bytes: cut.
//!
//! From the crate's folder: `cargo +nightly fuzz run segments`.

#![no_main]

#[path = "../harness.rs"]
#[expect(dead_code, reason = "the other target and the tests use the rest")]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::segments(data));
