//! Batches of packets that may belong together: joined, cut again, and compared.
//!
//! From the crate's folder: `cargo +nightly fuzz run coalescer`.

#![no_main]

#[path = "../harness.rs"]
#[expect(dead_code, reason = "the other target and the tests use the rest")]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::coalescer(data));
