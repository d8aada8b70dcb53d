"""The wire: bytes and RFCs. Knows nothing of backups."""
