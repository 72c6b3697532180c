// Drawing tokens from rows of logits: what backends/answers/numpy_token_sampler.py defines, without sorting.
//
// Tokens stand in the order of falling logit, equal logits in that of rising token id. A kept set is a run of
// leading tokens, so a bound describes it: a logit, and the last token id kept of those that have it. Top-k and
// min-p are bounds known beforehand. Top-p is not: the race is run first, and its winner is kept where the
// tokens that stand before it do not reach p yet; otherwise neither it nor any token behind it is kept, and the
// race is run again among those before it. The winner of a kept superset that is itself kept is the winner of
// the kept set. Each loss shrinks the mass in question to a random part, so 1 + log(1 / p) races are expected.
#include "sampling_vec.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

extern PyMethodDef sampling_methods[];

namespace {

// A row of logits, or some of its tokens by rising id.
struct Tokens {
    const float* values;
    const int32_t* ids;  // null: 0, 1, 2, ...
    int64_t count;
};

// Keeps tokens above `least`, and those equal to it up to the token id `last`.
struct Bound {
    float least;
    int32_t last;
};
const Bound EVERYTHING = {-INFINITY, INT32_MAX};

inline lanes kept(Bound bound, vec x, ids_t ids) {
    vec least = set(bound.least);
    return either(exceed(x, least), both(equal(x, least), at_most(ids, bound.last)));
}

// How one row is drawn from.
struct Draw {
    float peak, temperature;
    int64_t top_k;
    double top_p;
    float min_gap;
    uint32_t low, high;  // the halves of the row's noise word, the upper one made odd
};

// Calls body(logits, ids) for vectors of tokens until it returns true; lanes past the end hold minus infinity
// and an id that no bound keeps.
template <bool LISTED, typename Body>
inline void walk_as(const Tokens& tokens, const Body& body) {
    int64_t at = 0;
    for (; at + WIDTH <= tokens.count; at += WIDTH)
        if (body(load(tokens.values + at), LISTED ? load_ids(tokens.ids + at) : id_range(at))) return;
    int64_t rest = tokens.count - at;
    if (!rest) return;
    body(load_or_lowest(tokens.values + at, rest), LISTED ? load_ids(tokens.ids + at, rest) : id_range(at));
}

template <typename Body>
inline void walk(const Tokens& tokens, const Body& body) {
    if (tokens.ids)
        walk_as<true>(tokens, body);
    else
        walk_as<false>(tokens, body);
}

struct Mass {
    double sum;
    int64_t count;
};

// Sum of exp((logit - peak) / temperature) over the tokens that `bound` keeps, and their number, which takes in
// all of minus infinity where it keeps some of them.
Mass mass(const Tokens& tokens, Bound bound, float peak, float temperature) {
    vec top = set(peak), inverse = set(1.0f / temperature);
    Sum sum;
    if (bound.least == -INFINITY) {  // tokens of that logit add less than 1e-31, kept or not
        walk(tokens, [&](vec x, ids_t) {
            sum.add(weight_of((x - top) * inverse));
            return false;
        });
        return {sum.total(), tokens.count};
    }
    int64_t count = 0;
    walk(tokens, [&](vec x, ids_t ids) {
        lanes m = kept(bound, x, ids);
        uint32_t bits = bits_of(m);
        if (bits) {
            sum.add(only(m, weight_of((x - top) * inverse)));
            count += __builtin_popcount(bits);
        }
        return false;
    });
    return {sum.total(), count};
}

struct Winner {
    float value;
    int32_t id;
};

inline uint32_t noise_bits(uint32_t id, const Draw& draw) {
    uint32_t x = (id ^ (id >> 16)) * HASH_1;
    x = (x ^ (x >> 15)) * HASH_2;
    x = ((x ^ (x >> 16)) ^ draw.low) * draw.high;
    return (x ^ (x >> 16)) * HASH_2;
}

inline float gap_of(float logit, const Draw& draw) { return (logit - draw.peak) / draw.temperature; }

// The time at which a token arrives in the race: -log(1 - v) / exp(gap), v = (bits + 0.5) / 2^32.
inline double arrival_of(float logit, uint32_t id, const Draw& draw) {
    double noise = (noise_bits(id, draw) + 0.5) * -0x1p-32 + 1;
    return (double)expf(-gap_of(logit, draw)) * -log(noise);
}

// The kept token that arrives first, of equally early ones that of the smallest id.
//
// A token can be earlier than the earliest one so far only if v < -log(1 - v) < earliest * exp(gap). That is
// tested for vectors of tokens, in binary logarithms times 2^23: the bits of a positive float, as an integer,
// are 127 * 2^23 plus a piecewise linear interpolation of its logarithm from below. `margin` is more than the
// roundings of the test amount to where it is close: logarithms between -33 and 5, integers below 2^31.
Winner race(const Tokens& tokens, Bound bound, const Draw& draw) {
    const double unit = 0x1p23, margin = 1e-3, latest_peak = 23;
    vec top = set(draw.peak), slope = set((float)(LOG2_E * unit / draw.temperature));
    double earliest = INFINITY;
    vec level = set((float)((log2(latest_peak) + margin + 127 + 31) * unit));
    Winner winner = {};
    walk(tokens, [&](vec x, ids_t ids) {
        vec early = bits_as_number(half_as_float(keyed(mixed(ids), draw.low, draw.high)));
        lanes able = reach(fma(x - top, slope, level), early);
        if (__builtin_expect(!any(able), 1)) return false;
        float values[WIDTH];
        int32_t tokens_here[WIDTH];
        store(values, x);
        memcpy(tokens_here, &ids, sizeof ids);
        for (uint32_t bits = bits_of(both(able, kept(bound, x, ids))); bits; bits &= bits - 1) {
            int lane = __builtin_ctz(bits);
            double arrival = arrival_of(values[lane], (uint32_t)tokens_here[lane], draw);
            if (arrival < earliest) {
                earliest = arrival;
                winner = {values[lane], tokens_here[lane]};
                if (earliest < latest_peak) level = set((float)((log2(earliest) + margin + 127 + 31) * unit));
            }
        }
        return false;
    });
    return winner;
}

// A number for each float, rising with it; -0.0 comes right before 0.0.
inline int32_t rank_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

inline float float_of(int32_t rank) {
    int32_t bits = rank ^ ((rank >> 31) & 0x7FFFFFFF);
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// The k-th largest of some values, which lies from `low` to `high`: found by halving the range of floats.
float kth_between(const float* values, int64_t count, int64_t k, float low, float high) {
    int64_t at_least = rank_of(low), at_most = rank_of(high);
    while (at_least < at_most) {
        int64_t middle = at_most - ((at_most - at_least) >> 1);
        vec bound = set(float_of((int32_t)middle));
        int64_t reaching = 0;
        walk_as<false>({values, nullptr, count}, [&](vec x, ids_t) {
            reaching += __builtin_popcount(bits_of(reach(x, bound)));
            return false;
        });
        if (reaching >= k)
            at_least = middle;
        else
            at_most = middle - 1;
    }
    return float_of((int32_t)at_least);
}

const int64_t SAMPLE = 1024;

// A range of logits that the k-th largest is expected in, from an evenly spaced sample.
void guess_range(const float* values, int64_t count, int64_t k, float* low, float* high) {
    float sample[SAMPLE];
    int64_t step = count / SAMPLE;
    for (int64_t i = 0; i < SAMPLE; i++) sample[i] = values[i * step];
    double share = (double)k / (double)count, place = share * SAMPLE;
    double spread = 2.5 * sqrt(place * (1 - share)) + 3;
    int64_t below = (int64_t)(place + spread), above = (int64_t)(place - spread);
    *low = below <= SAMPLE ? kth_between(sample, SAMPLE, below, -INFINITY, INFINITY) : -INFINITY;
    *high = place - spread >= 1 ? kth_between(sample, SAMPLE, above, *low, INFINITY) : INFINITY;
}

// Room for what is taken out of one row; each part holds all of its tokens and a vector more.
struct Room {
    float* values;
    int32_t* ids;
    float* ranges[2];

    explicit Room(int64_t vocab)
        : values(scratch<float>(0, vocab + WIDTH)),
          ids(scratch<int32_t>(1, vocab + WIDTH)),
          ranges{scratch<float>(2, vocab + WIDTH), scratch<float>(3, vocab + WIDTH)} {}
};

// The tokens that `bound` keeps, in the room's one place for them, where `tokens` may already be.
Tokens gather(const Tokens& tokens, Bound bound, const Room& room) {
    int64_t count = 0;
    walk(tokens, [&](vec x, ids_t ids) {
        lanes m = kept(bound, x, ids);
        if (any(m)) {
            compress(room.ids + count, ids, m);
            count += compress(room.values + count, x, m);
        }
        return false;
    });
    return {room.values, room.ids, count};
}

// The k-th largest of `count` values, and how many exceed it. A sample tells a range that it probably lies in;
// the values in that range are taken out, and again as long as they become much fewer.
float kth_largest(const float* values, int64_t count, int64_t k, const Room& room, int64_t* exceeding) {
    float low = -INFINITY, high = INFINITY;
    int64_t above = 0;
    for (int round = 0; count > 2 * SAMPLE; round++) {
        guess_range(values, count, k - above, &low, &high);
        float* inside = room.ranges[round % 2];
        int64_t over, found;
        for (;;) {
            vec from = set(low), to = set(high);
            over = found = 0;
            walk_as<false>({values, nullptr, count}, [&](vec x, ids_t) {
                uint32_t reaching = bits_of(reach(x, from));
                if (!reaching) return false;
                lanes beyond = exceed(x, to);
                over += __builtin_popcount(bits_of(beyond));
                found += compress(inside + found, x, both(reach(x, from), reach(to, x)));
                return false;
            });
            if (k - above <= over) {
                low = high;
                high = INFINITY;
            } else if (k - above > over + found) {
                high = low;
                low = -INFINITY;
            } else {
                break;
            }
        }
        bool enough = 2 * found > count;
        above += over;
        values = inside;
        count = found;
        if (enough) break;
    }
    float kth = kth_between(values, count, k - above, low, high);
    vec bound = set(kth);
    walk_as<false>({values, nullptr, count}, [&](vec x, ids_t) {
        above += __builtin_popcount(bits_of(exceed(x, bound)));
        return false;
    });
    *exceeding = above;
    return kth;
}

// What keeps the `k` leading ones of a whole row's tokens; few are gathered.
Bound keep_leading(Tokens* tokens, int64_t k, const Room& room) {
    int64_t exceeding, place = 0;
    Bound bound = {kth_largest(tokens->values, tokens->count, k, room, &exceeding), INT32_MAX};
    if (k <= tokens->count / 8) *tokens = gather(*tokens, bound, room);
    vec least = set(bound.least);
    walk(*tokens, [&](vec x, ids_t ids) {
        uint32_t bits = bits_of(equal(x, least));
        int64_t wanted = k - exceeding - place;
        place += __builtin_popcount(bits);
        if (place < k - exceeding) return false;
        while (--wanted) bits &= bits - 1;
        int32_t here[WIDTH];
        memcpy(here, &ids, sizeof ids);
        bound.last = here[__builtin_ctz(bits)];
        return true;
    });
    return bound;
}

// The smallest logit whose gap reaches min_gap. Gaps never fall where logits rise, so halving the range finds it.
float least_by_gap(const Draw& draw) {
    int64_t at_least = rank_of(-INFINITY), at_most = rank_of(draw.peak);
    while (at_least < at_most) {
        int64_t middle = at_least + ((at_most - at_least) >> 1);
        if (gap_of(float_of((int32_t)middle), draw) >= draw.min_gap)
            at_most = middle;
        else
            at_least = middle + 1;
    }
    return float_of((int32_t)at_least);
}

int64_t drawn_from(const float* row, int64_t vocab, const Draw& draw) {
    Room room(vocab);
    Tokens tokens = {row, nullptr, vocab};
    Bound bound = EVERYTHING;
    if (draw.top_k < vocab) bound = keep_leading(&tokens, draw.top_k, room);
    float likely_enough = draw.min_gap > -INFINITY ? least_by_gap(draw) : -INFINITY;
    bool nucleus = draw.top_p < INFINITY;
    double enough = nucleus ? draw.top_p * mass(tokens, bound, draw.peak, draw.temperature).sum : INFINITY;
    for (;;) {
        Bound stricter = bound.least < likely_enough ? Bound{likely_enough, INT32_MAX} : bound;
        Winner winner = race(tokens, stricter, draw);
        if (!nucleus) return winner.id;
        bound = {winner.value, winner.id - 1};
        Mass before = mass(tokens, bound, draw.peak, draw.temperature);
        if (!before.count || before.sum < enough) return winner.id;
        if (before.count <= tokens.count / 4) tokens = gather(tokens, bound, room);
    }
}

// Restores the order of a heap, the largest key on top, whose element `at` may be too small.
void sift(uint64_t* keys, int64_t at, int64_t count) {
    uint64_t key = keys[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        child += child + 1 < count && keys[child + 1] > keys[child];
        if (keys[child] <= key) break;
        keys[at] = keys[child];
    }
    keys[at] = key;
}

void sort(uint64_t* keys, int64_t count) {
    for (int64_t at = count / 2; at-- > 0;) sift(keys, at, count);
    while (count-- > 1) {
        uint64_t last = keys[count];
        keys[count] = keys[0];
        keys[0] = last;
        sift(keys, 0, count);
    }
}

// Ids and logits of the `width` leading finite tokens, then token 0 with minus infinity.
void leading_of(const float* row, int64_t vocab, int64_t width, int64_t* ids, float* values) {
    Room room(vocab);
    uint64_t* keys = scratch<uint64_t>(4, width);
    Tokens tokens = {row, nullptr, vocab};
    Bound bound = keep_leading(&tokens, width, room);
    tokens = gather(tokens, bound, room);
    int64_t count = 0;
    for (int64_t i = 0; i < tokens.count; i++)
        if (tokens.values[i] > -INFINITY)  // adding zero makes -0.0, which ties with 0.0, the same
            keys[count++] = ((uint64_t)(INT32_MAX - (int64_t)rank_of(tokens.values[i] + 0.0f)) << 20) |
                            (uint32_t)tokens.ids[i];
    sort(keys, count);
    for (int64_t i = 0; i < width; i++) {
        ids[i] = i < count ? (int64_t)(keys[i] & 0xFFFFF) : 0;
        values[i] = i < count ? row[ids[i]] : -INFINITY;
    }
}

// The first largest logit; the first one that is no number, if any is.
void best_of(const float* row, int64_t vocab, int64_t* id, float* peak) {
    const int64_t part = 4096;
    float most = -INFINITY;
    int64_t at = 0;
    for (int64_t begin = 0; begin < vocab; begin += part) {
        int64_t count = least(part, vocab - begin), i = 0;
        vec largest_here[4] = {set(-INFINITY), set(-INFINITY), set(-INFINITY), set(-INFINITY)};
        lanes strange = not_numbers(largest_here[0]);
        for (; i + 4 * WIDTH <= count; i += 4 * WIDTH)
            for (int lane = 0; lane < 4; lane++) {
                vec x = load(row + begin + i + lane * WIDTH);
                strange = either(strange, not_numbers(x));
                largest_here[lane] = larger(largest_here[lane], x);
            }
        for (; i < count; i += WIDTH) {
            vec x = load_or_lowest(row + begin + i, least(WIDTH, count - i));
            strange = either(strange, not_numbers(x));
            largest_here[0] = larger(largest_here[0], x);
        }
        if (any(strange)) {
            for (at = begin; row[at] == row[at];) at++;
            *id = at;
            *peak = row[at];
            return;
        }
        float here = largest(larger(larger(largest_here[0], largest_here[1]), larger(largest_here[2], largest_here[3])));
        if (here > most) {
            most = here;
            at = begin;
        }
    }
    while (row[at] != most) at++;
    *id = at;
    *peak = row[at];
}

// (logits, count, vocab, ids, peaks)
PyObject* sampling_best(PyObject*, PyObject* const* values, Py_ssize_t given) {
    Arguments arguments(values, given);
    if (!arguments.are(5)) return nullptr;
    const float* logits = arguments.pointer<float>();
    int64_t count = arguments.integer(), vocab = arguments.integer();
    int64_t* ids = arguments.pointer<int64_t>();
    float* peaks = arguments.pointer<float>();
    if (arguments.failed()) return nullptr;
    {
        LongWork unlocked(count * vocab / 8);
        parallel_tasks(count, count * vocab / 8, [&](int64_t i) { best_of(logits + i * vocab, vocab, ids + i, peaks + i); });
    }
    Py_RETURN_NONE;
}

// (logits, vocab, rows, count, peaks, temperature, top_k, top_p, min_gap, words, chosen)
PyObject* sampling_draw(PyObject*, PyObject* const* values, Py_ssize_t given) {
    Arguments arguments(values, given);
    if (!arguments.are(11)) return nullptr;
    const float* logits = arguments.pointer<float>();
    int64_t vocab = arguments.integer();
    const int64_t* rows = arguments.pointer<int64_t>();
    int64_t count = arguments.integer();
    const float* peaks = arguments.pointer<float>();
    const float* temperature = arguments.pointer<float>();
    const int64_t* top_k = arguments.pointer<int64_t>();
    const double* top_p = arguments.pointer<double>();
    const float* min_gap = arguments.pointer<float>();
    const uint64_t* words = arguments.pointer<uint64_t>();
    int64_t* chosen = arguments.pointer<int64_t>();
    if (arguments.failed()) return nullptr;
    {
        LongWork unlocked(count * vocab);
        parallel_tasks(count, count * vocab, [&](int64_t i) {
            Draw draw = {peaks[i],   temperature[i],     top_k[i], top_p[i],
                         min_gap[i], (uint32_t)words[i], (uint32_t)(words[i] >> 32) | 1};
            chosen[i] = drawn_from(logits + rows[i] * vocab, vocab, draw);
        });
    }
    Py_RETURN_NONE;
}

// (logits, vocab, rows, count, width, ids, values)
PyObject* sampling_leading(PyObject*, PyObject* const* values, Py_ssize_t given) {
    Arguments arguments(values, given);
    if (!arguments.are(7)) return nullptr;
    const float* logits = arguments.pointer<float>();
    int64_t vocab = arguments.integer();
    const int64_t* rows = arguments.pointer<int64_t>();
    int64_t count = arguments.integer(), width = arguments.integer();
    int64_t* ids = arguments.pointer<int64_t>();
    float* found = arguments.pointer<float>();
    if (arguments.failed()) return nullptr;
    {
        LongWork unlocked(count * vocab);
        parallel_tasks(count, count * vocab, [&](int64_t i) {
            leading_of(logits + rows[i] * vocab, vocab, width, ids + i * width, found + i * width);
        });
    }
    Py_RETURN_NONE;
}

// (logits, vocab, rows, count, peaks, totals): the logarithm of the sum of exp(logit)
PyObject* sampling_log_totals(PyObject*, PyObject* const* values, Py_ssize_t given) {
    Arguments arguments(values, given);
    if (!arguments.are(6)) return nullptr;
    const float* logits = arguments.pointer<float>();
    int64_t vocab = arguments.integer();
    const int64_t* rows = arguments.pointer<int64_t>();
    int64_t count = arguments.integer();
    const float* peaks = arguments.pointer<float>();
    double* totals = arguments.pointer<double>();
    if (arguments.failed()) return nullptr;
    {
        LongWork unlocked(count * vocab);
        parallel_tasks(count, count * vocab, [&](int64_t i) {
            Mass all = mass({logits + rows[i] * vocab, nullptr, vocab}, EVERYTHING, peaks[i], 1.0f);
            totals[i] = log(all.sum) + peaks[i];
        });
    }
    Py_RETURN_NONE;
}

}  // namespace

#define METHOD(name) {#name, (PyCFunction)(void (*)())name, METH_FASTCALL, nullptr}
PyMethodDef sampling_methods[] = {
    METHOD(sampling_best), METHOD(sampling_draw), METHOD(sampling_leading), METHOD(sampling_log_totals), {},
};
#undef METHOD

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
