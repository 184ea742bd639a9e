"""Mosquitto, the program: where it is, how old it is, and the files that it reads."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Final

from skerry_contract.errors import UnavailableError
from skerry_contract.limits import DEFAULT_LIMITS, MIB
from skerry_contract.topics import ROOT

SERVER_USER: Final = "_server"
"""The server's own user; no device identifier begins with an underscore."""
ITERATIONS: Final = 101
"""Of PBKDF2, as mosquitto_passwd: device passwords are 256 random bits, so stretching them adds nothing."""
OLD_VERSION: Final = (2, 0, 12)


def hash_password(password: str) -> str:
    """As mosquitto_passwd writes it: ``$7$iterations$salt$PBKDF2-HMAC-SHA512``.

    >>> hash_password("x")[:7]
    '$7$101$'
    """
    salt = secrets.token_bytes(12)
    hashed = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(hashed).decode()}"


def render_config(host: str, port: int) -> str:
    """``mosquitto.conf``; paths are relative to the broker's folder."""
    return f"""\
# Written by Skerry at every start; changes are lost.
per_listener_settings false
listener {port} {host}
# Who a client is, is what its credential says: no other can take its session over.
use_username_as_clientid true
# QoS 2 is not used; a client that sends it is disconnected, so none is left incomplete.
max_qos 1
allow_anonymous false
password_file passwd
acl_file acl
max_packet_size {DEFAULT_LIMITS.message_bytes + 4096}
max_inflight_messages 1000
max_queued_messages 100000
max_queued_bytes {256 * MIB}
persistence true
persistence_location ./
autosave_interval 60
persistent_client_expiration 30d
set_tcp_nodelay true
sys_interval 0
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
"""


def render_acl(org: str) -> str:
    """A device: its own topics, by its user name. The server: all of the organisation."""
    return f"""\
pattern write {ROOT}/{org}/d/%u/up/+
pattern read {ROOT}/{org}/d/%u/dn/+
user {SERVER_USER}
topic read {ROOT}/{org}/d/+/up/+
topic write {ROOT}/{org}/d/+/dn/+
"""


def find_mosquitto() -> Path:
    """Raises `UnavailableError`: it is not installed."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin")
    if found is None:
        raise UnavailableError(
            "mosquitto, the MQTT broker, is not installed", hint="sudo apt-get install mosquitto"
        )
    return Path(found).resolve()


def mosquitto_version(binary: Path) -> tuple[int, ...]:
    """Such as (2, 0, 11); () if it does not say."""
    # It has no --version; -h prints it and ends with 3.
    said = subprocess.run([str(binary), "-h"], capture_output=True, text=True, check=False, timeout=10)
    found = re.search(r"mosquitto version (\d+)\.(\d+)\.(\d+)", said.stdout)
    return tuple(int(part) for part in found.groups()) if found else ()


def age_note(version: tuple[int, ...]) -> str:
    """A sentence if this mosquitto is old; empty otherwise.

    >>> age_note((2, 0, 22))
    ''
    """
    if not version or version >= OLD_VERSION:
        return ""
    return (
        f"mosquitto {'.'.join(map(str, version))} is of 2021 or older: prefer 2.0.18 or later "
        "before devices that you do not trust can reach it."
    )
