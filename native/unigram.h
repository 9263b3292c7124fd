// Unigram segmentation (Kudo, arXiv 1804.10959): the most probable way to write a word with the vocabulary's tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace m3edge {

// The vocabulary as a trie over bytes. Node 0 is the root; node i's children are the nodes first[i] to first[i + 1],
// their labels ascending; ids[i] is the token that ends at node i, or -1.
struct Trie {
    const uint32_t* first;  // [n_nodes + 1]
    const int32_t* ids;     // [n_nodes]
    const uint8_t* labels;  // [n_nodes]
    size_t n_nodes;

    // Whether every index in it leads to where it may: a file that lies must not become a wild read.
    bool is_sound(size_t n_tokens) const;
    // The child of a node by a label, or 0, which is nobody's child.
    uint32_t child(uint32_t node, uint8_t label) const;
    // The token spelled so, or -1.
    int32_t find(std::string_view token) const;
};

// A token's log probability is scores[id]; a character that no token covers is unknown_id, ten below the least probable
// token, and neighbours that are unknown are one token.
class Unigram {
public:
    Unigram(const Trie& trie, const double* scores, size_t n_tokens, int32_t unknown_id);
    // Appends the ids of one word, which is UTF-8.
    void segment(std::string_view word, std::vector<int64_t>& ids) const;

private:
    Trie trie_;
    const double* scores_;
    int32_t unknown_id_;
    double unknown_score_;
};

}  // namespace m3edge
