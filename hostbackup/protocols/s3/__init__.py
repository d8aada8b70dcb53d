"""One S3-compatible bucket, over boto3: the requests a copy needs, and boto3's errors mapped to ours in one place.

Checksums are sent only as asked for here (`when_required`): the CRC32 that boto3 adds by default is refused by many stores. Whatever is stored
travels with its SHA-256 where the store is found to check it, else with its Content-MD5. The API is Amazon S3's, version 2006-03-01.
"""

from __future__ import annotations

from hostbackup.protocols.s3.bucket import Bucket, Found, Head
from hostbackup.protocols.s3.client import connect
from hostbackup.protocols.s3.download import Download
from hostbackup.protocols.s3.facts import Facts
from hostbackup.protocols.s3.faults import Archived, CredentialsExpired, ObjectAbsent, translate
from hostbackup.protocols.s3.parts import PART, WHOLE, Parts, part_size
from hostbackup.protocols.s3.probe import Probe
from hostbackup.protocols.s3.retry import Patience
from hostbackup.protocols.s3.target import S3Target

__all__ = [
    "PART",
    "WHOLE",
    "Archived",
    "Bucket",
    "CredentialsExpired",
    "Download",
    "Facts",
    "Found",
    "Head",
    "ObjectAbsent",
    "Parts",
    "Patience",
    "Probe",
    "S3Target",
    "connect",
    "part_size",
    "translate",
]
