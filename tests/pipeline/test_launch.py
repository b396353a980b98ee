"""What is refused before anything heavy is imported, since it depends on the model's sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ConfigError, Settings
from pipeline.launch import prepare


def settings(folder: Path, **told: Any) -> Settings:
    """Of a run on a model of which there is only the description: 2 layers, 1,024 positions."""
    sizes = {"model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 64, "max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(sizes))
    usual: dict[str, Any] = {"model": str(folder), "dataset": "x.jsonl", "max_prompt_length": 824}
    return Settings(**usual | told)


def test_rows_longer_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    assert prepare(settings(tmp_path, max_completion_length=200))[1].max_length == 1024
    said = "^--max-prompt-length 824 and --max-completion-length 201: 1025 tokens are more than the 1024 that "
    with pytest.raises(ConfigError, match=said):
        prepare(settings(tmp_path, max_completion_length=201))


def test_groups_are_as_large_as_the_smallest(tmp_path: Path) -> None:
    """14 modules in 5 groups: two of one group, three of others."""

    def rule(**told: Any) -> str:
        asked = settings(tmp_path, max_completion_length=100, rank=2, **told)
        return prepare(asked)[1].projections

    assert rule(groups=5, u=8) == rule(groups=5, u=8, projections="principal") == "principal"
    assert rule(groups=5, u=9) == "normal"
    with pytest.raises(ConfigError, match="^--projections principal: a group has 8 mixing entries at --rank 2, fewer"):
        rule(groups=5, u=9, projections="principal")
    assert rule(groups=14) == "normal"
    with pytest.raises(ConfigError, match="^--groups 15: the model has 14 modules; use at most that many"):
        rule(groups=15)
