"""Benchmarks, one command each; all print a table and write the same JSON form (see `pipeline/benchmark.py`)."""

import click
import repo_root  # noqa: F401


@click.group(help=__doc__)
def bench() -> None:
    pass


@bench.command()
@click.option(
    "--programs", type=click.IntRange(min=8), default=96, show_default=True, help="How many different programs."
)
@click.option(
    "--out", type=click.Path(dir_okay=False), default="bench.json", show_default=True, help="Where the JSON goes."
)
def grader(programs: int, out: str) -> None:
    """The grader pool beside the naive way, beside the compiler alone, and its cost per test."""
    from pipeline.bench_grader import measure
    from pipeline.benchmark import describe_machine, describe_versions, print_table, report, write_json
    from rewards.errors import GraderError
    from rewards.pool import compiler_version

    machine = describe_machine()
    try:
        rows = measure(programs)
    except GraderError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
    print_table("grader", rows)
    write_json(out, report(rows, machine, describe_versions() | {"g++": compiler_version("g++")}))
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    bench()
