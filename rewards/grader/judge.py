"""Grades one program on one problem, in this process: compile, run all tests, compare. The pool's workers call it.

Time limits count CPU time, with a slack over the problem's nominal limit: neighbours on the same core slow a program
down by up to 1.9 times (measured), and limits of data sets come from other machines anyway. Expected outputs stay in
this process; the sandbox of the program never holds them. After the second time-out of a program its other tests count
as failed without being run, so fewer tests than could be may count as passed: keep the cheap tests first.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import signal
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rewards.errors import GraderFault
from rewards.grader.apart import PREFIX as APART
from rewards.grader.compare import matches
from rewards.grader.header import Shortcut
from rewards.grader.runner import MESSAGES, Limits, Run
from rewards.grader.sandbox import Sandbox
from rewards.grader.scratch import free_bytes
from rewards.grader.toolchains import Toolchain, find_toolchain, with_libraries
from rewards.problem import Problem
from rewards.verdict import Status, TestVerdict, Verdict

MEGABYTE = 1 << 20
DIAGNOSTICS_BYTES = 4096
DETAIL_BYTES = 300
STOP_AFTER_TIMEOUTS = 2
_KEPT_INPUTS = 8  # problems whose inputs stay on tmpfs for the next program of the group
_KEPT_CHECKERS = 16
_OUT_OF_MEMORY = re.compile(rb"bad_alloc|bad_array_new_length|MemoryError|cannot allocate memory|wsfull", re.IGNORECASE)
# Written by the compiler's driver when the kernel took one of its parts away, which only a shortage of memory does.
_KILLED = re.compile(r"^\S+: fatal error: (Killed signal terminated program \w+|ld terminated with signal 9.*)$", re.M)
_CANNOT_START = {errno.ENOEXEC, errno.ENOENT, errno.EINVAL, errno.EACCES, errno.ELIBBAD}
# What a program's own errors look like: not those of a header that the compiler cannot use (a fatal error, a crash).
_OWN_ERROR = re.compile(r": error: |undefined reference to|multiple definition of")
_TOO_LONG = "CPU time limit exceeded"  # the compiler's driver says it of its parts
_COMPILERS_ERROR = re.compile(r"fatal error: |internal compiler error|^cc1plus: error: ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """Everything a grader process must know. `header_folder` is the store of precompiled headers, if there is one."""

    sandbox: Sandbox
    compiler: str
    standard: str
    header_folder: str = ""
    time_factor: float = 1.5  # CPU limit = time_factor * nominal + time_extra
    time_extra: float = 0.1
    idle_s: float = 3.0  # a program that does not use the CPU for this long is waiting for nothing
    compile_cpu_s: float = 20.0  # <regex> takes 3 s on an idle core
    compile_memory: int = 2048 * MEGABYTE
    compile_file: int = 64 * MEGABYTE
    output_bytes: int = 16 * MEGABYTE  # or four times the longest expected output, if that is more


class Judge:
    """Grades programs one after another, with `folder` (on tmpfs) for its files."""

    def __init__(self, config: JudgeConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._toolchains: dict[str, Toolchain] = {}
        self._inputs: OrderedDict[tuple[str, ...], Path] = OrderedDict()
        self._checkers: OrderedDict[str, Path] = OrderedDict()

    def grade(self, source: str, problem: Problem, shortcuts: Sequence[Shortcut] = ()) -> Verdict:
        """The verdict. `shortcuts` are faster ways to compile the same program, tried in their order.

        Raises `GraderFault` when the grader failed, `GraderError` when there is no toolchain.
        """
        toolchain = with_libraries(self._toolchain(problem.language), problem.libraries)
        job = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        try:
            return self._grade(source, problem, shortcuts, toolchain, job)
        finally:
            shutil.rmtree(job)

    def _grade(
        self, source: str, problem: Problem, shortcuts: Sequence[Shortcut], toolchain: Toolchain, job: Path
    ) -> Verdict:
        total = len(problem.tests)
        compiled, messages, header = self._compile(source, toolchain, job, shortcuts)
        messages = messages.encode()[:DIAGNOSTICS_BYTES].decode(errors="replace")
        if compiled is None:
            return Verdict(Status.COMPILE_ERROR, total=total, diagnostics=messages, header=header)
        if compiled.how == "cpu" or _TOO_LONG in messages:
            messages = f"the compiler took more than {self.config.compile_cpu_s:g} s of CPU time"
        if not _is_done(compiled):
            return Verdict(
                Status.COMPILE_ERROR, total=total, diagnostics=messages, compile_s=compiled.cpu_s, header=header
            )
        if not total:
            return Verdict(
                Status.WRONG_ANSWER,
                compiled=True,
                diagnostics="the problem has no tests",
                compile_s=compiled.cpu_s,
                header=header,
            )
        tests = self._run_tests(problem, toolchain, job)
        failed = next((test for test in tests if test.status is not Status.ACCEPTED), None)
        return Verdict(
            status=failed.status if failed else Status.ACCEPTED,
            passed=sum(test.status is Status.ACCEPTED for test in tests),
            total=total,
            compiled=True,
            tests=tuple(tests),
            diagnostics=failed.detail if failed else "",
            cpu_s=sum(test.cpu_s for test in tests),
            compile_s=compiled.cpu_s,
            header=header,
        )

    # ------------------------------------------------------------------ compiling

    def _toolchain(self, language: str) -> Toolchain:
        if language not in self._toolchains:
            self._toolchains[language] = find_toolchain(language, self.config.compiler, self.config.standard)
        return self._toolchains[language]

    def _compile(
        self, source: str, toolchain: Toolchain, job: Path, shortcuts: Sequence[Shortcut] = ()
    ) -> tuple[Run | None, str, str]:
        """How the compiler ended (None: it made no program), its messages, what became of the precompiled header."""
        path, spent = job / toolchain.source_name, 0.0
        for shortcut in shortcuts:
            path.write_bytes(shortcut.rest.encode("utf-8", "replace"))
            run, messages = self._call_compiler(toolchain, job, shortcut)
            spent += run.cpu_s if run else 0.0
            if run and (_is_done(run) or (not shortcut.lean and _is_own_fault(run, messages))):
                return replace(run, cpu_s=spent), messages, "used"
        path.write_bytes(source.encode("utf-8", "replace"))
        run, messages = self._call_compiler(toolchain, job)
        return run and replace(run, cpu_s=run.cpu_s + spent), messages, "rejected" if shortcuts else ""

    def _call_compiler(
        self, toolchain: Toolchain, job: Path, shortcut: Shortcut | None = None
    ) -> tuple[Run | None, str]:
        config = self.config
        names = {"{source}": toolchain.source_name, "{program}": toolchain.program_name}
        command: list[str] = []
        for word in toolchain.compile:
            if word != "{flags}":
                command.append(names.get(word, word))
            elif shortcut:
                command += ["-include", shortcut.header]
        command += shortcut.archives if shortcut else ()
        wall_s = max(60.0, 10 * config.compile_cpu_s)  # idle or not: the compiler waits for its parts
        limits = Limits(config.compile_cpu_s, config.compile_memory, config.compile_file, wall_s=wall_s, idle_s=wall_s)
        readable = (*toolchain.folders, *((config.header_folder,) if shortcut else ()))
        (job / toolchain.program_name).unlink(missing_ok=True)
        run = config.sandbox.compile(command, job, limits, readable)
        messages = _head(job / MESSAGES, 64 * DIAGNOSTICS_BYTES).decode(errors="replace").replace(f"{job}/", "")
        if run.how in ("starved", "idle", "unstarted"):
            raise GraderFault(f"the compiler did not finish ({run.how}, code {run.code}): the machine is too busy")
        if _KILLED.search(messages) or (run.code and free_bytes(job) < config.compile_file):
            raise GraderFault(f"the machine ran out of memory or space while compiling: {messages[:200]}")
        if run.how == "exit" and run.code == 0 and not (job / toolchain.program_name).is_file():
            return None, "the compiler produced no program\n" + messages
        return run, messages

    # ------------------------------------------------------------------ running

    def _run_tests(self, problem: Problem, toolchain: Toolchain, job: Path) -> list[TestVerdict]:
        config = self.config
        inputs = self._input_folder(problem, job)
        outputs = job / "out"
        outputs.mkdir()
        cpu_s = problem.time_limit * config.time_factor + config.time_extra
        limits = Limits(
            cpu_s=cpu_s,
            memory_bytes=problem.memory_limit + toolchain.extra_memory,
            file_bytes=max(config.output_bytes, 4 * max(len(test.output) for test in problem.tests)),
            wall_s=max(20.0, 10 * cpu_s),
            idle_s=config.idle_s,
        )
        program = str(job / toolchain.program_name)
        if _loaded_bytes(Path(program)) > limits.memory_bytes:  # exec would fail half-way, as if by a crash
            too_large = TestVerdict(Status.MEMORY_LIMIT, detail="the program does not fit into memory")
            return [too_large] * len(problem.tests)
        runs = config.sandbox.run(
            [program if word == "{program}" else word for word in toolchain.run],
            range(len(problem.tests)),
            inputs,
            outputs,
            limits,
            readable=(program, *toolchain.folders),
            environment=toolchain.environment,
            stop_after=STOP_AFTER_TIMEOUTS,
        )
        verdicts = [self._judge_run(run, problem, limits, outputs) for run in runs]
        if problem.checker.type == "program":
            verdicts = self._check(problem, verdicts, inputs, outputs, job)
        not_run = TestVerdict(Status.TIME_LIMIT, detail=f"not run after {STOP_AFTER_TIMEOUTS} time-outs")
        return verdicts + [not_run] * (len(problem.tests) - len(verdicts))

    def _input_folder(self, problem: Problem, job: Path) -> Path:
        key = tuple(test.input for test in problem.tests)
        if key in self._inputs:
            self._inputs.move_to_end(key)
            return self._inputs[key]
        if len(self._inputs) == _KEPT_INPUTS:
            shutil.rmtree(self._inputs.popitem(last=False)[1])
        made = Path(tempfile.mkdtemp(prefix="inputs-", dir=job))  # where nothing stays of it if it cannot be written
        for index, text in enumerate(key):
            (made / f"{index}.in").write_bytes(_encode(text))
        self._inputs[key] = made.rename(self.folder / made.name)
        return self._inputs[key]

    def _judge_run(self, run: Run, problem: Problem, limits: Limits, outputs: Path) -> TestVerdict:
        status, detail = self._status(run, problem, limits, outputs)
        return TestVerdict(status, run.cpu_s, run.memory_bytes, detail)

    def _status(self, run: Run, problem: Problem, limits: Limits, outputs: Path) -> tuple[Status, str]:
        if run.how == "starved":
            raise GraderFault(
                f"the program got {run.cpu_s:.2f} s of CPU in {run.wall_s:.0f} s: the machine is too busy"
            )
        if run.how == "unstarted":
            if run.code in (errno.ENOMEM, errno.E2BIG):
                return Status.MEMORY_LIMIT, "the program does not fit into memory"
            if run.code in _CANNOT_START:
                return Status.RUNTIME_ERROR, "the program cannot be started"
            raise GraderFault(f"the program was not started: error {run.code}")
        if run.how == "idle":
            return Status.TIME_LIMIT, f"waited for {run.wall_s:.1f} s without computing"
        if run.how == "cpu" or run.cpu_s > limits.cpu_s or (run.how == "signal" and run.code == signal.SIGXCPU):
            return Status.TIME_LIMIT, f"more than {limits.cpu_s:.2f} s of CPU time"
        if run.how == "output" or (run.how == "signal" and run.code == signal.SIGXFSZ):
            return Status.OUTPUT_LIMIT, f"more than {limits.file_bytes} bytes of output"
        if run.memory_bytes > problem.memory_limit:
            return Status.MEMORY_LIMIT, f"{run.memory_bytes} bytes of memory, the limit is {problem.memory_limit}"
        if run.how == "signal" or run.code != 0:
            return self._abnormal_end(run, problem, outputs)
        if problem.checker.type == "program":
            return Status.ACCEPTED, ""  # so far: the checker has the last word
        output = (outputs / f"{run.test}.out").read_bytes()
        expected = _encode(problem.tests[run.test].output)
        if matches(problem.checker.type, output, expected, problem.checker.tolerance):
            return Status.ACCEPTED, ""
        return Status.WRONG_ANSWER, f"wrong answer on test {run.test + 1}"

    @staticmethod
    def _abnormal_end(run: Run, problem: Problem, outputs: Path) -> tuple[Status, str]:
        errors = _head(outputs / f"{run.test}.errors", DETAIL_BYTES)
        tail = errors.decode(errors="replace").strip()
        if run.how == "signal":
            name = signal.Signals(run.code).name if run.code in signal.valid_signals() else str(run.code)
            what = f"ended by signal {name}"
        else:
            what = f"exit code {run.code}"
        detail = f"{what}: {tail}" if tail else what
        # An allocation that was refused shows in the message, one that grew step by step in the peak.
        if _OUT_OF_MEMORY.search(errors) or run.memory_bytes > 0.9 * problem.memory_limit:
            return Status.MEMORY_LIMIT, detail
        if run.how == "signal" and run.code == signal.SIGKILL:
            # A program cannot send it, so it was the kernel: no room for the program in exec, or memory shortage.
            if run.memory_bytes < 8 * MEGABYTE:
                return Status.MEMORY_LIMIT, "the program does not fit into memory"
            raise GraderFault("the kernel killed the program: the machine is short of memory")
        return Status.RUNTIME_ERROR, detail

    # ------------------------------------------------------------------ checker programs

    def _check(
        self, problem: Problem, verdicts: list[TestVerdict], inputs: Path, outputs: Path, job: Path
    ) -> list[TestVerdict]:
        """Let the checker program judge the runs that ended well. It has its own sandbox, which holds the answers."""
        todo = [index for index, verdict in enumerate(verdicts) if verdict.status is Status.ACCEPTED]
        if not todo:
            return verdicts
        checker = self._checker(problem.checker.source)
        answers, reports = job / "answers", job / "reports"
        answers.mkdir()
        reports.mkdir()
        empty = Path(tempfile.mkdtemp(prefix="empty-", dir=job))
        for index in todo:
            (answers / f"{index}.ans").write_bytes(_encode(problem.tests[index].output))
            (empty / f"{index}.in").touch()
        runs = self.config.sandbox.run(
            [str(checker), f"{inputs}/@.in", f"{outputs}/@.out", f"{answers}/@.ans"],
            todo,
            empty,
            reports,
            Limits(cpu_s=10.0, memory_bytes=1024 * MEGABYTE, file_bytes=MEGABYTE, wall_s=100.0),
            readable=(str(checker), str(inputs), str(outputs), str(answers)),
            stop_after=1,
        )
        judged = list(verdicts)
        for run in runs:
            if run.how != "exit" or run.code not in (0, 1, 2):
                said = _head(reports / f"{run.test}.errors", DETAIL_BYTES).decode(errors="replace")
                raise GraderFault(f"the checker of problem {problem.id} failed ({run.how} {run.code}) {said}".strip())
            if run.code:
                said = _head(reports / f"{run.test}.errors", DETAIL_BYTES).decode(errors="replace").strip()
                old, detail = judged[run.test], f"wrong answer on test {run.test + 1} {said}".rstrip()
                judged[run.test] = TestVerdict(Status.WRONG_ANSWER, old.cpu_s, old.memory_bytes, detail)
        return judged

    def _checker(self, source: str) -> Path:
        """The compiled checker; the last few are kept."""
        key = hashlib.sha256(source.encode()).hexdigest()[:16]
        if key in self._checkers:
            self._checkers.move_to_end(key)
            return self._checkers[key]
        toolchain = self._toolchain("cpp")
        folder = self.folder / f"checker-{key}"
        folder.mkdir(exist_ok=True)
        run, messages, _ = self._compile(source, toolchain, folder)
        if run is None or run.how != "exit" or run.code != 0:
            raise GraderFault(f"the checker does not compile: {messages[:500]}")
        if len(self._checkers) == _KEPT_CHECKERS:
            shutil.rmtree(self._checkers.popitem(last=False)[1].parent)
        self._checkers[key] = folder / toolchain.program_name
        return self._checkers[key]


def _loaded_bytes(program: Path) -> int:
    """The memory that a 64-bit ELF program asks for before it starts (its largest segment); 0 for anything else."""
    data = _head(program, 4096)
    if data[:5] != b"\x7fELF\x02":
        return 0
    table, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    segments = (table + index * size for index in range(count) if table + (index + 1) * size <= len(data))
    return max((struct.unpack_from("<Q", data, at + 40)[0] for at in segments), default=0)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _head(path: Path, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(length)
    except FileNotFoundError:
        return b""


def _is_done(run: Run) -> bool:
    return run.how == "exit" and run.code == 0


def _is_own_fault(run: Run, messages: str) -> bool:
    """Whether a compilation with a precompiled header failed as it would have without."""
    if run.how == "cpu" or _TOO_LONG in messages:
        return True
    headers = _COMPILERS_ERROR.search(messages) or APART in messages
    return bool(run.how == "exit" and _OWN_ERROR.search(messages) and not headers)
