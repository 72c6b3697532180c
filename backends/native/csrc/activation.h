// Activations of gated layers, over vectors of floats.
#pragma once

#include "vec.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

struct Silu {
    static inline vec of(vec x) { return x * sigmoid(x); }
};

// The error function: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; off by 1.5e-7 at most.
struct Gelu {
    static inline vec of(vec x) {
        vec z = magnitude(x) * set(0.70710678118654752f);
        vec t = set(1.0f) / fma(set(0.3275911f), z, set(1.0f));
        vec p = fma(set(1.061405429f), t, set(-1.453152027f));
        p = fma(p, t, set(1.421413741f));
        p = fma(p, t, set(-0.284496736f));
        p = fma(p, t, set(0.254829592f));
        vec tail = p * t * exp2(z * z * set(-LOG2_E)) * set(0.5f);  // of the normal distribution beyond |x|
        return larger(set(0.0f), x) - magnitude(x) * tail;
    }
};

struct GeluTanh {
    static inline vec of(vec x) {
        vec inner = set(1.5957691216057308f) * x * fma(set(0.044715f), x * x, set(1.0f));
        return x * sigmoid(inner);
    }
};

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
