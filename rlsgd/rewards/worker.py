"""A worker's own side: a clean process that evaluates no text, and forks those that do.

Started by `IsolatedWorker`, behind a wall if the reward is `walled`. It imports what the reward
needs, shuts the wall, and then reads lists of items from standard input. A fork grades them; this
process keeps its time, ends it, and hands its lines on. So a text can neither reach the trainer's
channel nor, since another fork grades what comes after it, any other score.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
from contextlib import suppress
from multiprocessing import spawn
from typing import Any

from rlsgd.rewards.base import BatchReward, Reward
from rlsgd.rewards.forks import MOST_LINES, Fork, TrainerIsGone, read_message, write_message
from rlsgd.rewards.sandbox.base import NOBODY
from rlsgd.rewards.sandbox.confine import drop_capabilities, end_with_pipe, landlock, new_root


def main(pipe: int) -> None:
    """Read the order, build the reward, shut the wall, and serve until the trainer is gone.

    Args:
        pipe: reading end of a pipe whose writing end the trainer holds, and closes to end this.
    """
    end_with_pipe(pipe)
    requests, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    message = read_message(requests)
    if message is None:
        return
    order = pickle.loads(message)
    write_message(replies, b'"started"')  # what fails from here on is the reward, not the wall
    try:
        spawn.prepare(order["preparation"])
        reward: Reward = pickle.loads(order["reward"])
        reward.prepare()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return write_message(replies, json.dumps({"not built": reason}).encode())
    try:
        shut(order["wall"])
    except OSError as error:
        return write_message(replies, json.dumps({"no wall": str(error)}).encode())
    write_message(replies, b'"ready"')
    os.dup2(nowhere, 2)
    gc.collect()
    gc.freeze()  # so that a fork's collections do not copy every page
    with suppress(TrainerIsGone):
        Server(reward, order, requests, replies).serve()


def shut(wall: dict[str, Any]) -> None:
    """Give up files and rights, as `walls.py` planned it; an empty plan is for no wall.

    Raises:
        OSError: if the kernel refuses any part of it.
    """
    if not wall:
        return
    if "root" in wall:
        new_root(**wall["root"])
    if "readable" in wall:
        landlock(wall["readable"], [])
    if wall.get("leave_root"):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    drop_capabilities()
    os.environ.clear()


class Server:
    """Serves lists of items with forks of this process, which stays as it is.

    Args:
        reward: verifier that grades the items.
        order: `wall`, `timeout_seconds` of an item and `memory_bytes` of a fork.
        requests: the channel that lists of items come from.
        replies: the channel that grades go to, one message each.
    """

    def __init__(self, reward: Reward, order: dict[str, Any], requests: int, replies: int) -> None:
        self.reward, self.order = reward, order
        self.requests, self.replies = requests, replies
        self.fork: Fork | None = None

    def serve(self) -> None:
        """Until there are no more requests."""
        while (message := read_message(self.requests)) is not None:
            done, alone, count = 0, 0, int.from_bytes(message[:8], "big")
            if self.fork is not None:  # it has imported and loaded all that there is
                done = self.hand_on(message[8:], count)
                alone = MOST_LINES
            if done < count:
                items = pickle.loads(message[8:])
                for problem in {id(problem): problem for _, problem in items}.values():
                    with suppress(Exception):  # the fork says what is wrong with the problem
                        self.reward.expect(problem)
                self.grade(items[done:], alone)

    def grade(self, items: list[Any], alone: int) -> None:
        """Hand on the grades of all items, one at a time for a while after a fork's bad end.

        Args:
            items: pairs of a completion and a problem.
            alone: how many of the first are sent one at a time.
        """
        if isinstance(self.reward, BatchReward):  # one call, in a fork of its own
            self.end_fork()
            self.hand_on(pickle.dumps(items), len(items))
            return self.end_fork()
        done = 0
        while done < len(items):
            one = self.reward.fork_each or alone > 0
            some = items[done : done + 1] if one else items[done:]
            graded = self.hand_on(pickle.dumps(some), len(some))
            alone = alone - 1 if graded == len(some) else MOST_LINES
            done += graded

    def hand_on(self, message: bytes, count: int) -> int:
        """Send items to the fork and hand on its lines; how many of them have a grade now.

        A fork says several lines at once, so that of several items none is known to be to blame for
        its end: only an item that was sent alone, to a new fork or out of time, has failed.
        """
        if self.fork is None:
            self.fork = Fork(self.reward, self.order)
        is_fresh = self.fork.is_fresh
        self.fork.send(message)
        done = 0
        while done < count:
            lines = self.fork.next_lines(self.timeout_seconds(count), self.requests)
            if isinstance(lines, str):
                self.end_fork()
                if isinstance(self.reward, BatchReward):
                    failure = json.dumps({"failure": lines}).encode()
                    write_message(self.replies, b"\n".join([failure] * (count - done)))
                    return count
                if count > 1 or not (is_fresh or lines.startswith("timeout")):
                    return done
                lines = [json.dumps({"failure": lines}).encode()]
            if len(lines) > count - done:  # a text has found the channel: only the first are taken
                lines = lines[: count - done]
                self.end_fork()
            done += len(lines)
            write_message(self.replies, b"\n".join(lines))
        if self.fork is not None and (self.reward.fork_each or self.fork.is_touched):
            self.end_fork()
        return count

    def timeout_seconds(self, count: int) -> float:
        """Of the next item; of all of them where they are graded at once."""
        at_once = count if isinstance(self.reward, BatchReward) else 1
        return at_once * self.order["timeout_seconds"]

    def end_fork(self) -> None:
        """The next item gets a new one."""
        if self.fork is not None:
            self.fork.end()
            self.fork = None
