"""Makes the client that all requests go through."""

from __future__ import annotations

import functools
import ssl
from typing import Any

from hostbackup.errors import UsageError
from hostbackup.protocols.s3.bucket import Bucket
from hostbackup.protocols.s3.facts import Facts
from hostbackup.protocols.s3.faults import translate
from hostbackup.protocols.s3.retry import Patience
from hostbackup.protocols.s3.target import S3Target


def connect(
    target: S3Target, *, connections: int = 16, timeout: float = 60.0, facts: Facts | None = None, patience: Patience | None = None
) -> Bucket:
    """A bucket ready to use; nothing is sent yet. `timeout`: seconds without a byte. `facts`: what is known of this store from earlier runs.

    Raises UsageError without boto3 or with impossible settings, LoginRefused without credentials.
    """
    try:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UsageError("copies in a bucket need boto3, which is not installed", hint="pip install 'hostbackup[s3]'") from error
    style = target.addressing
    options: dict[str, Any] = {
        "connect_timeout": min(timeout, 20.0),
        "read_timeout": timeout,
        "max_pool_connections": connections,
        "retries": {"mode": "standard", "total_max_attempts": 1},  # what is worth it is tried again in `retry`
        "s3": {"addressing_style": "path" if style == "auto" and target.endpoint else style},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if target.proxy:
        options["proxies"] = {"http": target.proxy, "https": target.proxy}
    known = {name: value for name, value in options.items() if name in Config.OPTION_DEFAULTS}
    try:
        if target.ca:
            ssl.create_default_context(cafile=target.ca)  # boto3 would call it a closed endpoint
        session = botocore.session.get_session()
        session.register_component("data_loader", _loader())
        client: Any = session.create_client(  # what boto3 puts around it is of no use here, and takes time to load
            "s3",
            endpoint_url=target.endpoint,
            aws_access_key_id=target.access_key,
            aws_secret_access_key=target.secret_key,
            region_name=target.region or ("us-east-1" if target.endpoint else None),
            verify=target.ca,
            config=Config(**known),
        )
    except (BotoCoreError, ValueError, OSError) as error:
        raise translate(error, target) from error
    client.meta.events.register("before-sign.s3.PutObject", _unsigned_body)
    client.meta.events.register("before-sign.s3.UploadPart", _unsigned_body)
    return Bucket(target, client, facts, patience)


def _unsigned_body(request: Any, **_: Any) -> None:
    """Every body that is stored has a checksum among the signed headers: it need not be hashed for the signature too."""
    request.context["client_config"] = _unsigned_config()


@functools.cache
def _loader() -> Any:
    """Reads boto3's description of the service once for all stores of a run."""
    from botocore.loaders import create_loader

    return create_loader()


@functools.cache
def _unsigned_config() -> Any:
    from botocore.config import Config

    return Config(s3={"payload_signing_enabled": False})
