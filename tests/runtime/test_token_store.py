"""Token vectors on disk: every codec gives back what it promises, pooling clusters, damage is named."""

import numpy as np
import pytest

from m3edge import Document, Index
from m3edge._maxsim_numpy import unpack_records
from m3edge.corpus import EncodedCorpus
from m3edge.embeddings import TokenRows, offsets_of
from m3edge.index.pooling import pool_tokens, ward_labels
from m3edge.index.tokens import CODECS, TokenStore
from m3edge.scoring import maxsim

DOCUMENTS = [Document(f"d{i}", f"Text number {i} is about compressing files and about tea.") for i in range(20)]
BITS = {"fp16": 16, "int8": 8, "int4": 4, "binary": 1}
ERROR = {"fp16": 1e-3, "int8": 0.01, "int4": 0.2, "binary": 1.0}
BYTES = {"fp16": 768, "int8": 388, "int4": 196, "binary": 52}


def unit(rng, n, dim=384):
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("codec", sorted(set(CODECS) - {"none"}))
def test_every_codec_gives_vectors_and_scores_back_within_its_error(rng, tmp_path, codec):
    store, vectors = TokenStore(tmp_path, 384, codec), unit(rng, 30)
    assert store.bytes_per_token == BYTES[codec]
    store.write(0, vectors[:10])
    store.write(10, unit(rng, 50))  # an interrupted job's rest
    store.write(10, vectors[10:])
    store.map_rows(30)
    starts, counts = np.array([10, 0, 5]), np.array([20, 7, 0])
    rows = np.concatenate([store.rows(*place) for place in zip(starts.tolist(), counts.tolist(), strict=True)])
    codes, scales = unpack_records(rows, BITS[codec], 384)
    read = TokenRows(codes * scales[:, None], offsets_of(counts))
    expected = np.concatenate([vectors[10:], vectors[:7]])
    assert np.linalg.norm(read.vectors - expected, axis=1).max() < ERROR[codec]
    query = unit(rng, 5)
    np.testing.assert_allclose(store.scores(query, starts, counts, 2), maxsim(query, read), atol=2e-3)


def test_ward_merges_what_is_near():
    corners = np.float32([[1, 0], [0, 1], [-1, 0]])
    vectors = np.repeat(corners, 3, axis=0) + np.float32([[0, 0], [0.01, 0], [0, 0.01]] * 3)
    assert ward_labels(vectors, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("n_clusters", [1, 3, 8])
def test_ward_takes_the_cheapest_union_each_time(rng, n_clusters):
    vectors = unit(rng, 8, 4)
    clusters = [[i] for i in range(8)]
    while len(clusters) > n_clusters:

        def rise(pair):
            a, b = (vectors[clusters[i]] for i in pair)
            return len(a) * len(b) / (len(a) + len(b)) * ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()

        a, b = min(((i, j) for i in range(len(clusters)) for j in range(i)), key=rise)
        clusters[b] += clusters.pop(a)
    labels = ward_labels(vectors, n_clusters)
    assert {tuple(np.flatnonzero(labels == label)) for label in set(labels)} == {tuple(sorted(c)) for c in clusters}


def test_pooling_leaves_a_half_or_a_third_of_unit_vectors(rng):
    tokens = TokenRows(unit(rng, 1311, 8), np.array([0, 0, 1, 11, 1311]))
    assert pool_tokens(tokens, 1) is tokens
    assert np.diff(pool_tokens(tokens, 2).offsets).tolist() == [0, 1, 5, 650]
    pooled = pool_tokens(tokens, 3)
    assert np.diff(pooled.offsets).tolist() == [0, 1, 4, 171 + 171 + 92]
    np.testing.assert_allclose(np.linalg.norm(pooled.vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("codec", "pooling"), [("int8", 2), ("int4", 1), ("binary", 1), ("fp16", 3)])
def test_an_index_keeps_its_codec_and_its_pooling(tmp_path, encoder, codec, pooling):
    with Index.create(tmp_path / "a", encoder, token_codec=codec, token_pooling=pooling) as index:
        index.add(DOCUMENTS)
        expected = index.search("compress a file")
    with Index.open(tmp_path / "a", encoder) as index:
        assert (index.token_codec, index.token_pooling) == (codec, pooling)
        assert index.search("compress a file") == expected
        assert index.check().sound


def test_wrong_settings_are_refused(tmp_path, encoder):
    with pytest.raises(ValueError, match="token_codec must be one of int8, fp16, int4, binary, none, got 'int2'"):
        Index.create(tmp_path / "a", encoder, token_codec="int2")
    with pytest.raises(ValueError, match="token_pooling must be 1, 2 or 3, got 4"):
        Index.create(tmp_path / "a", encoder, token_pooling=4)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("codec", ["none", "int2"])
def test_a_corpus_to_measure_needs_token_vectors(encoder, codec):
    with pytest.raises(ValueError, match=f"token_codec must be one of int8, fp16, int4, binary, got '{codec}'"):
        EncodedCorpus(encoder, ["tea"], token_codec=codec)


def test_a_flipped_byte_is_named_with_its_documents_and_upserting_them_repairs(index):
    index.add(DOCUMENTS[:10])
    index.add(DOCUMENTS[10:])
    path = index.folder / "tokens.i8"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    (problem,) = index.check().problems
    assert problem.file == str(path)
    assert (problem.remedy, problem.documents) == ("encode", ("d19",))
    index.upsert(DOCUMENTS[19:])
    assert index.check().sound
