"""IMAP4rev1 (RFC 3501) as a stream: sessions, framing, names and UID sets. Knows nothing of backups."""
