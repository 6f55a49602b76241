"""What carries HTTP: the tunnel interface, HTTP/3 on QUIC, path MTU discovery."""
