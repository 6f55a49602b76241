"""Services without root and without a tunnel: `qvpn proxy` and `qvpn forward`."""
