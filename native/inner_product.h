// Inner products in float32, of equal numbers equal ones: always added up in the same order.
#pragma once

#include <cstddef>

namespace m3edge {

inline float inner_product(const float* a, const float* b, size_t dim) {
    constexpr size_t lanes = 16;
    float sums[lanes] = {};  // independent, or each addition would wait for the last
    size_t k = 0;
    for (; k + lanes <= dim; k += lanes)
        for (size_t lane = 0; lane < lanes; ++lane) sums[lane] += a[k + lane] * b[k + lane];
    for (size_t lane = 0; k < dim; ++k, ++lane) sums[lane] += a[k] * b[k];
    for (size_t half = lanes / 2; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    return sums[0];
}

}  // namespace m3edge
