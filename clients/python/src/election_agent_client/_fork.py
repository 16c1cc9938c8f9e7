"""Turns off gRPC's handlers of forks, unless the program has chosen, before gRPC is loaded.

They run in each child that a process forks, and crash it if the parent has calls under way, as a leader always has:
then a leader could not use `multiprocessing`. This client has no use for them: it does not go on in a child.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from .errors import ConfigError


class _Grpc:
    """Whether gRPC is of use in this process."""

    used = False
    """This package has used it here, or in the process that this one was forked from."""
    lost = False
    """A fork left its threads behind: requests get no reply."""


def use() -> None:
    """gRPC is about to be used."""
    check()
    _Grpc.used = True


def check() -> None:
    """Raises `ConfigError` if gRPC does not work in this process."""
    if _Grpc.lost:
        raise ConfigError(
            "this process was forked from one that had used an agent, and gRPC does not work in it: fork before the"
            ' first call, or start processes by multiprocessing\'s "spawn" or "forkserver"'
        )


def _after_fork() -> None:
    _Grpc.lost = _Grpc.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
