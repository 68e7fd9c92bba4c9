"""What every command that labels needs: fields and a classifier, made from the settings."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Final

from worker.errors import ConfigurationError
from worker.events.decoding import Fields
from worker.events.encoding import OUTPUT_FIELDS
from worker.inference import engine
from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.cache import DiskCache
from worker.inference.classifier import Classifier
from worker.inference.native_engine import why_not_native
from worker.logs.logger import log

if TYPE_CHECKING:
    from worker.inference.artifact import Artifact
    from worker.settings.schema import InputSettings, Settings

_OBJECTS_BETWEEN_COLLECTIONS: Final = 100_000


def fields_of(settings: InputSettings) -> Fields:
    """Return which fields to read.

    Raises:
        ConfigurationError: a field to keep is named like one of the output.

    """
    taken = sorted(set(settings.keep) & set(OUTPUT_FIELDS))
    if taken:
        raise ConfigurationError(
            f"fields to keep are named like fields of the output: {', '.join(taken)}",
            "the output has these anyway, or rename them in the input",
        )
    return Fields(
        text=settings.text_field,
        id=settings.id_field,
        keep=settings.keep,
        skip=settings.skip_field,
        max_id_length=settings.max_id_length,
    )


def load_model(settings: Settings) -> Artifact:
    """Return the model that the settings name, verified.

    Raises:
        ArtifactError: a file is missing, altered or not understood.
        ConfigurationError: thresholds do not fit it, it is not the one that is wanted, or the engine
            that is asked for cannot be had.

    """
    folder = settings.model or BUILT_IN_MODEL
    artifact = engine.load_model(folder, settings.thresholds, settings.engine.kind)
    if settings.model_digest not in (None, artifact.digest):
        raise ConfigurationError(
            f"the model {artifact.manifest.name} has the digest {artifact.digest}, and model_digest "
            "asks for another",
            "see the model and the thresholds, which count",
        )
    return artifact


def open_classifier(settings: Settings, artifact: Artifact) -> Classifier:
    """Return a classifier with the engine and the caches that the settings ask for.

    Raises:
        ArtifactError: the model cannot be used.
        ConfigurationError: this machine cannot run the backend that is asked for.

    """
    folder = settings.cache_directory
    disk = DiskCache(folder, settings.cache.disk_bytes) if folder else None
    entries = settings.cache.memory_entries if settings.cache.enabled else 0
    budget, backend = settings.engine.token_budget, settings.engine.backend
    classifier = Classifier(artifact, disk, entries, budget, backend)
    log.info(
        "model loaded",
        model=artifact.manifest.name,
        digest=artifact.digest,
        engine=classifier.engine.description,
    )
    if (reason := why_stand_in(settings, artifact)) is not None:
        log.warning("native engine not used", reason=reason)
    return classifier


def why_stand_in(settings: Settings, artifact: Artifact) -> str | None:
    """Return why onnxruntime takes the place of the native engine; None where nothing does."""
    if settings.engine.kind == "auto" and not artifact.computation:
        return why_not_native(artifact)
    return None


def collect_garbage_rarely() -> None:
    """Make Python's garbage collector run rarely, and leave out what has been loaded by now.

    This is for a process that does nothing but label until it ends, and has loaded its model. A
    chunk is tens of thousands of objects that stay in use until it is complete. At the usual
    threshold the collector goes through them again and again in vain, so the
    threshold becomes 100,000 objects. This changes the whole process, so commands do it, and the Python API never does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
