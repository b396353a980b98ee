"""The driver's view of its replicas: who is there, who serves which policy, who was lost and comes back.

Nothing here knows Ray: a `Launcher` starts replicas and gives a `Handle` to each (`member.py`; `cluster.py` has Ray's,
tests have others). Every wait has a limit. Whoever fails, is too late, or holds another policy is taken out with one
sentence that names replica, node, GPU and reason; what it was doing is done by others, and it is started again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import count
from typing import Any

import numpy as np

from adapters.checkpoint import PROBE_TOLERANCE
from pipeline.config import RunConfig
from pipeline.rollout import EngineError
from pipeline.scale.member import Call, Handle, Launcher, Lent, Member, clock_name, different, reason_of
from pipeline.scale.wire import Vector
from pipeline.versions import code_digest

START_LIMIT = 1800.0  # seconds
SERVE_LIMIT = 120.0
LENDER_LIMIT = 120.0  # seconds until a node's graders have started
SPOKEN = 60.0  # seconds of waiting after which it is said for whom
STARTS = 3  # after so many starts in a row that failed a replica is left alone for a while
REST = 600.0


class Fleet:
    """The replicas beside the driver's own, which is number 0.

    config: of the run. say: takes each sentence about a replica. Use as a context manager.
    """

    def __init__(self, launcher: Launcher, config: RunConfig, say: Callable[[str], None] | None = None) -> None:
        self.launcher, self.config = launcher, config
        code_digest()  # of the code that this process runs: it may be edited while the run lasts
        self.say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self.members: list[Member] = []
        self.fingerprint = ""  # of the driver's base, and the probe of its factors: set before the first join
        self.probe: Callable[[], np.ndarray] = lambda: np.zeros(0)
        self.seconds: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.drawn: defaultdict[int, int] = defaultdict(int)  # tokens of the step, by replica
        self.own_tokens = self.own_seats = 0  # of the driver's own engine: drawn in the run, sequences at a time
        self.lent: list[Lent] = []  # graders of other nodes
        self._lock = threading.RLock()
        self._closed = False
        self._wanted = 0  # replicas that the launcher wanted when it was last asked
        self._resting: list[float] = []  # when those that failed to start are tried again

    def __enter__(self) -> Fleet:
        self._borrow()
        self._grow()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed = True
        for member in self.members:
            member.handle.kill()

    @property
    def joined(self) -> list[Member]:
        """Those that serve the driver's policy."""
        return [member for member in self.members if member.joined]

    # coming and going

    def _borrow(self) -> None:
        """Wait for the graders that other nodes lend; a node where they do not start is done without."""
        asked = [(name, handle, handle.call("about")) for name, handle in self.launcher.lenders(self.config)]
        deadline = time.monotonic() + LENDER_LIMIT
        for name, handle, call in asked:
            try:
                about = call.result(timeout=max(0.0, deadline - time.monotonic()))
                self.lent.append(Lent(name, handle, about["workers"]))
            except Exception as error:  # noqa: BLE001 - whatever ended it is what is said
                late = isinstance(error, TimeoutError)
                reason = f"they did not start in {LENDER_LIMIT:.0f} s" if late else reason_of(error)
                self.say(f"node {name} lends no graders: {reason}")
                handle.kill()

    def _grow(self) -> None:
        """Start those that are wanted, and are neither there nor left alone because they failed to start."""
        self._resting = [end for end in self._resting if end > time.monotonic()]
        if (wanted := self.launcher.wanted()) != self._wanted:  # a node came or went
            self._wanted, self._resting = wanted, []
        while len(self.members) + 1 + len(self._resting) < wanted:
            taken = {member.number for member in self.members}
            number = next(number for number in count(1) if number not in taken)
            handle = self.launcher.start(number)
            self.members.append(Member(number, handle, self._load(handle), handle.call("about")))

    def _load(self, handle: Handle) -> Future[Any]:
        return handle.call("load", self.config, self.launcher.sharing, self.lent)

    def lost(self, member: Member, doing: str, error: BaseException | str, handle: Handle | None = None) -> None:
        """Take a replica out, say why, and start another in its place. handle: of whom this is said, if it may have
        been replaced meanwhile."""
        with self._lock:
            if self._closed or member not in self.members or (handle is not None and handle is not member.handle):
                return
            member.failures += not member.joined
            member.joined = False
            member.handle.kill()
            again = member.failures < STARTS
            rest = f"it failed to start {STARTS} times and is tried again in {REST / 60:.0f} minutes"
            then = "it is started again" if again else rest
            self.say(f"{member.name} was taken out while {doing}: {reason_of(error)}; {then}")
            if not again:
                self.members.remove(member)
                self._resting.append(time.monotonic() + REST)
                return
            member.handle, member.begun = self.launcher.start(member.number), time.monotonic()
            member.loading, member.place = self._load(member.handle), member.handle.call("about")
            member.projections, member.problems = "", set()

    def _arrived(self, member: Member) -> bool:
        """Whether a replica that was starting is ready and the same as the driver's."""
        try:
            about = member.loading.result(timeout=0)
            member.about = about
            other = different(about, self.fingerprint)
        except Exception as error:  # noqa: BLE001 - whatever ended it is what is said
            self.lost(member, "starting", error)
            return False
        if other:
            self.lost(member, "joining", other)
            return False
        return True

    def wait(self) -> None:
        """Until every replica has started, or failed to; says for whom it waits."""
        spoken = time.monotonic()
        while waited := [member for member in self.members if not member.joined and not member.loading.done()]:
            self._overdue()
            if time.monotonic() - spoken > SPOKEN:
                spoken = time.monotonic()
                since = ", ".join(f"{member.name} for {spoken - member.begun:.0f} s" for member in waited)
                self.say(f"waiting for the start of {since}; {START_LIMIT:.0f} s at most")
            time.sleep(0.05)

    def _overdue(self) -> None:
        """Take out who has been starting for too long."""
        for member in list(self.members):
            late = not member.joined and not member.loading.done() and time.monotonic() - member.begun > START_LIMIT
            if late:
                self.lost(member, "starting", f"it was not ready after {START_LIMIT:.0f} s")

    # the policy

    def serve_all(self, vector: Vector, projections: Callable[[], np.ndarray]) -> None:
        """As `serve`, for the first policy: waits until every replica serves it or has failed to start too often.

        Raises `EngineError` where none does."""
        wanted = len(self.members)
        while not all(member.joined for member in self.members):
            self.wait()
            self.serve(vector, projections)
        if wanted and not self.members:
            raise EngineError("no other replica could be started, for the reasons above; mend them or use --replicas 1")

    def serve(
        self,
        vector: Vector,
        projections: Callable[[], np.ndarray],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Make this the policy of every replica that is ready; who then holds other bits is taken out. meanwhile: done
        while they are at it."""
        self._grow()
        self._overdue()
        calls = []
        for member in list(self.members):
            if member.joined or (member.loading.done() and self._arrived(member)):
                calls.append(self._serve(member, vector, projections))
        meanwhile()
        for call, answer in self.answers(calls, SERVE_LIMIT, "taking a new policy"):
            member = call.member
            if answer is None or call.handle is not member.handle:  # which was started again since
                continue
            if answer["digest"] != vector.digest:
                self.lost(member, "taking a new policy", "its v is not the driver's, bit for bit", call.handle)
                continue
            member.projections = vector.projections_digest
            begun, ended = answer["begun"], answer["ended"]
            self.seconds[member.number]["refresh"] += ended - begun
            if member.about["clock"] != clock_name():
                member.ahead = (begun - call.sent + ended - call.arrived) / 2  # as NTP has it: both ways took as long
            for note in answer["notes"]:
                self.say(f"{member.name}: {note}")
            if not member.joined and self._same_factors(member):
                self._join(member)

    def _serve(self, member: Member, vector: Vector, projections: Callable[[], np.ndarray]) -> Call:
        if member.projections != vector.projections_digest:
            vector = Vector(vector.values, vector.digest, vector.projections_digest, projections())
        return Call.of(member, "serve", vector)

    def _same_factors(self, member: Member) -> bool:
        found = self.answer(Call.of(member, "probe"), SERVE_LIMIT, "joining")
        own = self.probe()
        if found is None:
            return False
        error = np.linalg.norm(own - found) / max(float(np.linalg.norm(own)), 1e-30)
        if not error <= PROBE_TOLERANCE:
            self.lost(member, "joining", f"its factors differ from the driver's by {error:.0%}: v means another policy")
            return False
        return True

    def _join(self, member: Member) -> None:
        member.joined, member.failures = True, 0
        others = (other.tokens for other in self.joined if other is not member)
        member.tokens = max(member.tokens, min([self.own_tokens, *others]))  # who comes late need not catch up
        self.say(f"{member.name} joined after {member.about['seconds']} s, grader tier {member.about['tier']}")
        if (niceness := member.about["niceness"]) > os.getpriority(os.PRIO_PROCESS, 0):
            self.say(
                f"{member.name} has niceness {niceness}: its engine waits for graders where cores are short; set "
                f"RAY_worker_niceness=0 for `ray start` on its node"
            )

    # work

    def answers(self, calls: Iterable[Call], limit: float, doing: str) -> Iterator[tuple[Call, Any]]:
        """What each of several calls gave, in their order; the limit is of all of them together."""
        deadline = time.monotonic() + limit
        for call in calls:
            yield call, self.answer(call, limit, doing, deadline)

    def answer(self, call: Call, limit: float, doing: str, deadline: float | None = None) -> Any:
        """What a call gave within `limit` seconds, or until `deadline`; None where the replica was lost over it."""
        left = limit if deadline is None else deadline - time.monotonic()
        try:
            answer = call.future.result(timeout=max(0.0, left))
            call.arrived = min(call.arrived, time.monotonic())  # its callback may come after
            return answer
        except TimeoutError:
            self.lost(call.member, doing, f"no answer for {limit:.0f} s", call.handle)
        except Exception as error:  # noqa: BLE001 - whatever ended it is what is said
            self.lost(call.member, doing, error, call.handle)
        return None

    def ask(self, method: str, asked: Iterable[tuple[Member, tuple[Any, ...]]]) -> list[Call]:
        """Call a method of several replicas, each as soon as its arguments are there."""
        return [Call.of(member, method, *arguments) for member, arguments in asked]

    def lanes(self) -> list[dict[str, Any]]:
        """What every replica did since the last call, for the step's record: tokens, and seconds of its phases."""
        numbers = [0, *(member.number for member in self.joined)]
        names = {member.number: member for member in self.members}
        found = []
        for number in numbers:
            seconds = {name: round(value, 4) for name, value in self.seconds[number].items()}
            tokens = self.drawn[number]
            about = names[number].about if number else {"seats": self.own_seats}
            lane = {"replica": number, "tokens": tokens, "seconds": seconds, "seats": about["seats"]}
            lane["staleness"] = self.config.staleness
            lane["tokens_per_second"] = round(tokens / seconds["generate"]) if seconds.get("generate") else None
            if number:
                lane |= {"node": about["node"], "gpu": about["gpu"]}
            found.append(lane)
        self.seconds.clear()
        self.drawn.clear()
        return found
