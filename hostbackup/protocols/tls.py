"""Contexts of TLS that verify certificate and name."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

from hostbackup.errors import CertificateRefused


@functools.lru_cache(maxsize=8)
def verifying_context(ca_file: Path | None) -> ssl.SSLContext:
    """Trusts the system's authorities, or those of `ca_file` alone. Raises CertificateRefused where they cannot be read.

    Kept, because reading them takes longer than a login.
    """
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # ssl.SSLError among them
        raise CertificateRefused(
            f"the certificate authorities cannot be read: {error.strerror or error}", where=str(ca_file or ""), hint="`ca_file` must be a PEM file"
        ) from None
