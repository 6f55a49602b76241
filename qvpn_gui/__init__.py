"""The tray app of qvpn: what a person sees. No protocol and no network code."""
