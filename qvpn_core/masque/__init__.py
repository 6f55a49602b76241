"""Sans-IO protocol: capsules, CONNECT-IP state, DNS_ASSIGN, URI templates (RFC 9297, RFC 9484)."""
