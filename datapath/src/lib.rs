//! The native datapath of qvpn; see docs/datapath.md.

#![deny(unsafe_code)]

pub mod checksum;
pub mod coalesce;
pub mod ip;
pub mod segment;
pub mod virtio;
pub mod worker;
pub mod frames;
pub mod outbox;
pub mod protection;
pub mod received;
pub mod sent;
pub mod session;
pub mod varint;
pub mod engine;
pub mod routes;
pub mod socket;
#[cfg(feature = "python")]
#[allow(unsafe_code)] // borrowing descriptors that Python owns
mod python;
