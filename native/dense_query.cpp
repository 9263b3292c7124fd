#include "dense_query.h"

#include <algorithm>
#include <cmath>

#include "cpu.h"

namespace m3edge {
namespace {

void dots_plain(const int8_t* const rows[dot_rows], const int16_t* query, size_t dim, int32_t dots[dot_rows]) {
    for (size_t r = 0; r < dot_rows; ++r) {
        int32_t sum = 0;
        for (size_t k = 0; k < dim; ++k) sum += int32_t(rows[r][k]) * query[k];
        dots[r] = sum;
    }
}

}  // namespace

DotKernel dot_kernel() {
    return Kernels<DotKernel>{&dots_plain, dot_kernel_avx2(), nullptr, dot_kernel_avx512vnni(), nullptr,
                              dot_kernel_neon()}
        .in_use();
}

DenseQuery::DenseQuery(const float* query, size_t dim) : codes(dim, 0) {
    double largest = 0.0, absolute = 0.0, square = 0.0;
    for (size_t k = 0; k < dim; ++k) {
        const double value = std::fabs(double(query[k]));
        largest = std::max(largest, value);
        absolute += value;
        square += value * value;
    }
    norm = std::sqrt(square);
    root = std::sqrt(double(dim));
    if (largest < 1e-30) return;  // every product is 0, give or take the row's error
    scale = std::max(largest / 32767.0, absolute / (16'000'000.0 - double(dim)));  // 127 * 16e6 < 2 ** 31
    residual = 0.5 * scale * root;
    for (size_t k = 0; k < dim; ++k) codes[k] = int16_t(std::nearbyint(double(query[k]) / scale));
}

}  // namespace m3edge
