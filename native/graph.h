// The nearest vectors by a graph of links between them (HNSW, arXiv 1603.09320), told by their 8-bit codes. The
// definition: graph_candidates in m3edge/_graph_numpy.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "dense.h"

namespace m3edge {

// Nodes are numbers below n. On the ground each has up to ground_width links; above it a node has level_starts[i + 1] -
// level_starts[i] levels, the first of them just above the ground. A row of links that has fewer ends with no_node.
struct GraphLinks {
    static constexpr uint32_t no_node = 0xffffffff;

    const uint32_t* ground;        // [n][ground_width]
    const uint32_t* level_starts;  // [n + 1]
    const uint32_t* levels;        // [level_starts[n]][level_width]
    size_t n, ground_width, level_width;
    size_t start, top_level;  // where a search begins; 0 is the ground

    size_t n_levels(size_t node) const { return level_starts[node + 1] - level_starts[node]; }
    // Whether every link leads to a node that has the link's level, and the levels' rows are as many as they should be.
    bool is_sound(size_t n_level_rows) const;
};

// The best of the allowed rows that the links lead to, `effort` or fewer, by falling score of their codes. Nothing where
// more than `most` rows would have to be looked at.
//   rows: links.n, or more; their errors are not asked for; 1 <= effort
std::optional<std::vector<int64_t>> graph_candidates(const float* query, const DenseCodes& rows, const GraphLinks& links,
                                                     const bool* allowed, size_t effort, size_t most);

}  // namespace m3edge
