//! A flow queue with `CoDel` (RFC 8290).
