"""The commands of `m3edge`: a module for each group, with its options, what it does, and what it prints."""
