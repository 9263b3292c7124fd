// Asking for memory ahead of its use, where the compiler has a word for it.
#pragma once

#include <cstddef>

namespace m3edge {

constexpr size_t cache_line = 64;

inline void prefetch(const void* address, size_t bytes = 1) {
#if defined(__GNUC__)
    for (size_t at = 0; at < bytes; at += cache_line) __builtin_prefetch(static_cast<const char*>(address) + at);
#else
    (void)address, (void)bytes;
#endif
}

}  // namespace m3edge
