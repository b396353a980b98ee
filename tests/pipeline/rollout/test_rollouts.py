"""A batch of rollouts: its tensors, its records, and that it is trained by the version that drew it."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from pipeline.rollout import Completion, EngineError
from pipeline.rollout.rollouts import Rollouts, padded, verdict_fields
from rewards.verdict import Status, Verdict

BATCH = Rollouts(
    group_size=2,
    problems=[4, 4],
    prompts=[[1, 2], [1, 2]],
    completions=[Completion([7, 8, 2], [-0.5, -1.0, -0.25]), Completion([9, 9], [-2.0, -3.0])],
    versions=[[3, 3, 3], [3, 3]],
    texts=["ab", "cc"],
    masked=[False, True],
    verdicts=[Verdict(Status.ACCEPTED, 2, 2, True), Verdict(Status.NO_VERDICT)],
    scores={"passed": [1.0, None], "short": [0.5, None]},
    totals=[1.5, None],
    advantages=[0.25, 0.0],
)


def test_rows_are_padded_on_the_right_and_cut_ones_masked() -> None:
    assert BATCH.sampled_log_probs().tolist() == [[-0.5, -1.0, -0.25], [-2.0, -3.0, 0.0]]
    assert BATCH.mask().tolist() == [[1, 1, 1], [0, 0, 0]] and BATCH.mask().dtype == torch.int64
    assert padded([[5], [6, 7]], 0, left=True).tolist() == [[0, 5], [6, 7]]


def test_a_record_holds_the_parts_and_their_sum() -> None:
    first, second = BATCH.records(6, ["a", "a"])
    assert first == {
        "step": 6,
        "problem": "a",
        "completion": "ab",
        "reward": 1.5,
        "rewards": {"passed": 1.0, "short": 0.5},
        "advantage": 0.25,
        "tokens": 3,
        "verdict": "ACCEPTED",
        "passed": 2,
        "total": 2,
    }
    assert second["reward"] is None and second["rewards"] == {"passed": None, "short": None}


def test_a_batch_can_be_sent() -> None:
    whole = replace(BATCH, old_log_probs=torch.zeros(2, 3))
    received = pickle.loads(pickle.dumps(whole))
    assert torch.equal(received.old_log_probs, torch.zeros(2, 3))
    assert replace(received, old_log_probs=None) == BATCH


def test_a_token_of_another_version_is_noticed() -> None:
    BATCH.check_version(3)
    with pytest.raises(EngineError, match="drawn by version 3 of v"):
        BATCH.check_version(4)
    with pytest.raises(EngineError, match="drawn by version 2 of v"):
        replace(BATCH, versions=[[3, 3, 3], [2, 3]]).check_version(3)


@pytest.mark.parametrize(
    ("status", "diagnostics", "message"),
    [
        (
            Status.COMPILE_ERROR,
            "main.cpp: In function 'int main()':\nmain.cpp:3:5: error: 'x' was not declared\n    3 | x\n",
            "main.cpp:3:5: error: 'x' was not declared",
        ),
        (
            Status.COMPILE_ERROR,
            "main.o:main.cpp: error: undefined reference to 'f()'\ncollect2",
            "main.o:main.cpp: error: undefined reference to 'f()'",
        ),
        (
            Status.COMPILE_ERROR,
            "the compiler took more than 20 s of CPU time",
            "the compiler took more than 20 s of CPU time",
        ),
        (Status.TIME_LIMIT, "more than 0.85 s of CPU time", "more than 0.85 s of CPU time"),
        (Status.RUNTIME_ERROR, "ended by signal SIGSEGV", "ended by signal SIGSEGV"),
        (Status.RUNTIME_ERROR, "x" * 900, "x" * 300),
    ],
)
def test_rows_keep_the_first_message(status: Status, diagnostics: str, message: str) -> None:
    assert verdict_fields(Verdict(status, total=1, diagnostics=diagnostics))["message"] == message
    assert "message" not in verdict_fields(Verdict(Status.ACCEPTED, 1, 1, True, diagnostics="a warning"))
