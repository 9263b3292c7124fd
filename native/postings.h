// Exact top-k and exact scores over posting lists, for weights that are stored and for BM25 made from counts.
//
// A score is a sum of whole numbers, factor * part / 65536 rounded down: a factor for each query token, a part of 16 bits
// for each posting. Whole numbers add up the same in every order, so that skipping and reordering change nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "posting_block.h"

namespace m3edge {

// One block after another; each begins where the one before it ends.
using PostingBlocks = std::vector<const PostingBlock*>;

// factors[i] belongs to tokens[i]; a token may occur twice. All factors together are less than 2 ** 31, and so is a score.
struct PostingQuery {
    const uint32_t* tokens;
    const uint32_t* factors;
    size_t size;
};

// A query's weights above 0 as whole numbers of such units that any score fits.
struct QueryFactors {
    std::vector<uint32_t> tokens, factors;
    double unit = 1.0;
};
QueryFactors query_factors(const int64_t* ids, const double* weights, size_t n);

// BM25's length norms, of each document and the smallest of each block; both null for stored weights.
// A posting's part is 65535 * count / (count + norm), rounded down in float32.
struct LengthNorms {
    const float* norms;
    const float* smallest;
};

struct PostingHit {
    int64_t score;
    int64_t position;
};

// One search, whose windows of documents several workers take in turn. What it is made of must outlive it.
class PostingSearch {
  public:
    static std::unique_ptr<PostingSearch> of(const PostingBlocks& blocks, const PostingQuery& query,
                                             const LengthNorms& norms, const bool* allowed, size_t k, size_t n_workers);
    virtual ~PostingSearch() = default;

    // How many of the n_workers are worth a thread's start.
    virtual size_t workers_worth_starting() const = 0;
    // Searches until no window is left; each worker at most once.
    virtual void work(size_t worker) = 0;
    // As top_postings, when all who began have returned, one of them at least.
    virtual std::vector<PostingHit> hits() = 0;
};

// The k best documents with allowed[position] and a score above 0, best first; of equal scores the lower position.
std::vector<PostingHit> top_postings(const PostingBlocks& blocks, const PostingQuery& query,
                                     const LengthNorms& norms, const bool* allowed, size_t k, size_t n_threads);

// The scores of n given documents, positions ascending.
void score_postings(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms,
                    const int64_t* positions, size_t n, int64_t* scores);

// In how many allowed documents a token occurs.
int64_t count_postings(const PostingBlocks& blocks, uint32_t token, const bool* allowed);

}  // namespace m3edge
