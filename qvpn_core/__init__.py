"""The parts of qvpn that both ends are built from. No Qt here, and nothing of either end."""
