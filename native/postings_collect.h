// What postings.cpp and the instruction sets' files agree on.
//
// Included by files compiled for different instruction sets: no inline function of the standard library may be used
// here, or the linker could keep the copy that only some processors can run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace m3edge {

constexpr size_t collect_step = 16;  // sums looked at together

// Writes to `out` the numbers i < n with sums[i] > limit and allowed[i], ascending; returns how many.
//   n: a multiple of collect_step; out: room for n + collect_step numbers, whatever is found
using Collect = size_t (*)(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint16_t* out);

// Null where the binary was not built for the instruction set.
Collect collect_avx2();
Collect collect_avx512();

}  // namespace m3edge
