// Registers of floats in the compilers' own vectors, as wide as the instruction set that a file is compiled for.
//
// Included by files compiled for different instruction sets: no inline function of the standard library may be used
// here or by what includes this, or the linker could keep the copy that only some processors can run.
#pragma once

#include "inline.h"
#include "transformer_kernels.h"

#if defined(__GNUC__)
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace m3edge {
namespace {  // a copy for each file, compiled for its instruction set

#if defined(__AVX512F__)
constexpr size_t lanes = 16;
#elif defined(__AVX2__)
constexpr size_t lanes = 8;
#else
constexpr size_t lanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * lanes)));
typedef int32_t Ints __attribute__((vector_size(4 * lanes)));
typedef int8_t Bytes __attribute__((vector_size(lanes)));
typedef uint8_t UnsignedBytes __attribute__((vector_size(lanes)));

template <class V, class T>
M3EDGE_INLINE V load(const T* from) {
    V value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}
template <class V, class T>
M3EDGE_INLINE void store(T* to, V value) {
    __builtin_memcpy(to, &value, sizeof value);
}
M3EDGE_INLINE Floats all(float value) { return value - Floats{}; }  // -0.0 stays what it is
M3EDGE_INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)  // one instruction, which gcc 12 does not always find
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}
M3EDGE_INLINE Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}
// Whole numbers to as many of 16 bits.
M3EDGE_INLINE void store_words(int16_t* to, Ints values) {
#if defined(__AVX512F__)
    store(to, _mm512_cvtepi32_epi16((__m512i)values));  // one instruction, as above
#else
    typedef int16_t Words __attribute__((vector_size(2 * lanes)));
    store(to, __builtin_convertvector(values, Words));
#endif
}
M3EDGE_INLINE Floats widened(const int8_t* bytes) { return __builtin_convertvector(load<Bytes>(bytes), Floats); }

template <size_t N>
struct VectorOf {
    typedef float type __attribute__((vector_size(4 * N)));
};

// All lanes of a register in one, by halves.
template <size_t N, class Combine>
M3EDGE_INLINE float folded(typename VectorOf<N>::type v, const Combine& combine) {
    if constexpr (N == 1) {
        return v[0];
    } else {
        using Half = typename VectorOf<N / 2>::type;
        return folded<N / 2>(combine(load<Half>(&v), load<Half>((const char*)&v + 2 * N)), combine);
    }
}
// gcc 12 would keep v itself in memory, in the loop that computes it.
M3EDGE_INLINE Floats copied(Floats v) {
    __asm__("" : "+m"(v));
    return v;
}
M3EDGE_INLINE float sum_of(Floats v) {
    return folded<lanes>(copied(v), [](auto a, auto b) { return a + b; });
}
M3EDGE_INLINE float largest_of(Floats v) {
    return folded<lanes>(copied(v), [](auto a, auto b) { return a > b ? a : b; });
}

constexpr float no_fraction = 0x1.8p23f;  // a sum with it has no bits for a fraction, and the integer in its lowest

// 2 ** x for x <= 0, from 2 ** -100 on, which is as good as nothing: to 2e-7 of it, or coarsely to 1e-4.
template <bool coarse = false>
M3EDGE_INLINE Floats power_of_two(Floats x) {
    x = larger(x, all(-100));
    const Floats shifted = x + no_fraction;
    const Floats rest = x - (shifted - no_fraction);  // from -1/2 to 1/2: the polynomials that are nearest there
    Floats power;
    if constexpr (coarse) {
        power = rest * 5.51716686e-02f + 2.42611122e-01f;
        power = power * rest + 6.93260986e-01f;
        power = power * rest + 9.99928074e-01f;
    } else {
        power = rest * 1.32647272e-03f + 9.67151264e-03f;
        power = power * rest + 5.55073374e-02f;
        power = power * rest + 2.40222421e-01f;
        power = power * rest + 6.93146978e-01f;
        power = power * rest + 1.0f;
    }
    return (Floats)((Ints)power + ((Ints)shifted << 23));  // what stands above the integer is shifted out
}

constexpr float log2_e = 1.44269504f;

// x times the normal distribution's integral up to x, to 5e-5: a hundredth of what a byte counts for where it is rounded next.
// The integral less a half is odd; from 4.4 on it is as good as a half.
M3EDGE_INLINE Floats gelu(Floats x) {
    const Floats near = larger(all(-4.4f), smaller(all(4.4f), x)), square = near * near;
    Floats half = square * 3.572618397e-11f - 3.756620802e-09f;
    half = half * square + 1.741705217e-07f;
    half = half * square - 4.726397597e-06f;
    half = half * square + 8.430872067e-05f;
    half = half * square - 1.055085695e-03f;
    half = half * square + 9.643330934e-03f;
    half = half * square - 6.607690057e-02f;
    half = half * square + 3.987618557e-01f;
    return x * (half * near + 0.5f);
}

}  // namespace
}  // namespace m3edge

#endif
