"""The types of decorators: what callers of a decorated function give is what it takes, but for the term.

The parameter for the term is the first, or the first after `self`. Where it stands elsewhere, the function works, and
type checkers ask its callers for the term.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol, TypeVar, overload

if TYPE_CHECKING:
    # Of type checkers themselves: Python has them from 3.10 on.
    from typing_extensions import Concatenate, ParamSpec

    from .agent import Term
    from .sync import SyncTerm

    Params = ParamSpec("Params")

Self = TypeVar("Self")
Result = TypeVar("Result")


class LeaderOnly(Protocol):
    """Decorates a coroutine function."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Term, Params], Awaitable[Result]], /
    ) -> Callable[Params, Coroutine[Any, Any, Optional[Result]]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Self, Term, Params], Awaitable[Result]], /
    ) -> Callable[Concatenate[Self, Params], Coroutine[Any, Any, Optional[Result]]]: ...

    @overload
    def __call__(
        self, function: Callable[Params, Awaitable[Result]], /
    ) -> Callable[Params, Coroutine[Any, Any, Optional[Result]]]: ...


class SyncLeaderOnly(Protocol):
    """Decorates a plain function."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[SyncTerm, Params], Result], /
    ) -> Callable[Params, Optional[Result]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Self, SyncTerm, Params], Result], /
    ) -> Callable[Concatenate[Self, Params], Optional[Result]]: ...

    @overload
    def __call__(self, function: Callable[Params, Result], /) -> Callable[Params, Optional[Result]]: ...
