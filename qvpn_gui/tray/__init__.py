"""The icon in the panel: host, icon, menu."""
