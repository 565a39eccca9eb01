// Grouped-query attention, causal or not, over the paged cache, for prefill and decode.
//
// A tile is up to QUERIES queries that share a KV head (a query is one token and one head of the group). It walks the
// context block by block with an online softmax; blocks form chunks of about a thousand keys, each summed from scratch
// and merged into the chunks before it. Threads share chunks when there are few tiles and long contexts: they are then
// stored and merged afterwards, in the same order. So a query's arithmetic follows the order of keys from position 0
// and never depends on the queries beside it, the chunk it came in, or the threads.
#include "attention_math.h"
#include "isa.h"
#include "parallel.h"

namespace glm4::GLM4_ISA {
namespace {

constexpr int QUERIES = 64;         // at most, per tile; fewer when threads would be idle
constexpr int WIDEN_QUERIES = 16;   // from this many on, a float16 page is widened once instead of once per step
constexpr int BLOCK_KEYS = 128;     // one step of the online softmax, in whole pages
constexpr int CHUNK_KEYS = 1024;    // in whole blocks
constexpr int TASKS_PER_THREAD = 4; // so that a delayed thread does not delay the others

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

int64_t block_pages(const Cache& c) { return maximum<int64_t>(1, BLOCK_KEYS / c.page_size); }
int64_t block_keys(const Cache& c) { return block_pages(c) * c.page_size; }
int64_t chunk_keys(const Cache& c) { return maximum<int64_t>(1, CHUNK_KEYS / block_keys(c)) * block_keys(c); }
int64_t padded_dim(const Cache& c) { return round_up(c.dim, 16); }
int64_t group_of(const Attention& a) { return a.q.heads / a.cache.kv_heads; }

int64_t queries_of(const Attention& a, int64_t s) {
    return (a.query_starts[s + 1] - a.query_starts[s]) * group_of(a);
}

// Queries [first, first + count) of a sequence and KV head; query i is token i / group, head i % group of the group.
struct Tile {
    int64_t sequence, kv_head, first, count;

    int64_t row(const Attention& a, int64_t i) const { return a.query_starts[sequence] + (first + i) / group_of(a); }
    int64_t head(const Attention& a, int64_t i) const { return kv_head * group_of(a) + (first + i) % group_of(a); }
    // Keys that query i may see; without the causal mask all of its sequence.
    int64_t visible(const Attention& a, int64_t i) const {
        if (!a.causal) return a.context_lens[sequence];
        return a.context_lens[sequence] - (a.query_starts[sequence + 1] - row(a, i)) + 1;
    }
    int64_t chunks(const Attention& a) const {
        return (visible(a, count - 1) + chunk_keys(a.cache) - 1) / chunk_keys(a.cache);
    }
};

// Chunks [first, last) of a tile. `partial` is null when these are all chunks: the task then writes the result.
struct Task {
    Tile tile;
    int64_t first, last;
    float* partial;  // the tile's chunk sums: [chunks][queries][2 + padded dim]
};

// How a call is divided into tasks.
struct Plan {
    int64_t queries;  // per tile
    int64_t span;     // chunks per task
    int64_t tasks = 0, partial_floats = 0;
};

int64_t partial_stride(const Cache& c) { return 2 + padded_dim(c); }

// Calls body(tile) for each tile. Later tiles of a prompt see more keys, so they come first: the last tasks are short.
template <class Body>
void for_each_tile(const Attention& a, int64_t queries, const Body& body) {
    for (int64_t s = 0; s < a.sequences; ++s) {
        const int64_t total = queries_of(a, s), tiles = (total + queries - 1) / queries;
        for (int64_t h = 0; h < a.cache.kv_heads; ++h) {
            for (int64_t t = tiles - 1; t >= 0; --t) {
                body(Tile{s, h, t * queries, minimum(queries, total - t * queries)});
            }
        }
    }
}

Plan make_plan(const Attention& a, int threads) {
    for (int64_t queries = QUERIES;; queries /= 2) {
        int64_t chunks = 0;
        for_each_tile(a, queries, [&](const Tile& tile) { chunks += tile.chunks(a); });
        const int64_t pieces = int64_t{threads} * TASKS_PER_THREAD;
        Plan plan{queries, threads == 1 ? chunks + 1 : (chunks + pieces - 1) / pieces + (chunks == 0)};
        for_each_tile(a, queries, [&](const Tile& tile) {
            const int64_t n = tile.chunks(a), parts = (n + plan.span - 1) / plan.span;
            plan.tasks += parts;
            if (parts > 1) plan.partial_floats += n * tile.count * partial_stride(a.cache);
        });
        // Smaller tiles read the pages more often but keep every thread busy.
        if (plan.tasks >= threads || queries == 1) return plan;
    }
}

void fill_tasks(const Attention& a, const Plan& plan, Task* tasks, float* partial) {
    for_each_tile(a, plan.queries, [&](const Tile& tile) {
        const int64_t n = tile.chunks(a);
        if (n <= plan.span) {
            *tasks++ = {tile, 0, n, nullptr};
            return;
        }
        for (int64_t c = 0; c < n; c += plan.span) *tasks++ = {tile, c, minimum(n, c + plan.span), partial};
        partial += n * tile.count * partial_stride(a.cache);
    });
}

// Working memory of one thread; arrays hold QUERIES rows.
struct Workspace {
    float* queries;     // scaled, [padded dim]; for an int8 cache int16
    float* sums;        // of the chunk, [padded dim]
    float* all_sums;    // of the chunks before it
    float* scores;      // [block keys]
    int16_t* weights;   // [block keys], int8 cache only
    float* wide;        // a block's pages in float32, float16 cache only
    float* scales;      // of a block's values, int8 cache only
    Softmax* state;     // of the chunk
    Softmax* all_state;
    float* query_scales;
    float* weight_scales;
    int64_t* visible;
};

// Lays out a workspace at `base`; returns its size in floats.
int64_t lay_out(const Cache& c, float* base, Workspace& w) {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
        float* p = base + used;
        used += round_up(floats, 16);
        return p;
    };
    const int64_t wide = QUERIES * padded_dim(c), block = QUERIES * block_keys(c);
    const bool int8 = c.type == kCacheInt8;
    w.queries = take(wide);
    w.sums = take(wide);
    w.all_sums = take(wide);
    w.scores = take(block);
    w.weights = reinterpret_cast<int16_t*>(take(int8 ? block / 2 : 0));
    w.wide = take(c.type == kCacheFp16 ? c.dim * block_keys(c) + LANES : 0);
    w.scales = take(int8 ? block_keys(c) : 0);
    w.state = reinterpret_cast<Softmax*>(take(2 * QUERIES));
    w.all_state = reinterpret_cast<Softmax*>(take(2 * QUERIES));
    w.query_scales = take(QUERIES);
    w.weight_scales = take(QUERIES);
    w.visible = reinterpret_cast<int64_t*>(take(2 * QUERIES));
    return used;
}

int64_t workspace_floats(const Cache& c) {
    alignas(64) float nothing[16];
    Workspace w;
    return lay_out(c, nothing, w);
}

void write_result(const Attention& a, const Tile& tile, int64_t i, const Softmax& state, const float* sums) {
    float* out = a.out + (tile.row(a, i) * a.q.heads + tile.head(a, i)) * a.cache.dim;
    const float inverse = 1.0f / state.total;
    for (int64_t d = 0; d < a.cache.dim; ++d) out[d] = sums[d] * inverse;
}

// T is the type of a cached number: float, uint16_t (float16) or int8_t.
template <class T>
struct Worker {
    const Attention& a;
    const Task& task;
    Workspace w;

    const Cache& cache() const { return a.cache; }
    int64_t count() const { return task.tile.count; }

    void run() const {
        const int64_t stride = padded_dim(cache()), width = partial_stride(cache());
        for (int64_t i = 0; i < count(); ++i) load_query(i);
        for (int64_t c = task.first; c < task.last; ++c) {
            const int64_t first = first_seeing(c * chunk_keys(cache()));
            chunk(c);
            for (int64_t i = first; i < count(); ++i) {
                if (task.partial != nullptr) {
                    float* to = task.partial + (c * count() + i) * width;
                    to[0] = w.state[i].top;
                    to[1] = w.state[i].total;
                    memcpy(to + 2, w.sums + i * stride, static_cast<size_t>(stride) * sizeof(float));
                } else if (c == 0) {
                    w.all_state[i] = w.state[i];
                    memcpy(w.all_sums + i * stride, w.sums + i * stride, static_cast<size_t>(stride) * sizeof(float));
                } else {
                    merge(w.all_state[i], w.all_sums + i * stride, w.state[i], w.sums + i * stride, cache().dim);
                }
            }
        }
        if (task.partial != nullptr) return;
        for (int64_t i = 0; i < count(); ++i) write_result(a, task.tile, i, w.all_state[i], w.all_sums + i * stride);
    }

    void load_query(int64_t i) const {
        const int64_t dim = cache().dim, stride = padded_dim(cache());
        const float* q = a.q.data + task.tile.row(a, i) * a.q.row_stride + task.tile.head(a, i) * dim;
        float* to = w.queries + i * stride;
        w.visible[i] = task.tile.visible(a, i);
        if constexpr (sizeof(T) == 1) {
            Largest largest;
            for (int64_t d = 0; d < dim; d += LANES) {
                const vf scaled = vmul(vload(q + d), vset(a.scale));
                vstore(w.sums + d, scaled);
                largest.add(scaled);
            }
            w.query_scales[i] = quantize_int16(w.sums, dim, largest.value(), reinterpret_cast<int16_t*>(to));
        } else {
            for (int64_t d = 0; d < dim; ++d) to[d] = q[d] * a.scale;
        }
    }

    // The first query that sees the key at `position`; later queries do too.
    int64_t first_seeing(int64_t position) const {
        int64_t i = 0;
        while (i < count() && w.visible[i] <= position) ++i;
        return i;
    }

    void chunk(int64_t c) const {
        for (int64_t i = 0; i < count(); ++i) w.state[i] = {kMinusInfinity, 0.0f};
        memset(w.sums, 0, static_cast<size_t>(count() * padded_dim(cache())) * sizeof(float));
        const int64_t end = minimum((c + 1) * chunk_keys(cache()), w.visible[count() - 1]);
        for (int64_t key = c * chunk_keys(cache()); key < end; key += block_keys(cache())) block(key);
    }

    void block(int64_t start) const {
        const int64_t stride = block_keys(cache()), page_size = cache().page_size;
        const int64_t first = first_seeing(start);
        const int64_t end = minimum(w.visible[count() - 1], start + stride);
        for (int64_t at = start; at < end; at += page_size) score_page(first_seeing(at), at, at - start);
        if constexpr (sizeof(T) == 1) {
            const auto nbytes = static_cast<size_t>(page_size) * sizeof(float);
            for (int64_t at = start; at < end; at += page_size) {
                memcpy(w.scales + at - start, scales(page(cache().v, at)), nbytes);
            }
        }
        for (int64_t i = first; i < count(); ++i) {
            const float factor = weigh(i, minimum(w.visible[i] - start, stride));
            if (factor == 1.0f) continue;
            float* sums = w.sums + i * padded_dim(cache());
            for (int64_t d = 0; d < padded_dim(cache()); ++d) sums[d] *= factor;
        }
        if constexpr (sizeof(T) == 2) {
            if (count() - first > WIDEN_QUERIES) {
                for (int64_t at = start; at < end; at += page_size) {
                    widen(page(cache().v, at), w.wide + (at - start) * cache().dim);
                }
                return values<float>(first, start, end);
            }
        }
        values<T>(first, start, end);
    }

    // Turns a query's scores of a block into weights, for an int8 cache times the scales of their values and in int16.
    // Returns the factor by which its sums shrink.
    float weigh(int64_t i, int64_t visible) const {
        const int64_t first = i * block_keys(cache());
        float* to = w.scores + first;
        if constexpr (sizeof(T) == 1) {
            Largest largest;
            const float factor = softmax_block(to, visible, w.state[i], [&](int64_t at, vf weight) {
                const int seen = static_cast<int>(minimum<int64_t>(LANES, visible - at));
                // What follows the last visible key may be anything.
                const vf scale = seen == LANES ? vload(w.scales + at) : vload_n(w.scales + at, seen);
                const vf product = vmul(weight, scale);
                vstore(to + at, product);
                largest.add(product);
            });
            w.weight_scales[i] = quantize_int16(to, round_up(visible, LANES), largest.value(), w.weights + first);
            return factor;
        } else {
            return softmax_block(to, visible, w.state[i], [&](int64_t at, vf weight) { vstore(to + at, weight); });
        }
    }

    // The page that holds the key at position `at`, in one of the two arrays, which have the same size.
    const T* page(const void* array, int64_t at) const {
        const int64_t index = a.block_tables[task.tile.sequence * a.table_width + at / cache().page_size];
        const int64_t nbytes = (index * cache().kv_heads + task.tile.kv_head) * cache().page_nbytes();
        return reinterpret_cast<const T*>(static_cast<const char*>(array) + nbytes);
    }

    // The page at `at` (any page if that is past the context), to be prefetched within `iterations`.
    Ahead ahead(const void* array, int64_t at, int64_t iterations) const {
        const char* from = reinterpret_cast<const char*>(page(array, minimum(at, w.visible[count() - 1] - 1)));
        return {from, (cache().page_nbytes() + iterations - 1) / iterations};
    }

    const float* scales(const T* page) const {
        return reinterpret_cast<const float*>(page + cache().dim * cache().page_size);
    }

    const float* widen(const T* page, float* to) const {
        for (int64_t i = 0; i < cache().dim * cache().page_size; i += LANES) vstore(to + i, load_cached(page + i));
        return to;
    }

    void score_page(int64_t first, int64_t at, int64_t column) const {
        const T* keys = page(cache().k, at);
        if constexpr (sizeof(T) == 2) {
            if (count() - first > WIDEN_QUERIES) return score(widen(keys, w.wide), first, at, column);
        }
        score(keys, first, at, column);
    }

    template <class U>
    void score(const U* keys, int64_t first, int64_t at, int64_t column) const {
        const int64_t dim = cache().dim, page_size = cache().page_size;
        const int64_t q_stride = padded_dim(cache()), s_stride = block_keys(cache());
        const int64_t steps = (count() - first + QUERY_STEP - 1) / QUERY_STEP;
        const int64_t rows = sizeof(U) == 1 ? dim / 2 : dim, vectors = (page_size / LANES + KEY_STEP - 1) / KEY_STEP;
        Ahead next = ahead(cache().v, at, steps * rows * vectors);
        for (int64_t i = first; i < count(); i += QUERY_STEP) {
            const int n = static_cast<int>(minimum<int64_t>(QUERY_STEP, count() - i));
            float* scores = w.scores + i * s_stride + column;
            const float* queries = w.queries + i * q_stride;
            with_count<QUERY_STEP>(n, [&](auto step) {
                if constexpr (sizeof(U) == 1) {
                    score_queries_int8<step.value>(reinterpret_cast<const int16_t*>(queries), 2 * q_stride,
                                                   w.query_scales + i, keys, scales(keys), dim, page_size, scores,
                                                   s_stride, next);
                } else {
                    score_queries<U, step.value>(queries, q_stride, keys, dim, page_size, scores, s_stride, next);
                }
            });
        }
    }

    // Calls body(i, n, key(i)) for runs of at most QUERY_STEP queries from `first` on that have the same key(i).
    template <class Key, class Body>
    void for_runs(int64_t first, const Key& key, const Body& body) const {
        for (int64_t i = first; i < count();) {
            const int64_t same = key(i);
            int n = 1;
            while (n < QUERY_STEP && i + n < count() && key(i + n) == same) ++n;
            if (same > 0) body(i, n, same);
            i += n;
        }
    }

    // Adds the weighted values of a block. Only queries that see the same part of it go together: what follows a
    // query's last key belongs to others and may not even be finite. The pages a query sees whole are summed at once,
    // then its part of the next one.
    template <class U>
    void values(int64_t first, int64_t start, int64_t end) const {
        const int64_t dim = cache().dim, page_size = cache().page_size, stride = block_keys(cache());
        const int64_t vectors = (dim + LANES - 1) / LANES, slices = (vectors + CHANNEL_STEP - 1) / CHANNEL_STEP;
        const int64_t rows = sizeof(U) == 1 ? page_size / 2 : page_size;
        const int64_t iterations = rows * slices * ((count() - first + QUERY_STEP - 1) / QUERY_STEP);
        const U* pages[BLOCK_KEYS / 16 + 1];
        Ahead next[BLOCK_KEYS / 16 + 1];
        for (int64_t at = start, p = 0; at < end; at += page_size, ++p) {
            if constexpr (sizeof(U) == sizeof(T)) {
                pages[p] = page(cache().v, at);
            } else {
                pages[p] = w.wide + (at - start) * dim;
            }
            next[p] = ahead(cache().k, at + stride, iterations);
        }
        const auto whole = [&](int64_t i) {
            const int64_t seen = w.visible[i] - start;
            return seen >= stride ? block_pages(cache()) : seen / page_size;
        };
        const auto part = [&](int64_t i) {
            const int64_t seen = w.visible[i] - start;
            return seen >= stride ? 0 : seen % page_size;
        };
        for (int64_t v = 0; v < vectors; v += vectors_together(vectors - v)) {
            with_count<CHANNEL_STEP>(vectors_together(vectors - v), [&](auto together) {
                for_runs(first, whole, [&](int64_t i, int n, int64_t seen) {
                    value<together.value>(i, n, 0, Pages<U>{pages, next, seen, page_size, dim}, v * LANES);
                });
                for_runs(first, part, [&](int64_t i, int n, int64_t seen) {
                    const int64_t p = whole(i);
                    value<together.value>(i, n, p * page_size, Pages<U>{pages + p, next + p, 1, seen, dim}, v * LANES);
                });
            });
        }
    }

    template <int NV, class U>
    void value(int64_t i, int n, int64_t column, const Pages<U>& pages, int64_t channel) const {
        const int64_t stride = padded_dim(cache()), w_stride = block_keys(cache()), at = i * w_stride + column;
        float* sums = w.sums + i * stride + channel;
        with_count<QUERY_STEP>(n, [&](auto step) {
            if constexpr (sizeof(U) == 1) {
                value_step_int8<step.value, NV>(w.weights + at, w_stride, w.weight_scales + i, pages, channel, sums,
                                                stride);
            } else {
                value_step<U, step.value, NV>(w.scores + at, w_stride, pages, channel, sums, stride);
            }
        });
    }
};

void merge_partials(const Attention& a, const Task& task) {
    const int64_t width = partial_stride(a.cache);
    for (int64_t i = 0; i < task.tile.count; ++i) {
        const int64_t chunks = (task.tile.visible(a, i) + chunk_keys(a.cache) - 1) / chunk_keys(a.cache);
        float* all = task.partial + i * width;
        Softmax state{all[0], all[1]};
        for (int64_t c = 1; c < chunks; ++c) {
            const float* later = task.partial + (c * task.tile.count + i) * width;
            merge(state, all + 2, {later[0], later[1]}, later + 2, a.cache.dim);
        }
        write_result(a, task.tile, i, state, all + 2);
    }
}

template <class T>
void run_attention(const Attention& a, char* scratch) {
    const Plan plan = make_plan(a, num_threads());
    Task* tasks = reinterpret_cast<Task*>(scratch);
    float* partial = reinterpret_cast<float*>(scratch + round_up(plan.tasks * static_cast<int64_t>(sizeof(Task)), 64));
    float* base = partial + round_up(plan.partial_floats, 16);
    const int64_t floats = workspace_floats(a.cache);
    fill_tasks(a, plan, tasks, partial);
    parallel_for(plan.tasks, [&](int64_t index, int thread) {
        Workspace w;
        lay_out(a.cache, base + thread * floats, w);
        Worker<T>{a, tasks[index], w}.run();
    });
    if (plan.partial_floats == 0) return;
    parallel_for(plan.tasks, [&](int64_t index, int) {
        if (tasks[index].partial != nullptr && tasks[index].first == 0) merge_partials(a, tasks[index]);
    });
}

size_t attention_scratch(const Attention& a, int threads) {
    const Plan plan = make_plan(a, threads);
    const int64_t floats = round_up(plan.partial_floats, 16) + threads * workspace_floats(a.cache);
    return static_cast<size_t>(round_up(plan.tasks * static_cast<int64_t>(sizeof(Task)), 64)) +
           static_cast<size_t>(floats) * sizeof(float);
}

void attention(const Attention& a, void* scratch) {
    char* memory = static_cast<char*>(scratch);
    switch (a.cache.type) {
        case kCacheFp32: return run_attention<float>(a, memory);
        case kCacheFp16: return run_attention<uint16_t>(a, memory);
        case kCacheInt8: return run_attention<int8_t>(a, memory);
    }
}

}  // namespace

void fill_attention(Kernels& table) {
    table.attention_scratch = attention_scratch;
    table.attention = attention;
}

}  // namespace glm4::GLM4_ISA
