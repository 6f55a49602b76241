"""Sans-IO identity: concealed authentication (RFC 9729), device keys, invites, enrolment."""
