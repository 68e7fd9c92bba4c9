"""From texts to labels: the public Python API.

A call of `Classifier.classify` scores each text once, however often the call has it: what the
caches do not know becomes tokens, the tokens become batches, and the engine scores those.
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

from worker import defaults
from worker.errors import EngineError
from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.cache import DiskCache, MemoryCache, text_key, tokens_key
from worker.inference.decisions import Scores, decide, scores_of
from worker.inference.engine import load_model, open_engine
from worker.inference.tokens import TextTokenizer, cut_batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.inference.artifact import Artifact
    from worker.inference.engine import EngineKind

_CLASSIFICATIONS_KEPT: Final = 4096
_KNOWN_GOOD_TEXT: Final = "good game, well played"


class Classification(NamedTuple):
    """What the model says of one text.

    Attributes:
        labels: the labels given, in the model's order; there may be none.
        scores: the score of each label of the model, a float32 from 0 to 1. A label is given where
            its score reaches its threshold; a model that gives one label a text gives the label
            with the highest score only.
        truncated: whether the text was longer than the model's limit, so that its end was not
            looked at.

    Example:
        >>> from worker import Classifier
        >>> (result,) = Classifier.load().classify(["I love this so much"])
        >>> result.labels
        ('joy',)
        >>> result.scores["joy"] > 0.9
        True
        >>> result.truncated
        False

    """

    labels: tuple[str, ...]
    scores: Scores
    truncated: bool


@dataclass(slots=True)
class Counts:
    """What a classifier has done since it was loaded.

    Attributes:
        texts: how many texts it labelled; each is also one of the next four.
        duplicates: texts that the same call had before.
        memory_hits: texts found in the table of this process.
        disk_hits: texts whose tokens were found in the disk cache, or are those of another text of
            the same call.
        computed: texts that the engine scored.
        truncated: texts that were longer than the model's limit.
        tokens: tokens that the engine scored.
        tokenize_seconds: time spent on making texts into tokens.
        infer_seconds: time spent in the engine, and on making its logits into scores.
        batch_sizes: how many batches the engine scored, by their number of texts.

    Example:
        >>> from worker import Classifier
        >>> classifier = Classifier.load()
        >>> for _ in range(2):
        ...     results = classifier.classify(["gg", "gg", "wp"])
        >>> counts = classifier.counts
        >>> counts.texts, counts.duplicates, counts.memory_hits, counts.computed
        (6, 2, 2, 2)

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
        """Return the share of texts, from 0 to 1, that the engine did not have to score."""
        return 1 - self.computed / self.texts if self.texts else 0.0


@dataclass
class Classifier:
    """A model that is ready to label texts, for use from one thread.

    `Classifier.load` makes one; a `with` statement closes it.

    Attributes:
        artifact: the verified model folder; `artifact.manifest.labels` are the model's labels.
        disk: the disk cache, or None.
        memory_entries: how many texts are remembered in this process; 0 remembers none.
        token_budget: how many tokens the engine scores at once. Scores do not depend on it.
        backend: the instructions that the native engine uses; by default the fastest of this machine.
        counts: what was done so far.

    Example:
        >>> from worker import Classifier
        >>> with Classifier.load() as classifier:
        ...     for result in classifier.classify(["gg wp", "I am so sad today"]):
        ...         print(result.labels)
        ('neutral',)
        ('sadness',)

    """

    artifact: Artifact
    disk: DiskCache | None = None
    memory_entries: int = defaults.MEMORY_ENTRIES
    token_budget: int = defaults.TOKEN_BUDGET
    backend: str | None = None
    counts: Counts = field(default_factory=Counts, init=False)

    def __post_init__(self) -> None:
        """Load the engine and the tokenizer."""
        self.engine = open_engine(self.artifact, self.backend)
        self._tokenizer = TextTokenizer(self.artifact)
        self._memory = MemoryCache(self.memory_entries)
        # Most messages of a chat are among a few texts, whose classifications are kept as objects.
        self._decode = lru_cache(_CLASSIFICATIONS_KEPT)(self._decode_uncached)
        self._scores = struct.Struct(f"={len(self.artifact.manifest.labels)}f")
        # What differs in the last place of a score is not shared.
        parts = [self.artifact.scores_digest, self.engine.identity]
        self._namespace = hashlib.sha256("\n".join(parts).encode()).digest()

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        thresholds: Mapping[str, float] | None = None,
        cache_directory: str | Path | None = None,
        memory_entries: int = defaults.MEMORY_ENTRIES,
        engine: EngineKind = "auto",
    ) -> Self:
        """Load a model folder, by default the built-in emotion model.

        Args:
            model: a folder such as `worker prepare` writes.
            thresholds: numbers from 0 to 1 that override the model's thresholds, by label.
            cache_directory: a folder for a disk cache, which processes of this host can share and
                which outlives them; without it, only this process remembers. It holds digests and
                scores, never a text.
            memory_entries: how many texts to remember in this process, at about 200 bytes each; 0
                remembers none.
            engine: `native` or `onnxruntime`; by default native where this machine can run it.

        Returns:
            A classifier; `close` it, or use it in a `with` statement, where it has a disk cache.

        Raises:
            ArtifactError: the folder is not a model, or it is damaged.
            ConfigurationError: a threshold is not a number from 0 to 1, or is for a label that the
                model does not have.

        Example:
            >>> from worker import Classifier
            >>> strict = Classifier.load(thresholds={"joy": 1.0})
            >>> strict.classify(["I love this so much"])[0].labels
            ()

        """
        artifact = load_model(Path(model) if model else BUILT_IN_MODEL, thresholds, engine)
        disk = DiskCache(Path(cache_directory), defaults.DISK_BYTES) if cache_directory else None
        return cls(artifact, disk, memory_entries)

    def __enter__(self) -> Self:
        """Return this classifier."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close this classifier."""
        self.close()

    def classify(self, texts: Sequence[str]) -> list[Classification]:
        """Label texts.

        The classification of a text depends on that text and the model alone, not on the other
        texts, their order or the caches.

        Args:
            texts: any number of strings of any length and content; a single string is refused.

        Returns:
            A classification for each text, in the order of the texts.

        Raises:
            TypeError: `texts` is a single string, or a text is not a string.
            EngineError: the engine could not score a batch; then no text of the call is labelled.

        Example:
            >>> from worker import Classifier
            >>> classifier = Classifier.load()
            >>> [result.labels for result in classifier.classify(["gg wp", "that was scary"])]
            [('neutral',), ('fear',)]
            >>> classifier.classify([])
            []

        """
        if isinstance(texts, (str, bytes)):
            raise TypeError(
                f"classify takes a list of texts, not one {type(texts).__name__}: "
                "write classify([text]), with a text that is a str"
            )
        encoded: dict[bytes, bytes] = {}
        missing: dict[bytes, str] = {}
        keys = [text_key(text) for text in texts]
        for key, text in zip(keys, texts, strict=True):
            if key in encoded or key in missing:
                continue
            known = self._memory.get(key)
            if known is None:
                missing[key] = text
            else:
                encoded[key] = known
        from_memory = len(encoded)
        computed = self._compute(missing, encoded)
        results = {key: self._decode(each) for key, each in encoded.items()}
        ordered = [results[key] for key in keys]
        self.counts.texts += len(keys)
        self.counts.duplicates += len(keys) - len(results)
        self.counts.memory_hits += from_memory
        self.counts.computed += computed
        self.counts.disk_hits += len(results) - from_memory - computed
        self.counts.truncated += sum(result.truncated for result in ordered)
        return ordered

    def check(self) -> None:
        """Score a known good text, past all caches; return where that works.

        After an error of `classify`, this tells whether the model or a text is at fault.

        Raises:
            EngineError: the model fails on that text, too, so that no message is at fault.

        Example:
            >>> from worker import Classifier
            >>> Classifier.load().check()

        """
        (tokens,) = self._tokenizer.encode([_KNOWN_GOOD_TEXT])
        try:
            self.engine.run([tokens.ids])
        except EngineError:
            raise EngineError(
                "the model fails on a known good text", "check the model folder and the memory"
            ) from None

    def close(self) -> None:
        """Finish what the disk cache still has to write, for a few seconds at most.

        Without a disk cache there is nothing to do. A `with` statement does this by itself.

        Example:
            >>> import tempfile
            >>> from worker import Classifier
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     first = Classifier.load(cache_directory=folder)
            ...     results = first.classify(["gg wp"])
            ...     first.close()
            ...     with Classifier.load(cache_directory=folder) as second:
            ...         print(second.classify(["gg wp"]) == results, second.counts.disk_hits)
            True 1

        """
        if self.disk:
            self.disk.close()

    def _compute(self, missing: Mapping[bytes, str], encoded: dict[bytes, bytes]) -> int:
        """Add the missing texts to `encoded`; returns how many of them the engine scored.

        An encoded classification is one byte, 1 where the text was truncated, and the scores.
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
            encoded[key] = bytes([truncated]) + scores[token_key]
            self._memory.put(key, encoded[key])
        return len(new)

    def _score(self, unique: Mapping[bytes, list[int]]) -> dict[bytes, bytes]:
        """Return the scores of token ids, by the keys of these, as float32 end to end."""
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

    def _decode_uncached(self, encoded: bytes) -> Classification:
        manifest = self.artifact.manifest
        scores = self._scores.unpack_from(encoded, 1)
        labels = decide(manifest.task, manifest.labels, scores, self.artifact.thresholds)
        return Classification(labels, Scores(manifest.labels, encoded[1:]), encoded[0] == 1)
