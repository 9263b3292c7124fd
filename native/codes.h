// 8-bit codes of a row of floats: what quantizing a query and quantizing stored vectors have in common.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace m3edge {

// The largest |row[k]|; not finite if one of them is not. Without their signs floats are ordered as their bits are, with
// infinity and NaN above all numbers, and of integers compilers make vectors.
inline float largest_magnitude(const float* row, size_t n) {
    int32_t largest = 0;
    for (size_t k = 0; k < n; ++k) {
        int32_t bits;
        std::memcpy(&bits, row + k, sizeof bits);
        largest = std::max(largest, bits & 0x7fffffff);
    }
    float magnitude;
    std::memcpy(&magnitude, &largest, sizeof magnitude);
    return magnitude;
}

constexpr float no_fraction = 0x1.8p23f;  // a sum with it has no bits for a fraction, and the integer in its lowest

// codes[k] = row[k] * inverse to the nearest integer, halves to even, where inverse is 127 / largest_magnitude(row) or 0.
inline void codes_of(const float* row, size_t n, float inverse, int8_t* codes) {
    for (size_t k = 0; k < n; ++k) {
        const float sum = row[k] * inverse + no_fraction;
        uint32_t bits;
        std::memcpy(&bits, &sum, sizeof bits);
        codes[k] = int8_t(bits);
    }
}

}  // namespace m3edge
