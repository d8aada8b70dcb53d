"""POP3 (RFC 1939): the wire alone."""
