// m3edge._native: checks what Python hands over, lets go of the GIL, calls the kernels. Nothing is computed here.
//
// Arrays are taken as they lie (`noconvert`): another type or a strided array is a TypeError, never a silent copy. The
// readable definition of every function is its twin (m3edge/_kernels_numpy.py names them all).
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "checks.h"
#include "cpu.h"
#include "crc32.h"
#include "dense.h"
#include "fusion.h"
#include "graph.h"
#include "hybrid.h"
#include "inner_product.h"
#include "maxsim.h"
#include "postings.h"
#include "unigram.h"

using namespace nb::literals;

namespace {

template <class T>
std::optional<Result<T>> returned(const std::vector<T>& values, bool is_wanted = true) {
    if (!is_wanted) return std::nullopt;
    auto result = new_vector<T>(values.size());
    std::copy(values.begin(), values.end(), result.data());
    return result;
}

void check_ranges(const Vector<int64_t>& starts, const Vector<int64_t>& counts, size_t n_rows) {
    if (starts.shape(0) != counts.shape(0))
        refuse("starts and counts must be of one length, got " + std::to_string(starts.shape(0)) + " and " +
               std::to_string(counts.shape(0)));
    const int64_t rows = int64_t(n_rows);
    for (size_t i = 0; i < starts.shape(0); ++i) {
        const int64_t start = starts.data()[i], count = counts.data()[i];
        if (start < 0 || count < 0 || start > rows || count > rows - start)
            refuse("starts and counts must lie within the " + std::to_string(rows) + " records, got start " +
                   std::to_string(start) + ", count " + std::to_string(count));
    }
}

m3edge::Records checked_records(const Matrix<uint8_t>& records, int64_t bits, size_t dim) {
    if (bits != 16 && bits != 8 && bits != 4 && bits != 1)
        refuse("bits must be 16, 8, 4 or 1, got " + std::to_string(bits));
    const size_t record_bytes = records.shape(1);
    const size_t code_bytes = (dim * size_t(bits) + 7) / 8;
    const size_t needed = bits == 16 ? code_bytes : 4 + (code_bytes + 3) / 4 * 4;
    if (record_bytes != needed)
        refuse("records must be " + std::to_string(needed) + " bytes wide for " + std::to_string(dim) +
               " dimensions in " + std::to_string(bits) + " bits, got " + std::to_string(record_bytes));
    return {records.data(), record_bytes, int(bits)};
}

Result<float> maxsim_records(const Matrix<float>& query, const Matrix<uint8_t>& records, int64_t bits,
                             const Vector<int64_t>& starts, const Vector<int64_t>& counts, int64_t n_threads) {
    const m3edge::Records checked = checked_records(records, bits, query.shape(1));
    check_ranges(starts, counts, records.shape(0));
    check_finite("query", query.data(), query.size());
    const size_t threads = checked_threads(n_threads);
    Result<float> scores = new_vector<float>(starts.shape(0));
    {
        nb::gil_scoped_release release;
        m3edge::maxsim(query.data(), query.shape(0), query.shape(1), checked, starts.data(), counts.data(),
                       starts.shape(0), threads, scores.data());
    }
    return scores;
}

// Dense vectors

auto dense_codes(const Matrix<float>& vectors, int64_t n_threads) {
    const size_t n = vectors.shape(0), dim = vectors.shape(1), threads = checked_threads(n_threads);
    auto codes = new_matrix<int8_t>(n, dim);
    auto scales = new_vector<float>(n), errors = new_vector<float>(n);
    bool is_finite;
    {
        nb::gil_scoped_release release;
        is_finite = m3edge::dense_codes(vectors.data(), n, dim, threads, codes.data(), scales.data(), errors.data());
    }
    if (!is_finite) refuse("vectors must be finite, got an infinity or a NaN");
    return std::make_tuple(codes, scales, errors);
}

auto dense_candidates(const Vector<float>& query, const Matrix<int8_t>& codes, const Vector<float>& scales,
                      const Vector<float>& errors, const Vector<bool>& allowed, int64_t k, int64_t n_threads) {
    const size_t n = codes.shape(0);
    if (query.shape(0) != codes.shape(1))
        refuse("query and codes must be of one width, got " + std::to_string(query.shape(0)) + " and " +
               std::to_string(codes.shape(1)));
    if (scales.shape(0) != n || errors.shape(0) != n || allowed.shape(0) != n)
        refuse("scales, errors and allowed must be one for each of the " + std::to_string(n) + " rows");
    check_finite("query", query.data(), query.size());
    if (k < 1) refuse("k must be at least 1, got " + std::to_string(k));
    const size_t threads = checked_threads(n_threads);
    std::vector<m3edge::DenseCandidate> found;
    {
        nb::gil_scoped_release release;
        const m3edge::DenseCodes rows{codes.data(), scales.data(), errors.data(), n, codes.shape(1)};
        found = m3edge::dense_candidates(query.data(), rows, allowed.data(), std::min(size_t(k), std::max<size_t>(1, n)),
                                         threads);
    }
    auto positions = new_vector<int64_t>(found.size());
    auto bounds = new_vector<double>(found.size());
    for (size_t i = 0; i < found.size(); ++i) {
        positions.data()[i] = found[i].position;
        bounds.data()[i] = found[i].upper();
    }
    return std::make_tuple(positions, bounds);
}

Result<float> dense_scores(const Vector<float>& query, const Matrix<float>& vectors, const Vector<int64_t>& positions) {
    if (query.shape(0) != vectors.shape(1))
        refuse("query and vectors must be of one width, got " + std::to_string(query.shape(0)) + " and " +
               std::to_string(vectors.shape(1)));
    const int64_t rows = int64_t(vectors.shape(0));
    const size_t n = positions.shape(0);
    for (size_t i = 0; i < n; ++i)
        if (positions.data()[i] < 0 || positions.data()[i] >= rows)
            refuse("positions must lie within the " + std::to_string(rows) + " vectors, got " +
                   std::to_string(positions.data()[i]));
    Result<float> scores = new_vector<float>(n);
    {
        nb::gil_scoped_release release;
        m3edge::dense_scores(query.data(), vectors.data(), vectors.shape(1), positions.data(), n, scores.data());
    }
    return scores;
}

// The links and, kept alive with them, what C++ reads of them.
struct HeldLinks {
    Matrix<uint32_t> ground, levels;
    Vector<uint32_t> level_starts;
    m3edge::GraphLinks links;

    HeldLinks(Matrix<uint32_t> ground_, Vector<uint32_t> level_starts_, Matrix<uint32_t> levels_, int64_t start,
              int64_t top_level)
        : ground(std::move(ground_)), levels(std::move(levels_)), level_starts(std::move(level_starts_)) {
        const size_t n = ground.shape(0);
        if (level_starts.shape(0) != n + 1) refuse("level_starts must be one longer than ground");
        if (n >= m3edge::GraphLinks::no_node || start < 0 || top_level < 0)
            refuse("ground, start and top_level must be those of a graph");
        links = {ground.data(), level_starts.data(), levels.data(), n, ground.shape(1), levels.shape(1), size_t(start),
                 size_t(top_level)};
        if (!links.is_sound(levels.shape(0))) refuse("ground, level_starts and levels must be those of a graph");
    }

    std::optional<Result<int64_t>> candidates(const Vector<float>& query, const Matrix<int8_t>& codes,
                                              const Vector<float>& scales, const Vector<bool>& allowed,
                                              int64_t effort, int64_t most) const {
        const size_t n = codes.shape(0);
        if (query.shape(0) != codes.shape(1))
            refuse("query and codes must be of one width, got " + std::to_string(query.shape(0)) + " and " +
                   std::to_string(codes.shape(1)));
        if (n < links.n || scales.shape(0) != n || allowed.shape(0) != n)
            refuse("codes, scales and allowed must be of one length, at least that of the graph");
        check_finite("query", query.data(), query.size());
        if (effort < 1 || most < 1)
            refuse("effort and most must be at least 1, got " + std::to_string(effort) + " and " + std::to_string(most));
        std::optional<std::vector<int64_t>> found;
        {
            nb::gil_scoped_release release;
            const m3edge::DenseCodes rows{codes.data(), scales.data(), nullptr, n, codes.shape(1)};
            const size_t in_view = std::min(size_t(effort), std::max<size_t>(1, links.n));
            found = m3edge::graph_candidates(query.data(), rows, links, allowed.data(), in_view, size_t(most));
        }
        if (!found) return std::nullopt;
        auto positions = new_vector<int64_t>(found->size());
        std::copy(found->begin(), found->end(), positions.data());
        return positions;
    }
};

// Posting lists

// The arrays and, kept alive with them, what C++ reads of them.
struct HeldBlock {
    Vector<uint32_t> tokens, starts;
    Vector<uint16_t> documents, weights;
    Vector<uint8_t> counts;
    Vector<uint32_t> large_at;
    Vector<int32_t> large_counts;
    m3edge::PostingBlock block;

    HeldBlock(int64_t n_documents, Vector<uint32_t> tokens_, Vector<uint32_t> starts_, Vector<uint16_t> documents_,
              Vector<uint16_t> weights_, Vector<uint8_t> counts_, Vector<uint32_t> large_at_,
              Vector<int32_t> large_counts_)
        : tokens(std::move(tokens_)), starts(std::move(starts_)), documents(std::move(documents_)),
          weights(std::move(weights_)), counts(std::move(counts_)), large_at(std::move(large_at_)),
          large_counts(std::move(large_counts_)) {
        const size_t n = weights.shape(0);
        if (n_documents < 0) refuse("n_documents must be at least 0, got " + std::to_string(n_documents));
        if (starts.shape(0) != tokens.shape(0) + 1) refuse("starts must be one longer than tokens");
        if (starts.data()[tokens.shape(0)] != n || counts.shape(0) != (n + 1) / 2 ||
            large_at.shape(0) != large_counts.shape(0))
            refuse("starts, weights and counts must tell of the same number of postings");
        block.n_documents = size_t(n_documents);
        block.tokens = tokens.data();
        block.n_tokens = tokens.shape(0);
        block.starts = starts.data();
        block.documents = documents.data();
        block.document_words = documents.shape(0);
        block.weights = weights.data();
        block.counts = counts.data();
        block.large_at = large_at.data();
        block.large_counts = large_counts.data();
        block.n_large = large_at.shape(0);
        block.prepare();
    }
};

using Norms = std::optional<Vector<float>>;

// The blocks of a call, how many documents they hold, and what else all calls check alike
struct PostingCall {
    m3edge::PostingBlocks blocks;
    size_t n_documents = 0;
    m3edge::PostingQuery query{};
    m3edge::LengthNorms norms{};

    explicit PostingCall(const std::vector<const HeldBlock*>& held) {
        for (const HeldBlock* one : held) {
            blocks.push_back(&one->block);
            n_documents += one->block.n_documents;
        }
    }
    void take_query(const Vector<uint32_t>& tokens, const Vector<uint32_t>& factors) {
        if (tokens.shape(0) != factors.shape(0)) refuse("tokens and factors must be of one length");
        const uint64_t total = std::accumulate(factors.data(), factors.data() + factors.shape(0), uint64_t(0));
        if (total >= uint64_t(1) << 31)
            refuse("factors must add up to less than 2 ** 31, got " + std::to_string(total));
        query = {tokens.data(), factors.data(), tokens.shape(0)};
    }
    void take_norms(const Norms& all, const Norms& smallest) {
        if (all.has_value() != smallest.has_value()) refuse("norms and smallest must both be given, or neither");
        if (!all) return;
        if (all->shape(0) != n_documents || smallest->shape(0) != blocks.size())
            refuse("norms must be one for each document, and smallest one for each block");
        norms = {all->data(), smallest->data()};
    }
    void check_allowed(const Vector<bool>& allowed) const {
        if (allowed.shape(0) != n_documents)
            refuse("allowed must be " + std::to_string(n_documents) + " long, got " + std::to_string(allowed.shape(0)));
    }
};

auto query_factors(const Vector<int64_t>& ids, const Vector<double>& weights) {
    if (ids.size() != weights.size()) refuse("ids and weights must be of one length");
    const m3edge::QueryFactors found = m3edge::query_factors(ids.data(), weights.data(), ids.size());
    return std::make_tuple(*returned(found.tokens), *returned(found.factors), found.unit);
}

std::pair<Result<int64_t>, Result<int64_t>> top_postings(const std::vector<const HeldBlock*>& blocks,
                                                         const Vector<uint32_t>& tokens,
                                                         const Vector<uint32_t>& factors, const Norms& norms,
                                                         const Norms& smallest, const Vector<bool>& allowed,
                                                         int64_t k, int64_t n_threads) {
    PostingCall call(blocks);
    call.take_query(tokens, factors);
    call.take_norms(norms, smallest);
    call.check_allowed(allowed);
    if (k < 1) refuse("k must be at least 1, got " + std::to_string(k));
    const size_t threads = checked_threads(n_threads);
    std::vector<m3edge::PostingHit> hits;
    {
        nb::gil_scoped_release release;
        const size_t most = std::min(size_t(k), std::max<size_t>(1, call.n_documents));
        hits = m3edge::top_postings(call.blocks, call.query, call.norms, allowed.data(), most, threads);
    }
    auto positions = new_vector<int64_t>(hits.size()), scores = new_vector<int64_t>(hits.size());
    for (size_t i = 0; i < hits.size(); ++i) {
        positions.data()[i] = hits[i].position;
        scores.data()[i] = hits[i].score;
    }
    return {positions, scores};
}

Result<int64_t> score_postings(const std::vector<const HeldBlock*>& blocks, const Vector<uint32_t>& tokens,
                               const Vector<uint32_t>& factors, const Norms& norms, const Norms& smallest,
                               const Vector<int64_t>& positions) {
    PostingCall call(blocks);
    call.take_query(tokens, factors);
    call.take_norms(norms, smallest);
    const size_t n = positions.shape(0);
    for (size_t i = 0; i < n; ++i)
        if (positions.data()[i] < (i ? positions.data()[i - 1] : 0) || positions.data()[i] >= int64_t(call.n_documents))
            refuse("positions must ascend within the " + std::to_string(call.n_documents) + " documents");
    auto scores = new_vector<int64_t>(n);
    {
        nb::gil_scoped_release release;
        m3edge::score_postings(call.blocks, call.query, call.norms, positions.data(), n, scores.data());
    }
    return scores;
}

int64_t count_postings(const std::vector<const HeldBlock*>& blocks, uint32_t token, const Vector<bool>& allowed) {
    const PostingCall call(blocks);
    call.check_allowed(allowed);
    nb::gil_scoped_release release;
    return m3edge::count_postings(call.blocks, token, allowed.data());
}

// Hybrid search

using DenseArguments = std::tuple<Vector<float>, Matrix<float>>;
using GraphArguments = std::tuple<const HeldLinks*, Matrix<int8_t>, Vector<float>, int64_t, int64_t, int64_t>;
using LexicalArguments =
    std::tuple<std::vector<const HeldBlock*>, Vector<uint32_t>, Vector<uint32_t>, Norms, Norms, int64_t, double>;
using TokenArguments =
    std::tuple<Matrix<float>, Matrix<uint8_t>, int64_t, Vector<int64_t>, Vector<int64_t>, Vector<int64_t>, Vector<bool>>;

m3edge::DensePart checked_part(const DenseArguments& dense, size_t n_documents) {
    const auto& [query, vectors] = dense;
    if (query.shape(0) != vectors.shape(1) || vectors.shape(0) != n_documents)
        refuse("dense must be a query and as wide a vector for each document");
    check_finite("dense", query.data(), query.size());
    return {query.data(), vectors.data(), vectors.shape(1)};
}

m3edge::GraphPart checked_part(const GraphArguments& graph, const m3edge::DensePart& dense, size_t n_documents) {
    const auto& [links, codes, scales, k, effort, most] = graph;
    if (codes.shape(1) != dense.dim || codes.shape(0) != n_documents || scales.shape(0) != n_documents ||
        links->links.n > n_documents)
        refuse("graph must have codes and a scale for each document, and no more nodes");
    if (k < 1 || effort < k || most < 1) refuse("graph must ask for at least 1, and have no less in view");
    const size_t all = std::max<size_t>(1, links->links.n);
    return {&links->links, {codes.data(), scales.data(), nullptr, n_documents, dense.dim}, std::min(size_t(k), all),
            std::min(size_t(effort), all), size_t(most)};
}

m3edge::LexicalPart checked_part(const LexicalArguments& lexical, const Vector<bool>& allowed) {
    const auto& [blocks, tokens, factors, norms, smallest, k, scale] = lexical;
    PostingCall call(blocks);
    call.take_query(tokens, factors);
    call.take_norms(norms, smallest);
    call.check_allowed(allowed);
    if (k < 1) refuse("lexical must ask for at least 1 document, got " + std::to_string(k));
    return {call.blocks, call.query, call.norms, std::min(size_t(k), std::max<size_t>(1, call.n_documents)), scale};
}

m3edge::TokenPart checked_part(const TokenArguments& tokens, size_t n_documents) {
    const auto& [query, records, bits, starts, counts, crc32s, sound] = tokens;
    for (size_t size : {starts.shape(0), counts.shape(0), crc32s.shape(0), sound.shape(0)})
        if (size != n_documents)
            refuse("tokens must have a start, a count, a checksum and whether it was compared for each document");
    check_finite("tokens", query.data(), query.size());
    return {query.data(),   query.shape(0), query.shape(1), checked_records(records, bits, query.shape(1)),
            records.shape(0), starts.data(),  counts.data(),  crc32s.data(),
            sound.data()};
}

auto hybrid_scores(const Vector<bool>& allowed, const std::optional<Vector<int64_t>>& nearest,
                   const std::optional<DenseArguments>& dense, const std::optional<GraphArguments>& graph,
                   const std::optional<LexicalArguments>& lexical, const std::optional<TokenArguments>& tokens,
                   int64_t n_threads) {
    m3edge::HybridParts parts{};
    parts.allowed = allowed.data();
    parts.n_documents = allowed.shape(0);
    if (nearest) parts.nearest.assign(nearest->data(), nearest->data() + nearest->shape(0));
    for (int64_t position : parts.nearest)
        if (position < 0 || position >= int64_t(parts.n_documents))
            refuse("nearest must be among the " + std::to_string(parts.n_documents) + " documents, got " +
                   std::to_string(position));
    if (graph && (nearest || !dense)) refuse("graph needs dense, and leaves no place for nearest");
    if (dense) parts.dense = checked_part(*dense, parts.n_documents);
    if (graph) parts.graph = checked_part(*graph, *parts.dense, parts.n_documents);
    if (lexical) parts.lexical = checked_part(*lexical, allowed);
    if (tokens) parts.tokens = checked_part(*tokens, parts.n_documents);
    const size_t threads = checked_threads(n_threads);
    m3edge::HybridScores found;
    {
        nb::gil_scoped_release release;
        found = m3edge::hybrid_scores(parts, threads);
    }
    using Scores = std::tuple<Result<int64_t>, std::optional<Result<float>>, std::optional<Result<float>>,
                              std::optional<Result<float>>, std::vector<int64_t>, std::vector<int64_t>, std::vector<double>>;
    if (found.is_graph_left) return std::optional<Scores>();
    if (found.misplaced >= 0)
        refuse("tokens must lie within the " + std::to_string(parts.tokens->n_records) + " records, those of document " +
               std::to_string(found.misplaced) + " do not");
    return std::optional<Scores>({*returned(found.positions), returned(found.dense, dense.has_value()),
                                  returned(found.lexical, lexical.has_value()),
                                  returned(found.tokens, tokens.has_value()), found.compared, found.damaged,
                                  found.seconds});
}

auto weighted_best(const std::optional<Vector<float>>& dense, const std::optional<Vector<float>>& lexical,
                   const std::optional<Vector<float>>& tokens, const std::tuple<float, float, float>& weights,
                   int64_t k) {
    std::array<const float*, 3> parts{};
    std::vector<size_t> sizes;
    size_t i = 0;
    for (const auto* part : {&dense, &lexical, &tokens}) {
        if (*part) sizes.push_back((*part)->size());
        parts[i++] = *part ? (*part)->data() : nullptr;
    }
    if (sizes.empty() || std::any_of(sizes.begin(), sizes.end(), [&](size_t size) { return size != sizes.front(); }))
        refuse("dense, lexical and tokens must be of one length, and one of them must be there");
    if (k < 1) refuse("k must be at least 1, got " + std::to_string(k));
    const auto [of_dense, of_lexical, of_tokens] = weights;
    const m3edge::Fused found =
        m3edge::weighted_best(parts, {of_dense, of_lexical, of_tokens}, sizes.front(), size_t(k));
    return std::make_pair(*returned(found.best), *returned(found.scores));
}

// Checks

int64_t row_off_length(const Matrix<float>& vectors, double least, double most) {
    for (size_t row = 0; row < vectors.shape(0); ++row) {
        const float* vector = vectors.data() + row * vectors.shape(1);
        const double square = m3edge::inner_product(vector, vector, vectors.shape(1));
        if (!(square >= least && square <= most)) return int64_t(row);
    }
    return -1;
}

std::string lexical_problem(const Vector<int64_t>& ids, const Vector<float>& weights, const Vector<int32_t>& counts,
                            const Vector<int64_t>& offsets) {
    if (ids.size() != weights.size() || ids.size() != counts.size() || offsets.size() == 0)
        refuse("there must be as many ids as weights and counts, and at least one offset");
    const size_t n_entries = ids.size(), n = offsets.size() - 1;
    return m3edge::LexicalRows{ids.data(), weights.data(), counts.data(), offsets.data(), n_entries, n}.problem();
}

uint32_t crc32(const nb::object& data, uint32_t start) {
    Py_buffer view;
    if (PyObject_GetBuffer(data.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
    uint32_t found;
    {
        nb::gil_scoped_release release;
        found = m3edge::crc32(static_cast<const uint8_t*>(view.buf), size_t(view.len), start);
    }
    PyBuffer_Release(&view);
    return found;
}

// A part of a row: bytes, or text as UTF-8, which ASCII is already.
struct RowPart {
    const char* data;
    Py_ssize_t size;
    nb::object owner;

    explicit RowPart(nb::handle part) {
        if (PyUnicode_Check(part.ptr()) && PyUnicode_IS_COMPACT_ASCII(part.ptr())) {
            data = static_cast<const char*>(PyUnicode_DATA(part.ptr()));
            size = PyUnicode_GET_LENGTH(part.ptr());
            return;
        }
        if (PyUnicode_Check(part.ptr())) {
            owner = nb::steal(PyUnicode_AsUTF8String(part.ptr()));
            if (!owner.is_valid()) throw nb::python_error();
            part = owner;
        }
        if (!PyBytes_Check(part.ptr())) throw nb::type_error("parts must be strings or bytes");
        data = PyBytes_AS_STRING(part.ptr());
        size = PyBytes_GET_SIZE(part.ptr());
    }
};

uint32_t crc32_of_row(int64_t row, const nb::args& parts) {
    std::vector<RowPart> held;
    std::vector<int64_t> head{row};
    for (nb::handle part : parts) {
        held.emplace_back(part);
        head.push_back(held.back().size);
    }
    uint32_t found = m3edge::crc32(reinterpret_cast<const uint8_t*>(head.data()), head.size() * sizeof(int64_t));
    for (const RowPart& part : held)
        found = m3edge::crc32(reinterpret_cast<const uint8_t*>(part.data), size_t(part.size), found);
    return found;
}

// Tokenization

// The arrays, mapped from a file and kept alive, and what segments words with them.
struct HeldUnigram {
    Vector<double> scores;
    Vector<uint32_t> first;
    Vector<int32_t> ids;
    Vector<uint8_t> labels;
    m3edge::Unigram unigram;

    HeldUnigram(Vector<double> scores_, Vector<uint32_t> first_, Vector<int32_t> ids_, Vector<uint8_t> labels_,
                int64_t unknown_id)
        : scores(std::move(scores_)), first(std::move(first_)), ids(std::move(ids_)), labels(std::move(labels_)),
          unigram(checked(unknown_id), scores.data(), scores.shape(0), int32_t(unknown_id)) {}

    m3edge::Trie checked(int64_t unknown_id) const {
        const size_t n = labels.shape(0);
        if (first.shape(0) != n + 1 || ids.shape(0) != n)
            refuse("first must be one longer than labels, and ids as long as labels");
        if (unknown_id < 0 || size_t(unknown_id) >= scores.shape(0))
            refuse("unknown_id must be one of the " + std::to_string(scores.shape(0)) + " tokens, got " +
                   std::to_string(unknown_id));
        const m3edge::Trie trie{first.data(), ids.data(), labels.data(), n};
        if (!trie.is_sound(scores.shape(0))) refuse("first and ids must be those of a trie");
        return trie;
    }

    Result<int64_t> segment(const std::vector<std::string>& words) const {
        std::vector<int64_t> found;
        {
            nb::gil_scoped_release release;
            for (const std::string& word : words) unigram.segment(word, found);
        }
        auto result = new_vector<int64_t>(found.size());
        std::copy(found.begin(), found.end(), result.data());
        return result;
    }
};

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "m3edge's kernels in C++; m3edge.kernels chooses between them and their numpy twins.";

    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (m3edge::InstructionSet set : m3edge::available_instruction_sets()) names.push_back(m3edge::name_of(set));
        return names;
    });
    module.def("instruction_set", [] { return std::string(m3edge::name_of(m3edge::instruction_set())); });
    module.def("set_instruction_set", [](const std::string& name) {
        m3edge::set_instruction_set(m3edge::instruction_set_named(name));
    }, "name"_a);

    module.def("maxsim_records", &maxsim_records, "query"_a.noconvert(), "records"_a.noconvert(), "bits"_a,
               "starts"_a.noconvert(), "counts"_a.noconvert(), "n_threads"_a);

    module.def("dense_codes", &dense_codes, "vectors"_a.noconvert(), "n_threads"_a);
    module.def("dense_candidates", &dense_candidates, "query"_a.noconvert(), "codes"_a.noconvert(),
               "scales"_a.noconvert(), "errors"_a.noconvert(), "allowed"_a.noconvert(), "k"_a, "n_threads"_a);

    module.def("dense_scores", &dense_scores, "query"_a.noconvert(), "vectors"_a.noconvert(), "positions"_a.noconvert());

    nb::class_<HeldLinks>(module, "GraphLinks")
        .def(nb::init<Matrix<uint32_t>, Vector<uint32_t>, Matrix<uint32_t>, int64_t, int64_t>(), "ground"_a.noconvert(),
             "level_starts"_a.noconvert(), "levels"_a.noconvert(), "start"_a, "top_level"_a)
        .def("__len__", [](const HeldLinks& held) { return held.links.n; })
        .def("candidates", &HeldLinks::candidates, "query"_a.noconvert(), "codes"_a.noconvert(), "scales"_a.noconvert(),
             "allowed"_a.noconvert(), "effort"_a, "most"_a);

    nb::class_<HeldBlock>(module, "PostingBlock")
        .def(nb::init<int64_t, Vector<uint32_t>, Vector<uint32_t>, Vector<uint16_t>, Vector<uint16_t>, Vector<uint8_t>,
                      Vector<uint32_t>, Vector<int32_t>>(),
             "n_documents"_a, "tokens"_a.noconvert(), "starts"_a.noconvert(), "packed_documents"_a.noconvert(),
             "weights"_a.noconvert(), "counts"_a.noconvert(), "large_at"_a.noconvert(), "large_counts"_a.noconvert())
        .def_prop_ro("kept_bytes", [](const HeldBlock& held) { return held.block.kept_bytes(); });
    module.def("query_factors", &query_factors, "ids"_a.noconvert(), "weights"_a.noconvert());
    module.def("top_postings", &top_postings, "blocks"_a, "tokens"_a.noconvert(), "factors"_a.noconvert(),
               "norms"_a.noconvert().none(), "smallest"_a.noconvert().none(), "allowed"_a.noconvert(), "k"_a,
               "n_threads"_a);
    module.def("score_postings", &score_postings, "blocks"_a, "tokens"_a.noconvert(), "factors"_a.noconvert(),
               "norms"_a.noconvert().none(), "smallest"_a.noconvert().none(), "positions"_a.noconvert());
    module.def("count_postings", &count_postings, "blocks"_a, "token"_a, "allowed"_a.noconvert());

    module.def("hybrid_scores", &hybrid_scores, "allowed"_a.noconvert(), "nearest"_a.noconvert().none(),
               "dense"_a.noconvert().none(), "graph"_a.noconvert().none(), "lexical"_a.noconvert().none(),
               "tokens"_a.noconvert().none(), "n_threads"_a);

    module.def("weighted_best", &weighted_best, "dense"_a.noconvert().none(), "lexical"_a.noconvert().none(),
               "tokens"_a.noconvert().none(), "weights"_a, "k"_a);

    module.def("row_off_length", &row_off_length, "vectors"_a.noconvert(), "least"_a, "most"_a);
    module.def("lexical_problem", &lexical_problem, "ids"_a.noconvert(), "weights"_a.noconvert(),
               "counts"_a.noconvert(), "offsets"_a.noconvert());
    module.def("crc32_of_row", &crc32_of_row, "row"_a, "parts"_a);
    module.def("crc32", &crc32, "data"_a, "value"_a = 0);

    nb::class_<HeldUnigram>(module, "Unigram")
        .def(nb::init<Vector<double>, Vector<uint32_t>, Vector<int32_t>, Vector<uint8_t>, int64_t>(),
             "scores"_a.noconvert(), "first"_a.noconvert(), "ids"_a.noconvert(), "labels"_a.noconvert(), "unknown_id"_a)
        .def("segment", &HeldUnigram::segment, "words"_a);

    bind_transformer(module);
}
