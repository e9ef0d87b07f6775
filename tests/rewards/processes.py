"""Processes of the tests: what they started, and whether it runs."""

import time
from pathlib import Path


def is_running(process):
    """Whether it is neither dead nor stopped; running and sleeping alternate by themselves."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] in "RSD"
    except FileNotFoundError:
        return False


def wait_for_end(processes):
    """Until the kernel has ended them all; the limit is that of the test."""
    while any(map(is_running, processes)):
        time.sleep(0.01)


def descendants(process):
    found = [process]
    for number in found:
        for task in Path(f"/proc/{number}/task").glob("*"):
            found += map(int, (task / "children").read_text().split())
    return found
