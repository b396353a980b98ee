"""What can go wrong with the grader itself, as opposed to a program it grades."""

from __future__ import annotations

from storage.errors import UserError


class GraderError(UserError, RuntimeError):
    """The grader cannot be set up or used as asked; the message is one sentence that says what to do."""


class GraderFault(Exception):
    """The grader failed on a program (dead process, no space, starvation): retried alone, then `NO_VERDICT`."""
