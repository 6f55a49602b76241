"""The headless gateway: terminates QUIC, forwards packets. Needs no Qt."""
