// MaxScore (Turtle and Flood 1995) over windows of documents whose sums fit the first-level cache. Which lists need not
// be read follows from the k-th best score; a sample of the windows, searched first, says early where it will lie.
#include "postings.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu.h"
#include "parallel.h"
#include "postings_kernels.h"

namespace m3edge {
namespace {

constexpr size_t sample_stride = 8;    // one window in so many is searched first
constexpr uint32_t full_part = 65535;  // no part is larger

// What takes about as long as adding so many postings one by one
constexpr size_t look_up_cost = 32;         // to look one document up in a list of numbers
constexpr size_t look_up_bit_cost = 8;      // in a bitmap
constexpr size_t documents_a_count = 5;     // to add the parts that so many documents' counts make

constexpr size_t keep_cost = 24;      // to look at one candidate again takes about as long as at so many documents in turn
constexpr size_t few_postings = 512;  // of a window's documents: only theirs are looked at

constexpr double min_cost_a_thread = 1e5;  // in postings

uint32_t product(uint32_t factor, uint32_t part) { return uint32_t(uint64_t(factor) * part >> 16); }

// What is written may be overwritten by the next: there is no branch to guess wrong.
size_t collect_plain(const int32_t* sums, const bool* allowed, size_t n, int32_t limit, uint32_t* out) {
    size_t found = 0;
    constexpr size_t step = 16;
    for (size_t group = 0; group < n; group += step) {
        uint32_t above = 0;
        for (size_t i = 0; i < step; ++i) above |= uint32_t(sums[group + i] > limit);
        if (!above) continue;
        for (size_t i = group; i < group + step; ++i) {
            out[found] = uint32_t(i);
            found += size_t(sums[i] > limit) & size_t(allowed[i]);
        }
    }
    return found;
}

void add_plain(const BitmapPostings& postings, uint32_t factor, int32_t* sums) {
    const uint16_t* weights = postings.weights;
    for (size_t i = 0; i < postings.n; i += 64) {
        uint64_t left;
        std::memcpy(&left, postings.bits + i / 16, sizeof left);
        for (; left; left &= left - 1) sums[i + lowest_one(left)] += int32_t(product(factor, *weights++));
    }
}

const PostingKernels& posting_kernels() {
    static constexpr PostingKernels plain = {1, &collect_plain, &add_plain, nullptr};
    return *Kernels<const PostingKernels*>{&plain, posting_kernels_avx2(), nullptr, posting_kernels_avx512(), nullptr,
                                           nullptr}
                .in_use();
}

// What a posting contributes to its token's factor, and the most that a token's postings contribute.

struct StoredWeights {
    const PostingBlock& block;

    StoredWeights(const PostingBlock& of, size_t, int64_t, const LengthNorms&) : block(of) {}
    uint32_t part(size_t posting, uint32_t) const { return block.weights[posting]; }
    uint32_t largest(size_t token) const { return block.largest_weight(token); }
    const uint16_t* largest_of_windows(size_t token) const { return block.window_weights(token); }
    static size_t cost(const PostingList& list, const PostingKernels& kernels) {
        if (!list.is_bitmap()) return list.size();
        const size_t one_by_one = list.size() + list.size() / 2 + list.n_documents / 16;
        return std::min<size_t>(one_by_one, list.n_documents / kernels.documents_a_posting);
    }
};

struct Bm25Parts {
    const PostingBlock& block;
    const float* norms;  // of the block's documents
    float smallest;

    Bm25Parts(const PostingBlock& of, size_t index, int64_t first, const LengthNorms& all)
        : block(of), norms(all.norms + first), smallest(all.smallest[index]) {}
    uint32_t part(size_t posting, uint32_t document) const { return saturated(block.count(posting), norms[document]); }
    uint32_t largest(size_t token) const {
        const uint8_t count = block.largest_count(token);
        return count == 255 ? full_part : saturated(count, smallest);
    }
    static const uint16_t* largest_of_windows(size_t) { return nullptr; }
    static size_t cost(const PostingList& list, const PostingKernels& kernels) {
        const bool is_dense = list.is_bitmap() && kernels.add_counts;
        return is_dense ? std::min<size_t>(list.size(), list.n_documents / documents_a_count) : list.size();
    }

  private:
    static uint32_t saturated(int32_t count, float norm) {
        const float frequency = float(count), part = 65535.0f * frequency / (frequency + norm);
        return part >= 0 && part < float(full_part) ? uint32_t(part) : full_part;  // whatever the norm is
    }
};

// One query token's postings within a block.
struct List : PostingList {
    uint32_t factor;
    int64_t bound;  // no document of the block gets more from this list
    size_t cost;    // of adding all of it
    const uint16_t* largest_of_windows;  // the largest part in each window of the block; null where it is not known

    int64_t bound_in(size_t window) const {
        return largest_of_windows ? int64_t(product(factor, largest_of_windows[window])) : bound;
    }
};

template <class Parts>
std::vector<List> lists_of(const PostingBlock& block, const PostingQuery& query, const Parts& parts) {
    const PostingKernels& kernels = posting_kernels();
    std::vector<List> lists;
    lists.reserve(query.size);
    for (size_t i = 0; i < query.size; ++i) {
        size_t token;
        if (!block.find_token(query.tokens[i], token)) continue;
        const uint32_t factor = query.factors[i];
        const int64_t bound = product(factor, parts.largest(token));
        const PostingList list = block.list(token);
        if (bound > 0)
            lists.push_back({list, factor, bound, Parts::cost(list, kernels), parts.largest_of_windows(token)});
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
class alignas(64) Best {  // each worker writes to its own
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
            // Those that save most work for the least bound come first: they are the first to be left out.
            std::sort(lists_[i].begin(), lists_[i].end(), [](const List& a, const List& b) {
                return double(a.cost) * double(b.bound) > double(b.cost) * double(a.bound);
            });
            int64_t bound = 0;
            for (const List& list : lists_[i]) bound += list.bound, cost_ += list.cost;
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
    size_t cost() const { return cost_; }  // of adding all lists

  private:
    std::vector<Parts> parts_;              // of each block
    std::vector<std::vector<List>> lists_;  // the same
    std::vector<Window> windows_;
    int64_t n_documents_ = 0;
    size_t cost_ = 0;
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
    struct Other {
        const List* list;
        int64_t bound;  // no document of the window gets more from it
    };

    void search(const Window& window, Best& best) {
        choose_essential(window, best.floor());
        const Parts& parts = plan_.parts(window);
        is_all_touched_ = n_essential_postings(window) > few_postings;
        if (is_all_touched_) {
            for (const List* list : essential_) add_all(*list, parts, window);
            collect(window, best.floor() - others_bound_);
        } else {
            n_candidates_ = 0;
            for (const List* list : essential_) add_few(*list, parts, window);
            n_touched_ = n_candidates_;
            std::memcpy(touched_, candidates_, n_touched_ * sizeof *touched_);
            keep_above(best.floor() - others_bound_);
            keep_allowed(window);
        }
        int64_t rest = others_bound_;
        for (const Other& other : others_) {
            if (n_candidates_ == 0) break;
            complete(*other.list, parts, window);
            rest -= other.bound;
            if (n_candidates_ > window_size / keep_cost)
                collect(window, best.floor() - rest);
            else
                keep_above(best.floor() - rest);
        }
        for (size_t i = 0; i < n_candidates_; ++i)
            best.push(sums_[candidates_[i]], window.first + window.start + candidates_[i]);
        forget();
    }

    // So many postings have the lists that must be read; if there are more than a few, at least those.
    size_t n_essential_postings(const Window& window) const {
        size_t n = 0;
        for (const List* list : essential_) {
            if (list->is_bitmap() || n > few_postings) return few_postings + 1;
            n += list->at_or_after(window.stop) - list->at_or_after(window.start);
        }
        return n;
    }

    // As add_each, noting as candidates what was 0 before.
    void add_few(const List& list, const Parts& parts, const Window& window) {
        list.for_each(window.start, window.stop, [&](uint32_t document, size_t posting) {
            const uint32_t i = document - window.start;
            const int32_t before = sums_[i];
            sums_[i] += int32_t(product(list.factor, parts.part(posting, document)));
            candidates_[n_candidates_] = i;
            n_candidates_ += size_t(before == 0) & size_t(sums_[i] != 0);
        });
    }

    void forget() {
        if (is_all_touched_)
            std::memset(sums_, 0, sizeof sums_);
        else
            for (size_t i = 0; i < n_touched_; ++i) sums_[touched_[i]] = 0;
    }

    // Lists whose bounds together cannot lift a document above the floor need not be read from end to end.
    void choose_essential(const Window& window, int64_t floor) {
        essential_.clear();
        others_.clear();
        others_bound_ = 0;
        for (const List& list : plan_.lists(window)) {
            const int64_t bound = list.bound_in(window.start / window_size);
            if (others_bound_ + bound > floor) {
                essential_.push_back(&list);
            } else if (bound > 0) {
                others_.push_back({&list, bound});
                others_bound_ += bound;
            }
        }
        std::sort(others_.begin(), others_.end(), [](const Other& a, const Other& b) { return a.bound > b.bound; });
    }

    void add_all(const List& list, const StoredWeights& parts, const Window& window) {
        if (!list.is_bitmap() || list.cost < list.n_documents / kernels_.documents_a_posting)
            return add_each(list, parts, window);
        const uint16_t* weights = parts.block.weights;
        const size_t n = (window.stop - window.start + 63) / 64 * 64;
        kernels_.add({list.documents + window.start / 16, n, weights + list.at_or_after(window.start),
                      weights + parts.block.n_postings()},
                     list.factor, sums_);
    }
    void add_all(const List& list, const Bm25Parts& parts, const Window& window) {
        const bool is_dense = list.is_bitmap() && list.size() > list.n_documents / documents_a_count;
        if (!is_dense || !kernels_.add_counts) return add_each(list, parts, window);
        const PostingBlock& block = parts.block;
        const size_t n = (window.stop - window.start + 63) / 64 * 64;
        kernels_.add_counts({list.documents + window.start / 16, n, list.at_or_after(window.start), block.counts,
                             block.n_postings(), block.large_at, block.large_counts, block.n_large,
                             parts.norms + window.start},
                            list.factor, sums_);
    }

    void add_each(const List& list, const Parts& of, const Window& window) {
        const Parts parts = of;  // a copy the compiler can keep in registers
        int32_t* sums = sums_;
        const uint32_t factor = list.factor, start = window.start;
        list.for_each(start, window.stop, [&](uint32_t document, size_t posting) {
            sums[document - start] += int32_t(product(factor, parts.part(posting, document)));
        });
    }

    // The allowed documents of the window that the lists not yet read could lift above the floor
    void collect(const Window& window, int64_t needed) {
        const size_t n = window.stop - window.start, whole = n / collect_step * collect_step;
        const bool* allowed = allowed_ + window.first + window.start;
        n_candidates_ = kernels_.collect(sums_, allowed, whole, int32_t(needed), candidates_);
        for (size_t i = whole; i < n; ++i)
            if (sums_[i] > needed && allowed[i]) candidates_[n_candidates_++] = uint32_t(i);
    }

    void keep_allowed(const Window& window) {
        const bool* allowed = allowed_ + window.first + window.start;
        keep([allowed](uint32_t document) { return allowed[document]; });
    }

    void keep_above(int64_t needed) {
        keep([this, needed](uint32_t document) { return sums_[document] > needed; });
    }

    // Those candidates that do; written without a branch, as in collect_plain.
    template <class Does>
    void keep(const Does& does) {
        size_t n = 0;
        for (size_t i = 0; i < n_candidates_; ++i) {
            const uint32_t document = candidates_[i];
            candidates_[n] = document;
            n += size_t(does(document));
        }
        n_candidates_ = n;
    }

    // Add a list to the candidates' sums: one by one, or, when they are many, to all documents of the window.
    void complete(const List& list, const Parts& parts, const Window& window) {
        const size_t cost_of_all = list.cost * (window.stop - window.start) / parts.block.n_documents;
        const size_t cost_of_each = list.is_bitmap() ? look_up_bit_cost : look_up_cost;
        if (n_candidates_ * cost_of_each > cost_of_all) {
            add_all(list, parts, window);
            is_all_touched_ = true;
            return;
        }
        for (size_t i = 0; i < n_candidates_; ++i) {
            const uint32_t document = window.start + candidates_[i];
            const size_t posting = list.find(document);
            if (posting != list.end)
                sums_[candidates_[i]] += int32_t(product(list.factor, parts.part(posting, document)));
        }
    }

    const Plan<Parts>& plan_;
    const bool* allowed_;
    const PostingKernels& kernels_ = posting_kernels();
    std::vector<const List*> essential_;  // of the window that is searched
    std::vector<Other> others_;           // by falling bound
    int64_t others_bound_ = 0;
    size_t n_candidates_ = 0;
    uint32_t candidates_[window_size + collect_step];  // counted from the window's first document
    alignas(64) int32_t sums_[window_size] = {};
    bool is_all_touched_ = true;  // or only some sums are not 0
    size_t n_touched_ = 0;
    uint32_t touched_[few_postings];
};

// What the workers of one search share.
template <class Parts>
class SharedSearch : public PostingSearch {
  public:
    SharedSearch(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms, const bool* allowed,
                 size_t k, size_t n_workers)
        : plan_(blocks, query, norms), allowed_(allowed), k_(k), bests_(n_workers, Best(k, floor_)) {}

    size_t workers_worth_starting() const override {
        return workers_worth(double(plan_.cost()), min_cost_a_thread, plan_.windows().size(), bests_.size());
    }

    void work(size_t worker) override { Search<Parts>(plan_, allowed_).run(next_, bests_[worker], true); }

    std::vector<PostingHit> hits() override {
        std::vector<PostingHit> hits;
        for (const Best& best : bests_) append(best, floor_, hits);
        if (floor_.is_expected && hits.size() < k_) {  // it turned out too high
            SharedFloor floor;
            Best best(k_, floor);
            std::atomic<size_t> next{0};
            Search<Parts>(plan_, allowed_).run(next, best, false);
            hits.clear();
            append(best, floor, hits);
        }
        std::sort(hits.begin(), hits.end(), better);
        hits.resize(std::min(hits.size(), k_));
        return hits;
    }

  private:
    static void append(const Best& best, const SharedFloor& floor, std::vector<PostingHit>& hits) {
        for (const PostingHit& hit : best.hits())
            if (hit.score > floor.score) hits.push_back(hit);
    }

    const Plan<Parts> plan_;
    const bool* allowed_;
    size_t k_;
    SharedFloor floor_;
    std::vector<Best> bests_;
    std::atomic<size_t> next_{0};
};

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
                const size_t posting = list.find(document);
                if (posting != list.end) scores[j] += product(list.factor, parts.part(posting, document));
            }
        }
    }
}

}  // namespace

std::unique_ptr<PostingSearch> PostingSearch::of(const PostingBlocks& blocks, const PostingQuery& query,
                                                 const LengthNorms& norms, const bool* allowed, size_t k,
                                                 size_t n_workers) {
    if (norms.norms) return std::make_unique<SharedSearch<Bm25Parts>>(blocks, query, norms, allowed, k, n_workers);
    return std::make_unique<SharedSearch<StoredWeights>>(blocks, query, norms, allowed, k, n_workers);
}

std::vector<PostingHit> top_postings(const PostingBlocks& blocks, const PostingQuery& query,
                                     const LengthNorms& norms, const bool* allowed, size_t k, size_t n_threads) {
    const auto search = PostingSearch::of(blocks, query, norms, allowed, k, n_threads);
    run_workers(search->workers_worth_starting(), [&](size_t worker) { search->work(worker); });
    return search->hits();
}

void score_postings(const PostingBlocks& blocks, const PostingQuery& query, const LengthNorms& norms,
                    const int64_t* positions, size_t n, int64_t* scores) {
    std::fill(scores, scores + n, 0);
    norms.norms ? score<Bm25Parts>(blocks, query, norms, positions, n, scores)
                : score<StoredWeights>(blocks, query, norms, positions, n, scores);
}

QueryFactors query_factors(const int64_t* ids, const double* weights, size_t n) {
    constexpr double all_factors = 2147483647.0;  // of all factors together
    QueryFactors found;
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) sum += weights[i] > 0.0 ? weights[i] : 0.0;
    if (sum > 0.0) found.unit = sum / all_factors;
    for (size_t i = 0; i < n; ++i) {
        if (!(weights[i] > 0.0)) continue;
        found.tokens.push_back(uint32_t(ids[i]));
        found.factors.push_back(uint32_t(std::floor(weights[i] * (1 - 1e-12) / found.unit)));
    }
    return found;
}

int64_t count_postings(const PostingBlocks& blocks, uint32_t token, const bool* allowed) {
    int64_t count = 0;
    for (const PostingBlock* block : blocks) {
        size_t index;
        if (block->find_token(token, index))
            block->list(index).for_each(0, uint32_t(block->n_documents),
                                        [&](uint32_t document, size_t) { count += allowed[document]; });
        allowed += block->n_documents;
    }
    return count;
}

}  // namespace m3edge
