// Inlining that is not left to the compiler: what it leaves out of line it would keep arguments of registers in memory for.
#pragma once

#if defined(__GNUC__)
#define M3EDGE_ALWAYS __attribute__((always_inline))
#define M3EDGE_INLINE inline M3EDGE_ALWAYS
#else
#define M3EDGE_INLINE inline
#endif
