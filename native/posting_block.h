// The postings of up to 65,536 documents in memory, and how one token's are found among them.
//
// A token's documents are written in whichever way is shorter: as numbers of 16 bits, or as a bitmap of all the block's
// documents, which is also faster to go through, and in which any document is found at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace m3edge {

constexpr uint32_t rank_step = 256;     // documents; a multiple of 64
constexpr uint32_t window_size = 8192;  // documents whose largest weights are known apart

// How many bits are set; in plain operations, for processors without an instruction for it.
inline uint32_t count_ones(uint64_t bits) {
    bits -= bits >> 1 & 0x5555555555555555;
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333);
    return uint32_t(((bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
}

// The lowest set bit's number; bits must not be 0.
inline uint32_t lowest_one(uint64_t bits) {
#if defined(__GNUC__)
    return uint32_t(__builtin_ctzll(bits));
#else
    return count_ones((bits & (0 - bits)) - 1);
#endif
}

// One token's documents within a block, ascending, by the postings that stand for them: begin ... end.
struct PostingList {
    size_t begin, end;
    const uint16_t* documents;  // numbers, or words of a bitmap
    const uint16_t* ranks;      // of a bitmap: how many of its postings stand before documents 0, 256, 512 …; else null
    uint32_t n_documents;       // the block's

    size_t size() const { return end - begin; }
    bool is_bitmap() const { return ranks != nullptr; }
    uint64_t bits(size_t word) const {  // of documents 64 * word to 64 * word + 63
        uint64_t found;
        std::memcpy(&found, documents + 4 * word, sizeof found);
        return found;
    }

    // The first posting whose document is at or after this one.
    size_t at_or_after(uint32_t document) const {
        if (!is_bitmap()) return begin + numbers_before(document);
        return document < n_documents ? begin + rank(document) : end;
    }
    // This document's posting, or `end`.
    size_t find(uint32_t document) const {
        if (is_bitmap()) return bits(document / 64) >> document % 64 & 1 ? begin + rank(document) : end;
        const size_t at = numbers_before(document);
        return at < size() && documents[at] == document ? begin + at : end;
    }
    // Calls what(document, posting) for each from first to stop, which are multiples of 64 or the end.
    template <class What>
    void for_each(uint32_t first, uint32_t stop, const What& what) const {
        size_t posting = at_or_after(first);
        if (!is_bitmap()) {
            for (const size_t last = at_or_after(stop); posting < last; ++posting) what(documents[posting - begin], posting);
            return;
        }
        for (uint32_t start = first; start < stop; start += 64)
            for (uint64_t left = bits(start / 64); left; left &= left - 1) what(start + lowest_one(left), posting++);
    }

  private:
    // Halves without a branch: which half it is cannot be foreseen, and several searches overlap in the processor when none
    // waits for a wrong guess.
    size_t numbers_before(uint32_t document) const {
        size_t first = 0, n = size();
        while (n > 1) {
            const size_t half = n / 2;
            first += half & (0 - size_t(documents[first + half - 1] < document));
            n -= half;
        }
        return first + size_t(n == 1 && documents[first] < document);
    }
    size_t rank(uint32_t document) const {
        size_t ones = ranks[document / rank_step], word = document / rank_step * (rank_step / 64);
        for (; word < document / 64; ++word) ones += count_ones(bits(word));
        return ones + count_ones(bits(word) & ((uint64_t(1) << document % 64) - 1));
    }
};

// The documents stand one after another. Token i owns the postings starts[i] to starts[i + 1].
struct PostingBlock {
    size_t n_documents;
    const uint32_t* tokens;  // ascending
    size_t n_tokens;
    const uint32_t* starts;
    const uint16_t* documents;  // of each token in turn: their numbers, or bitmap_words of a bitmap, its lowest bit first,
    size_t document_words;      // where it has more postings than those
    const uint16_t* weights;
    const uint8_t* counts;      // two a byte, the lower half first; 15: look it up among the large ones
    const uint32_t* large_at;   // postings with a count of 15 or more, ascending
    const int32_t* large_counts;
    size_t n_large;

    // Tells what the arrays say from what they cost to say it. Throws std::invalid_argument when they are not as described
    // above; before it, nothing else may be called.
    void prepare();

    // Memory that `prepare` took beside the arrays.
    size_t kept_bytes() const {
        return long_tokens_.size() * (sizeof(uint32_t) + sizeof(Top)) + window_weights_.size() * sizeof(uint16_t) +
               bitmaps_.size() * sizeof(Bitmap) + ranks_.size() * sizeof(uint16_t);
    }

    size_t bitmap_words() const { return (n_documents + 63) / 64 * 4; }
    size_t n_postings() const { return starts[n_tokens]; }
    bool find_token(uint32_t token, size_t& index) const;
    PostingList list(size_t token) const;
    int32_t count(size_t posting) const;
    // Of a token's postings the largest weight, and the largest count, of which 255 stands for that or more
    uint16_t largest_weight(size_t token) const;
    uint8_t largest_count(size_t token) const;
    // The largest weight in each window_size documents; null for a short list
    const uint16_t* window_weights(size_t token) const;

  private:
    struct Top {
        uint16_t weight;
        uint8_t count;
    };
    struct Bitmap {
        uint32_t token;      // its index
        uint32_t documents;  // where it begins in `documents`
    };

    void find_bitmaps();
    void rank_bitmaps();
    void check_numbers() const;
    void keep_tops(size_t token);
    bool is_long(size_t token) const;
    size_t number_of_long(size_t token) const;
    size_t n_windows() const { return (n_documents + window_size - 1) / window_size; }
    uint16_t find_largest_weight(size_t token) const;
    uint8_t find_largest_count(size_t token) const;
    size_t ranks_of_one() const { return (n_documents + rank_step - 1) / rank_step; }

    std::vector<uint32_t> long_tokens_;     // indices of the tokens whose tops are kept, ascending
    std::vector<Top> long_tops_;            // theirs
    std::vector<uint16_t> window_weights_;  // [long_tokens_][n_windows()]
    std::vector<Bitmap> bitmaps_;           // ascending
    std::vector<uint16_t> ranks_;           // [bitmaps_][ranks_of_one()]
};

}  // namespace m3edge
