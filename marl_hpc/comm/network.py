"""Addresses and interfaces of this host. Torch-free."""

from __future__ import annotations

import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
LOOPBACK = "127.0.0.1"


def interfaces() -> dict[str, str]:
    """IPv4 address by interface name, for those that have one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                packed = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            found[name] = socket.inet_ntoa(packed[20:24])
    return found


def interface_of(address: str) -> str | None:
    """The interface that has this address."""
    return next((name for name, own in interfaces().items() if own == address), None)


def reachable_addresses() -> list[str]:
    """Addresses at which other hosts may reach this one, the likeliest first: that of its name, then its interfaces'."""
    try:
        named = [socket.gethostbyname(socket.gethostname())]
    except OSError:
        named = []
    found = [address for address in [*named, *interfaces().values()] if not address.startswith("127.")]
    return list(dict.fromkeys(found))


def use_interface(name: str) -> dict[str, str]:
    """Environment variables that make gloo, NCCL and TensorPipe use one interface, all three alike."""
    return dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"), name)
