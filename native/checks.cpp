#include "checks.h"

#include <cmath>
#include <cstdint>

namespace m3edge {
namespace {

constexpr int64_t largest = INT32_MAX;

template <class T>
std::string problem_of_range(const char* name, const T* values, size_t n, int64_t least) {
    int64_t low = least, high = least;
    for (size_t i = 0; i < n; ++i) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
    }
    if (low >= least && high <= largest) return {};
    return std::string(name) + " must be from " + std::to_string(least) + " to " + std::to_string(largest);
}

}  // namespace

std::string LexicalRows::problem() const {
    std::string found = problem_of_range("ids", ids, n_entries, 0);
    if (found.empty()) found = problem_of_range("counts", counts, n_entries, 1);
    if (!found.empty()) return found;
    bool ascends = offsets[0] == 0 && offsets[n] == int64_t(n_entries);
    for (size_t row = 0; row < n; ++row) ascends &= offsets[row] <= offsets[row + 1];
    if (!ascends) return "offsets must ascend from 0 to " + std::to_string(n_entries);
    for (size_t row = 0; row < n; ++row)
        for (int64_t i = offsets[row] + 1; i < offsets[row + 1]; ++i)
            if (ids[i] <= ids[i - 1]) return "ids must ascend within a row";
    for (size_t i = 0; i < n_entries; ++i)
        if (!(std::isfinite(weights[i]) && weights[i] >= 0.0f)) return "weights must be finite and at least 0";
    return {};
}

}  // namespace m3edge
