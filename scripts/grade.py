"""Grade programs in the sandbox.

Either solutions of problems, as JSON lines:

    python scripts/grade.py PROBLEMS.jsonl SOLUTIONS.jsonl --out VERDICTS.jsonl

or program files on a folder of tests (NAME.in, NAME.ans):

    python scripts/grade.py --tests DIR FILE.cpp ... --time-limit 2
"""

import click
import repo_root  # noqa: F401
from command import one_sentence_errors


@click.command(help=str(__doc__).replace("    python", "\b\n    python"))  # \b: click keeps the line as it is
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--tests", "folder", type=click.Path(exists=True, file_okay=False), help="Folder of *.in and *.ans files."
)
@click.option("--out", type=click.Path(dir_okay=False), help="Where the verdicts go, one JSON line each.")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), help="CPU seconds per test.")
@click.option("--memory-limit", type=click.IntRange(min=1), help="Megabytes.")
@click.option("--checker", help="A comparison (tokens, exact, caseless, float, unordered, contains) or a C++ checker.")
@click.option("--tolerance", type=float, help="Of --checker float.  [default: 1e-06]")
@click.option("--compiler", type=click.Choice(["g++", "clang++"]), default="g++", show_default=True)
@click.option("--standard", default="c++17", show_default=True, help="C++ standard.")
@click.option("--workers", type=click.IntRange(min=1), help="Grader processes.  [default: one per CPU]")
@click.option("--unsafe-grader", is_flag=True, help="Run even where no sandbox can be had (tier C).")
def grade(files, folder, out, time_limit, memory_limit, checker, tolerance, compiler, standard, workers, unsafe_grader):
    if folder is None and len(files) != 2:
        raise click.UsageError("give PROBLEMS.jsonl and SOLUTIONS.jsonl, or --tests DIR and program files")
    if folder is None and out is None:
        raise click.UsageError("give --out VERDICTS.jsonl")
    if tolerance is not None and checker != "float":
        raise click.UsageError("--tolerance belongs to --checker float: add it, or leave the tolerance out")
    overrides = {"time_limit": time_limit, "memory_limit": memory_limit and memory_limit * 1_000_000}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    with one_sentence_errors():
        from pipeline.tools.grade import make_checker, run

        if checker is not None:
            overrides["checker"] = make_checker(checker, 1e-6 if tolerance is None else tolerance)
        pool = {"workers": workers, "unsafe": unsafe_grader, "compiler": compiler, "standard": standard}
        run(files, folder, out, overrides, **pool)


if __name__ == "__main__":
    grade()
