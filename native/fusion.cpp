#include "fusion.h"

#include <algorithm>
#include <numeric>

#include "ordered.h"

namespace m3edge {

Fused weighted_best(const std::array<const float*, 3>& parts, const std::array<float, 3>& weights, size_t n, size_t k) {
    std::vector<float> sums(n);
    for (size_t i = 0; i < n; ++i) {
        const auto product = [&](size_t part) { return parts[part] ? weights[part] * parts[part][i] : 0.0f; };
        sums[i] = product(0) + product(1) + product(2);
    }
    Fused found;
    found.best.resize(n);
    std::iota(found.best.begin(), found.best.end(), int64_t(0));
    k = std::min(k, n);
    std::partial_sort(found.best.begin(), found.best.begin() + ptrdiff_t(k), found.best.end(),
                      [&](int64_t a, int64_t b) {
                          const float of_a = ordered(sums[a]), of_b = ordered(sums[b]);
                          return of_a != of_b ? of_a > of_b : a < b;
                      });
    found.best.resize(k);
    for (int64_t document : found.best) found.scores.push_back(sums[document]);
    return found;
}

}  // namespace m3edge
