//! Segmentation and coalescing: tables of what they must do, and properties that hold for any input.

#[path = "../../fuzz/harness.rs"]
mod harness;

mod checksum;
mod coalesce;
mod packet;
mod properties;
mod segment;
