// MaxScore (Turtle and Flood 1995) over windows of documents whose sums fit the first-level cache, with bounds for each
// window (as Ding and Suel 2011 have them for blocks of a list).
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

constexpr uint32_t window_size = posting_window;
constexpr size_t short_list = 32;        // up to here a list's largest part is found by looking, not kept
constexpr size_t windowed_list = 4096;   // longer lists are known window by window, for some 8 bytes a window
constexpr size_t look_up_cost = 16;      // looking one document up costs about as much as adding so many postings
constexpr uint32_t full_part = 65535;    // no part is larger

// What a posting contributes to its token's factor, and the most that a token's postings contribute.

struct StoredWeights {
    const PostingBlock& block;

    uint32_t part(size_t posting, uint32_t) const { return block.weights[posting]; }
    uint32_t largest(PostingBlock::Top top) const { return top.weight; }
};

struct Bm25Parts {
    const PostingBlock& block;
    const float* norms;  // of the block's documents
    float smallest;

    uint32_t part(size_t posting, uint32_t document) const { return saturated(block.count(posting), norms[document]); }
    uint32_t largest(PostingBlock::Top top) const {
        return top.count == 255 ? full_part : saturated(top.count, smallest);
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

// One query token's postings within a block, and those of them in the window that is searched.
struct List {
    size_t begin, end;
    int64_t factor;
    int64_t most;                    // no document of the block gets more from this list
    const uint32_t* window_starts;   // null for a short list
    const PostingBlock::Top* window_tops;
    size_t first, last;              // in the window
    int64_t bound;                   // no document of the window gets more
    double cost;                     // postings read for what leaving them out would add to the bound
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
        const int64_t factor = query.factors[i], most = factor * int64_t(parts.largest(block.top(token)));
        if (most == 0) continue;
        List list{block.starts[token], block.starts[token + 1], factor, most, nullptr, nullptr, 0, 0, 0, 0};
        list.last = list.begin;
        if (list.end - list.begin > windowed_list) {
            const auto& known = block.windowed_tokens;
            const size_t at = size_t(std::lower_bound(known.begin(), known.end(), uint32_t(token)) - known.begin());
            list.window_starts = block.window_starts.data() + at * (block.n_windows() + 1);
            list.window_tops = block.window_tops.data() + at * block.n_windows();
        }
        lists.push_back(list);
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
        for (const List& list : lists_) total_bound_ += list.most;
    }

    void run() {
        for (size_t window = 0; window < block_.n_windows(); ++window) {
            if (total_bound_ <= best_.floor()) return;
            const uint32_t start = uint32_t(window) * window_size;
            const uint32_t stop = uint32_t(std::min<size_t>(start + window_size, block_.n_documents));
            if (enter(window, start, stop)) search_window(start, stop);
        }
    }

  private:
    // Finds the lists' postings of a window and their bounds; false when none of its documents can be among the best.
    bool enter(size_t window, uint32_t start, uint32_t stop) {
        active_.clear();
        int64_t total = 0;
        for (List& list : lists_) {
            if (list.window_starts) {
                list.first = list.window_starts[window];
                list.last = list.window_starts[window + 1];
                list.bound = list.factor * int64_t(parts_.largest(list.window_tops[window]));
            } else {
                list.first = advance(block_.documents, list.last, list.end, start);
                list.last = advance(block_.documents, list.first, list.end, stop);
                list.bound = list.most;
            }
            if (list.first == list.last || list.bound == 0) continue;
            total += list.bound;
            active_.push_back(&list);
        }
        if (total <= best_.floor()) return false;
        choose_essential();
        return true;
    }

    // Lists whose bounds together cannot lift a document above the floor need not be read from end to end: those that
    // save most postings for the least bound.
    void choose_essential() {
        for (List* list : active_) list->cost = double(list->last - list->first) / double(list->bound);
        std::sort(active_.begin(), active_.end(), [](const List* a, const List* b) { return a->cost > b->cost; });
        essential_.clear();
        others_.clear();
        others_bound_ = 0;
        for (List* list : active_) {
            const bool is_other = others_bound_ + list->bound <= best_.floor();
            (is_other ? others_ : essential_).push_back(list);
            if (is_other) others_bound_ += list->bound;
        }
        std::sort(others_.begin(), others_.end(), [](const List* a, const List* b) { return a->bound > b->bound; });
    }

    void search_window(uint32_t start, uint32_t stop) {
        for (const List* list : essential_) add_all(*list, start);
        collect(start, stop);
        int64_t rest = others_bound_;
        for (const List* list : others_) {
            if (n_candidates_ == 0) break;
            complete(*list, start);
            rest -= list->bound;
            keep_above(best_.floor() - rest);
        }
        for (size_t i = 0; i < n_candidates_; ++i)
            best_.push(sums_[candidates_[i]], first_ + start + candidates_[i]);
        std::memset(sums_, 0, sizeof sums_);
    }

    void add_all(const List& list, uint32_t start) {
        const uint16_t* documents = block_.documents;
        const Parts parts = parts_;  // a copy the compiler can keep in registers
        int64_t* sums = sums_;
        const int64_t factor = list.factor;
        const size_t end = list.last;
        const auto add = [&](size_t posting) {
            const uint32_t document = documents[posting];
            sums[document - start] += factor * int64_t(parts.part(posting, document));
        };
        size_t i = list.first;
        for (; i + 4 <= end; i += 4) {
            add(i);
            add(i + 1);
            add(i + 2);
            add(i + 3);
        }
        for (; i < end; ++i) add(i);
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
    void complete(const List& list, uint32_t start) {
        if (n_candidates_ * look_up_cost > list.last - list.first) {
            add_all(list, start);
            return;
        }
        size_t cursor = list.first;
        for (size_t i = 0; i < n_candidates_; ++i) {
            const uint32_t document = start + candidates_[i];
            cursor = advance(block_.documents, cursor, list.last, document);
            if (cursor == list.last) return;
            if (block_.documents[cursor] == document)
                sums_[candidates_[i]] += list.factor * int64_t(parts_.part(cursor, document));
        }
    }

    const PostingBlock& block_;
    const Parts parts_;
    std::vector<List> lists_;
    const int64_t first_;
    const bool* allowed_;
    Best& best_;
    const Collect collect_ = collect_function();
    std::vector<List*> active_;     // those with postings in the window, and of them:
    std::vector<List*> essential_;
    std::vector<List*> others_;     // by falling bound
    int64_t others_bound_ = 0, total_bound_ = 0;
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
    for (size_t i = 0; i < n_large; ++i) {
        demand(large_at[i] < starts[n_tokens] && (i == 0 || large_at[i - 1] < large_at[i]),
               "large_at must ascend within the postings");
        demand(large_counts[i] >= 15, "large_counts must be at least 15");
    }
    for (size_t i = 0; i < n_tokens; ++i) {
        for (size_t j = starts[i]; j < starts[i + 1]; ++j) {
            demand(documents[j] < n_documents, "documents must be less than n_documents");
            demand(j == starts[i] || documents[j - 1] < documents[j], "documents must ascend within a token");
        }
        if (starts[i + 1] - starts[i] > short_list) {
            long_tokens.push_back(uint32_t(i));
            long_tops.push_back(find_top(starts[i], starts[i + 1]));
        }
        if (starts[i + 1] - starts[i] > windowed_list) divide(i);
    }
}

void PostingBlock::divide(size_t token) {
    windowed_tokens.push_back(uint32_t(token));
    size_t at = starts[token];
    for (size_t window = 0; window < n_windows(); ++window) {
        const size_t first = at;
        at = advance(documents, at, starts[token + 1], uint32_t(window + 1) * window_size);
        window_starts.push_back(uint32_t(first));
        window_tops.push_back(find_top(first, at));
    }
    window_starts.push_back(starts[token + 1]);
}

PostingBlock::Top PostingBlock::find_top(size_t begin, size_t end) const {
    Top top{0, 0};
    for (size_t i = begin; i < end; ++i) {
        top.weight = std::max(top.weight, weights[i]);
        top.count = std::max(top.count, uint8_t(std::clamp(count(i), 0, 255)));
    }
    return top;
}

PostingBlock::Top PostingBlock::top(size_t token) const {
    if (starts[token + 1] - starts[token] <= short_list) return find_top(starts[token], starts[token + 1]);
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
            for (const List& list : lists_of(block, query, parts)) {
                size_t cursor = list.begin;
                for (size_t j = begin; j < next; ++j) {
                    const uint32_t document = uint32_t(positions[j] - first);
                    cursor = advance(block.documents, cursor, list.end, document);
                    if (cursor == list.end) break;
                    if (block.documents[cursor] == document)
                        scores[j] += list.factor * int64_t(parts.part(cursor, document));
                }
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
