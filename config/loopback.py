"""URLs of this machine.

Owns which URLs name it, for then no proxy of the environment is asked for the way, and how it reaches a
server of its own.
"""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Return whether `url` names this machine."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def connectable(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # these two listen on all addresses
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
