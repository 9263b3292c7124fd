// Viterbi over the tokens that a trie finds at each character. Sums and comparisons are made in the order in which Hugging
// Face's tokenizers makes them: ties between segmentations fall the same way, to the last bit of a double.
#include "unigram.h"

#include <algorithm>

namespace m3edge {

namespace {

constexpr double kUnknownPenalty = 10.0;  // sentencepiece's
constexpr size_t kNowhere = SIZE_MAX;

// The best way to reach a place in the word: its last token, and where that starts.
struct Step {
    double score = 0.0;
    size_t start = kNowhere;
    int32_t id = 0;

    void offer(double other_score, size_t other_start, int32_t other_id) {
        if (start != kNowhere && !(other_score > score)) return;
        score = other_score;
        start = other_start;
        id = other_id;
    }
};

size_t character_length(uint8_t lead) {
    if (lead < 0x80) return 1;
    if (lead < 0xE0) return 2;
    return lead < 0xF0 ? 3 : 4;
}

}  // namespace

bool Trie::is_sound(size_t n_tokens) const {
    if (n_nodes == 0 || first[0] != 1 || first[n_nodes] != n_nodes) return false;
    for (size_t i = 0; i < n_nodes; ++i)
        if (first[i] > first[i + 1] || ids[i] < -1 || ids[i] >= int64_t(n_tokens)) return false;
    return true;
}

uint32_t Trie::child(uint32_t node, uint8_t label) const {
    const uint8_t* begin = labels + first[node];
    const uint8_t* end = labels + first[node + 1];
    const uint8_t* found = std::lower_bound(begin, end, label);
    return found != end && *found == label ? uint32_t(found - labels) : 0;
}

int32_t Trie::find(std::string_view token) const {
    uint32_t node = 0;
    for (char byte : token)
        if ((node = child(node, uint8_t(byte))) == 0) return -1;
    return ids[node];
}

Unigram::Unigram(const Trie& trie, const double* scores, size_t n_tokens, int32_t unknown_id)
    : trie_(trie), scores_(scores), unknown_id_(unknown_id),
      unknown_score_(*std::min_element(scores, scores + n_tokens) - kUnknownPenalty) {}

void Unigram::segment(std::string_view word, std::vector<int64_t>& ids) const {
    std::vector<Step> best(word.size() + 1);
    for (size_t at = 0; at < word.size();) {
        const double so_far = best[at].score;
        const size_t next = std::min(word.size(), at + character_length(uint8_t(word[at])));
        bool covered = false;
        uint32_t node = 0;
        for (size_t end = at + 1; end <= word.size(); ++end) {
            node = trie_.child(node, uint8_t(word[end - 1]));
            if (node == 0) break;
            const int32_t id = trie_.ids[node];
            if (id < 0) continue;
            best[end].offer(scores_[id] + so_far, at, id);
            covered |= end == next;
        }
        if (!covered) best[next].offer(unknown_score_ + so_far, at, unknown_id_);
        at = next;
    }
    const size_t before = ids.size();
    for (size_t end = word.size(); end > 0;) {
        size_t start = best[end].start;
        if (best[end].id == unknown_id_) {
            while (start > 0 && best[start].id == unknown_id_) start = best[start].start;
            const int32_t whole = trie_.find(word.substr(start, end - start));
            ids.push_back(whole < 0 ? unknown_id_ : whole);
        } else {
            ids.push_back(best[end].id);
        }
        end = start;
    }
    std::reverse(ids.begin() + std::ptrdiff_t(before), ids.end());
}

}  // namespace m3edge
