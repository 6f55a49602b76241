"""The tray app: PySide6 and qasync over the core. No protocol or network code here."""
