//! When and how fast to send (see docs/datapath.md).
