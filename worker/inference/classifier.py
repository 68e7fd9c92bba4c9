"""Texts to labels: duplicates, cache, tokens, batches, engine, and back in order.

The public Python API:

    from worker import Classifier
    for result in Classifier.load().classify(["gg wp", "why would you do that"]):
        print(result.labels, result.scores)
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import onnxruntime

from worker import defaults
from worker.errors import EngineError
from worker.inference.artifact import BUILT_IN_MODEL, load_artifact
from worker.inference.cache import DiskCache, MemoryCache, text_key, tokens_key
from worker.inference.cpu import cpu_kind
from worker.inference.decisions import Scores, decide, scores_of
from worker.inference.engine import Engine
from worker.inference.tokens import TextTokenizer, cut_batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.inference.artifact import Artifact

_CLASSIFICATIONS_AT_HAND: Final = 4096
_KNOWN_GOOD_TEXT: Final = "good game, well played"


class Classification(NamedTuple):
    """What the model says of a text.

    `labels` are those given, in the model's order, maybe none; `scores` has each label's, a
    float32 in [0, 1]; `truncated` tells that the text was longer than the model's limit.
    """

    labels: tuple[str, ...]
    scores: Scores
    truncated: bool


@dataclass(slots=True)
class Counts:
    """What was done, since the model was loaded.

    Answers come from duplicates (another text of the same call), the table in memory, the disk, or
    are computed; together that is `texts`. `tokens` and `batch_sizes` (how many batches, by their
    number of texts) are of what was computed.
    """

    texts: int = 0
    duplicates: int = 0
    memory_hits: int = 0
    disk_hits: int = 0
    computed: int = 0
    truncated: int = 0
    tokens: int = 0
    tokenize_seconds: float = 0.0
    infer_seconds: float = 0.0
    batch_sizes: Counter[int] = field(default_factory=Counter)

    @property
    def hit_rate(self) -> float:
        """Return the share of texts that the engine did not have to score."""
        return 1 - self.computed / self.texts if self.texts else 0.0


@dataclass
class Classifier:
    """A model ready to label texts, from one thread; `close` it where it has a disk cache."""

    artifact: Artifact
    disk: DiskCache | None = None
    memory_entries: int = defaults.MEMORY_ENTRIES
    token_budget: int = defaults.TOKEN_BUDGET
    counts: Counts = field(default_factory=Counts, init=False)

    def __post_init__(self) -> None:
        """Load engine and tokenizer."""
        self.engine = Engine(self.artifact)
        self._tokenizer = TextTokenizer(self.artifact)
        self._memory = MemoryCache(self.memory_entries)
        # What most messages of a chat get again and again.
        self._classification = lru_cache(_CLASSIFICATIONS_AT_HAND)(self._decode_answer)
        # After a byte that tells whether the text was truncated.
        self._scores = struct.Struct(f"={len(self.artifact.manifest.labels)}f")
        # On another kind of CPU or onnxruntime a score may differ in its last place.
        parts = [self.artifact.scores_digest, onnxruntime.__version__, cpu_kind()]
        parts.append(str(self.engine.exact_products))
        self._namespace = hashlib.sha256("\n".join(parts).encode()).digest()

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        thresholds: dict[str, float] | None = None,
        cache_directory: str | Path | None = None,
        memory_entries: int = defaults.MEMORY_ENTRIES,
    ) -> Self:
        """Load a model folder, by default the built-in emotion model.

        `thresholds` override the model's, label by label. `cache_directory` adds a disk cache
        that processes of this host can share; without it, only this process remembers.

        Raises:
            ArtifactError: the folder is not a model, or damaged.
            ConfigurationError: a threshold is for a label that the model has not.

        """
        artifact = load_artifact(Path(model) if model else BUILT_IN_MODEL, thresholds)
        disk = DiskCache(Path(cache_directory), defaults.DISK_BYTES) if cache_directory else None
        return cls(artifact, disk, memory_entries)

    def classify(self, texts: Sequence[str]) -> list[Classification]:
        """Classify texts, in order; each answer depends on its text and the model alone.

        Raises:
            TypeError: a text is not a string.
            EngineError: a batch could not be scored; nothing is said of any text then.

        """
        answers: dict[bytes, bytes] = {}
        missing: dict[bytes, str] = {}
        keys = [text_key(_text(text)) for text in texts]
        for key, text in zip(keys, texts, strict=True):
            if key in answers or key in missing:
                continue
            answer = self._memory.get(key)
            if answer is None:
                missing[key] = text
            else:
                answers[key] = answer
        from_memory = len(answers)
        computed = self._compute(missing, answers)
        results = {key: self._classification(answer) for key, answer in answers.items()}
        ordered = [results[key] for key in keys]
        self.counts.texts += len(keys)
        self.counts.duplicates += len(keys) - len(results)
        self.counts.memory_hits += from_memory
        self.counts.computed += computed
        self.counts.disk_hits += len(results) - from_memory - computed
        self.counts.truncated += sum(result.truncated for result in ordered)
        return ordered

    def check(self) -> None:
        """Score a known good text, past all caches.

        Raises:
            EngineError: the model fails on it, so the fault is not a message's.

        """
        (tokens,) = self._tokenizer.encode([_KNOWN_GOOD_TEXT])
        try:
            self.engine.run([tokens.ids])
        except EngineError:
            raise EngineError(
                "the model fails on a known good text", "check the model folder and the memory"
            ) from None

    def close(self) -> None:
        """Finish what the disk cache still has to write."""
        if self.disk:
            self.disk.close()

    def _compute(self, missing: Mapping[bytes, str], answers: dict[bytes, bytes]) -> int:
        """Add answers for the missing texts; returns how many texts the engine scored.

        An answer is a byte, 1 where the text was truncated, and the scores as float32.
        """
        started = time.perf_counter()
        tokens = self._tokenizer.encode(list(missing.values()))
        self.counts.tokenize_seconds += time.perf_counter() - started
        token_keys = [tokens_key(self._namespace, ids) for ids, _ in tokens]
        unique = dict(zip(token_keys, (ids for ids, _ in tokens), strict=True))
        scores = self.disk.get_many(unique) if self.disk else {}
        # A value of another size was not written by this version for this model.
        scores = {key: each for key, each in scores.items() if len(each) == self._scores.size}
        new = self._score({key: ids for key, ids in unique.items() if key not in scores})
        if self.disk and new:
            self.disk.put_many(new)
        scores |= new
        for key, token_key, (_, truncated) in zip(missing, token_keys, tokens, strict=True):
            answers[key] = bytes([truncated]) + scores[token_key]
            self._memory.put(key, answers[key])
        return len(new)

    def _score(self, unique: Mapping[bytes, list[int]]) -> dict[bytes, bytes]:
        started = time.perf_counter()
        keys, sequences = list(unique), list(unique.values())
        scores = {}
        for batch, token_ids in cut_batches(sequences, self.token_budget):
            for index, logits in zip(batch, self.engine.run(token_ids), strict=True):
                scores[keys[index]] = scores_of(self.artifact.manifest.task, logits).tobytes()
            self.counts.tokens += sum(len(ids) for ids in token_ids)
            self.counts.batch_sizes[len(batch)] += 1
        self.counts.infer_seconds += time.perf_counter() - started
        return scores

    def _decode_answer(self, answer: bytes) -> Classification:
        manifest = self.artifact.manifest
        scores = self._scores.unpack_from(answer, 1)
        labels = decide(manifest.task, manifest.labels, scores, self.artifact.thresholds)
        return Classification(labels, Scores(manifest.labels, answer[1:]), answer[0] == 1)


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"texts must be strings, not {type(text).__name__}")
    return text
