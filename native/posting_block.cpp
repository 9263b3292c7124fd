#include "posting_block.h"

#include <algorithm>
#include <stdexcept>

namespace m3edge {
namespace {

constexpr size_t short_list = 96;  // up to here a list's largest part is found by looking, not kept

void demand(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

}  // namespace

void PostingBlock::prepare() {
    demand(n_documents <= 65536, "a block must hold at most 65536 documents");
    demand(starts[0] == 0, "starts must begin with 0");
    find_bitmaps();
    rank_bitmaps();
    check_numbers();
    for (size_t i = 0; i < n_tokens; ++i)
        if (is_long(i)) keep_tops(i);
}

void PostingBlock::find_bitmaps() {
    size_t at = 0;
    for (size_t i = 0; i < n_tokens; ++i) {
        demand(i == 0 || tokens[i - 1] < tokens[i], "tokens must ascend");
        demand(starts[i] <= starts[i + 1], "starts must not descend");
        const size_t size = starts[i + 1] - starts[i];
        if (size > bitmap_words()) bitmaps_.push_back({uint32_t(i), uint32_t(at)});
        at += std::min(size, bitmap_words());
        demand(at <= document_words, "documents must be as long as starts says");
    }
    demand(at == document_words, "documents must be as long as starts says");
}

void PostingBlock::rank_bitmaps() {
    for (const Bitmap& bitmap : bitmaps_) {
        const PostingList list{starts[bitmap.token], starts[bitmap.token + 1], documents + bitmap.documents, nullptr, 0};
        uint32_t ones = 0;
        for (size_t word = 0; word < bitmap_words() / 4; ++word) {
            if (word % (rank_step / 64) == 0) ranks_.push_back(uint16_t(ones));  // of 65,280 documents at most
            ones += count_ones(list.bits(word));
        }
        const size_t last = n_documents % 64;
        demand(ones == list.size(), "a bitmap must tell of as many documents as starts says");
        demand(last == 0 || list.bits(n_documents / 64) >> last == 0, "documents must be less than n_documents");
    }
}

void PostingBlock::keep_tops(size_t token) {
    long_tokens_.push_back(uint32_t(token));
    long_tops_.push_back({find_largest_weight(token), find_largest_count(token)});
    const PostingList of = list(token);
    for (uint32_t start = 0; start < n_documents; start += window_size) {
        const uint16_t *first = weights + of.at_or_after(start), *last = weights + of.at_or_after(start + window_size);
        window_weights_.push_back(first == last ? uint16_t(0) : *std::max_element(first, last));
    }
}

void PostingBlock::check_numbers() const {
    for (size_t i = 0; i < n_large; ++i) {
        demand(large_at[i] < n_postings() && (i == 0 || large_at[i - 1] < large_at[i]),
               "large_at must ascend within the postings");
        demand(large_counts[i] >= 15, "large_counts must be at least 15");
    }
    const uint16_t* of = documents;
    for (size_t i = 0; i < n_tokens; ++i) {
        const size_t size = starts[i + 1] - starts[i];
        for (size_t j = 0; size <= bitmap_words() && j < size; ++j) {
            demand(of[j] < n_documents, "documents must be less than n_documents");
            demand(j == 0 || of[j - 1] < of[j], "documents must ascend within a token");
        }
        of += std::min(size, bitmap_words());
    }
}

bool PostingBlock::find_token(uint32_t token, size_t& index) const {
    const uint32_t* found = std::lower_bound(tokens, tokens + n_tokens, token);
    index = size_t(found - tokens);
    return index < n_tokens && *found == token;
}

PostingList PostingBlock::list(size_t token) const {
    const auto first = [](const Bitmap& bitmap, size_t wanted) { return bitmap.token < wanted; };
    const auto found = std::lower_bound(bitmaps_.begin(), bitmaps_.end(), token, first);
    PostingList list{starts[token], starts[token + 1], documents, nullptr, uint32_t(n_documents)};
    if (found != bitmaps_.end() && found->token == token) {
        list.documents += found->documents;
        list.ranks = ranks_.data() + size_t(found - bitmaps_.begin()) * ranks_of_one();
    } else if (found == bitmaps_.begin()) {
        list.documents += list.begin;
    } else {  // behind the last bitmap before it, with a number for each posting in between
        const Bitmap& before = *(found - 1);
        list.documents += before.documents + bitmap_words() + (list.begin - starts[before.token + 1]);
    }
    return list;
}

uint16_t PostingBlock::largest_weight(size_t token) const {
    return is_long(token) ? long_tops_[number_of_long(token)].weight : find_largest_weight(token);
}

uint8_t PostingBlock::largest_count(size_t token) const {
    return is_long(token) ? long_tops_[number_of_long(token)].count : find_largest_count(token);
}

bool PostingBlock::is_long(size_t token) const { return starts[token + 1] - starts[token] > short_list; }

const uint16_t* PostingBlock::window_weights(size_t token) const {
    return is_long(token) ? window_weights_.data() + number_of_long(token) * n_windows() : nullptr;
}

size_t PostingBlock::number_of_long(size_t token) const {
    return size_t(std::lower_bound(long_tokens_.begin(), long_tokens_.end(), uint32_t(token)) - long_tokens_.begin());
}

uint16_t PostingBlock::find_largest_weight(size_t token) const {
    uint16_t largest = 0;
    for (size_t i = starts[token]; i < starts[token + 1]; ++i) largest = std::max(largest, weights[i]);
    return largest;
}

uint8_t PostingBlock::find_largest_count(size_t token) const {
    int32_t largest = 0;
    for (size_t i = starts[token]; i < starts[token + 1]; ++i) largest = std::max(largest, count(i));
    return uint8_t(std::min(largest, 255));
}

int32_t PostingBlock::count(size_t posting) const {
    const int32_t code = (counts[posting / 2] >> (posting % 2 * 4)) & 15;
    if (code < 15) return code;
    const uint32_t* at = std::lower_bound(large_at, large_at + n_large, uint32_t(posting));
    return at != large_at + n_large && *at == posting ? large_counts[at - large_at] : code;
}

}  // namespace m3edge
