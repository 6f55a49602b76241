//! A flow queue with `CoDel` (RFC 8290).
use std::collections::VecDeque;
/// Placeholder until the real one is merged.
#[derive(Default)]
pub struct FqCodel(VecDeque<Vec<u8>>);
impl FqCodel {
    /// Empty.
    pub fn new() -> Self { Self::default() }
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool { self.0.is_empty() }
    /// Append.
    pub fn enqueue(&mut self, packet: Vec<u8>, _now: u64) { if self.0.len() >= 1024 { self.0.pop_front(); } self.0.push_back(packet); }
    /// Take.
    pub fn dequeue(&mut self, _now: u64) -> Option<Vec<u8>> { self.0.pop_front() }
}
