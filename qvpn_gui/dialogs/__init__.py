"""Windows that answer one question or do one thing, opened from the main window or the tray."""
