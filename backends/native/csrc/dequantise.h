// Quantised keys and values of one group of tokens, as the units of a plain cache of 16-token blocks.
#pragma once

#include "cache.h"
#include "vec.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

#if defined(MILLSTREAM_AVX512)
typedef __m512i ints;
static inline ints load_bytes(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
static inline ints load_bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
static inline ints low_half(ints x) { return _mm512_and_si512(x, _mm512_set1_epi32(15)); }
static inline ints high_half(ints x) { return _mm512_srli_epi32(x, 4); }
static inline ints less(ints x, ints y) { return _mm512_sub_epi32(x, y); }
static inline ints all(int32_t x) { return _mm512_set1_epi32(x); }
static inline vec to_floats(ints x) { return _mm512_cvtepi32_ps(x); }
// Whole numbers up to 256 are exact in bfloat16: the upper halves of the floats. `even` stands below `odd`.
static inline void store_pair(unit* p, vec even, vec odd) {
    __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_castps_si512(odd)));
}
#else
typedef ivec ints;
template <typename Byte>
static inline ints load_bytes(const Byte* p) {
    typedef Byte bytes __attribute__((vector_size(WIDTH)));
    bytes x;
    memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, ints);
}
static inline ints low_half(ints x) { return x & 15; }
static inline ints high_half(ints x) { return x >> 4; }
static inline ints less(ints x, ints y) { return x - y; }
static inline ints all(int32_t x) { return x - (ints){}; }
static inline vec to_floats(ints x) { return __builtin_convertvector(x, vec); }
static inline void store_pair(unit* p, vec even, vec odd) {
    uvec both = (uvec)even >> 16 | ((uvec)odd & 0xffff0000u);
    memcpy(p, &both, sizeof both);
}
#endif

// Keys of 16 tokens: units [dim / per_unit][16]. What lies `ahead` bytes behind is fetched meanwhile.
template <typename T, Mode MODE>
static inline void dequantise_keys(const Layout<T>& layout, const Codes<T>& codes, int64_t offset, int64_t ahead,
                                   unit* out) {
    const int64_t size = layout.block_size, dim = layout.dim;
    for (int64_t part = 0; part < GROUP; part += WIDTH) {
        const int64_t at = offset + part;
        const ints zeros = MODE == UINT4 ? load_bytes(codes.key_zeros + at) : all(0);
        const uint8_t* from = codes.keys + at;
        unit* to = out + part;
        for (int64_t i = 0; i < dim; i += 2) {
            vec even, odd;
            __builtin_prefetch(from + ahead);
            if (MODE == UINT4) {
                const ints both = load_bytes(from);
                even = to_floats(less(low_half(both), zeros));
                odd = to_floats(less(high_half(both), zeros));
                from += size;
            } else {
                even = to_floats(load_bytes((const int8_t*)from));
                odd = to_floats(load_bytes((const int8_t*)from + size));
                from += 2 * size;
            }
            if constexpr (PerUnit<T>::value == 2) {
                store_pair(to, even, odd);
                to += GROUP;
            } else {
                store((float*)to, even);
                store((float*)to + GROUP, odd);
                to += 2 * GROUP;
            }
        }
    }
}

template <typename T>
static inline void store_values(unit* out, vec even, vec odd, int64_t padded) {
    if constexpr (PerUnit<T>::value == 2) {
        store_pair(out, even, odd);
    } else {
        store((float*)out, even);
        store((float*)out + padded, odd);
    }
}

// Values of 16 tokens: units [16 / per_unit][padded dim]. What lies `ahead` bytes behind is fetched meanwhile.
template <typename T, Mode MODE>
static inline void dequantise_values(const Layout<T>& layout, const Codes<T>& codes, int64_t offset, int64_t ahead,
                                     unit* out) {
    const int64_t padded = layout.padded(), bytes = MODE == UINT4 ? padded / 2 : padded;
    for (int64_t token = 0; token < GROUP; token += 2) {
        const uint8_t *even = codes.values + (offset + token) * bytes, *odd = even + bytes;
        unit* to = out + token / PerUnit<T>::value * padded;
        for (int64_t i = 0; i < 2 * bytes; i += 64) __builtin_prefetch(even + ahead + i);
        if (MODE == UINT4) {
            const ints even_zero = all(codes.value_zeros[offset + token]);
            const ints odd_zero = all(codes.value_zeros[offset + token + 1]);
            for (int64_t i = 0; i < padded; i += 32)
                for (int64_t k = 0; k < 16; k += WIDTH) {
                    const ints a = load_bytes(even + i / 2 + k), b = load_bytes(odd + i / 2 + k);
                    store_values<T>(to + i + k, to_floats(less(low_half(a), even_zero)),
                                    to_floats(less(low_half(b), odd_zero)), padded);
                    store_values<T>(to + i + k + 16, to_floats(less(high_half(a), even_zero)),
                                    to_floats(less(high_half(b), odd_zero)), padded);
                }
        } else {
            for (int64_t i = 0; i < padded; i += WIDTH)
                store_values<T>(to + i, to_floats(load_bytes((const int8_t*)even + i)),
                                to_floats(load_bytes((const int8_t*)odd + i)), padded);
        }
    }
}

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
