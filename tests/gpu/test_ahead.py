"""Batches drawn a step ahead, on a GPU: the training pass computes with the weights that the engine serves, which are
those of the `v` that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Settings, resolved
from pipeline.policy.models import choose_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_engine_and_trainer_hold_one_vector_while_it_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from pipeline.policy.loading import load_policy
    from pipeline.rollout.streaming import StreamingGrader
    from pipeline.run_folder import RunFolder
    from pipeline.tasks import task_of
    from pipeline.tasks.graders import start_graders
    from pipeline.tasks.problem_sets import load_problem_sets

    settings = Settings(
        vllm=True, dataset="starter", gpu_memory=12, staleness=1, steps=4, prompts_per_step=4, num_generations=8
    )
    config = resolved(settings, starter=True, gpu=True)
    problems = load_problem_sets(config).train
    with start_graders(config) as pool:
        policy = load_policy(choose_model("starter"), config)
        from pipeline.training.trainer import TinyLoRATrainer

        records: list[dict[str, Any]] = []
        folder = RunFolder.create(str(tmp_path / "run"), "test")
        grader = StreamingGrader(pool, task_of(config))
        trainer = TinyLoRATrainer(policy, grader, problems, config, folder, records.append)
        served: list[bool] = []
        train_on = trainer.train_on

        def training(batch: dict[str, Any]) -> torch.Tensor:
            served.append(trainer.bank.served.at(trainer.bank.v) is not None)
            return train_on(batch)

        trainer.train_on = training  # type: ignore[method-assign]
        trainer.train()
        policy.close()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(served) >= 4 and all(served)
    assert all(record["mismatch"] < 1e-3 for record in records[:-1])
    assert all(record["off_policy"] < 1e-2 for record in records if "off_policy" in record)
    assert [record["seconds"]["generate"] > 0 for record in records] == [True] * 3 + [False]
