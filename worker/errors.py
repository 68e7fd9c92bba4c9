"""The errors a person may see: each says what is wrong and where, and what to do about it."""

from __future__ import annotations


class WorkerError(Exception):
    """Something that ends a command, told in one sentence.

    The sentence is ours: messages of libraries quote their input (texts, secrets) and are never
    passed on.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        """Keep the problem (what and where) and the advice (what to do)."""
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
