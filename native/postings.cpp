// MaxScore (Turtle and Flood 1995) over windows of documents whose sums fit the first-level cache. Which lists need not
// be read follows from the k-th best score; a sample of the windows, searched first, says early where it will lie.
#include "postings.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "cpu.h"
#include "parallel.h"
#include "postings_collect.h"

namespace m3edge {
namespace {

constexpr uint32_t window_size = 8192;
constexpr size_t sample_stride = 8;    // one window in so many is searched first
constexpr size_t short_list = 96;      // up to here a list's largest part is found by looking, not kept
constexpr size_t stepped_list = 4096;  // longer lists have steps: 512 bytes beside their 16 KiB or more
constexpr size_t look_up_cost = 32;    // looking one document up costs about as much as adding so many postings
constexpr uint32_t full_part = 65535;  // no part is larger

constexpr double min_postings_a_thread = 1e5;

uint32_t product(uint32_t factor, uint32_t part) { return uint32_t(uint64_t(factor) * part >> 16); }

// What a posting contributes to its token's factor, and the most that a token's postings contribute.

struct StoredWeights {
    const PostingBlock& block;

    StoredWeights(const PostingBlock& of, size_t, int64_t, const LengthNorms&) : block(of) {}
    uint32_t part(size_t posting, uint32_t) const { return block.weights[posting]; }
    uint32_t largest(PostingBlock::Top top) const { return top.weight; }
};

struct Bm25Parts {
    const PostingBlock& block;
    const float* norms;  // of the block's documents
    float smallest;

    Bm25Parts(const PostingBlock& of, size_t index, int64_t first, const LengthNorms& all)
        : block(of), norms(all.norms + first), smallest(all.smallest[index]) {}
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

// The first posting of first ... last whose document is at or after `document`. Halves without a branch: which half it
// is cannot be foreseen, and several searches overlap in the processor when none waits for a wrong guess.
size_t lower_bound(const uint16_t* documents, size_t first, size_t last, uint32_t document) {
    size_t n = last - first;
    while (n > 1) {
        const size_t half = n / 2;
        first += half & (0 - size_t(documents[first + half - 1] < document));
        n -= half;
    }
    return first + size_t(n == 1 && documents[first] < document);
}

// One query token's postings within a block.
struct List {
    const uint16_t* documents;  // the block's
    size_t begin, end;
    const uint16_t* steps;
    uint32_t factor;
    int64_t bound;  // no document of the block gets more from this list

    size_t size() const { return end - begin; }
    size_t at_or_after(uint32_t document) const {
        const size_t step = document / posting_step;
        if (!steps) return lower_bound(documents, begin, end, document);
        if (step >= posting_steps) return end;
        const size_t next = step + 1 < posting_steps ? begin + steps[step + 1] : end;
        return lower_bound(documents, begin + steps[step], next, document);
    }
    bool has(size_t posting, uint32_t document) const { return posting < end && documents[posting] == document; }
};

bool find_token(const PostingBlock& block, uint32_t token, size_t& index) {
    const uint32_t* found = std::lower_bound(block.tokens, block.tokens + block.n_tokens, token);
    index = size_t(found - block.tokens);
    return index < block.n_tokens && *found == token;
}

template <class Parts>
std::vector<List> lists_of(const PostingBlock& block, const PostingQuery& query, const Parts& parts) {
    std::vector<List> lists;
    lists.reserve(query.size);
    for (size_t i = 0; i < query.size; ++i) {
        size_t token;
        if (!find_token(block, query.tokens[i], token)) continue;
        const uint32_t factor = query.factors[i];
        const int64_t bound = product(factor, parts.largest(block.top(token)));
        if (bound > 0)
            lists.push_back({block.documents, block.starts[token], block.starts[token + 1], block.steps_of(token),
                             factor, bound});
    }
    return lists;
}

bool better(const PostingHit& a, const PostingHit& b) {
    return a.score != b.score ? a.score > b.score : a.position < b.position;
}

// The highest floor that a worker of one search has, for all of them.
struct SharedFloor {
    std::atomic<int64_t> score{0};
    std::atomic<bool> is_expected{false};  // it was, at least once: then it may be too high
};

// The best k of what one worker pushed. Cut back only when there are twice as many: a heap would cost a logarithm for
// every hit.
class Best {
  public:
    Best(size_t k, SharedFloor& shared) : k_(k), shared_(shared) {}

    int64_t floor() const { return floor_; }  // only a higher score can still be among the best

    // Take the others' floor, or let them have this one's: k documents above it are k, whoever found them.
    void share_floor() {
        int64_t others = shared_.score.load(std::memory_order_relaxed);
        while (others < floor_ && !shared_.score.compare_exchange_weak(others, floor_, std::memory_order_relaxed)) {
        }
        floor_ = std::max(floor_, others);
    }

    void push(int64_t score, int64_t position) {
        if (score <= floor_) return;
        hits_.push_back({score, position});
        if (hits_.size() >= 2 * k_) cut();
    }

    // Raises the floor to where it will be in the end, or a little below, if the rest of the documents is like the share
    // that was searched: so many of the k best are among these, and not many more, by the variance of such draws.
    void expect(double share) {
        const double mean = share * double(k_), rank = mean + 4 * std::sqrt(mean) + 8;
        if (rank >= double(k_) || rank >= double(hits_.size())) return;
        std::nth_element(hits_.begin(), hits_.begin() + ptrdiff_t(rank), hits_.end(), better);
        const int64_t floor = hits_[size_t(rank)].score - 1;
        if (floor <= floor_) return;
        floor_ = floor;
        shared_.is_expected.store(true, std::memory_order_relaxed);
    }

    const std::vector<PostingHit>& hits() const { return hits_; }  // the k best, and perhaps others

  private:
    // Documents come in no order: one that scores as much as the last of the best may stand before it.
    void cut() {
        std::nth_element(hits_.begin(), hits_.begin() + ptrdiff_t(k_ - 1), hits_.end(), better);
        hits_.resize(k_);
        floor_ = std::max(floor_, hits_[k_ - 1].score - 1);
    }

    size_t k_;
    SharedFloor& shared_;
    int64_t floor_ = 0;
    std::vector<PostingHit> hits_;
};

// What is written may be overwritten by the next: there is no branch to guess wrong.
size_t collect_plain(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint16_t* out) {
    size_t found = 0;
    for (size_t group = 0; group < n; group += collect_step) {
        uint32_t above = 0;
        for (size_t i = 0; i < collect_step; ++i) above |= uint32_t(sums[group + i] > limit);
        if (!above) continue;
        for (size_t i = group; i < group + collect_step; ++i) {
            out[found] = uint16_t(i);
            found += size_t(sums[i] > limit) & size_t(allowed[i]);
        }
    }
    return found;
}

Collect collect_function() {
    return Kernels<Collect>{&collect_plain, collect_avx2(), nullptr, collect_avx512(), nullptr, nullptr}.in_use();
}

// A query's lists in every block, and the windows in the order in which they are searched. All workers read one plan.
template <class Parts>
class Plan {
  public:
    struct Window {
        size_t block;
        int64_t first;  // the position of the block's first document
        uint32_t start, stop;
        int64_t bound;  // no document gets more from all lists
    };

    Plan(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms) {
        std::vector<Window> windows;
        parts_.reserve(blocks.size());
        int64_t first = 0;
        for (size_t i = 0; i < blocks.size(); ++i) {
            parts_.emplace_back(*blocks[i], i, first, norms);
            lists_.push_back(lists_of(*blocks[i], query, parts_[i]));
            // Those that save most postings for the least bound come first: they are the first to be left out.
            std::sort(lists_[i].begin(), lists_[i].end(), [](const List& a, const List& b) {
                return double(a.size()) * double(b.bound) > double(b.size()) * double(a.bound);
            });
            int64_t bound = 0;
            for (const List& list : lists_[i]) bound += list.bound, n_postings_ += list.size();
            for (uint32_t start = 0; start < blocks[i]->n_documents; start += window_size) {
                const uint32_t stop = uint32_t(std::min<size_t>(start + window_size, blocks[i]->n_documents));
                windows.push_back({i, first, start, stop, bound});
            }
            first += int64_t(blocks[i]->n_documents);
        }
        n_documents_ = first;
        for (size_t i = 0; i < windows.size(); i += sample_stride) windows_.push_back(windows[i]);
        for (size_t i = 0; i < windows.size(); ++i)
            if (i % sample_stride) windows_.push_back(windows[i]);
    }

    const std::vector<Window>& windows() const { return windows_; }
    const std::vector<List>& lists(const Window& window) const { return lists_[window.block]; }
    const Parts& parts(const Window& window) const { return parts_[window.block]; }
    int64_t n_documents() const { return n_documents_; }
    size_t n_postings() const { return n_postings_; }  // all that may have to be read

  private:
    std::vector<Parts> parts_;              // of each block
    std::vector<std::vector<List>> lists_;  // the same
    std::vector<Window> windows_;
    int64_t n_documents_ = 0;
    size_t n_postings_ = 0;
};

// One worker, with what it needs to search one window after another.
template <class Parts>
class Search {
  public:
    using Window = typename Plan<Parts>::Window;

    Search(const Plan<Parts>& plan, const bool* allowed) : plan_(plan), allowed_(allowed) {}

    // Takes windows until none is left. next: the first that nobody took; may_expect: whether the floor may follow what
    // was found so far
    void run(std::atomic<size_t>& next, Best& best, bool may_expect) {
        size_t searched = 0, documents = 0;
        for (size_t i; (i = next++) < plan_.windows().size();) {
            const Window& window = plan_.windows()[i];
            best.share_floor();
            if (window.bound > best.floor()) search(window, best);
            documents += window.stop - window.start;
            ++searched;
            const bool is_power = (searched & (searched - 1)) == 0;
            if (may_expect && is_power) best.expect(double(documents) / double(plan_.n_documents()));
        }
        best.share_floor();
    }

  private:
    void search(const Window& window, Best& best) {
        choose_essential(plan_.lists(window), best.floor());
        const Parts& parts = plan_.parts(window);
        for (const List* list : essential_) add_all(*list, parts, window);
        collect(window, best.floor() - others_bound_);
        int64_t rest = others_bound_;
        for (const List* list : others_) {
            if (n_candidates_ == 0) break;
            complete(*list, parts, window);
            rest -= list->bound;
            keep_above(best.floor() - rest);
        }
        for (size_t i = 0; i < n_candidates_; ++i)
            best.push(sums_[candidates_[i]], window.first + window.start + candidates_[i]);
        std::memset(sums_, 0, sizeof sums_);
    }

    // Lists whose bounds together cannot lift a document above the floor need not be read from end to end.
    void choose_essential(const std::vector<List>& lists, int64_t floor) {
        essential_.clear();
        others_.clear();
        others_bound_ = 0;
        for (const List& list : lists) {
            const bool is_other = others_bound_ + list.bound <= floor;
            (is_other ? others_ : essential_).push_back(&list);
            if (is_other) others_bound_ += list.bound;
        }
        std::sort(others_.begin(), others_.end(), [](const List* a, const List* b) { return a->bound > b->bound; });
    }

    void add_all(const List& list, const Parts& of, const Window& window) {
        const Parts parts = of;  // a copy the compiler can keep in registers
        const uint16_t* documents = list.documents;
        int32_t* sums = sums_;
        const uint32_t factor = list.factor, start = window.start;
        const auto add = [&](size_t posting) {
            const uint32_t document = documents[posting];
            sums[document - start] += int32_t(product(factor, parts.part(posting, document)));
        };
        const size_t end = list.at_or_after(window.stop);
        size_t i = list.at_or_after(start);
        for (; i + 4 <= end; i += 4) {
            add(i);
            add(i + 1);
            add(i + 2);
            add(i + 3);
        }
        for (; i < end; ++i) add(i);
    }

    // The allowed documents of the window that the lists not yet read could lift above the floor
    void collect(const Window& window, int64_t needed) {
        const size_t n = window.stop - window.start, whole = n / collect_step * collect_step;
        const bool* allowed = allowed_ + window.first + window.start;
        n_candidates_ = collect_(sums_, allowed, whole, int32_t(needed), candidates_);
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
    void complete(const List& list, const Parts& parts, const Window& window) {
        const size_t expected = list.size() * (window.stop - window.start) / parts.block.n_documents;
        if (n_candidates_ * look_up_cost > expected) {
            add_all(list, parts, window);
            return;
        }
        for (size_t i = 0; i < n_candidates_; ++i) {
            const uint32_t document = window.start + candidates_[i];
            const size_t posting = list.at_or_after(document);
            if (list.has(posting, document))
                sums_[candidates_[i]] += int32_t(product(list.factor, parts.part(posting, document)));
        }
    }

    const Plan<Parts>& plan_;
    const bool* allowed_;
    const Collect collect_ = collect_function();
    std::vector<const List*> essential_;  // of the window that is searched
    std::vector<const List*> others_;     // by falling bound
    int64_t others_bound_ = 0;
    size_t n_candidates_ = 0;
    uint16_t candidates_[window_size + collect_step];  // counted from the window's first document
    alignas(64) int32_t sums_[window_size] = {};
};

// The best k, unless a floor that was expected turned out too high: then fewer.
template <class Parts>
std::vector<PostingHit> run(const Plan<Parts>& plan, const bool* allowed, size_t k, size_t n_workers, bool may_expect) {
    SharedFloor floor;
    std::vector<Best> bests(n_workers, Best(k, floor));
    std::atomic<size_t> next{0};
    run_workers(n_workers, [&](size_t worker) { Search<Parts>(plan, allowed).run(next, bests[worker], may_expect); });
    std::vector<PostingHit> hits;
    for (const Best& best : bests)
        for (const PostingHit& hit : best.hits())
            if (hit.score > floor.score) hits.push_back(hit);
    if (floor.is_expected && hits.size() < k) return run(plan, allowed, k, n_workers, false);
    std::sort(hits.begin(), hits.end(), better);
    hits.resize(std::min(hits.size(), k));
    return hits;
}

template <class Parts>
std::vector<PostingHit> top(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms,
                            const bool* allowed, size_t k, size_t n_threads) {
    const Plan<Parts> plan(blocks, query, norms);
    const size_t n_workers =
        workers_worth(double(plan.n_postings()), min_postings_a_thread, plan.windows().size(), n_threads);
    return run(plan, allowed, k, n_workers, true);
}

template <class Parts>
void score(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms, const int64_t* positions,
           size_t n, int64_t* scores) {
    size_t next = 0;
    int64_t first = 0, after = 0;
    for (size_t i = 0; i < blocks.size() && next < n; ++i, first = after) {
        after += int64_t(blocks[i]->n_documents);
        const size_t begin = next;
        while (next < n && positions[next] < after) ++next;
        if (next == begin) continue;
        const Parts parts(*blocks[i], i, first, norms);
        for (const List& list : lists_of(*blocks[i], query, parts)) {
            for (size_t j = begin; j < next; ++j) {
                const uint32_t document = uint32_t(positions[j] - first);
                const size_t posting = list.at_or_after(document);
                if (list.has(posting, document)) scores[j] += product(list.factor, parts.part(posting, document));
            }
        }
    }
}

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
        if (starts[i + 1] - starts[i] > stepped_list) add_steps(i);
    }
}

void PostingBlock::add_steps(size_t token) {
    stepped_tokens.push_back(uint32_t(token));
    const size_t begin = starts[token], end = starts[token + 1];
    for (size_t step = 0; step < posting_steps; ++step)  // the last begins at 65,280 or before: 16 bits hold it
        steps.push_back(uint16_t(lower_bound(documents, begin, end, uint32_t(step) * posting_step) - begin));
}

const uint16_t* PostingBlock::steps_of(size_t token) const {
    if (starts[token + 1] - starts[token] <= stepped_list) return nullptr;
    const auto found = std::lower_bound(stepped_tokens.begin(), stepped_tokens.end(), uint32_t(token));
    return steps.data() + size_t(found - stepped_tokens.begin()) * posting_steps;
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
                                     const LengthNorms& norms, const bool* allowed, size_t k, size_t n_threads) {
    return norms.norms ? top<Bm25Parts>(blocks, query, norms, allowed, k, n_threads)
                       : top<StoredWeights>(blocks, query, norms, allowed, k, n_threads);
}

void score_postings(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms,
                    const int64_t* positions, size_t n, int64_t* scores) {
    std::fill(scores, scores + n, 0);
    norms.norms ? score<Bm25Parts>(blocks, query, norms, positions, n, scores)
                : score<StoredWeights>(blocks, query, norms, positions, n, scores);
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
