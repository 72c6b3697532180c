// Vectors of logits beside vectors of token ids: comparing, selecting, hashing, adding up.
#pragma once

#include <math.h>

#include "vec.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace millstream {
namespace MILLSTREAM_LEVEL {

static const uint32_t HASH_1 = 0x7FEB352D, HASH_2 = 0x846CA68B;  // of lowbias32

#if defined(MILLSTREAM_AVX512)

typedef __m512i ids_t;
typedef __mmask16 lanes;

static inline ids_t id_range(int64_t at) {
    return _mm512_add_epi32(_mm512_set1_epi32((int32_t)at),
                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
static inline ids_t load_ids(const int32_t* p) { return _mm512_loadu_si512(p); }
static inline ids_t load_ids(const int32_t* p, int64_t n) { return _mm512_maskz_loadu_epi32(first(n), p); }
static inline vec load_or_lowest(const float* p, int64_t n) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), first(n), p);
}
static inline uint32_t bits_of(lanes m) { return m; }
static inline bool any(lanes m) { return m != 0; }
static inline lanes not_numbers(vec x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
static inline lanes equal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline lanes exceed(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline lanes reach(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline lanes at_most(ids_t a, int32_t b) { return _mm512_cmple_epi32_mask(a, _mm512_set1_epi32(b)); }
static inline lanes both(lanes a, lanes b) { return a & b; }
static inline lanes either(lanes a, lanes b) { return a | b; }
static inline vec only(lanes m, vec x) { return _mm512_maskz_mov_ps(m, x); }
static inline int64_t compress(float* out, vec x, lanes m) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(m, x));
    return __builtin_popcount(m);
}
static inline void compress(int32_t* out, ids_t x, lanes m) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(m, x));
}
static inline ids_t mixed(ids_t x) {
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int32_t)HASH_1));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int32_t)HASH_2));
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
}
static inline ids_t keyed(ids_t x, uint32_t low, uint32_t high) {
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_set1_epi32((int32_t)low)), _mm512_set1_epi32((int32_t)high));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    return _mm512_mullo_epi32(x, _mm512_set1_epi32((int32_t)HASH_2));
}
static inline vec half_as_float(ids_t x) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(x, 1)); }
static inline vec bits_as_number(vec x) { return _mm512_cvtepi32_ps(_mm512_castps_si512(x)); }

// A sum of many floats in double precision, so that small weights beside large ones count.
struct Sum {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    void add(vec x) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    }
    double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};

#else

typedef uvec ids_t;
typedef ivec lanes;

static inline ids_t id_range(int64_t at) {
    ids_t lane;
    for (int i = 0; i < WIDTH; i++) lane[i] = i;
    return lane + (uint32_t)at;
}
static inline ids_t load_ids(const int32_t* p) {
    ids_t x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline ids_t load_ids(const int32_t* p, int64_t n) {
    ids_t x = {};
    memcpy(&x, p, n * 4);
    return x;
}
static inline vec load_or_lowest(const float* p, int64_t n) {
    vec x = set(-INFINITY);
    memcpy(&x, p, n * 4);
    return x;
}
#if defined(MILLSTREAM_AVX2)
static inline uint32_t bits_of(lanes m) { return (uint32_t)_mm256_movemask_ps((__m256)m); }
#elif defined(__SSE2__)
static inline uint32_t bits_of(lanes m) { return (uint32_t)_mm_movemask_ps((__m128)m); }
#else
static inline uint32_t bits_of(lanes m) {
    uint32_t bits = 0;
    for (int i = 0; i < WIDTH; i++) bits |= (uint32_t)(m[i] & 1) << i;
    return bits;
}
#endif
static inline bool any(lanes m) { return bits_of(m) != 0; }
static inline lanes not_numbers(vec x) { return x != x; }
static inline lanes equal(vec a, vec b) { return a == b; }
static inline lanes exceed(vec a, vec b) { return a > b; }
static inline lanes reach(vec a, vec b) { return a >= b; }
static inline lanes at_most(ids_t a, int32_t b) { return (ivec)a <= b; }
static inline lanes both(lanes a, lanes b) { return a & b; }
static inline lanes either(lanes a, lanes b) { return a | b; }
static inline vec only(lanes m, vec x) { return (vec)((ivec)x & m); }
static inline int64_t compress(float* out, vec x, lanes m) {
    int64_t count = 0;
    for (uint32_t bits = bits_of(m); bits; bits &= bits - 1) out[count++] = x[__builtin_ctz(bits)];
    return count;
}
static inline void compress(int32_t* out, ids_t x, lanes m) {
    for (uint32_t bits = bits_of(m); bits; bits &= bits - 1) *out++ = (int32_t)x[__builtin_ctz(bits)];
}
static inline ids_t mixed(ids_t x) {
    x = (x ^ (x >> 16)) * HASH_1;
    x = (x ^ (x >> 15)) * HASH_2;
    return x ^ (x >> 16);
}
static inline ids_t keyed(ids_t x, uint32_t low, uint32_t high) {
    x = (x ^ low) * high;
    return (x ^ (x >> 16)) * HASH_2;
}
static inline vec half_as_float(ids_t x) { return __builtin_convertvector((ivec)(x >> 1), vec); }
static inline vec bits_as_number(vec x) { return __builtin_convertvector((ivec)x, vec); }

struct Sum {
    typedef double half_doubles __attribute__((vector_size(WIDTH * 4)));
    typedef float half_floats __attribute__((vector_size(WIDTH * 2)));
    half_doubles low = {}, high = {};
    void add(vec x) {
        half_floats halves[2];
        memcpy(halves, &x, sizeof x);
        low += __builtin_convertvector(halves[0], half_doubles);
        high += __builtin_convertvector(halves[1], half_doubles);
    }
    double total() const {
        half_doubles lanes = low + high;
        double sum = 0;
        for (int i = 0; i < WIDTH / 2; i++) sum += lanes[i];
        return sum;
    }
};

#endif

// exp(x) for x <= 0, to about one unit in the last place; below -87 that of -87. Polynomial: Cephes, expf.
static inline vec weight_of(vec x) {
    x = larger(x, set(-87.0f));
    vec n = nearest(x * set(LOG2_E));
    vec r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    vec p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    p = fma(p, r, set(1.0f));
    p = fma(p, r, set(1.0f));
    return scale_by_power(p, n);
}

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
