// One hybrid search: what the dense and the lexical part put forward, and all scores of it. The definition: hybrid_scores
// in m3edge/_hybrid_numpy.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "crc32.h"
#include "dense.h"
#include "graph.h"
#include "maxsim.h"
#include "postings.h"

namespace m3edge {

// Scores <query, vectors[i]>.
struct DensePart {
    const float* query;
    const float* vectors;  // [n][dim]
    size_t dim;
};

// The k nearest documents, found along a graph's links: of `effort` candidates those that score best.
struct GraphPart {
    const GraphLinks* links;
    DenseCodes rows;
    size_t k, effort, most;
};

struct LexicalPart {
    PostingBlocks blocks;
    PostingQuery query;
    LengthNorms norms;
    size_t k;
    double scale;  // of the sums of weights, to make scores of them
};

// MaxSim with records starts[i] ... starts[i] + counts[i] of document i, whose bytes' CRC-32 is crc32s[i]. Where sound[i]
// they were compared with it before; where it is negative there is none.
struct TokenPart {
    const float* query;
    size_t n_tokens, dim;
    Records records;
    size_t n_records;
    const int64_t *starts, *counts, *crc32s;
    const bool* sound;

    bool is_placed(int64_t document) const {
        const int64_t start = starts[document], count = counts[document];
        return start >= 0 && count >= 0 && start <= int64_t(n_records) && count <= int64_t(n_records) - start;
    }
    // Whether the bytes of a document that is placed match their checksum.
    bool is_same(int64_t document) const {
        const uint8_t* bytes = records.data + size_t(starts[document]) * records.record_bytes;
        return crc32s[document] < 0 ||
               crc32(bytes, size_t(counts[document]) * records.record_bytes) == crc32s[document];
    }
};

// The parts that take part. `nearest` are documents that the caller found; with a graph, which needs the dense part, none.
struct HybridParts {
    std::optional<DensePart> dense;
    std::optional<GraphPart> graph;
    std::optional<LexicalPart> lexical;
    std::optional<TokenPart> tokens;
    std::vector<int64_t> nearest;
    const bool* allowed;  // [n_documents]
    size_t n_documents;
};

// positions: ascending; dense, lexical, tokens: their scores, empty where a part does not take part
// compared, damaged: documents among them whose records were compared with their checksums now, and were the same or not;
// the latter score no number
// seconds: what all threads together spent on the dense, the lexical and the tokens' part
struct HybridScores {
    std::vector<int64_t> positions;
    std::vector<float> dense, lexical, tokens;
    std::vector<int64_t> compared, damaged;
    std::vector<double> seconds = {0.0, 0.0, 0.0};
    bool is_graph_left = false;  // it would have to look at too many documents, or leads to too few: nothing was scored
    int64_t misplaced = -1;      // a document whose records lie where there are none
};

HybridScores hybrid_scores(const HybridParts& parts, size_t n_threads);

}  // namespace m3edge
