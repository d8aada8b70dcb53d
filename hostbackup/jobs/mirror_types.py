"""What a mirror's files are served as, by their names alone: the bytes are not looked at, and no character set is guessed."""

from __future__ import annotations

import mimetypes

DEFAULT = "application/octet-stream"
_WEB = {
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".css": "text/css",
    ".csv": "text/csv",
    ".eot": "application/vnd.ms-fontobject",
    ".gif": "image/gif",
    ".htm": "text/html",
    ".html": "text/html",
    ".ico": "image/vnd.microsoft.icon",
    ".ics": "text/calendar",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",  # RFC 9239
    ".json": "application/json",
    ".jsonld": "application/ld+json",
    ".m4a": "audio/mp4",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".otf": "font/otf",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".rdf": "application/rdf+xml",
    ".rss": "application/rss+xml",
    ".shtml": "text/html",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".txt": "text/plain",
    ".vcf": "text/vcard",
    ".wasm": "application/wasm",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xhtml": "application/xhtml+xml",
    ".xml": "application/xml",
    ".zip": "application/zip",
}
_PACKED = {"gzip": "application/gzip", "compress": "application/x-compress", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_OTHERS = mimetypes.MimeTypes(filenames=())  # Python's own table: what this machine is set up for must not change what is served


def content_type(key: str) -> str:
    """The media type that a file of this name is told to be. One that is packed (`x.svg.gz`) is told as that: nobody unpacks it on the way."""
    name = key.rpartition("/")[2].lower()
    dot, end = name.rpartition(".")[1:]
    if dot and f".{end}" in _WEB:
        return _WEB[f".{end}"]
    found, packed = _OTHERS.guess_type(f"x{name}" if name.startswith(".") else name, strict=True)
    if packed:
        return _PACKED.get(packed, DEFAULT)
    return found or DEFAULT
