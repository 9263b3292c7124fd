// MaxScore (Turtle and Flood 1995) over windows of documents whose sums fit the first-level cache.
#include "postings.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "cpu.h"
#include "postings_collect.h"

namespace m3edge {
namespace {

constexpr uint32_t window_size = 4096;   // 32 KiB of sums; fastest of 2,048 to 8,192 in benchmarks/postings.py
constexpr size_t short_list = 32;        // up to here a list's largest part is found by looking, not kept
constexpr size_t look_up_cost = 16;      // looking one document up costs about as much as adding so many postings
constexpr uint32_t full_part = 65535;    // no part is larger

// What a posting contributes to its token's factor, and the most that a token's postings contribute.

struct StoredWeights {
    const PostingBlock& block;

    uint32_t part(size_t posting, uint32_t) const { return block.weights[posting]; }
    uint32_t largest(size_t token) const { return block.top(token).weight; }
};

struct Bm25Parts {
    const PostingBlock& block;
    const float* norms;  // of the block's documents
    float smallest;

    uint32_t part(size_t posting, uint32_t document) const { return saturated(block.count(posting), norms[document]); }
    uint32_t largest(size_t token) const {
        const uint8_t count = block.top(token).count;
        return count == 255 ? full_part : saturated(count, smallest);
    }

  private:
    static uint32_t saturated(int32_t count, float norm) {
        const float frequency = float(count), part = 65535.0f * frequency / (frequency + norm);
        return part >= 0 && part < float(full_part) ? uint32_t(part) : full_part;  // whatever the norm is
    }
};

// Calls `use` with the way to get a block's parts that the norms ask for.
template <class Use>
void with_parts(const PostingBlock& block, size_t index, int64_t first, const LengthNorms& norms, Use use) {
    if (norms.norms)
        use(Bm25Parts{block, norms.norms + first, norms.smallest[index]});
    else
        use(StoredWeights{block});
}

// One query token's postings within a block, and how far they have been used.
struct List {
    size_t cursor, end;
    int64_t factor;
    int64_t bound;  // no document gets more from this list
    bool essential;
};

// The first posting at or after `cursor` whose document is at or after `document`: steps that double, then halving.
size_t advance(const uint16_t* documents, size_t cursor, size_t end, uint32_t document) {
    if (cursor == end || documents[cursor] >= document) return cursor;
    size_t step = 1;
    while (cursor + step < end && documents[cursor + step] < document) {
        cursor += step;
        step *= 2;
    }
    const uint16_t* stop = documents + std::min(cursor + step, end);
    return size_t(std::lower_bound(documents + cursor + 1, stop, document) - documents);
}

bool find_token(const PostingBlock& block, uint32_t token, size_t& index) {
    const uint32_t* found = std::lower_bound(block.tokens, block.tokens + block.n_tokens, token);
    index = size_t(found - block.tokens);
    return index < block.n_tokens && *found == token;
}

template <class Parts>
std::vector<List> lists_of(const PostingBlock& block, const PostingQuery& query, const Parts& parts) {
    std::vector<List> lists;
    for (size_t i = 0; i < query.size; ++i) {
        size_t token;
        if (!find_token(block, query.tokens[i], token)) continue;
        const int64_t factor = query.factors[i], bound = factor * int64_t(parts.largest(token));
        if (bound > 0) lists.push_back({block.starts[token], block.starts[token + 1], factor, bound, true});
    }
    return lists;
}

bool better(const PostingHit& a, const PostingHit& b) {
    return a.score != b.score ? a.score > b.score : a.position < b.position;
}

// The best k of what was pushed, in ascending order of position. Cut back only when there are twice as many: a heap
// would cost a logarithm for every hit.
class Best {
  public:
    explicit Best(size_t k) : k_(k) {}

    int64_t floor() const { return floor_; }  // only a higher score can still be among the best

    void push(int64_t score, int64_t position) {
        if (score <= floor_) return;
        hits_.push_back({score, position});
        if (hits_.size() >= 2 * k_) cut();
    }

    std::vector<PostingHit> sorted() {
        if (hits_.size() > k_) cut();
        std::sort(hits_.begin(), hits_.end(), better);
        return std::move(hits_);
    }

  private:
    void cut() {
        std::nth_element(hits_.begin(), hits_.begin() + ptrdiff_t(k_ - 1), hits_.end(), better);
        hits_.resize(k_);
        floor_ = hits_[k_ - 1].score;
    }

    size_t k_;
    int64_t floor_ = 0;
    std::vector<PostingHit> hits_;
};

// What is written may be overwritten by the next: there is no branch to guess wrong.
size_t collect_plain(const int64_t* sums, const bool* allowed, size_t n, int64_t limit, uint16_t* out) {
    size_t found = 0;
    for (size_t group = 0; group < n; group += collect_step) {
        uint64_t signs = 0;
        for (size_t i = 0; i < collect_step; ++i) signs |= uint64_t(limit - sums[group + i]);
        if (!(signs >> 63)) continue;
        for (size_t i = group; i < group + collect_step; ++i) {
            out[found] = uint16_t(i);
            found += size_t(sums[i] > limit) & size_t(allowed[i]);
        }
    }
    return found;
}

Collect collect_function() {
    Collect best = nullptr;
    switch (instruction_set()) {
        case InstructionSet::avx512vnni: best = collect_avx512(); break;
        case InstructionSet::avxvnni:
        case InstructionSet::avx2: best = collect_avx2(); break;
        default: break;
    }
    return best ? best : &collect_plain;
}

template <class Parts>
class BlockSearch {
  public:
    // first: the position of the block's first document; allowed: of the block's documents
    BlockSearch(const PostingBlock& block, const Parts& parts, const PostingQuery& query, int64_t first,
                const bool* allowed, Best& best)
        : block_(block), parts_(parts), lists_(lists_of(block, query, parts)), first_(first), allowed_(allowed),
          best_(best) {
        // Most postings skipped for the least bound first
        std::sort(lists_.begin(), lists_.end(), [](const List& a, const List& b) {
            return double(a.end - a.cursor) / double(a.bound) > double(b.end - b.cursor) / double(b.bound);
        });
        for (const List& list : lists_) total_bound_ += list.bound;
    }

    void run() {
        for (uint32_t start = 0; start < block_.n_documents; start += window_size) {
            if (total_bound_ <= best_.floor()) return;
            choose_essential();
            search_window(start, uint32_t(std::min<size_t>(start + window_size, block_.n_documents)));
        }
    }

  private:
    // Lists whose bounds together cannot lift a document above the floor need not be read from end to end.
    void choose_essential() {
        if (best_.floor() == chosen_floor_) return;
        chosen_floor_ = best_.floor();
        others_.clear();
        others_bound_ = 0;
        for (List& list : lists_) {
            list.essential = others_bound_ + list.bound > chosen_floor_;
            if (!list.essential) {
                others_bound_ += list.bound;
                others_.push_back(&list);
            }
        }
        std::sort(others_.begin(), others_.end(), [](const List* a, const List* b) { return a->bound > b->bound; });
    }

    void search_window(uint32_t start, uint32_t stop) {
        bool touched = false;
        for (List& list : lists_)
            if (list.essential) touched |= add_all(list, start, stop);
        if (!touched) return;
        collect(start, stop);
        int64_t rest = others_bound_;
        for (List* list : others_) {
            if (n_candidates_ == 0) break;
            complete(*list, start, stop);
            rest -= list->bound;
            keep_above(best_.floor() - rest);
        }
        for (size_t i = 0; i < n_candidates_; ++i)
            best_.push(sums_[candidates_[i]], first_ + start + candidates_[i]);
        std::memset(sums_, 0, sizeof sums_);
    }

    bool add_all(List& list, uint32_t start, uint32_t stop) {
        const uint16_t* documents = block_.documents;
        const Parts parts = parts_;  // a copy the compiler can keep in registers
        int64_t* sums = sums_;
        size_t i = advance(documents, list.cursor, list.end, start);
        const size_t begin = i, end = list.end;
        const int64_t factor = list.factor;
        const auto add = [&](size_t posting) {
            const uint32_t document = documents[posting];
            sums[document - start] += factor * int64_t(parts.part(posting, document));
        };
        for (; i + 4 <= end && documents[i + 3] < stop; i += 4) {
            add(i);
            add(i + 1);
            add(i + 2);
            add(i + 3);
        }
        for (; i < end && documents[i] < stop; ++i) add(i);
        list.cursor = i;
        return i > begin;
    }

    // The allowed documents of the window that the lists not yet read could lift above the floor
    void collect(uint32_t start, uint32_t stop) {
        const size_t n = stop - start, whole = n / collect_step * collect_step;
        const int64_t needed = best_.floor() - others_bound_;
        const bool* allowed = allowed_ + start;
        n_candidates_ = collect_(sums_, allowed, whole, needed, candidates_);
        for (size_t i = whole; i < n; ++i)
            if (sums_[i] > needed && allowed[i]) candidates_[n_candidates_++] = uint16_t(i);
    }

    void keep_above(int64_t needed) {
        size_t n = 0;
        for (size_t i = 0; i < n_candidates_; ++i) {
            const uint16_t document = candidates_[i];
            candidates_[n] = document;
            n += sums_[document] > needed;
        }
        n_candidates_ = n;
    }

    // Add a list to the candidates' sums: one by one, or, when they are many, to all documents of the window.
    void complete(List& list, uint32_t start, uint32_t stop) {
        const size_t expected = (list.end - list.cursor) * (stop - start) / (block_.n_documents - start);
        if (n_candidates_ * look_up_cost > expected) {
            add_all(list, start, stop);
            return;
        }
        for (size_t i = 0; i < n_candidates_; ++i) {
            const uint32_t document = start + candidates_[i];
            list.cursor = advance(block_.documents, list.cursor, list.end, document);
            if (list.cursor == list.end) return;
            if (block_.documents[list.cursor] == document)
                sums_[candidates_[i]] += list.factor * int64_t(parts_.part(list.cursor, document));
        }
    }

    const PostingBlock& block_;
    const Parts parts_;
    std::vector<List> lists_;
    const int64_t first_;
    const bool* allowed_;
    Best& best_;
    const Collect collect_ = collect_function();
    std::vector<List*> others_;  // not essential, by falling bound
    int64_t others_bound_ = 0, total_bound_ = 0, chosen_floor_ = 0;
    size_t n_candidates_ = 0;
    uint16_t candidates_[window_size + collect_step];  // counted from the window's first document
    alignas(64) int64_t sums_[window_size] = {};
};

}  // namespace

int32_t PostingBlock::count(size_t posting) const {
    const int32_t code = (counts[posting / 2] >> (posting % 2 * 4)) & 15;
    if (code < 15) return code;
    const uint32_t* at = std::lower_bound(large_at, large_at + n_large, uint32_t(posting));
    return at != large_at + n_large && *at == posting ? large_counts[at - large_at] : code;
}

void PostingBlock::prepare() {
    const auto demand = [](bool holds, const char* what) {
        if (!holds) throw std::invalid_argument(what);
    };
    demand(n_documents <= 65536, "a block must hold at most 65536 documents");
    demand(starts[0] == 0, "starts must begin with 0");
    for (size_t i = 0; i < n_tokens; ++i) {
        demand(i == 0 || tokens[i - 1] < tokens[i], "tokens must ascend");
        demand(starts[i] <= starts[i + 1], "starts must not descend");
    }
    for (size_t i = 0; i < n_tokens; ++i) {
        for (size_t j = starts[i]; j < starts[i + 1]; ++j) {
            demand(documents[j] < n_documents, "documents must be less than n_documents");
            demand(j == starts[i] || documents[j - 1] < documents[j], "documents must ascend within a token");
        }
        if (starts[i + 1] - starts[i] > short_list) {
            long_tokens.push_back(uint32_t(i));
            long_tops.push_back(find_top(i));
        }
    }
}

PostingBlock::Top PostingBlock::find_top(size_t token) const {
    Top top{0, 0};
    for (size_t i = starts[token]; i < starts[token + 1]; ++i) {
        top.weight = std::max(top.weight, weights[i]);
        top.count = std::max(top.count, uint8_t(std::clamp(count(i), 0, 255)));
    }
    return top;
}

PostingBlock::Top PostingBlock::top(size_t token) const {
    if (starts[token + 1] - starts[token] <= short_list) return find_top(token);
    const auto found = std::lower_bound(long_tokens.begin(), long_tokens.end(), uint32_t(token));
    return long_tops[size_t(found - long_tokens.begin())];
}

std::vector<PostingHit> top_postings(const PostingBlocks& blocks, const PostingQuery& query,
                                     const LengthNorms& norms, const bool* allowed, size_t k) {
    Best best(k);
    int64_t first = 0;
    for (size_t i = 0; i < blocks.size(); ++i) {
        const PostingBlock& block = *blocks[i];
        with_parts(block, i, first, norms, [&](const auto& parts) {
            BlockSearch<std::decay_t<decltype(parts)>>(block, parts, query, first, allowed + first, best).run();
        });
        first += int64_t(block.n_documents);
    }
    return best.sorted();
}

void score_postings(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms,
                    const int64_t* positions, size_t n, int64_t* scores) {
    std::fill(scores, scores + n, 0);
    size_t next = 0;
    int64_t first = 0, after = 0;
    for (size_t i = 0; i < blocks.size() && next < n; ++i) {
        const PostingBlock& block = *blocks[i];
        first = after;
        after += int64_t(block.n_documents);
        const size_t begin = next;
        while (next < n && positions[next] < after) ++next;
        if (next == begin) continue;
        with_parts(block, i, first, norms, [&](const auto& parts) {
            for (List& list : lists_of(block, query, parts))
                for (size_t j = begin; j < next; ++j) {
                    const uint32_t document = uint32_t(positions[j] - first);
                    list.cursor = advance(block.documents, list.cursor, list.end, document);
                    if (list.cursor == list.end) break;
                    if (block.documents[list.cursor] == document)
                        scores[j] += list.factor * int64_t(parts.part(list.cursor, document));
                }
        });
    }
}

int64_t count_postings(const PostingBlocks& blocks, uint32_t token, const bool* allowed) {
    int64_t count = 0;
    for (const PostingBlock* block : blocks) {
        size_t index;
        if (find_token(*block, token, index))
            for (size_t i = block->starts[index]; i < block->starts[index + 1]; ++i)
                count += allowed[block->documents[i]];
        allowed += block->n_documents;
    }
    return count;
}

}  // namespace m3edge
