"""The rooms of the code, and which room may import which. Imports inside functions and for types count, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adapters", "data", "pipeline", "rewards", "storage")
SCHEMA = ("errors", "extraction", "problem", "verdict")  # what the grader and the reward functions share

MOST_DEFERRED = 60

# Each room with the rooms that it may import. Whatever is under pipeline/ may also import the other packages.
ALLOWED = {
    "storage": "",
    "adapters": "storage",
    "rewards schema": "storage",
    "rewards.grader": "storage, rewards schema",
    "rewards": "rewards schema, rewards.grader",
    "data": "storage, rewards, rewards schema, rewards.grader",
    "pipeline.config": "",
    "pipeline.environment": "",
    "pipeline.progress": "",
    "pipeline.versions": "",
    "pipeline.run_folder": "config",
    "pipeline.tasks": "config, environment",
    "pipeline.starter": "tasks",
    "pipeline.report": "config, run_folder, tasks",
    "pipeline.rollout": "tasks",
    "pipeline.policy": "config, environment, progress, rollout, run_folder, versions",
    "pipeline.launch": "config, environment, policy, tasks, versions",
    "pipeline.scale": "config, environment, policy, rollout, tasks, versions",
    "pipeline.evaluation": "config, launch, policy, progress, rollout, run_folder, scale, tasks, versions",
    "pipeline.training": "config, environment, evaluation, launch, policy, progress, report, rollout, run_folder, "
    "scale, tasks, versions",
    "pipeline.tools": "config, environment, evaluation, launch, policy, rollout, run_folder, scale",
    "pipeline.bench": "config, environment, evaluation, launch, policy, rollout, run_folder, scale, tasks, training, "
    "versions",
}


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, `a.b.c` for `from a.b import c`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """The room of a module or of a name in it."""
    package, _, rest = name.partition(".")
    inner = rest.partition(".")[0]
    if package == "rewards":
        return "rewards schema" if inner in SCHEMA else "rewards.grader" if inner == "grader" else "rewards"
    return f"pipeline.{inner}" if package == "pipeline" else package


@cache
def arrows() -> dict[str, dict[str, str]]:
    """For each room those that it imports, with one file that does."""
    found: dict[str, dict[str, str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT)
            home = room(".".join(place.with_suffix("").parts))
            inner = found.setdefault(home, {})
            for name in imports(path):
                if name.partition(".")[0] in PACKAGES and room(name) != home:
                    inner.setdefault(room(name), str(place))
    del found["pipeline.__init__"]
    return found


def test_rooms_import_what_the_table_allows_and_nothing_else() -> None:
    others = {name for name in ALLOWED if not name.startswith("pipeline.")}
    assert set(arrows()) == set(ALLOWED)
    allowed = {}
    for name, text in ALLOWED.items():
        parts = {part.strip() for part in text.split(",") if part}
        inside = name.startswith("pipeline.")
        allowed[name] = {f"pipeline.{part}" for part in parts} | others if inside else parts
    wrong = [(home, f"imports {target}", "in", place) for home, targets in arrows().items()
             for target, place in targets.items() if target not in allowed[home]]  # fmt: skip
    assert not wrong
    unused = [(home, part) for home, parts in allowed.items() for part in parts - others - set(arrows()[home])]
    assert not unused, "the table allows what nobody needs"


def test_rooms_form_no_cycle_and_few_floors() -> None:
    order = TopologicalSorter({home: set(targets) for home, targets in arrows().items()}).static_order()
    floors: dict[str, int] = {}
    for home in order:  # raises CycleError
        below = (floors[target] for target in arrows()[home] if target.startswith("pipeline."))
        floors[home] = 1 + max(below, default=0)
    inside = [(home, target) for home, targets in arrows().items() for target in targets
              if home.startswith("pipeline.") and target.startswith("pipeline.")]  # fmt: skip
    assert max(floors.values()) <= 8 and len(inside) <= 65


def test_few_imports_stand_inside_functions() -> None:
    """About one a command, and those of modules that need Triton, vLLM or TRL."""
    found = [f"{path.relative_to(ROOT)}:{inner.lineno}" for package in (*PACKAGES, "scripts")
             for path in sorted((ROOT / package).rglob("*.py"))
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
             for inner in ast.walk(node) if isinstance(inner, ast.ImportFrom)
             and str(inner.module).partition(".")[0] in PACKAGES]  # fmt: skip
    assert len(found) <= MOST_DEFERRED, "\n".join(found)


def test_rewards_and_data_need_no_torch() -> None:
    for package in ("rewards", "data", "storage"):
        for path in (ROOT / package).rglob("*.py"):
            heavy = {"torch", "transformers", "vllm", "trl"} & {name.partition(".")[0] for name in imports(path)}
            assert not heavy, f"{path} imports {heavy}"
