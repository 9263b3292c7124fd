// What postings.cpp and the instruction sets' files agree on.
//
// Included by files compiled for different instruction sets: no inline function of the standard library may be used
// here, or the linker could keep the copy that only some processors can run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace m3edge {

constexpr size_t collect_step = 64;  // sums looked at together

// The postings of some documents that a bitmap tells of.
struct BitmapPostings {
    const uint16_t* bits;         // of n documents, the lowest first
    size_t n;                     // a multiple of 64
    const uint16_t* weights;      // one for each bit that is set
    const uint16_t* weights_end;  // up to here may be read
};

struct PostingKernels {
    // Writes to `out` the numbers i < n with sums[i] > limit and allowed[i], ascending; returns how many.
    //   n: a multiple of collect_step; out: room for n + collect_step numbers, whatever is found
    size_t (*collect)(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint32_t* out);

    // sums[i] += factor * weight / 65536, rounded down, for every document i that has a bit; factor: less than 2 ** 31
    void (*add)(const BitmapPostings& postings, uint32_t factor, int32_t* sums);
};

// Null where the binary was not built for the instruction set.
const PostingKernels* posting_kernels_avx2();
const PostingKernels* posting_kernels_avx512();

}  // namespace m3edge
