// What dense.cpp and the instruction sets' files agree on: products of a few rows of codes with one query of 16 bits.
//
// Included by files compiled for different instruction sets: no inline function of the standard library may be used
// here, or the linker could keep the copy that only some processors can run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace m3edge {

constexpr size_t dot_rows = 4;  // rows multiplied together: they share the query's registers

// dots[r] = sum over k < dim of rows[r][k] * query[k]; the caller sees to it that no partial sum leaves 32 bits
using DotKernel = void (*)(const int8_t* const rows[dot_rows], const int16_t* query, size_t dim, int32_t dots[dot_rows]);

// nullptr where the compiler could not build it.
DotKernel dot_kernel_avx2();
DotKernel dot_kernel_avx512vnni();
DotKernel dot_kernel_neon();

}  // namespace m3edge
