//! Super-packets of the kernel: segmentation and coalescing, as pure functions.
