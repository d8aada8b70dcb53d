"""Whose certificate a server may show: the system's authorities or a file's, for the host's name or another, or exactly one that is pinned."""

from __future__ import annotations

import functools
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from hostbackup.errors import CertificateRefused, ConnectionFailed

_REASONS = {  # X509_V_ERR_*, openssl-verification-options(1)
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "comes from an unknown issuer",
    20: "comes from an unknown issuer",
    21: "comes from an unknown issuer",
    23: "has been revoked",
    62: "is for another name",
    64: "is for another name",
}


ANY = "any"  # a pin that fits every certificate: to look at what a server shows. Nothing may be sent there


@dataclass(frozen=True, slots=True)
class Trust:
    """What makes a certificate good. `pin`, as `fingerprint` writes it, alone decides where it is given; else authorities and `name`."""

    name: str
    ca_file: Path | None = None  # PEM; only these authorities count then
    pin: str = ""

    def context(self) -> ssl.SSLContext:
        """Raises CertificateRefused where the authorities cannot be read."""
        return _unverified() if self.pin else _verifying(self.ca_file)

    def check(self, certificate: bytes, where: str) -> None:
        """Looks at the certificate (DER) of a handshake that went through; raises CertificateRefused where another one is pinned."""
        if self.pin not in ("", ANY) and fingerprint(certificate) != self.pin:
            told = f"the server's certificate is not the one that the profile pins; it shows {fingerprint(certificate)}"
            hint = "a renewed certificate, or somebody in between: ask the provider for its fingerprint before you change `certificate`"
            raise CertificateRefused(told, where=where, hint=hint)


def fingerprint(certificate: bytes) -> str:
    """Of a certificate in DER: SHA256: and 64 hexadecimal digits."""
    return "SHA256:" + hashlib.sha256(certificate).hexdigest()


@functools.lru_cache(maxsize=8)
def _verifying(ca_file: Path | None) -> ssl.SSLContext:
    """Verifies certificate and name. Kept, because reading the system's authorities takes longer than a login."""
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # ssl.SSLError among them
        raise CertificateRefused(
            f"the certificate authorities cannot be read: {error.strerror or error}", where=str(ca_file or ""), hint="`ca_file` must be a PEM file"
        ) from None


@functools.lru_cache(maxsize=1)
def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the pin is compared right after the handshake, before anything is sent
    return context


def refused(error: ssl.SSLCertVerificationError, name: str, where: str) -> ConnectionFailed:
    """Why a certificate was refused, in words."""
    reason = _REASONS.get(error.verify_code, f"was refused ({error.verify_message})")
    if error.verify_code in (62, 64):
        hint = f"it must hold the name {name}. Set `address` to reach another machine, or `certificate_name` if the provider says so"
    elif error.verify_code in (9, 10):
        hint = "ask the provider to renew it, or check this machine's clock"
    else:
        hint = "is this the right server, or does it use a private certificate authority (`ca_file`)?"
    return CertificateRefused(f"the server's certificate {reason}", where=where, hint=hint)
