"""The privileged helper, the only code of the client that runs as root, and how to talk to it."""
