// Exact dense search, first pass: which rows could be among the k of the largest inner product with a query, told from
// 8-bit codes and a bound on what the codes leave out. The definition: dense_candidates in m3edge/_dense_numpy.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace m3edge {

// errors[i] * |query| bounds how far the score of row i, computed in float32 in any order, is from that of its codes.
struct DenseCodes {
    const int8_t* codes;   // [n][dim], -127 ... 127
    const float* scales;   // [n]
    const float* errors;   // [n]
    size_t n, dim;
};

struct DenseCandidate {
    int64_t position;
    double score, slack;  // the true score lies within slack of score

    double lower() const { return score - slack; }
    double upper() const { return score + slack; }
};

// Codes, scales and errors of n rows of dim floats; false where one of these is not finite.
bool dense_codes(const float* vectors, size_t n, size_t dim, size_t n_threads, int8_t* codes, float* scales,
                 float* errors);

// Every allowed row whose score can be among the k largest, by falling score of the codes; k >= 1.
std::vector<DenseCandidate> dense_candidates(const float* query, const DenseCodes& rows, const bool* allowed, size_t k,
                                             size_t n_threads);

// The inner products of a query with some of the rows of a matrix, in float32; of equal rows equal ones.
//   positions: of n rows; scores: n numbers
void dense_scores(const float* query, const float* vectors, size_t dim, const int64_t* positions, size_t n,
                  float* scores);

}  // namespace m3edge
