"""What progress bars show when they end, whatever their titles hold."""

from __future__ import annotations

import pytest

from pipeline.progress import Bar, EvaluationBar, TrainingBar
from rewards.verdict import Status, Verdict


def test_bars_show_what_was_done_and_how_it_went(capsys: pytest.CaptureFixture) -> None:
    training = TrainingBar("training", 5, "steps", done=2)
    training.step({"reward": 0.25, "pass_rate": 0.5, "tokens_per_second": 123.4})
    training.step({"pass_rate": None})  # no completion has a verdict
    training.close()
    evaluation = EvaluationBar(4, "held-out {0}")
    for status in (Status.NO_VERDICT, Status.ACCEPTED, Status.WRONG_ANSWER):
        evaluation.graded(Verdict(status))
    evaluation.close()
    conversion = Bar("converting x", 3_000_000, "bytes", scaled=True)
    conversion.done(1_500_000)
    conversion.close()
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.strip().split("\n")]
    assert [line.partition("|")[0] for line in lines] == ["training  80%", "held-out {0}  75%", "converting x  50%"]
    counts = [line.rpartition("|")[2].partition(" [")[0].strip() for line in lines]
    assert counts == ["4/5 steps", "3/4 graded", "1.50M/3.00M bytes"]
    notes = [line.partition("left")[2] for line in lines]
    assert notes == [", reward 0.250, pass rate 0.500, 123 tokens/s]", ", pass@1 0.500]", "]"]
