"""What a figure depends on: the machine, the system and the versions of everything that takes part."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.benchmarks.ground import program

ROOT = Path(__file__).parent.parent.parent


def machine(work: Path) -> dict[str, Any]:
    """Of this machine, and of the file system that `work` is on. Nothing that names it or its owner."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else platform.machine(),
        "memory_mb": int(memory[1]) // 1000 if memory else 0,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "file_system": _said(["stat", "-f", "-c", "%T", str(work)], r"(.+)"),
        "python": platform.python_version(),
    }


def sftp_programs() -> dict[str, str]:
    """What takes part in the SFTP cases."""
    return {
        "paramiko": _package("paramiko"),
        "cryptography": _package("cryptography"),
        "openssh": _said(["ssh", "-V"], r"OpenSSH_(\S+?),? "),
        "rclone": _said([program("rclone"), "version"], r"rclone v(\S+)"),
        "lftp": _said(["lftp", "--version"], r"Version (\S+)"),
        "rsync": _said(["rsync", "--version"], r"version (\S+)"),
        "tar": _said(["tar", "--version"], r"(\S+)\n"),
    }


def mail_programs() -> dict[str, str]:
    """What takes part in the mail cases."""
    return {
        "dovecot": _said([program("dovecot") or "/usr/sbin/dovecot", "--version"], r"(\S+)"),
        "mbsync": _said(["mbsync", "--version"], r"isync (\S+)"),
        "offlineimap": _said(["offlineimap", "--version"], r"(\d\S+)"),
        "imapclient": _package("imapclient"),
    }


def copy_programs() -> dict[str, str]:
    """What takes part in the cases of copies in a bucket."""
    return {
        "rclone": _said([program("rclone"), "version"], r"rclone v(\S+)"),
        "restic": _said(["restic", "version"], r"restic (\S+)"),
        "aws": _said([program("aws"), "--version"], r"aws-cli/(\S+)"),
        "moto": _package("moto"),
        "boto3": _package("boto3"),
    }


def hostbackup() -> str:
    """Version and commit; `+` where the work tree differs from it."""
    commit = _said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], r"(\w+)\n")
    changed = _said(["git", "-C", str(ROOT), "status", "--porcelain", "--", "hostbackup"], r"(\S)")
    return f"{version('hostbackup')} ({commit}{'+' if changed else ''})" if commit else version("hostbackup")


def _package(name: str) -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return ""


def _said(command: list[str], pattern: str) -> str:
    """What a program says of itself; "" where it is not there."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    found = re.search(pattern, done.stdout.decode("utf-8", "replace")) if done.returncode == 0 else None
    return found[1] if found else ""
