"""What can go wrong, one class per exit code, so that scripts and schedulers can tell the cases apart.

The classes live in the core because every room may raise them and the core is what every room may import.
A message says what is wrong, where, why, and what to do about it.
"""

from __future__ import annotations


class MedmaeError(Exception):
    """Anything medmae refuses to do; ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class UsageError(MedmaeError):
    """A command, option or configuration that cannot be meant (exit code 2)."""

    exit_code = 2


class DataError(MedmaeError):
    """Data that failed validation (exit code 3)."""

    exit_code = 3


class MissingDependency(MedmaeError):
    """A missing package, extra or device (exit code 4); the message carries the pip line."""

    exit_code = 4


class CheckpointError(MedmaeError):
    """A checkpoint that does not fit what it is loaded into (exit code 5)."""

    exit_code = 5


class OutOfMemory(MedmaeError):
    """Not enough memory for the requested step (exit code 6); the message names the knobs to turn."""

    exit_code = 6


class Requeue(MedmaeError):
    """Training stopped by a signal after writing a checkpoint; start again with ``--resume`` (exit code 75)."""

    exit_code = 75
