"""Runs functions that may hang on threads of their own: the caller's, and name lookups.

Not on threads of an executor: a function that hangs would take them from the program's own work, and an executor waits
for it when the interpreter ends.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import threading
from typing import Any, Callable, Optional


def run(function: Callable[[], Any], name: str) -> concurrent.futures.Future[Any]:
    """Runs a function on a daemon thread. Whatever it raises is an `Exception` of the future: `sys.exit()` ends no
    program from here."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    # It cannot be cancelled any more.
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            result = function()
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(RuntimeError(f"it raised {type(error).__name__}, which ends only its own thread"))
        else:
            future.set_result(result)

    try:
        threading.Thread(target=call, name=name, daemon=True).start()
    except RuntimeError as error:
        # There are too many, or the interpreter ends.
        future.set_exception(error)
    return future


class Once:
    """Runs one call of a function that may hang: callers that arrive meanwhile get the same result."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._running: Optional[concurrent.futures.Future[Any]] = None

    def run(self, function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Begins it, unless it runs."""
        with self._lock:
            if self._running is None or self._running.done():
                self._running = run(function, self._name)
            return self._running


def awaitable(result: Any) -> Optional[str]:
    """Why the result of a function that has to be plain is none: it would have to be awaited."""
    if not inspect.isawaitable(result):
        return None
    if inspect.iscoroutine(result):
        result.close()
    return f"it returned a {type(result).__name__}, which nobody awaits: give a plain function"
