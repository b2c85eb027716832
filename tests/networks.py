"""Two nodes on one machine, each in a network of its own, joined by a cable that can be cut."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.213.77.1", "10.213.77.2")


@contextmanager
def two_networks() -> Iterator[list[tuple[list[str], str, str]]]:
    """For each node: what puts a command into its network, its address and its interface.

    Two network namespaces joined by a virtual cable, so that nothing can go through localhost; where this user may
    not make them, both nodes are on localhost, and nothing has to be put before a command.
    """
    name = f"sft{uuid.uuid4().hex[:6]}"
    spaces, cables = [f"{name}a", f"{name}b"], [f"{name}x", f"{name}y"]
    try:
        made = bool(shutil.which("ip")) and all(
            [
                *(ip("netns", "add", space) for space in spaces),
                ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1]),
                *(ip("link", "set", cable, "netns", space) for space, cable in zip(spaces, cables, strict=True)),
                *(
                    ip("-n", space, "addr", "add", f"{address}/24", "dev", cable)
                    for space, cable, address in zip(spaces, cables, ADDRESSES, strict=True)
                ),
                *(ip("-n", space, "link", "set", "lo", "up") for space in spaces),
                *(ip("-n", space, "link", "set", cable, "up") for space, cable in zip(spaces, cables, strict=True)),
            ]
        )
        if made:
            entered = [["ip", "netns", "exec", space] for space in spaces]
            yield list(zip(entered, ADDRESSES, cables, strict=True))
        else:
            yield [([], "127.0.0.1", "lo")] * 2
    finally:
        for space in spaces:
            ip("netns", "del", space)


def ip(*arguments: str) -> bool:
    """Run the command `ip`; returns whether it could do that."""
    return bool(shutil.which("ip")) and subprocess.run(["ip", *arguments], capture_output=True).returncode == 0
