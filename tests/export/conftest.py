"""A tiny random model in BGE-M3's checkpoint layout: everything an export needs, in a second."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

HIDDEN = 32
TOKEN_DIM = 16


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original; tests that change it take `tiny_checkpoint`."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import XLMRobertaConfig, XLMRobertaModel

    folder = tmp_path_factory.mktemp("tiny") / "tiny-m3"
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz▁0123456789.,?你好"
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters, "▁the", "▁file", "ing"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(pieces), hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    for name, outputs in (("sparse_linear.pt", 1), ("colbert_linear.pt", TOKEN_DIM)):
        torch.save(torch.nn.Linear(HIDDEN, outputs).half().state_dict(), folder / name)  # upstream's are half too
    return folder


@pytest.fixture
def tiny_checkpoint(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    folder = tmp_path / "source" / "tiny-m3"
    shutil.copytree(tiny_source, folder)
    return folder
