//! The native datapath of qvpn: an offload engine under a QUIC stack.
//!
//! As a NIC offloads a kernel, this moves 1-RTT packets that hold nothing but DATAGRAM, ACK and
//! PADDING frames between a TUN and UDP. The QUIC stack above stays the authority for everything
//! else, and gets every other packet untouched. `docs/datapath.md` explains the design.

pub mod congestion;
pub mod ecn;
pub mod engine;
pub mod fq_codel;
pub mod io;
pub mod offload;
#[cfg(feature = "extension-module")]
mod python;
pub mod quic;
pub mod received;
pub mod recovery;
pub mod rules;
pub mod sender;
pub mod session;
pub mod writer;

/// Microseconds of a clock that never goes back.
pub type Micros = u64;
