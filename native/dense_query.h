// A dense query as the kernels over codes take it: codes of 16 bits, and what they leave out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dense_dots.h"

namespace m3edge {

struct DenseQuery {
    // query: dim finite numbers. As many bits as 16 hold and 32 bits of sum allow, whatever the rows are.
    DenseQuery(const float* query, size_t dim);

    std::vector<int16_t> codes;
    double scale = 0.0;
    double norm = 0.0;      // of the query
    double residual = 0.0;  // largest length of what the codes leave out
    double root = 0.0;      // of dim
};

// Of the instruction set in use.
DotKernel dot_kernel();

}  // namespace m3edge
