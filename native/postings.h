// Exact top-k and exact scores over posting lists, for weights that are stored and for BM25 made from counts.
//
// A score is a sum of whole numbers, factor * part / 65536 rounded down: a factor for each query token, a part of 16 bits
// for each posting. Whole numbers add up the same in every order, so that skipping and reordering change nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace m3edge {

constexpr uint32_t posting_step = 256;  // documents
constexpr size_t posting_steps = 65536 / posting_step;

// The postings of up to 65,536 documents that stand one after another. Token i owns the postings starts[i] to
// starts[i + 1]; a posting's document is counted from the block's first, ascending within a token.
struct PostingBlock {
    size_t n_documents;
    const uint32_t* tokens;  // ascending
    size_t n_tokens;
    const uint32_t* starts;
    const uint16_t* documents;
    const uint16_t* weights;
    const uint8_t* counts;      // two a byte, the lower half first; 15: look it up among the large ones
    const uint32_t* large_at;   // postings with a count of 15 or more, ascending
    const int32_t* large_counts;
    size_t n_large;

    // The largest weight and count of a token's postings; a count of 255 stands for that or more.
    struct Top {
        uint16_t weight;
        uint8_t count;
    };
    std::vector<uint32_t> long_tokens;  // indices of the tokens whose tops are kept, ascending
    std::vector<Top> long_tops;

    // Where in a token's postings the documents 0, 256, 512 … begin, for the longest lists: any is found among few.
    std::vector<uint32_t> stepped_tokens;  // their tokens' indices, ascending
    std::vector<uint16_t> steps;           // [stepped_tokens][posting_steps]

    Top top(size_t token) const;
    const uint16_t* steps_of(size_t token) const;  // null for a shorter list
    int32_t count(size_t posting) const;

    // Fill in the vectors. Throws std::invalid_argument when the arrays are not as described above.
    void prepare();

  private:
    Top find_top(size_t begin, size_t end) const;
    void add_steps(size_t token);
};

// One block after another; each begins where the one before it ends.
using PostingBlocks = std::vector<const PostingBlock*>;

// factors[i] belongs to tokens[i]; a token may occur twice. All factors together are less than 2 ** 31, and so is a score.
struct PostingQuery {
    const uint32_t* tokens;
    const uint32_t* factors;
    size_t size;
};

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

// The k best documents with allowed[position] and a score above 0, best first; of equal scores the lower position.
std::vector<PostingHit> top_postings(const PostingBlocks& blocks, const PostingQuery& query,
                                     const LengthNorms& norms, const bool* allowed, size_t k, size_t n_threads);

// The scores of n given documents, positions ascending.
void score_postings(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms,
                    const int64_t* positions, size_t n, int64_t* scores);

// In how many allowed documents a token occurs.
int64_t count_postings(const PostingBlocks& blocks, uint32_t token, const bool* allowed);

}  // namespace m3edge
