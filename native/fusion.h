// The best documents by the weighted sum of their scores. The definition: weighted_best in m3edge/_fusion_numpy.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace m3edge {

struct Fused {
    std::vector<int64_t> best;   // indices of documents, best first; of equal sums the earlier document first
    std::vector<float> scores;   // their sums
};

// The k best of n documents. parts: n scores each, or null for one that is 0 everywhere
Fused weighted_best(const std::array<const float*, 3>& parts, const std::array<float, 3>& weights, size_t n, size_t k);

}  // namespace m3edge
