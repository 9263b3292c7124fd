// Whether embeddings that somebody gives are what a model gives. The definition: m3edge/_checks_numpy.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace m3edge {

// Lexical vectors of n rows, as SparseRows in m3edge/embeddings.py names their arrays.
struct LexicalRows {
    const int64_t* ids;
    const float* weights;
    const int32_t* counts;
    const int64_t* offsets;  // [n + 1]
    size_t n_entries, n;

    // What is wrong with them, or nothing.
    std::string problem() const;
};

}  // namespace m3edge
