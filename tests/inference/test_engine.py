"""Both engines are bit-exact: a text's logits are the same bytes in every batch."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import NATIVE, POISON
from worker.errors import EngineError
from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.engine import Engine, EngineKind, load_model, open_engine
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from worker.inference.artifact import Artifact

STATM = Path("/proc/self/statm")
TOKENS = st.integers(min_value=1000, max_value=30_000)

TEXTS = st.lists(TOKENS, min_size=1, max_size=20)
# Texts of any lengths, and texts of one length.
BATCHES = st.lists(TEXTS, min_size=1, max_size=40) | st.integers(1, 20).flatmap(
    lambda tokens: st.lists(st.lists(TOKENS, min_size=tokens, max_size=tokens), min_size=1)
)


@pytest.fixture(scope="module", params=[pytest.param("native", marks=NATIVE), "onnxruntime"])
def kind(request: pytest.FixtureRequest) -> EngineKind:
    found: EngineKind = request.param
    return found


@pytest.fixture(scope="module")
def engine(kind: EngineKind) -> Engine:
    return open_engine(load_model(BUILT_IN_MODEL, kind=kind))


def random_batch(texts: int, tokens: int) -> list[list[int]]:
    ids = np.random.default_rng(0).integers(1000, 30_000, (texts, tokens))
    return [row.tolist() for row in ids]


@settings(max_examples=60)
@given(batch=BATCHES, data=st.data())
def test_logits_do_not_depend_on_the_batch_or_the_order(
    engine: Engine, batch: list[list[int]], data: st.DataObject
) -> None:
    together = engine.run(batch)
    alone = np.concatenate([engine.run([ids]) for ids in batch])
    order = data.draw(st.permutations(range(len(batch))))
    shuffled = engine.run([batch[each] for each in order])
    assert together.tobytes() == alone.tobytes()
    assert shuffled.tobytes() == together[order].tobytes()


def test_long_texts_are_exact_too(engine: Engine, artifact: Artifact) -> None:
    longest = artifact.manifest.max_tokens
    batch = [*random_batch(3, longest), *random_batch(2, 5)]
    together = engine.run(batch)
    assert all(
        engine.run([ids]).tobytes() == logits.tobytes()
        for ids, logits in zip(batch, together, strict=True)
    )


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc")
def test_memory_is_steady_after_warming_up(engine: Engine) -> None:
    rng = np.random.default_rng(1)
    lengths = [[*rng.integers(3, 40, 12), rng.integers(3, 257)] for _ in range(200)]
    batches = [
        [rng.integers(1000, 30_000, each).tolist() for each in sorted(some)] for some in lengths
    ]
    for batch in batches[:50]:
        engine.run(batch)
    before = resident()
    for batch in batches[50:]:
        engine.run(batch)
    # A batch that kept the activations of a dozen tokens each time would exceed this.
    assert resident() - before < 150 * 12 * 384 * 4


def resident() -> int:
    """Return this process's memory, in bytes."""
    return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def test_a_token_id_beyond_the_vocabulary_is_an_engine_error(engine: Engine) -> None:
    with pytest.raises(EngineError, match="1 texts, 1 tokens in all"):
        engine.run([[10**7]])


def test_scores_that_are_not_finite_are_an_engine_error(
    poisoned_model: Path, kind: EngineKind
) -> None:
    artifact = load_model(poisoned_model, kind=kind)
    engine = open_engine(artifact)
    good, bad = (tokens.ids for tokens in TextTokenizer(artifact).encode(["horse", POISON]))
    engine.run([good])
    with pytest.raises(EngineError, match="not finite"):
        engine.run([bad])
    with pytest.raises(EngineError, match="not finite"):
        engine.run([good, bad, good])
    engine.run([good])
