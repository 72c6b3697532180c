// The layout of keys and values in the blocks of one layer.
//
// Plain caches are made of units of four bytes: one float32, or two bfloat16 that are multiplied by the same pair of
// factors. A block holds, for each kv head, first its keys as units [dim / per_unit][block size], then its values
// as units [block size / per_unit][padded dim]. So one vector holds a unit of 16 tokens' keys, or of 16 elements of
// values, and in bfloat16 its even and odd halves belong to neighbouring elements (keys) or tokens (values).
//
// Quantised caches hold codes and, per token and head, a scale: x is about scale * code in 8 bits, and
// scale * (code - zero) in 4 bits, zero being one of the codes. A block holds, for each kv head: key codes
// [dim][block size], value codes [block size][padded dim], float32 scales of keys and of values [block size] each,
// and in 4 bits a byte per zero of keys and of values [block size] each. Four-bit codes lie two in a byte, the first
// one low: keys of elements 2 i and 2 i + 1, values of elements i and i + 16 of each 32.
#pragma once

#include "common.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

typedef uint32_t unit;

static const int64_t GROUP = 16;  // tokens that lie together; block sizes are multiples of it

enum Mode { PLAIN = 0, INT8 = 1, UINT4 = 2 };

template <typename T>
struct PerUnit;
template <>
struct PerUnit<float> {
    static const int64_t value = 1;
};
template <>
struct PerUnit<bf16> {
    static const int64_t value = 2;
};

template <typename T>
struct Layout {
    static const int64_t per_unit = PerUnit<T>::value;
    int64_t kv_heads, dim, block_size;
    Mode mode;

    int64_t padded() const { return round_up(dim, mode == UINT4 ? 32 : 16); }
    // Units of plain keys and values.
    int64_t key_units() const { return dim / per_unit * block_size; }
    int64_t value_units() const { return block_size / per_unit * padded(); }
    // Bytes of codes.
    int64_t key_bytes() const { return dim * block_size >> (mode == UINT4); }
    int64_t value_bytes() const { return padded() * block_size >> (mode == UINT4); }
    int64_t head_units() const {
        if (mode == PLAIN) return key_units() + value_units();
        return (key_bytes() + value_bytes() + block_size * (mode == UINT4 ? 10 : 8)) / 4;
    }
    int64_t head(int64_t block, int64_t kv_head) const { return (block * kv_heads + kv_head) * head_units(); }
};

// The parts of a quantised block under one head.
template <typename T>
struct Codes {
    uint8_t *keys, *values;
    float *key_scales, *value_scales;
    uint8_t *key_zeros, *value_zeros;

    Codes(const Layout<T>& layout, const unit* head)
        : keys((uint8_t*)head),
          values(keys + layout.key_bytes()),
          key_scales((float*)(values + layout.value_bytes())),
          value_scales(key_scales + layout.block_size),
          key_zeros((uint8_t*)(value_scales + layout.block_size)),
          value_zeros(key_zeros + layout.block_size) {}
};

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
