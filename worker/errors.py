"""The errors a person may see: each says what is wrong and where, and what to do about it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """How a command ends."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    DONE_WITH_DEAD_LETTERS = 3
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_CODES: Final = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed: standard error says what and where",
    ExitCode.WRONG_USAGE: "wrong usage or configuration; nothing was done",
    ExitCode.DONE_WITH_DEAD_LETTERS: "done, but some records became dead letters",
    ExitCode.INTERRUPTED: "interrupted by SIGINT; ready to be continued",
    ExitCode.TERMINATED: "interrupted by SIGTERM; ready to be continued",
}


class WorkerError(Exception):
    """What ends a command, explained in one sentence.

    The sentence is our own, because messages of libraries quote their input (texts, secrets). They
    are never passed on.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        """Join the problem (what is wrong, and where) and the advice (what to do)."""
        super().__init__(f"{problem}; {advice}" if advice else problem)


class ConfigurationError(WorkerError):
    """A setting, a flag or a combination of them that cannot work (exit code 2)."""


class ArtifactError(WorkerError):
    """A model folder that is missing, incomplete, altered or not understood."""


class EngineError(WorkerError):
    """A batch that the engine could not score, or scored with numbers that are not finite."""


class ExampleFileError(WorkerError):
    """A file of labelled texts that cannot be read as one; names the file and the line."""


class QualityGateError(WorkerError):
    """An int8 model that strays too far from its fp32 checkpoint; nothing was written."""
