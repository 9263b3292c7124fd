// What the files of bindings share: arrays as Python hands them over, and how they are refused.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "codes.h"

namespace nb = nanobind;

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T, size_t n_axes = 1>
using Result = nb::ndarray<nb::numpy, T, nb::ndim<n_axes>, nb::c_contig>;

template <class T>
Result<T> new_vector(size_t size) {
    T* data = new T[size]();
    nb::capsule owner(data, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
    return Result<T>(data, {size}, owner);
}

template <class T>
Result<T, 2> new_matrix(size_t n_rows, size_t n_columns) {
    T* data = new T[n_rows * n_columns]();
    nb::capsule owner(data, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
    return {data, {n_rows, n_columns}, owner};
}

[[noreturn]] inline void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

inline void check_finite(const char* name, const float* values, size_t size) {
    if (!std::isfinite(m3edge::largest_magnitude(values, size)))
        refuse(std::string(name) + " must be finite, got an infinity or a NaN");
}

inline size_t checked_threads(int64_t n_threads) {
    if (n_threads < 1) refuse("n_threads must be at least 1, got " + std::to_string(n_threads));
    return size_t(std::min<int64_t>(n_threads, 256));
}

void bind_transformer(nb::module_& module);
