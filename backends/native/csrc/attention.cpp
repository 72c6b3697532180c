// Attention over paged keys and values, of decode steps and prefill chunks alike.
//
// A task is some consecutive queries of one sequence under all query heads of one kv head: its rows. Contexts are
// walked in tiles of TILE tokens at fixed positions. Each row's tile gives a triple (largest score, sum of weights,
// weighted values) from its own scores alone, and a row's triples are merged from the first tile to the last, as in
// FlashAttention (Dao et al., 2022). As tiles depend on positions only, a row's result is the same bit for bit
// whatever stands beside it in the task or the batch, and whether one thread walks all its tiles or several do.
#include "attention_tile.h"

namespace millstream {
namespace MILLSTREAM_LEVEL {

namespace {

const int64_t MOST_ROWS = 96;                        // of a task, unless one query alone has more
const int64_t LEAST_SPAN = 2, MOST_SPAN = 16;  // tiles of a task where work is split over threads
const int64_t MOST_PARTIAL_BYTES = 32 << 20;         // of triples kept to be merged

// What the whole call knows.
template <typename T>
struct Call {
    Layout<T> layout;
    const unit* cache;
    const T* query;
    int64_t query_stride;
    T* out;
    const int64_t* query_starts;
    const int64_t* contexts;
    const int64_t* tables;
    int64_t table_stride;
    int64_t heads;
    Scoring scoring;
    int64_t window;  // 0: none
    int64_t group() const { return heads / layout.kv_heads; }
};

// Queries first_query .. first_query + queries of a slice, and tiles first_tile .. end_tile of its context.
struct Task {
    int64_t slice, kv_head, first_query, queries, first_tile, end_tile;
    int64_t partial;  // row of the first triple in the partial results, or -1: merge and finish at once
};

// The triples of a task's rows, `width` floats of weighted values each.
struct Triples {
    float* largest;
    float* sums;  // [rows][WIDTH]
    float* values;
    int64_t width;
};

template <typename T>
struct Worker {
    typedef typename Product<T>::factor factor;
    const Call<T>& call;
    const Layout<T>& layout;
    Triples partial;

    int64_t position(const Task& task, int64_t query) const {
        int64_t starts = call.query_starts[task.slice];
        int64_t total = call.query_starts[task.slice + 1] - starts;
        return call.contexts[task.slice] - total + task.first_query + query;
    }
    int64_t first_visible(int64_t position) const {
        return call.window ? most(0, position - call.window + 1) : 0;
    }
    int64_t head_offset(const Task& task, int64_t row, int64_t stride) const {
        int64_t group = call.group();
        int64_t token = call.query_starts[task.slice] + task.first_query + row / group;
        return token * stride + (task.kv_head * group + row % group) * layout.dim;
    }

    // Groups behind `end` are given as the last one before it.
    void find_tile(const Task& task, int64_t tile, int64_t end, TileUnits& found) const {
        const int64_t* table = call.tables + task.slice * call.table_stride;
        found.key_stride = layout.block_size;
        found.key_scales = found.value_scales = nullptr;
        for (int64_t token = 0; token < TILE; token += GROUP) {
            int64_t position = least(tile * TILE + token, (end - 1) / GROUP * GROUP);
            int64_t offset = position % layout.block_size;
            const unit* head = call.cache + layout.head(table[position / layout.block_size], task.kv_head);
            found.keys[token / GROUP] = head + offset;
            found.values[token / GROUP] = head + layout.key_units() + offset / PerUnit<T>::value * layout.padded();
        }
    }

    void fetch_keys(const TileUnits& tile) const {
        for (int64_t group = 0; group < TILE / GROUP; group++)
            for (int64_t u = 0; u < layout.dim / PerUnit<T>::value; u++)
                __builtin_prefetch(tile.keys[group] + u * tile.key_stride);
    }

    // Takes the codes of a tile's tokens first .. last apart; the tile after it is fetched meanwhile.
    template <Mode MODE>
    void dequantise(const Task& task, int64_t tile, int64_t first, int64_t last, TileUnits& found) const {
        const int64_t* table = call.tables + task.slice * call.table_stride;
        const int64_t key_units = GROUP / PerUnit<T>::value * layout.dim;
        const int64_t value_units = GROUP / PerUnit<T>::value * layout.padded();
        unit* memory = scratch<unit>(9, TILE / GROUP * (key_units + value_units) + 2 * TILE);
        found.key_scales = (float*)memory;
        found.value_scales = found.key_scales + TILE;
        found.key_stride = GROUP;
        unit* at = memory + 2 * TILE;
        for (int64_t token = first; token < last; token += GROUP) {
            const int64_t position = tile * TILE + token, offset = position % layout.block_size;
            const unit* head = call.cache + layout.head(table[position / layout.block_size], task.kv_head);
            int64_t ahead = 0;
            if (tile + 1 < task.end_tile) {
                const int64_t next = least((position + TILE) / layout.block_size, call.table_stride - 1);
                ahead = (layout.head(table[next], task.kv_head) - (head - call.cache)) * sizeof(unit);
            }
            const Codes<T> codes(layout, head);
            dequantise_keys<T, MODE>(layout, codes, offset, ahead, at);
            found.keys[token / GROUP] = at;
            at += key_units;
            dequantise_values<T, MODE>(layout, codes, offset, ahead, at);
            found.values[token / GROUP] = at;
            at += value_units;
            __builtin_prefetch((const char*)(codes.key_scales + offset) + ahead);
            __builtin_prefetch((const char*)(codes.value_scales + offset) + ahead);
            for (int64_t i = 0; i < GROUP; i++) {
                found.key_scales[token + i] = codes.key_scales[offset + i];
                // Weights of zero meet what a former owner left behind the last token.
                found.value_scales[token + i] = token + i < last ? codes.value_scales[offset + i] : 0.0f;
            }
        }
    }

    void finish(const Task& task, int64_t rows, const Triples& triples) const {
        for (int64_t row = 0; row < rows; row++) {
            T* out = call.out + head_offset(task, row, call.heads * layout.dim);
            vec inverse = set(1.0f / sum(load(triples.sums + row * WIDTH)));
            const float* values = triples.values + row * triples.width;
            for (int64_t i = 0; i < layout.dim; i += WIDTH)
                store(out + i, load(values + i) * inverse, least(WIDTH, layout.dim - i));
        }
    }

    void clear(int64_t rows, const Triples& triples) const {
        for (int64_t row = 0; row < rows; row++) triples.largest[row] = NEVER;
        memset(triples.sums, 0, rows * WIDTH * 4);
        memset(triples.values, 0, rows * triples.width * 4);
    }

    void run(const Task& task) const {
        if (layout.mode != PLAIN)
            walk<false, true>(task);
        else if (task.queries * call.group() <= 2 * PIECE_ROWS)
            walk<true, false>(task);
        else
            walk<false, false>(task);
    }

    // With FETCH, keys and values are brought near in advance: worth it where they are read only once or twice.
    template <bool FETCH, bool SCALED>
    void walk(const Task& task) const {
        const int64_t rows = task.queries * call.group(), padded = layout.padded();
        const int64_t query_factors = layout.dim / PerUnit<T>::value * Product<T>::factors;
        const int64_t weight_factors = TILE / PerUnit<T>::value * Product<T>::factors;
        factor* query = scratch<factor>(0, rows * query_factors);
        float* scores = scratch<float>(1, rows * TILE);
        factor* weights = scratch<factor>(2, rows * weight_factors);
        const int64_t spread = round_up(rows, WIDTH);
        float* small = scratch<float>(3, spread * (4 + 2 * WIDTH));
        float *new_largest = small + spread, *old_factors = new_largest + spread, *new_factors = old_factors + spread;
        Triples own = {small, new_factors + spread, scratch<float>(4, rows * padded), padded};
        float* new_sums = own.sums + spread * WIDTH;
        const int64_t end = position(task, task.queries - 1) + 1, begin = first_visible(position(task, 0));
        const bool whole = task.partial < 0;
        if (whole) clear(rows, own);
        TileUnits units[2];
        if (!SCALED) find_tile(task, task.first_tile, end, units[task.first_tile % 2]);
        if (FETCH) fetch_keys(units[task.first_tile % 2]);
        for (int64_t row = 0; row < rows; row++) {
            const T* from = call.query + head_offset(task, row, call.query_stride);
            for (int64_t i = 0; i < layout.dim; i++) convert(from[i], query + row * query_factors + i);
        }
        for (int64_t tile = task.first_tile; tile < task.end_tile; tile++) {
            const int64_t origin = tile * TILE;
            const int64_t first = most(0, begin - origin) / GROUP * GROUP, last = least(TILE, end - origin);
            const int64_t padded_last = round_up(last, GROUP);
            TileUnits &now = units[tile % 2], &next = units[(tile + 1) % 2];
            if (SCALED)
                layout.mode == INT8 ? dequantise<INT8>(task, tile, first, last, now)
                                    : dequantise<UINT4>(task, tile, first, last, now);
            else
                find_tile(task, least(tile + 1, task.end_tile - 1), end, next);
            run_pieces(ScorePieces<T, FETCH>{query, now, layout, scores, first}, rows, (padded_last - first) / WIDTH);
            const int64_t at = whole ? 0 : task.partial + (tile - task.first_tile) * rows;
            float* tile_largest = whole ? new_largest : partial.largest + at;
            float* tile_sums = whole ? new_sums : partial.sums + at * WIDTH;
            for (int64_t row = 0, query_number = 0; row < rows; query_number++) {
                const int64_t position = this->position(task, query_number);
                const int64_t visible = first_visible(position) - origin, behind = position + 1 - origin;
                for (const int64_t next_query = row + call.group(); row < next_query; row++)
                    weigh<T, SCALED>(call.scoring, now, scores + row * TILE, weights + row * weight_factors, first,
                                     padded_last, visible, behind, tile_largest + row, tile_sums + row * WIDTH);
            }
            if (whole) merge(rows, own.largest, own.sums, new_largest, new_sums, old_factors, new_factors);
            float* values = whole ? own.values : partial.values + at * padded;
            const float* merging = whole ? old_factors : nullptr;
            run_pieces(ValuePieces<T, FETCH>{weights, now, next, layout, first, last, values, merging, new_factors},
                       rows, padded / WIDTH);
        }
        if (whole) finish(task, rows, own);
    }

    // Merges the triples that the tasks of one piece of work left, `tiles` of them per row from `at` on.
    void join(const Task& task, int64_t at, int64_t tiles) const {
        const int64_t rows = task.queries * call.group(), padded = layout.padded(), spread = round_up(rows, WIDTH);
        float* small = scratch<float>(3, spread * (4 + WIDTH));
        float *added = small + spread, *old_factors = added + spread, *new_factors = old_factors + spread;
        Triples own = {small, new_factors + spread, scratch<float>(4, rows * padded), padded};
        clear(rows, own);
        for (int64_t tile = 0; tile < tiles; tile++, at += rows) {
            memcpy(added, partial.largest + at, rows * 4);
            merge(rows, own.largest, own.sums, added, partial.sums + at * WIDTH, old_factors, new_factors);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t i = 0; i < padded; i += WIDTH) {
                    float* value = own.values + row * padded + i;
                    vec more = load(partial.values + (at + row) * padded + i);
                    store(value, fma(more, set(new_factors[row]), load(value) * set(old_factors[row])));
                }
        }
        finish(task, rows, own);
    }

  private:
    static void convert(T x, factor* f) {
        if constexpr (sizeof(T) == sizeof(factor))
            *f = x;
        else
            *f = to_float(x);
    }
};

// All work of a call, the longest contexts first: tasks that finish what they begin.
template <typename T>
static int64_t list_tasks(const Worker<T>& worker, const int64_t* order, int64_t slices, Task* tasks, int64_t* work) {
    const Call<T>& call = worker.call;
    const int64_t most_queries = most(1, MOST_ROWS / call.group());
    int64_t count = 0;
    *work = 0;
    for (int64_t i = 0; i < slices; i++) {
        const int64_t slice = order[i], total = call.query_starts[slice + 1] - call.query_starts[slice];
        for (int64_t piece = ceil_div(total, most_queries) - 1; piece >= 0; piece--)
            for (int64_t head = 0; head < call.layout.kv_heads; head++, count++) {
                if (!tasks) continue;
                const int64_t begin = piece * most_queries;
                Task task = {slice, head, begin, least(most_queries, total - begin), 0, 0, -1};
                task.first_tile = worker.first_visible(worker.position(task, 0)) / TILE;
                task.end_tile = worker.position(task, task.queries - 1) / TILE + 1;
                tasks[count] = task;
                *work += (task.end_tile - task.first_tile) * TILE * task.queries * call.group() * call.layout.dim / 16;
            }
    }
    return count;
}

// Cuts tasks into pieces of `span` tiles whose triples are merged afterwards.
template <typename T>
static void run_split(Worker<T>& worker, const Task* tasks, int64_t count, int64_t rows, int64_t span, int64_t pieces,
                      int64_t work) {
    const Call<T>& call = worker.call;
    const int64_t padded = call.layout.padded();
    Task* parts = scratch<Task>(6, pieces);
    float* memory = scratch<float>(7, rows * (1 + WIDTH + padded));
    worker.partial = {memory, memory + rows, memory + rows * (1 + WIDTH), padded};
    int64_t* firsts = scratch<int64_t>(8, count);
    int64_t at = 0, part = 0;
    for (int64_t i = 0; i < count; i++) {
        firsts[i] = at;
        for (int64_t tile = tasks[i].first_tile; tile < tasks[i].end_tile; tile += span) {
            parts[part] = tasks[i];
            parts[part].first_tile = tile;
            parts[part].end_tile = least(tile + span, tasks[i].end_tile);
            parts[part].partial = at;
            at += (parts[part].end_tile - tile) * tasks[i].queries * call.group();
            part++;
        }
    }
    parallel_tasks(part, work, [&](int64_t i) { worker.run(parts[i]); });
    parallel_tasks(count, rows * padded / 4, [&](int64_t i) {
        worker.join(tasks[i], firsts[i], tasks[i].end_tile - tasks[i].first_tile);
    });
}

template <typename T>
static void attend(const Call<T>& call, const int64_t* order, int64_t slices) {
    Worker<T> worker = {call, call.layout, {}};
    int64_t work = 0;
    const int64_t count = list_tasks<T>(worker, order, slices, nullptr, &work);
    Task* tasks = scratch<Task>(5, count);
    list_tasks<T>(worker, order, slices, tasks, &work);
    LongWork long_work(work);
    const int64_t threads = thread_count();
    int64_t rows = 0, tiles = 0, pieces = 0;
    for (int64_t i = 0; i < count; i++) {
        tiles += tasks[i].end_tile - tasks[i].first_tile;
        rows += (tasks[i].end_tile - tasks[i].first_tile) * tasks[i].queries * call.group();
    }
    const int64_t span = most(LEAST_SPAN, least(MOST_SPAN, tiles / (8 * threads)));
    for (int64_t i = 0; i < count; i++) pieces += ceil_div(tasks[i].end_tile - tasks[i].first_tile, span);
    const bool few = count < 4 * threads && pieces > count && work >= 2 * PARALLEL_WORK;
    if (threads > 1 && few && rows * (1 + WIDTH + call.layout.padded()) * 4 <= MOST_PARTIAL_BYTES)
        run_split<T>(worker, tasks, count, rows, span, pieces, work);
    else
        parallel_tasks(count, work, [&](int64_t i) { worker.run(tasks[i]); });
}

template <typename T>
static PyObject* attend_typed(Arguments& given) {
    Call<T> call = {};
    call.cache = given.pointer<const unit>();
    call.layout.kv_heads = given.integer();
    call.layout.dim = given.integer();
    call.layout.block_size = given.integer();
    call.layout.mode = (Mode)given.integer();
    call.query = given.pointer<const T>();
    call.query_stride = given.integer();
    call.out = given.pointer<T>();
    call.heads = given.integer();
    int64_t slices = given.integer();
    const int64_t* order = given.pointer<const int64_t>();
    call.query_starts = given.pointer<const int64_t>();
    call.contexts = given.pointer<const int64_t>();
    call.tables = given.pointer<const int64_t>();
    call.table_stride = given.integer();
    double scale = given.number(), softcap = given.number();
    call.window = given.integer();
    if (given.failed()) return nullptr;
    call.scoring.scale = (float)(softcap != 0 ? scale / softcap : scale * LOG2_E);
    call.scoring.cap = (float)(softcap * LOG2_E);
    attend<T>(call, order, slices);
    Py_RETURN_NONE;
}

static PyObject* attend_method(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments given(values, count);
    if (!given.are(19)) return nullptr;
    return given.integer() ? attend_typed<bf16>(given) : attend_typed<float>(given);
}

}  // namespace

extern PyMethodDef attention_methods[];
PyMethodDef attention_methods[] = {
    {"attend", (PyCFunction)(void (*)())attend_method, METH_FASTCALL, "Paged attention of a step's slices."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace MILLSTREAM_LEVEL
}  // namespace millstream
