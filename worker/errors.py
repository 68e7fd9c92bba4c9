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
    """An error that a person can act on: the base class of all errors of this package.

    Its text is one sentence, which says what is wrong, where, and what to do. That sentence is
    always our own: messages of libraries quote their input (texts, secrets) and are never passed
    on. Commands print it and end.

    Example:
        >>> from worker import Classifier, WorkerError
        >>> try:
        ...     Classifier.load("no-such-folder")
        ... except WorkerError as error:
        ...     print(error)  # doctest: +ELLIPSIS
        cannot read no-such-folder/manifest.json: No such file or directory; name a model folder ...

    """

    def __init__(self, problem: str, advice: str = "") -> None:
        """Take the problem (what is wrong, and where) and the advice (what to do)."""
        super().__init__(f"{problem}; {advice}" if advice else problem)


class ConfigurationError(WorkerError):
    """A setting, an argument or a combination of them that cannot work.

    Commands end with exit code 2.

    Example:
        >>> from worker import Classifier, ConfigurationError
        >>> try:
        ...     Classifier.load(thresholds={"joy": 5.0})
        ... except ConfigurationError as error:
        ...     print(error)  # doctest: +ELLIPSIS
        the threshold of joy is not a number from 0 to 1; ...

    """


class ArtifactError(WorkerError):
    """A model folder that is missing, incomplete, altered or not understood.

    Example:
        >>> from worker import ArtifactError, Classifier
        >>> try:
        ...     Classifier.load("/dev/null")
        ... except ArtifactError as error:
        ...     print(error)  # doctest: +ELLIPSIS
        cannot read /dev/null/manifest.json: Not a directory; ...

    """


class EngineError(WorkerError):
    """A batch that the engine could not score, or whose scores are not finite numbers.

    `Classifier.check` tells whether the model or the batch is at fault.

    Example:
        >>> from worker import Classifier, EngineError
        >>> classifier = Classifier.load()
        >>> try:
        ...     results = classifier.classify(["gg wp"])
        ... except EngineError:
        ...     classifier.check()

    """


class ExampleFileError(WorkerError):
    """A file of labelled texts that cannot be read as one; names the file and the line."""


class QualityGateError(WorkerError):
    """An int8 model that strays too far from its fp32 checkpoint; nothing was written."""
