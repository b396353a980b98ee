"""The one kind of error that the commands answer with a sentence instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What people can mend: a setting, a file, a missing program. The message is one sentence that says what was wrong,
    where, and what to do."""


class ConfigError(UserError):
    """A setting that cannot work; the message names it and says what to use."""
