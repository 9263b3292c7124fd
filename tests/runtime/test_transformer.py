"""The encoder in C++, in every instruction set, against a textbook: the same, one text at a time, in float64."""

from __future__ import annotations

import math
import threading
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

VOCABULARY, POSITIONS = 50, 310
PAD, FURTHER = 1, 2


class Linear(NamedTuple):
    codes: np.ndarray
    scales: np.ndarray
    bias: np.ndarray | None


class Product(NamedTuple):
    linears: list[Linear]
    smoothing: np.ndarray | None
    zero_point: int
    least: float


class Layer(NamedTuple):
    projections: Product
    attention_output: Product
    attention_norm: tuple[np.ndarray, np.ndarray]
    inner: Product
    output: Product
    output_norm: tuple[np.ndarray, np.ndarray]


class Textbook:
    """A small random model, and what its definition gives."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        inner: int,
        layers: int,
        mean_pooling: bool = True,
        pad_id: int = -1,
        seed: int = 0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.heads = heads
        self.arguments: dict[str, Any] = {
            "n_heads": heads,
            "epsilon": 1e-5,
            "mean_pooling": mean_pooling,
            "first_position": pad_id + 1,
            "pad_id": pad_id,
            "words": self.table(VOCABULARY, width),
            "positions": self.table(POSITIONS, width),
            "token_type": self.floats(width),
            "embedding_norm": self.norm(width),
            "layers": [
                Layer(
                    Product(
                        [self.linear(width, width, bias=b) for b in (True, False, False)], self.factors(width), 128, -1
                    ),
                    Product([self.linear(width, width)], None, 128, -1),
                    self.norm(width),
                    Product([self.linear(width, inner)], self.factors(width), 128, -1),
                    Product([self.linear(inner, width)], None, 20, 0.17),
                    self.norm(width),
                )
                for _ in range(layers)
            ],
            "token_head": (self.floats(width, 32) * 0.1, self.floats(32) * 0.1),
            "sparse_head": (self.floats(width) * 0.1, 0.1),
        }

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32)

    def factors(self, width: int) -> np.ndarray:
        return self.rng.uniform(0.5, 2, width).astype(np.float32)

    def norm(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        return self.factors(width), self.floats(width) * np.float32(0.1)

    def table(self, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.integers(-127, 128, (rows, width), dtype=np.int8), self.factors(rows) / 127

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> Linear:
        codes = self.rng.integers(-127, 128, (inputs, outputs), dtype=np.int8)
        scales = self.factors(outputs) / np.float32(73 * math.sqrt(inputs))
        return Linear(codes, scales, self.floats(outputs) * np.float32(0.1) if bias else None)

    def native(self, kernels: ModuleType) -> Any:
        def product(of: Product) -> Any:
            return kernels.Product([kernels.Linear(*linear) for linear in of.linears], *of[1:])

        layers = [
            kernels.Layer(*(product(part) if isinstance(part, Product) else part for part in layer))
            for layer in self.arguments["layers"]
        ]
        return kernels.Transformer(**{**self.arguments, "layers": layers}, n_threads=2)

    def run(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dense [width], weights [tokens, 1] and token vectors of one text, 0 where the mask is."""
        of, held = self.arguments, mask > 0
        counted = ids != of["pad_id"]
        positions = of["first_position"] + np.where(counted, np.cumsum(counted) - 1, -1)
        (words, word_scales), (places, place_scales) = of["words"], of["positions"]
        x = words[ids] * word_scales[ids, None].astype(float) + of["token_type"]
        x = self.normalized((x + places[positions] * place_scales[positions, None])[held], of["embedding_norm"])
        for layer in of["layers"]:
            x = self.layer(x, layer)
        kept = np.ones(len(x), bool) if of["mean_pooling"] else (mask[held] == FURTHER) | (np.flatnonzero(held) == 0)
        weights, vectors = np.zeros(len(ids)), np.zeros((len(ids), of["token_head"][1].size))
        weights[held] = np.maximum(0, x @ of["sparse_head"][0] + of["sparse_head"][1])
        vectors[held] = unit(x @ of["token_head"][0] + of["token_head"][1])
        return unit(x[kept].mean(axis=0)), weights[:, None], vectors

    def layer(self, x: np.ndarray, layer: Layer) -> np.ndarray:
        queries, keys, values = multiplied(x, layer.projections)
        attended = np.hstack(
            [
                attention(*parts)
                for parts in zip(*(np.split(rows, self.heads, axis=1) for rows in (queries, keys, values)), strict=True)
            ]
        )
        y = self.normalized(multiplied(attended, layer.attention_output)[0] + x, layer.attention_norm)
        (inner,) = multiplied(y, layer.inner)
        gelu = inner * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(inner)
        return self.normalized(multiplied(gelu, layer.output)[0] + y, layer.output_norm)

    def normalized(self, x: np.ndarray, norm: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.arguments["epsilon"])
        return centred / deviation * norm[0] + norm[1]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def attention(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    scores = queries @ keys.T / math.sqrt(keys.shape[1])
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True) @ values


def multiplied(rows: np.ndarray, product: Product) -> list[np.ndarray]:
    """The products of rows in bytes: a scale for each, so that the largest and the smallest number fit."""
    rows = rows if product.smoothing is None else rows * product.smoothing
    below = product.least if product.least >= 0 else np.maximum(0, -rows.min(axis=1, keepdims=True))
    above = np.maximum(0, rows.max(axis=1, keepdims=True))
    scales = np.maximum(above / (255 - product.zero_point), below / product.zero_point)
    codes = np.rint(rows / scales)
    return [
        codes @ linear.codes * scales * linear.scales + (0 if linear.bias is None else linear.bias)
        for linear in product.linears
    ]


MODELS = {
    "BERT's": {"width": 64, "heads": 2, "inner": 128, "layers": 1},
    "XLM-RoBERTa's": {"width": 64, "heads": 4, "inner": 192, "layers": 1, "mean_pooling": False, "pad_id": PAD},
    "widths that fill no tile": {"width": 48, "heads": 3, "inner": 80, "layers": 1},
    "wide heads": {"width": 96, "heads": 1, "inner": 16, "layers": 1, "mean_pooling": False},
}


@pytest.fixture(params=MODELS)
def textbook(request: pytest.FixtureRequest) -> Textbook:
    return Textbook(**MODELS[request.param])


def batch(lengths: list[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Padded texts; the second token of each long enough is the padding's, every eighth a further `<s>`."""
    ids = np.full((len(lengths), max(lengths)), PAD, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = rng.integers(2, VOCABULARY, length)
        ids[row, 1:2] = PAD
        mask[row, :length] = 1
        mask[row, 8:length:8] = FURTHER
    return ids, mask


IN_16_BITS = ("amx-int8", "avx512-vnni", "avx-vnni")  # attention there, elsewhere in float32


def assert_near(ours: np.ndarray, theirs: np.ndarray, native: ModuleType) -> None:
    """Rows of length 1 or so. A number on the border of two bytes may fall to either side and moves what follows."""
    off = np.sqrt(np.square(ours - theirs).sum(axis=-1).mean())
    assert off < (0.03 if native.instruction_set() in IN_16_BITS else 0.01)


def test_all_heads_are_what_the_definition_gives(native, textbook):
    lengths = [1, 7, 16, 17, 33, 39, 2, 128, 129, 300]
    ids, mask = batch(lengths, textbook.rng)
    dense, weights, tokens = textbook.native(native).run(ids, mask, True, True, True, 2)
    tokens = tokens.reshape(*ids.shape, -1)
    for row in range(len(lengths)):
        expected = textbook.run(ids[row], mask[row])
        for ours, theirs in zip((dense[row], weights[row, :, None], tokens[row]), expected, strict=True):
            assert_near(ours, theirs, native)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40) | st.sampled_from([129, 300]), min_size=1, max_size=20),
    threads=st.integers(1, 5),
)
def test_a_text_is_the_same_bit_for_bit_in_every_batch_on_any_number_of_threads(lengths, threads):
    native = pytest.importorskip("m3edge._native", reason="without a compiler there is no encoder of our own")
    textbook = Textbook(width=64, heads=2, inner=128, layers=2)
    transformer = textbook.native(native)
    ids, mask = batch(lengths, np.random.default_rng(len(lengths)))
    together = transformer.run(ids, mask, True, True, True, threads)
    tokens = together[2].reshape(*ids.shape, -1)
    for row, length in enumerate(lengths):
        alone = transformer.run(
            ids[row : row + 1, :length].copy(), mask[row : row + 1, :length].copy(), True, True, True, 1
        )
        np.testing.assert_array_equal(together[0][row], alone[0][0])
        np.testing.assert_array_equal(together[1][row, :length], alone[1][0])
        np.testing.assert_array_equal(tokens[row, :length], alone[2])
        assert not together[1][row, length:].any()
        assert not tokens[row, length:].any()


def test_only_what_is_asked_for_is_computed(native, textbook):
    ids, mask = batch([5, 9], textbook.rng)
    transformer = textbook.native(native)
    everything = transformer.run(ids, mask, True, True, True, 1)
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        for one, other, asked in zip(transformer.run(ids, mask, *wanted, 1), everything, wanted, strict=True):
            np.testing.assert_array_equal(one, other if asked else other[:0])


def test_no_texts_and_texts_without_a_token_are_allowed(native, textbook):
    transformer = textbook.native(native)
    nothing = np.zeros((0, 0), np.int64)
    assert [len(out) for out in transformer.run(nothing, nothing, True, True, True, 2)] == [0, 0, 0]
    ids, mask = batch([4, 4, 4], textbook.rng)
    mask[1] = 0
    dense, weights, tokens = transformer.run(ids, mask, True, True, True, 2)
    assert not dense[1].any()
    assert not weights[1].any()
    assert not tokens.reshape(3, 4, -1)[1].any()
    np.testing.assert_array_equal(dense[2], transformer.run(ids[2:], mask[2:], True, True, True, 1)[0][0])


def test_many_threads_at_once_get_what_one_gets(native, textbook):
    transformer = textbook.native(native)
    batches = [batch(list(range(1, 2 + i)), np.random.default_rng(i)) for i in range(8)]
    expected = [transformer.run(*texts, True, True, True, 1) for texts in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            results = transformer.run(*batches[i], True, True, True, 3)
            if not all(np.array_equal(a, b) for a, b in zip(results, expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[VOCABULARY]], [[1]], f"input_ids must be below {VOCABULARY}, got {VOCABULARY}"),
        ([[-1]], [[1]], f"input_ids must be below {VOCABULARY}, got -1"),
        ([[3] * (POSITIONS + 1)], [[1] * (POSITIONS + 1)], f"a text must fit the model's {POSITIONS} positions"),
        ([[3, 3]], [[1]], "attention_mask must have the shape of input_ids"),
    ],
)
def test_texts_that_do_not_fit_the_tables_are_refused(native, ids, mask, message):
    transformer = Textbook(width=64, heads=2, inner=64, layers=1).native(native)
    with pytest.raises(ValueError, match=message):
        transformer.run(np.array(ids), np.array(mask), True, True, True, 1)


def test_what_stands_behind_a_text_need_not_be_in_the_tables(native):
    textbook = Textbook(width=64, heads=2, inner=64, layers=1)
    ids, mask = batch([3], textbook.rng)
    wider = np.pad(ids, ((0, 0), (0, 2)), constant_values=VOCABULARY + 7), np.pad(mask, ((0, 0), (0, 2)))
    transformer = textbook.native(native)
    dense, _, tokens = transformer.run(*wider, True, False, True, 1)
    alone = transformer.run(ids, mask, True, False, True, 1)
    np.testing.assert_array_equal(dense, alone[0])
    np.testing.assert_array_equal(tokens[:3], alone[2])


def changed(**arguments: Any) -> Textbook:
    textbook = Textbook(width=64, heads=2, inner=64, layers=1)
    textbook.arguments |= arguments
    return textbook


OTHER_LAYERS = Textbook(width=32, heads=1, inner=64, layers=1).arguments["layers"]


@pytest.mark.parametrize(
    ("textbook", "message"),
    [
        (Textbook(width=64, heads=8, inner=64, layers=1), "a head's width must be a multiple of 16"),
        (Textbook(width=64, heads=2, inner=72, layers=1), "widths must be multiples of 16"),
        (changed(n_heads=0), "n_heads must be at least 1, got 0"),
        (changed(token_type=np.zeros(48, np.float32)), "a table must be 48 wide"),
        (changed(sparse_head=(np.zeros(63, np.float32), 0.0)), "the heads' widths must be the model's"),
        (changed(layers=OTHER_LAYERS), "a layer's widths must be the model's"),
    ],
)
def test_widths_that_do_not_fit_are_refused(native, textbook, message):
    with pytest.raises(ValueError, match=message):
        textbook.native(native)


def test_arrays_of_another_kind_are_refused(native, textbook):
    transformer = textbook.native(native)
    ids, mask = batch([4], textbook.rng)
    with pytest.raises(TypeError):
        transformer.run(ids.astype(np.int32), mask, True, True, True, 1)
    with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
        transformer.run(ids, mask, True, True, True, 0)
    with pytest.raises(ValueError, match="zero_point must be from 1 to 254, got 0"):
        native.Product([native.Linear(*textbook.linear(16, 16))], None, 0, -1.0)
    with pytest.raises(ValueError, match="scales and bias must be one for each of the 16 outputs"):
        native.Linear(*textbook.linear(16, 16)._replace(scales=np.zeros(3, np.float32)))
