// One vector of floats, as wide as the level's registers, and what kernels do with it.
#pragma once

#include "common.h"

#if defined(MILLSTREAM_AVX512) || defined(MILLSTREAM_AVX2)
#include <immintrin.h>
#endif

namespace millstream {
namespace MILLSTREAM_LEVEL {

#if defined(MILLSTREAM_AVX512)

typedef __m512 vec;
static const int WIDTH = 16;

static inline vec set(float x) { return _mm512_set1_ps(x); }
static inline vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, vec x) { _mm512_storeu_ps(p, x); }
static inline vec load(const bf16* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void store(bf16* p, vec x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }
static inline __mmask16 first(int64_t n) { return (__mmask16)((1u << n) - 1); }
static inline vec load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
static inline void store(float* p, vec x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
static inline vec load(const bf16* p, int64_t n) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void store(bf16* p, vec x, int64_t n) {
    _mm256_mask_storeu_epi16(p, first(n), (__m256i)_mm512_cvtneps_pbh(x));
}
static inline vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
// The larger one, the smaller one; b where either is no number.
static inline vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); }
static inline vec magnitude(vec a) { return _mm512_abs_ps(a); }
static inline vec nearest(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline float sum(vec a) { return _mm512_reduce_add_ps(a); }
static inline float largest(vec a) { return _mm512_reduce_max_ps(a); }
// Lanes i with begin <= i < end from x, the others `other`.
static inline vec within(vec x, int64_t begin, int64_t end, vec other) {
    uint32_t below_end = (1u << least(most(end, 0), 16)) - 1, below_begin = (1u << least(most(begin, 0), 16)) - 1;
    return _mm512_mask_mov_ps(other, (__mmask16)(below_end & ~below_begin), x);
}
// x rounded to integers in -128 .. 127, as bytes.
static inline void store_int8(int8_t* p, vec x, int64_t n) {
    _mm_mask_storeu_epi8(p, first(n), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}
// 2^n * m for integral n >= -150.
static inline vec scale_by_power(vec m, vec n) { return _mm512_scalef_ps(m, n); }
static const float LEAST_EXPONENT = -150.0f;

#else

#if defined(MILLSTREAM_AVX2)
static const int WIDTH = 8;
#else
static const int WIDTH = 4;
#endif
typedef float vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t ivec __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t uvec __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t hvec __attribute__((vector_size(WIDTH * 2)));

static inline vec set(float x) { return x - (vec){}; }
static inline vec load(const float* p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void store(float* p, vec x) { memcpy(p, &x, sizeof x); }
static inline vec load(const bf16* p) {
    hvec h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}
static inline vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }
static inline void store(bf16* p, vec x) {
    uvec bits = (uvec)x;
    uvec rounded = bits + 0x7fff + ((bits >> 16) & 1);
    uvec result = (uvec)choose(x != x, (vec)(bits | 0x400000), (vec)rounded) >> 16;
    hvec h = __builtin_convertvector(result, hvec);
    memcpy(p, &h, sizeof h);
}
static inline vec load(const float* p, int64_t n) {
    vec x = {};
    memcpy(&x, p, n * 4);
    return x;
}
static inline void store(float* p, vec x, int64_t n) { memcpy(p, &x, n * 4); }
static inline vec load(const bf16* p, int64_t n) {
    bf16 h[WIDTH] = {};
    memcpy(h, p, n * 2);
    return load(h);
}
static inline void store(bf16* p, vec x, int64_t n) {
    bf16 h[WIDTH];
    store(h, x);
    memcpy(p, h, n * 2);
}
#if defined(MILLSTREAM_AVX2)
static inline vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
#else
static inline vec fma(vec a, vec b, vec c) { return a * b + c; }
#endif
static inline vec larger(vec a, vec b) { return choose(a > b, a, b); }
static inline vec smaller(vec a, vec b) { return choose(a < b, a, b); }
static inline vec magnitude(vec a) { return (vec)((ivec)a & 0x7fffffff); }
// Right for |a| < 2^22.
static inline vec nearest(vec a) { return (a + 12582912.0f) - 12582912.0f; }
static inline float sum(vec a) {
    float lanes[WIDTH];
    store(lanes, a);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}
static inline float largest(vec a) {
    float most = a[0];
    for (int i = 1; i < WIDTH; i++) most = a[i] > most ? a[i] : most;
    return most;
}
static inline vec within(vec x, int64_t begin, int64_t end, vec other) {
    ivec lane;
    for (int i = 0; i < WIDTH; i++) lane[i] = i;
    return choose((lane >= (int32_t)begin) & (lane < (int32_t)end), x, other);
}
static inline void store_int8(int8_t* p, vec x, int64_t n) {
    ivec whole = __builtin_convertvector(nearest(x), ivec);
    for (int i = 0; i < n; i++) p[i] = (int8_t)whole[i];
}
static inline vec scale_by_power(vec m, vec n) {
    ivec power = (ivec)(n + 12582912.0f) << 23;
    return choose(n <= -126.0f, (vec){}, (vec)((ivec)m + power));
}
static const float LEAST_EXPONENT = -127.0f;

#endif

// 2^x, to about 1e-7 of its size; 0 for x far below -126; no number for no number. Polynomial: Cephes, exp2f.
static inline vec exp2(vec x) {
    x = smaller(set(127.0f), larger(set(LEAST_EXPONENT), x));
    vec n = nearest(x);
    vec f = x - n;
    vec p = set(1.535336188319500e-4f);
    p = fma(p, f, set(1.339887440266574e-3f));
    p = fma(p, f, set(9.618437357674640e-3f));
    p = fma(p, f, set(5.550332471162809e-2f));
    p = fma(p, f, set(2.402264791363012e-1f));
    p = fma(p, f, set(6.931472028550421e-1f));
    p = fma(p, f, set(1.0f));
    return scale_by_power(p, n);
}

static const float LOG2_E = 1.44269504088896341f;

static inline vec sigmoid(vec x) { return set(1.0f) / (set(1.0f) + exp2(x * set(-LOG2_E))); }

static inline vec tanh(vec x) { return set(1.0f) - set(2.0f) / (set(1.0f) + exp2(x * set(2.0f * LOG2_E))); }

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
