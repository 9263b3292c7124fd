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

// The same for counts, of which BM25 makes parts.
struct BitmapCounts {
    const uint16_t* bits;      // as above
    size_t n;
    size_t posting;            // the first
    const uint8_t* counts;     // the block's, and what belongs to them: see PostingBlock
    size_t n_postings;
    const uint32_t* large_at;
    const int32_t* large_counts;
    size_t n_large;
    const float* norms;        // of the documents
};

struct PostingKernels {
    // `add` goes through so many documents in the time that one posting of a list of numbers takes.
    size_t documents_a_posting;

    // Writes to `out` the numbers i < n with sums[i] > limit and allowed[i], ascending; returns how many.
    //   n: a multiple of collect_step; out: room for n + collect_step numbers, whatever is found
    size_t (*collect)(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint32_t* out);

    // sums[i] += factor * weight / 65536, rounded down, for every document i that has a bit; factor: less than 2 ** 31
    void (*add)(const BitmapPostings& postings, uint32_t factor, int32_t* sums);

    // The same with the part that a count and a norm make in the place of a weight. Null where no instruction makes several.
    void (*add_counts)(const BitmapCounts& postings, uint32_t factor, int32_t* sums);
};

// Null where the binary was not built for the instruction set.
const PostingKernels* posting_kernels_avx2();
const PostingKernels* posting_kernels_avx512();

}  // namespace m3edge
