"""What every command that labels needs, made from the settings."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Final

from worker.errors import ConfigurationError
from worker.events.decoding import Fields
from worker.events.encoding import OUTPUT_FIELDS
from worker.inference.cache import DiskCache
from worker.inference.classifier import Classifier
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
    return Fields(settings.text_field, settings.id_field, settings.keep, settings.skip_field)


def open_classifier(settings: Settings, artifact: Artifact) -> Classifier:
    """Load engine and caches, the last of what stays until the end."""
    folder = settings.cache_directory
    disk = DiskCache(folder, settings.cache.disk_bytes) if folder else None
    entries = settings.cache.memory_entries if settings.cache.enabled else 0
    classifier = Classifier(artifact, disk, entries, settings.engine.token_budget)
    log.info(
        "model loaded",
        model=artifact.manifest.name,
        digest=artifact.digest,
        int8_products="u8 x u8, slower" if classifier.engine.exact_products else "u8 x s8",
    )
    _collect_rarely()
    return classifier


def _collect_rarely() -> None:
    """Keep the garbage collector from looking through what is in use anyway.

    A chunk is tens of thousands of objects, in use until it is complete; at the usual threshold the
    collector goes through them again and again, in vain.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
