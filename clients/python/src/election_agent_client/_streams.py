"""Leading by streams: one for up to 1000 elections of a candidate with the same term.

A ping extends all terms that a stream leads. A stream joins, pings, opens the next session when an agent says goodbye
or keeps silent, and goes on there with the tokens. Calls do what an agent does not offer or refuses, and report
better errors. All of it runs on one event loop.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from dataclasses import dataclass
from typing import Any, Optional, Union

from . import _clock
from ._alive import AliveCheck, NotAlive
from ._hooks import Hooks
from ._pool import Pool
from ._proto import election_agent_pb2 as pb
from ._session import NotOffered, NotOpened, Session, StreamRefused, clamp
from ._settings import Settings, jittered, request_id
from .errors import ElectionAgentError, LostReason, NotKnown, lost_of
from .term import BaseTerm, TermState

_log = logging.getLogger("election_agent_client")

ELECTIONS = 1_000
"""How many elections a stream takes."""
NOT_OFFERED = 60.0
"""For how many seconds no stream is requested again from an agent that offers none."""
PONG = (0.25, 0.75)
"""The shortest and the longest time in which a ping is to be answered before another agent is tried, in seconds."""
LEAVE = 2.0
"""How long an agent may take to confirm that an election has left, in seconds."""
FAILURES = 2
"""After how many attempts in a row streams are given up: what is between may let calls pass only."""
PAUSE = 0.5
"""The longest pause between attempts to open a stream, in seconds."""


@dataclass
class ToldWaiting:
    leader: Optional[str]


@dataclass
class ToldGranted:
    """The term is extended from now on."""

    term: TermState


@dataclass
class ToldNotKnown:
    """There is no stream at the moment."""

    error: ElectionAgentError


class ToldFallback:
    """The election has left the stream: calls take over."""


Told = Union[ToldWaiting, ToldGranted, ToldNotKnown, ToldFallback]


class NotJoined(Exception):
    """Nothing was sent."""


class NotLeft(Exception):
    """The request to give up may have taken effect, or may take effect later."""


class LeftLost(Exception):
    """There was nothing to give up."""

    def __init__(self, reason: LostReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Stage(enum.Enum):
    """How far an election is."""

    WAITING = enum.auto()
    """Joined without a token, or waits to be."""
    UNCONFIRMED = enum.auto()
    """Granted, but for a short time only: nobody works under it yet."""
    LEADING = enum.auto()
    """Somebody works under it."""
    LAPSING = enum.auto()
    """No work is left under it except what the clock ends. It is given up when its time is over."""
    LEAVING = enum.auto()
    """It is being given up."""


@dataclass
class Extends:
    """How pings extend a term."""

    after: int
    """Only pings after this one do: the agent had received it when it granted the term."""
    by: int
    """For how long, from when the ping was sent, in ms."""


class Joined:
    """An election that was joined, or is about to be: a place in a stream."""

    def __init__(
        self, stream: Stream, settings: Settings, hooks: Hooks, term: Optional[TermState], view: type[BaseTerm]
    ) -> None:
        self.stream = stream
        self.settings = settings
        self.hooks = hooks
        self.view = view
        self.request_id = request_id()
        self.told: asyncio.Queue[Told] = asyncio.Queue()
        self.term = term
        self.stage = Stage.WAITING if term is None else Stage.LEADING
        self.token = 0 if term is None else term.token
        self.extends: Optional[Extends] = None
        self.until = 0
        self.since = 0.0
        self.left: Optional[asyncio.Future[None]] = None
        self.is_in = False

    @property
    def name(self) -> tuple[str, str]:
        return self.settings.kind, self.settings.election

    def join(self) -> Optional[pb.Join]:
        """The message that joins it to a new session. None: it is about to leave."""
        if self.stage is Stage.LEAVING:
            return None
        token = 0 if self.stage is Stage.WAITING else self.token
        return pb.Join(
            kind=self.settings.kind,
            election=self.settings.election,
            term=self.settings.term_millis(),
            value=self.settings.value,
            request_id="" if token else self.request_id,
            token=token,
        )

    async def leave(self) -> None:
        """Gives the election up. Raises `NotJoined`, `NotLeft`, `LeftLost`."""
        await self.stream.leave(self)

    def lapse(self) -> None:
        """What was led is not extended any more."""
        self.stream.lapse(self)

    def withdraw(self) -> None:
        """Nobody works under what was granted."""
        if self.term is not None:
            self.term.give_up()
        if self.stage is Stage.LEADING:
            self.stage = Stage.UNCONFIRMED
        self.lapse()

    def end(self, why: Optional[LostReason]) -> None:
        """It has left the stream: notifies the leadership."""
        if self.stage is Stage.LEADING:
            if why is not None and self.term is not None:
                self.term.lose(why)
        elif self.stage is Stage.LEAVING and self.left is not None and not self.left.done():
            if why is None:
                self.left.set_result(None)
            else:
                self.left.set_exception(LeftLost(why))

    def fall_back(self) -> None:
        """Calls take over."""
        self.told.put_nowait(ToldFallback())
        if self.stage is Stage.LEAVING and self.left is not None and not self.left.done():
            self.left.set_exception(NotLeft())


class Streams:
    """All streams of an agent in an event loop."""

    def __init__(self, pool: Pool, wanted: bool) -> None:
        self._pool = pool
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self.streams: list[Stream] = []
        self._not_offered_at: Optional[float] = None

    def are_offered(self) -> bool:
        """Whether the agents offer streams, as far as is known, and the caller wants them."""
        since = self._not_offered_at
        return self._wanted and (since is None or self._loop.time() - since > NOT_OFFERED)

    def not_offered(self) -> None:
        self._not_offered_at = self._loop.time()

    def join(self, settings: Settings, hooks: Hooks, term: Optional[TermState], view: type[BaseTerm]) -> Joined:
        """Joins an election by a stream that there is, or by a new one."""
        # One whose application gates the pings belongs to one leadership alone.
        private = hooks.alive is not None
        stream = next(
            (
                stream
                for stream in self.streams
                if not private
                and not stream.private
                and stream.candidate == settings.candidate
                and stream.term == settings.term
                and len(stream.elections) < ELECTIONS
            ),
            None,
        )
        if stream is None:
            stream = Stream(self, self._pool, settings, hooks)
            self.streams.append(stream)
        joined = Joined(stream, settings, hooks, term, view)
        stream.join(joined)
        return joined

    async def close(self) -> None:
        for stream in list(self.streams):
            await stream.close()


class Stream:
    """One stream, over one session after another. It ends with the last leadership on it."""

    def __init__(self, streams: Streams, pool: Pool, settings: Settings, hooks: Hooks) -> None:
        self._streams = streams
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.candidate = settings.candidate
        self.term = settings.term
        self.private = hooks.alive is not None
        self._ping_every = clamp(settings.term / 3, (0.1, 60.0))
        self._alive = AliveCheck(hooks.alive)
        self.elections: dict[tuple[str, str], Joined] = {}
        self._queue: list[Joined] = []
        """Elections that join when the one of the same name has left."""
        self._session: Optional[Session] = None
        self._opening: Optional[asyncio.Task[None]] = None
        self._leaving = False
        """The present session ends soon, whatever it answers."""
        self._pong = clamp(self._ping_every / 3, PONG)
        """How long a ping may be unanswered, in seconds."""
        self._pause = 0.0
        """The last pause before an attempt, in seconds; zero since a ping was answered."""
        self._failures = 0
        """How often in a row agents were reached and gave no stream, or one that brought nothing."""
        self._heard = False
        """Whether the present session has reported on an election."""
        self._answered_once = False
        """Whether a ping of the present session was answered."""
        self._asking: Optional[asyncio.Task[None]] = None
        self._ping_timer: Optional[asyncio.TimerHandle] = None
        self._silent_timer: Optional[asyncio.TimerHandle] = None
        self._lapse_timer: Optional[asyncio.TimerHandle] = None
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._open(0.0)

    # The interface of leaderships.

    def join(self, joined: Joined) -> None:
        if self._ended:
            joined.fall_back()
            return
        if joined.name in self.elections:
            self._queue.append(joined)
            return
        joined.is_in = True
        self.elections[joined.name] = joined
        self._send_join(joined)

    def _send_join(self, joined: Joined) -> None:
        message = joined.join()
        if message is not None and self._session is not None:
            self._session.send(join=message)

    async def leave(self, joined: Joined) -> None:
        if not joined.is_in or self._ended:
            raise NotJoined
        if self._session is None:
            # No agent to send Leave to: a call resigns.
            self._remove(joined)
            self._end_if_unused()
            raise NotJoined
        joined.left = left = self._loop.create_future()
        token = 0 if joined.stage is Stage.WAITING else joined.token
        self._send_leave(joined, token)
        try:
            await left
        finally:
            joined.left = None
            if left.done() and not left.cancelled():
                left.exception()

    def _send_leave(self, joined: Joined, token: int) -> None:
        joined.stage = Stage.LEAVING
        joined.since = self._loop.time()
        if self._session is not None:
            kind, election = joined.name
            self._session.send(leave=pb.Leave(kind=kind, election=election, token=token))

    def lapse(self, joined: Joined) -> None:
        if joined in self._queue:
            self._queue.remove(joined)
        elif joined.is_in and not self._ended:
            if joined.stage is Stage.LEADING and joined.term is not None:
                joined.stage = Stage.LAPSING
                joined.until = joined.term.valid_until
                self._arm_lapse()
            elif joined.stage in (Stage.WAITING, Stage.UNCONFIRMED):
                # Nobody has worked under it.
                if self._session is not None:
                    self._send_leave(joined, 0)
                else:
                    self._remove(joined)
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        used = any(joined.stage is not Stage.LAPSING for joined in self.elections.values())
        if not used and not self._queue:
            # What lapses need not be extended for others.
            self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self in self._streams.streams:
            self._streams.streams.remove(self)
        for timer in (self._ping_timer, self._silent_timer, self._lapse_timer):
            if timer is not None:
                timer.cancel()
        for task in (self._opening, self._asking):
            # Not the one that runs this.
            if task is not None and task is not asyncio.current_task(self._loop):
                task.cancel()
        if self._session is not None:
            self._session.close()
            self._session = None

    async def close(self) -> None:
        """Ends it: its terms lapse."""
        for joined in list(self.elections.values()) + self._queue:
            if joined.left is not None and not joined.left.done():
                joined.left.set_exception(NotLeft())
        self._end()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Sessions.

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _open(self, after: float) -> None:
        """Begins to open another session."""
        if self._opening is not None and self._opening is not asyncio.current_task(self._loop):
            self._opening.cancel()
        self._opening = self._spawn(self._open_session(after))
        self._arm_silent()

    async def _open_session(self, after: float) -> None:
        leads = any(joined.stage is Stage.LEADING for joined in self.elections.values())
        try:
            if after > 0:
                await asyncio.sleep(after)
            if leads:
                # To join with a token extends its term.
                await self._alive.ask(self._ping_every / 2)
            session = await Session.open(self._pool, self.candidate, self._ping_every, leads)
        except NotAlive as error:
            self._not_opened(NotKnown(str(error)))
        except NotOffered:
            _log.debug("the agent offers no streams to lead by: falling back to calls")
            self._streams.not_offered()
            self._fall_back()
        except StreamRefused as error:
            _log.warning("the agent refuses a stream to lead by: falling back to calls: %s", error)
            self._fall_back()
        except NotOpened as error:
            # Silence took as long as several failures.
            if isinstance(error.error, NotKnown):
                self._failures += FAILURES if error.silent else 1
            if self._failures >= FAILURES and self._session is None:
                self._give_up(str(error.error))
            else:
                self._not_opened(error.error)
        else:
            self._opened(session)

    def _opened(self, session: Session) -> None:
        """Goes on with a new session, and leaves the old one."""
        self._opening = None
        if self._ended:
            session.close()
            return
        old, self._session = self._session, session
        if old is not None:
            old.close()
        self._leaving = False
        self._heard = self._answered_once = False
        self._pong = self._pong_within(session.answers_in)
        # Until the new session says that it leads.
        for joined in self.elections.values():
            if joined.stage is Stage.LEADING:
                joined.extends = None
        # The old session received their Leave, or did not.
        self._forget_leaving(-1.0)
        for joined in list(self.elections.values()):
            self._send_join(joined)
        session.read(self._message, self._broken)
        # Hello counts as the first ping.
        self._arm_ping(self._ping_every)
        self._arm_silent()

    def _not_opened(self, error: ElectionAgentError) -> None:
        self._opening = None
        if self._ended:
            return
        _log.debug("no stream to lead by: %s", error)
        if self._session is not None:
            if self._session.is_late():
                self._jeopardize("a ping is not answered")
        else:
            self._jeopardize(str(error))
            for joined in self.elections.values():
                if joined.stage is Stage.WAITING:
                    joined.told.put_nowait(ToldNotKnown(error))
        self._open(self._next_pause())

    def _next_pause(self) -> float:
        """How long to wait before the next attempt, which grows until a session has been of use."""
        self._pause = clamp(self._pause * 2, (0.05, PAUSE))
        return jittered(self._pause)

    def _give_up(self, why: str) -> None:
        """Gives up on streams."""
        _log.warning("there is no stream to lead by: falling back to calls: %s", why)
        self._streams.not_offered()
        self._fall_back()

    def _broken(self, session: Session, why: str) -> None:
        if session is not self._session or self._ended:
            return
        _log.debug("a stream to lead by has ended: %s", why)
        self._pool.discard(session.connection)
        self._pool.avoid(session.route)
        self._session = None
        session.close()
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self._forget_leaving(-1.0)
        if self._ended or self._opening is not None:
            return
        if self._answered_once:
            self._open(0.0)
            return
        # Opened again at once, one that ends as soon as it is open would keep both sides busy with nothing else.
        if not self._heard:
            self._failures += 1
        if self._failures >= FAILURES:
            self._give_up(why)
        else:
            self._open(self._next_pause())

    def _forget_leaving(self, older: float) -> None:
        """Whether these were given up is not known: calls determine it, if a caller waits."""
        now = self._loop.time()
        for joined in list(self.elections.values()):
            if joined.stage is Stage.LEAVING and now - joined.since > older:
                self._remove(joined)
                joined.fall_back()
        self._join_queued()
        self._end_if_unused()

    def _silent(self) -> None:
        """A ping is not answered: another agent may do better. The old session stays until there is a new one."""
        session = self._session
        if session is None or self._opening is not None:
            return
        if session.is_late():
            self._jeopardize("a ping is not answered")
        self._pool.discard(session.connection)
        self._pool.avoid(session.route)
        # The agent may be slow rather than gone.
        self._pong = min(self._pong * 2, self._ping_every)
        self._open(0.0)

    def _pong_within(self, answers_in: float) -> float:
        """How long an agent that took so long to answer may leave a ping unanswered."""
        usual = clamp(self._ping_every / 3, PONG)
        # No longer than this, so that there is time for another agent.
        return min(max(usual, 2 * answers_in), max(self._ping_every, usual))

    # Timers.

    def _arm_ping(self, after: float) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self._ping_timer = self._loop.call_later(after, self._ping_due)

    def _arm_silent(self) -> None:
        if self._silent_timer is not None:
            self._silent_timer.cancel()
            self._silent_timer = None
        since = None if self._session is None else self._session.silent_since()
        if since is not None and self._opening is None and not self._ended:
            self._silent_timer = self._loop.call_at(since + self._pong, self._silent)

    def _arm_lapse(self) -> None:
        if self._lapse_timer is not None:
            self._lapse_timer.cancel()
            self._lapse_timer = None
        until = [joined.until for joined in self.elections.values() if joined.stage is Stage.LAPSING]
        if until:
            self._lapse_timer = self._loop.call_later(_clock.seconds_until(min(until)), self._lapsed)

    def _lapsed(self) -> None:
        """The time of terms under which nobody works is over."""
        now = _clock.now_ns()
        for joined in list(self.elections.values()):
            if joined.stage is Stage.LAPSING and now >= joined.until:
                # The clock ends the term for work that still checks it. The pings went on for the
                # others.
                if self._session is not None:
                    self._send_leave(joined, joined.token)
                else:
                    self._remove(joined)
        self._arm_lapse()
        self._join_queued()
        self._end_if_unused()

    def _ping_due(self) -> None:
        self._forget_leaving(LEAVE)
        if self._ended or self._session is None:
            return
        self._arm_ping(self._ping_every)
        if not self.private:
            self._ping()
        elif self._asking is None:
            self._asking = self._spawn(self._ask())

    async def _ask(self) -> None:
        """Asks whether the application is alive, before a ping."""
        try:
            await self._alive.ask(self._ping_every / 2)
        except NotAlive as error:
            self._asking = None
            self._jeopardize(str(error))
            if self._session is not None and not self._ended:
                self._arm_ping(jittered(self._ping_every / 4))
        else:
            self._asking = None
            self._ping()

    def _ping(self) -> None:
        if self._session is not None and not self._ended:
            self._session.ping()
            self._arm_silent()

    def _jeopardize(self, reason: str) -> None:
        for joined in list(self.elections.values()):
            if joined.stage is Stage.LEADING and joined.term is not None:
                joined.term.jeopardize(reason)

    # Elections.

    def _remove(self, joined: Joined) -> None:
        if self.elections.get(joined.name) is joined:
            del self.elections[joined.name]
            joined.is_in = False

    def _join_queued(self) -> None:
        queue, self._queue = self._queue, []
        for joined in queue:
            self.join(joined)

    def _fall_back(self) -> None:
        """Calls have to do for all that is led."""
        self._opening = None
        joined = list(self.elections.values()) + self._queue
        self.elections.clear()
        self._queue.clear()
        self._end()
        for each in joined:
            each.is_in = False
            each.fall_back()

    # Messages.

    def _message(self, session: Session, event: Any) -> None:
        if session is not self._session or self._ended:
            return
        what = event.WhichOneof("what")
        if what == "standing":
            self._heard = True
            self._standing(event.standing)
        elif what == "pong":
            self._answered(event.pong)
        elif what == "goodbye":
            self._goodbye(event.goodbye)

    def _goodbye(self, goodbye: pb.Goodbye) -> None:
        _log.debug("a stream to lead by is about to end: %s", goodbye.reason)
        if self._session is not None:
            # Its connection ends, too; an agent that shuts down does not come back soon.
            self._pool.discard(self._session.connection)
            if goodbye.reason != "AGE":
                self._pool.avoid(self._session.route)
        self._leaving = True
        after = max(0, goodbye.reconnect_after) / 1000
        if not self._heard and not self._answered_once:
            after = max(after, self._next_pause())
        self._open(after)

    def _answered(self, pong: pb.Pong) -> None:
        session = self._session
        if session is None:
            return
        sent = session.sent(pong.seq)
        session.answered(pong.seq)
        self._pong = self._pong_within(session.answers_in)
        self._answered_once = True
        self._failures = 0
        self._pause = 0.0
        if not self._leaving and self._opening is not None:
            # The session works, after all.
            self._opening.cancel()
            self._opening = None
        self._arm_silent()
        # A listed election was not extended, or carries its own validity.
        listed = {(standing.kind, standing.election) for standing in pong.standings}
        for name, joined in list(self.elections.items()):
            extends = joined.extends
            if extends is None or pong.seq <= extends.after or name in listed:
                continue
            if joined.stage is Stage.LEADING and joined.term is not None:
                joined.term.extend(sent.at + extends.by * 1_000_000, sent.anchor)
            elif joined.stage is Stage.UNCONFIRMED:
                self._leading(joined, joined.token, extends.by, pong.seq, False, extends.by)
        for standing in pong.standings:
            self._standing(standing)

    def _standing(self, standing: Any) -> None:
        joined = self.elections.get((standing.kind, standing.election))
        if joined is None:
            return
        # Its name is a Python keyword.
        is_ = getattr(standing, "is")
        if is_ == pb.Standing.WAITING:
            if joined.stage is Stage.WAITING:
                leader = standing.leader.name if standing.HasField("leader") else None
                joined.told.put_nowait(ToldWaiting(leader))
        elif is_ == pb.Standing.LEADING:
            self._leading(
                joined,
                standing.token,
                standing.valid_for,
                standing.of_ping,
                standing.provisional,
                standing.ping_valid_for,
            )
        elif is_ == pb.Standing.JEOPARDY:
            if joined.stage is Stage.LEADING and joined.term is not None:
                joined.extends = None
                joined.term.jeopardize(standing.reason)
        elif is_ == pb.Standing.LOST:
            if joined.stage in (Stage.WAITING, Stage.UNCONFIRMED):
                self._campaign_again(joined)
            else:
                self._ended_election(joined, lost_of(standing.reason))
        elif is_ == pb.Standing.RESIGNED:
            if joined.stage is Stage.LEAVING:
                self._ended_election(joined, None)
            elif joined.stage is Stage.LEADING and joined.token == standing.token:
                # Somebody gave it up in the candidate's name.
                self._ended_election(joined, LostReason.NO_TERM)
        elif is_ == pb.Standing.REFUSED:
            _log.debug("a stream to lead by refuses an election: falling back to calls: %s", standing.reason)
            self._remove(joined)
            joined.fall_back()
            self._join_queued()
            self._end_if_unused()

    def _ended_election(self, joined: Joined, why: Optional[LostReason]) -> None:
        self._remove(joined)
        joined.end(why)
        self._join_queued()
        self._end_if_unused()

    def _campaign_again(self, joined: Joined) -> None:
        """What was granted was lost before anybody worked under it."""
        joined.request_id = request_id()
        joined.stage = Stage.WAITING
        joined.token = 0
        joined.extends = None
        self._send_join(joined)

    def _leading(
        self, joined: Joined, token: int, valid_for: int, of_ping: int, provisional: bool, ping_valid_for: int
    ) -> None:
        session = self._session
        if session is None:
            return
        sent = session.sent(of_ping)
        valid_until = sent.at + max(0, valid_for) * 1_000_000
        extends = Extends(of_ping, max(0, ping_valid_for))
        if joined.stage is Stage.LEADING and joined.term is not None:
            if token == joined.token:
                joined.term.extend(valid_until, sent.anchor)
                joined.extends = extends
            elif token > joined.token:
                self._ended_election(joined, LostReason.STALE_TOKEN)
        elif joined.stage in (Stage.WAITING, Stage.UNCONFIRMED):
            settings = joined.settings
            joined.token = token
            joined.extends = extends
            enough = settings.margin + settings.term / 3
            if provisional or _clock.seconds_until(valid_until) <= enough:
                joined.stage = Stage.UNCONFIRMED
                # The acceptance.
                self._ping()
                return
            joined.stage = Stage.LEADING
            joined.term = TermState(
                settings.kind,
                settings.election,
                settings.candidate,
                token,
                valid_until,
                sent.anchor,
                _clock.nanos(settings.margin),
                joined.hooks,
                joined.view,
            )
            joined.told.put_nowait(ToldGranted(joined.term))
