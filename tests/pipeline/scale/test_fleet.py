"""A fleet draws what one engine draws, whoever dies when; who holds another policy is not listened to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.rollout import Completion, EngineError, Sampling
from pipeline.rollout.streaming import StreamingGrader
from pipeline.scale import fleet as fleet_module
from pipeline.scale import generation as generation_module
from pipeline.scale.engine import FleetEngine, grade_where_drawn
from pipeline.scale.fleet import Fleet
from pipeline.scale.member import Call
from pipeline.scale.replica import Session
from pipeline.tasks import task_of
from pipeline.training.spread import Spread
from rewards.problem import Problem
from tests.pipeline.scale.stand_in import CountingEngine, Died, StandIn, StandInPolicy, ThreadLauncher, config
from tests.pipeline.scale.test_shares import batch_of

GROUPS, SIZE = 12, 4
PROBLEMS = [Problem(f"p{n}", "?", answer="1") for n in range(GROUPS)]
PROMPTS = [[n, n] for n in range(GROUPS) for _ in range(SIZE)]
SAMPLING = Sampling(10, seed=3)


def fleet_engine(launcher: ThreadLauncher, said: list[str], monkeypatch: Any) -> tuple[Fleet, FleetEngine]:
    monkeypatch.setattr("pipeline.scale.engine.factor_probe", lambda model: torch.ones(3))
    fleet = Fleet(launcher, config(), said.append)
    fleet.__enter__()
    policy: Any = StandInPolicy(pace=launcher.pace)
    policy.engine = FleetEngine(policy, fleet, seats=16)
    return fleet, policy.engine


def drawn_by(engine: Any, grader: StreamingGrader) -> tuple[list[Completion], list[Any]]:
    """Completions and verdicts of all prompts, as training draws and judges them."""
    finished: list[int] = []

    def on_finished(row: int, completion: Completion) -> None:
        finished.append(row)
        grading.submit(row, "".join(map(chr, completion.token_ids)))

    grading = grader.begin([problem for problem in PROBLEMS for _ in range(SIZE)])
    completions = engine.generate(PROMPTS, SAMPLING, on_finished)
    assert sorted(finished) == list(range(len(PROMPTS)))
    return completions, [verdict.status for verdict in grading.collect()]


def step_of(engine: FleetEngine) -> tuple[Any, ...]:
    """One step: a policy, completions, verdicts, the gradient of a batch."""
    policy: Any = engine.policy
    policy.bank.v += 0.125
    engine.refresh(policy.bank.v)
    completions, verdicts = drawn_by(engine, grade_where_drawn(policy, StreamingGrader(None, task_of(config()))))
    batch = batch_of([[len(completions[g * SIZE + i].token_ids) for i in range(SIZE)] for g in range(GROUPS)])

    def own(share: dict[str, torch.Tensor]) -> torch.Tensor:
        weight = float((share["completion_mask"].sum(dim=1) * share["advantages"]).sum())
        policy.bank.v.grad = torch.full((1, 4), weight)
        return torch.zeros(())

    policy.bank.v.grad = None
    Spread(engine, own, lambda found: None).gradient(batch, True)
    return completions, verdicts, policy.bank.v.grad.tolist()


def expected_step() -> tuple[Any, ...]:
    policy: Any = StandInPolicy()
    policy.bank.v += 0.125
    policy.engine.refresh(policy.bank.v)
    completions, verdicts = drawn_by(policy.engine, StreamingGrader(None, task_of(config())))
    return completions, verdicts, [[float(sum(len(c.token_ids) for c in completions))] * 4]


def test_replicas_draw_and_train_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    fleet, engine = fleet_engine(ThreadLauncher(3, pace=0.001), said, monkeypatch)
    with fleet:
        assert step_of(engine) == expected_step()
        lanes = fleet.lanes()
    assert [lane["replica"] for lane in lanes] == [0, 1, 2] and all(lane["tokens"] for lane in lanes)
    assert sum("joined" in sentence for sentence in said) == len(said) == 2


class FarAway(StandIn):
    """On a machine whose clock is 1,000 s ahead; takes 0.3 s for a share, of which 0.2 s to have it and to answer."""

    def __init__(self, number: int) -> None:
        super().__init__(number, lambda name: None, 0.0)

    def about(self) -> dict[str, Any]:
        return super().about() | {"clock": "another"}

    def serve(self, vector: Any) -> dict[str, Any]:
        answer = super().serve(vector)
        return answer | {"begun": answer["begun"] + 1000, "ended": answer["ended"] + 1000}

    def gradient(self, share: Any) -> Any:
        time.sleep(0.1)
        found = super().gradient(share)
        time.sleep(0.1)
        found.begun, found.ended = found.begun + 1000, found.ended + 1000 + 0.1
        time.sleep(0.1)
        return found


@pytest.mark.alone
def test_where_a_share_spent_its_time_is_told_whatever_the_clocks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, engine = fleet_engine(ThreadLauncher(2, made=FarAway), [], monkeypatch)
    with fleet:
        step_of(engine)
        own, other = (lane["seconds"] for lane in fleet.lanes())
    assert all(0.09 < other[phase] < 0.2 for phase in ("share", "train", "answer")), other
    assert 0.09 < own["gather"] < 0.2 and own["share"] < 0.09 and own["train"] < 0.09, own


MOMENTS = ["load", "serve", "probe", "generate", "put", "take", "drawing", "grading", "end", "gradient"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_replica_that_dies_costs_nothing_but_time_and_comes_back(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = threading.Event()

    def dies(number: int, life: int, name: str) -> None:
        if (number, life, name) == (1, 1, moment):
            died.set()
            raise Died("killed")

    said: list[str] = []
    fleet, engine = fleet_engine(ThreadLauncher(3, dies, pace=0.001), said, monkeypatch)
    with fleet:
        assert step_of(engine) == expected_step()
        assert died.is_set()
        refresh_until(engine, lambda: len(fleet.joined) == 2 and fleet.launcher.starts[1] == 2)  # type: ignore[attr-defined]
        engine.bank.v.zero_()
        assert step_of(engine) == expected_step()
    taken_out = [sentence for sentence in said if "was taken out" in sentence]
    assert len(taken_out) == 1 and "replica 1" in taken_out[0] and "Died" in taken_out[0]


def test_one_death_that_two_threads_notice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it draws, a replica is asked for something else, too; who died then is not the one that took its place."""
    said: list[str] = []
    launcher = ThreadLauncher(2)
    fleet, engine = fleet_engine(launcher, said, monkeypatch)
    with fleet:
        step_of(engine)
        (member,) = fleet.joined
        asked = Call.of(member, "probe")
        launcher.handles[0].die()
        fleet.lost(member, "grading", Died("killed"), member.handle)
        late = Call(member, launcher.handles[0], launcher.handles[0].call("probe"), time.monotonic())
        for call in (asked, late):
            fleet.answer(call, 5.0, "taking a new policy")
        refresh_until(engine, lambda: bool(fleet.joined))
        assert launcher.starts[1] == 2 and member.failures == 0
    assert sum("was taken out" in sentence for sentence in said) == 1


def test_who_was_started_again_during_a_refresh_does_not_join_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answered, died, and was replaced while the driver refreshed its own engine: the new one has no policy yet."""
    served: list[int] = []

    def notes(number: int, life: int, name: str) -> None:
        if name == "serve":
            served.append(life)

    launcher = ThreadLauncher(2, notes)
    fleet, engine = fleet_engine(launcher, [], monkeypatch)
    refresh = engine.local.refresh

    def dies_meanwhile(v: torch.Tensor) -> Any:
        if launcher.starts[1] == 1 and len(served) == 2:
            while not launcher.handles[0]._open[-1].done():
                time.sleep(0.01)
            launcher.handles[0].die()
            fleet.lost(fleet.members[0], "grading", Died("killed"), launcher.handles[0])
        return refresh(v)

    with fleet:
        engine.refresh(engine.bank.v)  # joined
        engine.local.refresh = dies_meanwhile  # type: ignore[method-assign]
        while launcher.starts[1] == 1:
            engine.refresh(engine.bank.v)
        assert not fleet.joined and 2 not in served
        refresh_until(engine, lambda: bool(fleet.joined))
        assert 2 in served


def test_the_clock_of_the_drivers_own_machine_needs_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, engine = fleet_engine(ThreadLauncher(3, pace=0.001), [], monkeypatch)
    with fleet:
        for _ in range(3):
            step_of(engine)
        lanes = fleet.lanes()
        assert all(member.ahead == 0 for member in fleet.joined)
    assert all(value >= 0 for lane in lanes for value in lane["seconds"].values())
    assert all(lane["seats"] == 16 and lane["staleness"] == 0 for lane in lanes)


def test_all_replicas_may_die_in_one_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(number: int, life: int, name: str) -> None:
        if life == 1 and name == "grading":
            raise Died("killed")

    fleet, engine = fleet_engine(ThreadLauncher(4, dies, pace=0.001), [], monkeypatch)
    with fleet:
        assert step_of(engine) == expected_step()


@pytest.mark.parametrize("method", ["generate", "serve", "gradient"])
def test_a_replica_that_does_not_answer_is_named_and_left(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wake = threading.Event()

    def sleeps(number: int, life: int, name: str) -> None:
        if (number, life, name) == (1, 1, method):
            wake.wait(30)

    monkeypatch.setattr(fleet_module, "SERVE_LIMIT", 0.3)
    monkeypatch.setattr(generation_module, "ROW_SECONDS", 0.3)
    monkeypatch.setattr(generation_module, "TOKEN_SECONDS", 0.0)
    monkeypatch.setattr(generation_module, "LOOK", 0.05)
    monkeypatch.setattr("pipeline.training.spread.LEAST_LIMIT", 0.3)
    said: list[str] = []
    fleet, engine = fleet_engine(ThreadLauncher(2, sleeps), said, monkeypatch)
    with fleet:
        assert step_of(engine) == expected_step()
        wake.set()
    assert any("was taken out" in sentence and "0 s" in sentence for sentence in said), said


def test_another_policy_or_base_is_taken_out_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pipeline.scale import stand_in

    def other(change: Callable[[Any], None]) -> str:
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            fleet, engine = fleet_engine(ThreadLauncher(2), said, monkeypatch)
            with fleet, pytest.raises(EngineError, match="no other replica could be started"):
                engine.refresh(engine.bank.v)
        assert len(said) == 3
        return said[0]

    kind = stand_in.StandIn
    assert "bit for bit" in other(lambda patch: patch.setattr(kind, "vector_digest", lambda self: "0" * 32))
    factors = np.array([1, 1, 1.1], np.float32)
    assert "factors differ" in other(lambda patch: patch.setattr(kind, "probe", lambda self: factors))
    own = stand_in.versions()
    for what in ("transformers", "this code"):
        older = own | {what: "4.0"}
        assert f"{what} 4.0" in other(lambda patch, older=older: patch.setattr(stand_in, "versions", lambda: older))  # type: ignore[misc]

    def fails(self: Any, *_: Any) -> None:
        raise MemoryError("the card is full\nof other things")

    assert "MemoryError: the card is full;" in other(lambda patch: patch.setattr(kind, "load", fails))


def refresh_until(engine: FleetEngine, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        engine.refresh(engine.bank.v)
        time.sleep(0.01)


def test_a_replica_that_yields_to_its_graders_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    about = StandIn.about

    def behind(self: StandIn) -> dict[str, Any]:
        own = about(self)
        return own | {"niceness": own["niceness"] + self.number - 1}

    monkeypatch.setattr(StandIn, "about", behind)
    said: list[str] = []
    fleet, engine = fleet_engine(ThreadLauncher(3), said, monkeypatch)
    with fleet:
        engine.refresh(engine.bank.v)
    (told,) = [sentence for sentence in said if "niceness" in sentence]
    assert "replica 2" in told and "RAY_worker_niceness=0" in told


def test_who_fails_to_start_is_left_alone_for_a_while_or_until_nodes_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int, life: int, name: str) -> None:
        if (number, name) == (1, "load"):
            raise Died("no card")

    said: list[str] = []
    launcher = ThreadLauncher(3, fails)
    fleet, engine = fleet_engine(launcher, said, monkeypatch)
    with fleet:
        for _ in range(3):
            assert step_of(engine)[0]
        assert [member.number for member in fleet.joined] == [2] and launcher.starts == {1: 3, 2: 1}
        launcher.count = 4
        refresh_until(engine, lambda: len(fleet.joined) == 2)
        assert [member.number for member in fleet.joined] == [2, 3] and launcher.starts[1] > 3
        refresh_until(engine, lambda: bool(fleet._resting))
        starts, fleet._resting = launcher.starts[1], [time.monotonic() - 1]  # as if the time had passed
        refresh_until(engine, lambda: launcher.starts[1] > starts)


def test_waiting_for_a_start_says_for_whom_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "START_LIMIT", 0.3)
    monkeypatch.setattr(fleet_module, "SPOKEN", 0.1)
    wake, said = threading.Event(), list[str]()

    def sleeps(number: int, life: int, name: str) -> None:
        if (number, name) == (1, "load"):
            wake.wait(30)

    fleet, engine = fleet_engine(ThreadLauncher(3, sleeps), said, monkeypatch)
    with fleet:
        engine.refresh(engine.bank.v)
        wake.set()
    assert any(sentence.startswith("waiting for the start of replica 1 (node ") for sentence in said), said
    late = [sentence for sentence in said if "was taken out while starting: it was not ready after 0 s" in sentence]
    assert len(late) == 3 and [member.number for member in fleet.joined] == [2]


def test_graders_that_do_not_start_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lending(ThreadLauncher):
        def lenders(self, config: Any) -> list[Any]:
            return [(f"node {name}", Node(answer)) for name, answer in answers.items()]

    class Node:
        def __init__(self, answer: Any) -> None:
            self.answer, self.killed = answer, False

        def call(self, method: str) -> Future[Any]:
            return self.answer

        def kill(self) -> None:
            self.killed = True

    answers = {name: Future[Any]() for name in ("late", "broken", "good")}
    answers["broken"].set_exception(MemoryError("no room"))
    answers["good"].set_result({"workers": 7})
    monkeypatch.setattr(fleet_module, "LENDER_LIMIT", 0.05)
    said: list[str] = []
    with Fleet(Lending(1), config(), said.append) as fleet:
        assert [(lent.node, lent.workers) for lent in fleet.lent] == [("node good", 7)]
    assert len(said) == 2 and "node late lends no graders: they did not start" in said[0] and "no room" in said[1]


def test_what_a_replica_notes_is_said_once_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    launcher = ThreadLauncher(2)
    fleet, engine = fleet_engine(launcher, said, monkeypatch)
    with fleet:
        engine.refresh(engine.bank.v)
        launcher.handles[0].replica._notes.append("a node is late")
        engine.refresh(engine.bank.v)
        engine.refresh(engine.bank.v)
    noted = [text for text in said if "a node is late" in text]
    assert len(noted) == 1 and noted[0].startswith("replica 1 (node ")


def test_who_waits_for_a_completion_is_told_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wake = threading.Event()

    def sleeps(number: int, life: int, name: str) -> None:
        if name == "drawing":
            wake.wait(30)

    fleet, engine = fleet_engine(ThreadLauncher(2, sleeps), [], monkeypatch)
    with fleet:
        engine.refresh(engine.bank.v)
        monkeypatch.setattr(generation_module, "ROW_SECONDS", 0.1)
        monkeypatch.setattr(generation_module, "TOKEN_SECONDS", 0.0)
        monkeypatch.setattr(generation_module.Generation, "_look", lambda self: None)  # as if its thread were stuck
        with pytest.raises(EngineError, match=r"no completion came for 0 s; they are held by replica 1 \(node .*\)"):
            engine.generate(PROMPTS, SAMPLING, lambda row, completion: None)
        wake.set()


@pytest.mark.filterwarnings("ignore:Exception in thread generation")  # that of the grader which cannot be started
def test_nobody_waits_for_a_verdict_of_a_thread_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, row: int, completion: str) -> Any:
        raise MemoryError("no grader can be started")

    monkeypatch.setattr(StandIn, "_grade", lambda *_: None)  # its verdicts never come
    launcher = ThreadLauncher(2, pace=0.001)
    fleet, engine = fleet_engine(launcher, [], monkeypatch)
    policy: Any = engine.policy
    with fleet:
        engine.refresh(engine.bank.v)
        grader = grade_where_drawn(policy, StreamingGrader(None, task_of(config())))
        grading = grader.begin([PROBLEMS[0]] * len(PROMPTS))
        engine.generate(PROMPTS, SAMPLING, lambda row, completion: grading.submit(row, "1"))
        waiting = [row for row in range(len(PROMPTS)) if not grading.is_done(row)]
        monkeypatch.setattr("pipeline.rollout.streaming.Grading.grade", broken)
        launcher.handles[0].die()
        deadline = time.monotonic() + 10
        while not all(grading.is_done(row) for row in waiting):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(MemoryError):
            grading.verdict(waiting[0])


def test_a_replica_that_is_given_no_work_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.scale.replica.IDLE_LIMIT", 0.05)
    with pytest.raises(EngineError, match="the driver gave no work"):
        Session().jobs(wait=True)


def test_a_replica_that_joins_late_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = ThreadLauncher(1)
    fleet, engine = fleet_engine(launcher, [], monkeypatch)
    with fleet:
        assert step_of(engine) == expected_step() and not fleet.joined
        launcher.count = 3
        refresh_until(engine, lambda: len(fleet.joined) == 2)
        engine.bank.v.zero_()
        assert step_of(engine) == expected_step()
        assert all(lane["tokens"] for lane in fleet.lanes())  # and does not do it all, to catch up


def test_projections_reach_those_who_have_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, engine = fleet_engine(ThreadLauncher(2), [], monkeypatch)
    with fleet:
        engine.refresh(engine.bank.v)
        engine.bank.set_projections(torch.full((2, 4, 2, 2), 5.0))
        engine.refresh(engine.bank.v)
        replica = fleet.joined[0].handle.replica  # type: ignore[attr-defined]
        assert torch.equal(replica.policy.model.tinylora.projections, engine.bank.projections)


def test_an_error_of_the_drivers_engine_ends_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise EngineError("the engine is broken")

    fleet, engine = fleet_engine(ThreadLauncher(2), [], monkeypatch)
    with fleet:
        engine.refresh(engine.bank.v)
        monkeypatch.setattr(CountingEngine, "generate", broken)
        with pytest.raises(EngineError):
            engine.generate(PROMPTS, SAMPLING, lambda row, completion: None)
