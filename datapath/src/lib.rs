//! The native datapath of qvpn; see docs/datapath.md.

#![deny(unsafe_code)]

pub mod checksum;
pub mod coalesce;
pub mod engine;
pub mod fq_codel;
pub mod frames;
pub mod ip;
pub mod outbox;
pub mod protection;
#[cfg(feature = "python")]
#[allow(unsafe_code)] // borrowing descriptors that Python owns
mod python;
pub mod received;
pub mod routes;
pub mod segment;
pub mod sent;
pub mod session;
pub mod socket;
pub mod varint;
pub mod virtio;
pub mod worker;
