// Arithmetic of up to QUERY_STEP queries: scores against the keys of a page, and weighted sums of the values of some.
//
// A lane is a key for scores and a channel for sums. A query's numbers come from the same operations in the same order
// whatever the number of queries next to it.
#pragma once

#include "isa.h"
#include "simd.h"
#include "simd_int16.h"

namespace glm4::GLM4_ISA {

// Queries, vectors of keys and vectors of channels per register tile.
#if defined(GLM4_AVX512)
constexpr int QUERY_STEP = 8;
constexpr int KEY_STEP = 2;
constexpr int CHANNEL_STEP = 3;
#elif defined(GLM4_AVX2)
constexpr int QUERY_STEP = 6;
constexpr int KEY_STEP = 2;
constexpr int CHANNEL_STEP = 2;
#elif defined(GLM4_NEON)
constexpr int QUERY_STEP = 4;
constexpr int KEY_STEP = 4;
constexpr int CHANNEL_STEP = 4;
#else
constexpr int QUERY_STEP = 4;
constexpr int KEY_STEP = 2;
constexpr int CHANNEL_STEP = 2;
#endif

constexpr float kMaxInt16 = 32767.0f;
constexpr float kMinusInfinity = -__builtin_inff();

template <int N>
struct Count {
    static constexpr int value = N;
};

// body(Count<n>{}) for a run-time n in 1..N.
template <int N, class Body>
GLM4_INLINE void with_count(int n, const Body& body) {
    if constexpr (N > 1) {
        if (n < N) return with_count<N - 1>(n, body);
    }
    body(Count<N>{});
}

// Prefetches the next page, a little in every iteration: pages are scattered, so the processor cannot predict them, and
// all at once would fill its queues.
struct Ahead {
    const char* at;
    int64_t step;  // bytes per iteration
    GLM4_MEMBER void fetch() {
        __builtin_prefetch(at);
        at += step;
    }
};

GLM4_INLINE vf load_cached(const float* p) { return vload(p); }
GLM4_INLINE vf load_cached(const uint16_t* p) { return vload_half(p); }
GLM4_INLINE vf load_cached_n(const float* p, int n) { return vload_n(p, n); }
GLM4_INLINE vf load_cached_n(const uint16_t* p, int n) { return vload_half_n(p, n); }

// scores[q][key] = queries[q] . key for NV vectors of keys of one page; keys is [dim][page_size].
template <class T, int NQ, int NV>
GLM4_INLINE void score_step(const float* queries, int64_t q_stride, const T* keys, int64_t dim, int64_t page_size,
                            float* scores, int64_t s_stride, Ahead& ahead) {
    vf sum[NQ][NV];
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) sum[q][v] = vset(0.0f);
    }
    Ahead next = ahead;
    for (int64_t d = 0; d < dim; ++d) {
        next.fetch();
        vf key[NV];
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) key[v] = load_cached(keys + d * page_size + v * LANES);
        GLM4_UNROLL
        for (int q = 0; q < NQ; ++q) {
            const vf x = vset(queries[q * q_stride + d]);
            GLM4_UNROLL
            for (int v = 0; v < NV; ++v) sum[q][v] = vfma(key[v], x, sum[q][v]);
        }
    }
    ahead = next;
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) vstore(scores + q * s_stride + v * LANES, sum[q][v]);
    }
}

template <class T, int NQ>
void score_queries(const float* queries, int64_t q_stride, const T* keys, int64_t dim, int64_t page_size, float* scores,
                   int64_t s_stride, Ahead& ahead) {
    int64_t key = 0;
    for (; key + KEY_STEP * LANES <= page_size; key += KEY_STEP * LANES) {
        score_step<T, NQ, KEY_STEP>(queries, q_stride, keys + key, dim, page_size, scores + key, s_stride, ahead);
    }
    for (; key < page_size; key += LANES) {
        score_step<T, NQ, 1>(queries, q_stride, keys + key, dim, page_size, scores + key, s_stride, ahead);
    }
}

// Some pages of values: `count` of them, of which the first `keys` tokens of each are seen.
template <class T>
struct Pages {
    const T* const* values;
    Ahead* ahead;
    int64_t count, keys, dim;
};

// How many of the vectors that are left go together: a single one at the end would wait for its loads.
constexpr int vectors_together(int64_t left) {
    const int step = static_cast<int>(minimum<int64_t>(left, CHANNEL_STEP));
    return left - step == 1 && step > 2 ? step - 1 : step;
}

// sums[q][channel] += sum over keys of weights[q][key] * values[key][channel] for NV vectors of channels from `channel`
// on, of which the last one may be partial.
template <class T, int NQ, int NV>
void value_step(const float* weights, int64_t w_stride, const Pages<T>& pages, int64_t channel, float* sums,
                int64_t s_stride) {
    const int last = static_cast<int>(minimum<int64_t>(LANES, pages.dim - channel - (NV - 1) * LANES));
    vf sum[NQ][NV];
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) sum[q][v] = vload(sums + q * s_stride + v * LANES);
    }
    for (int64_t page = 0; page < pages.count; ++page, weights += pages.keys) {
        const T* values = pages.values[page] + channel;
        Ahead next = pages.ahead[page];
        for (int64_t key = 0; key < pages.keys; ++key, values += pages.dim) {
            next.fetch();
            vf value[NV];
            GLM4_UNROLL
            for (int v = 0; v + 1 < NV; ++v) value[v] = load_cached(values + v * LANES);
            const T* tail = values + (NV - 1) * LANES;
            value[NV - 1] = last == LANES ? load_cached(tail) : load_cached_n(tail, last);
            GLM4_UNROLL
            for (int q = 0; q < NQ; ++q) {
                const vf w = vset(weights[q * w_stride + key]);
                GLM4_UNROLL
                for (int v = 0; v < NV; ++v) sum[q][v] = vfma(value[v], w, sum[q][v]);
            }
        }
        pages.ahead[page] = next;
    }
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) vstore(sums + q * s_stride + v * LANES, sum[q][v]);
    }
}

// The int8 cache. Queries and weights are int16 with a scale each, keys and values int8 with a scale per token. A sum of
// up to 512 products (channels of a head, or keys of a block) stays below 512 * 32767 * 127 < 2^31.

// scores[q][key] = (queries[q] . key) * key_scales[key] * query_scales[q]; keys is [dim / 2][page_size][2].
template <int NQ, int NV>
GLM4_INLINE void score_step_int8(const int16_t* queries, int64_t q_stride, const float* query_scales, const int8_t* keys,
                                 const float* key_scales, int64_t dim, int64_t page_size, float* scores,
                                 int64_t s_stride, Ahead& ahead) {
    vi sum[NQ][NV];
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) sum[q][v] = viset(0);
    }
    Ahead next = ahead;
    for (int64_t d = 0; d < dim; d += 2) {
        next.fetch();
        vpairs key[NV];
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) key[v] = load_pairs(keys + d * page_size + v * 2 * LANES);
        GLM4_UNROLL
        for (int q = 0; q < NQ; ++q) {
            const vpairs x = set_pairs(load_pair(queries + q * q_stride + d));
            GLM4_UNROLL
            for (int v = 0; v < NV; ++v) sum[q][v] = vdot2(sum[q][v], key[v], x);
        }
    }
    ahead = next;
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        const vf scale = vset(query_scales[q]);
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) {
            const vf scales = vmul(vload(key_scales + v * LANES), scale);
            vstore(scores + q * s_stride + v * LANES, vmul(vfloat(sum[q][v]), scales));
        }
    }
}

template <int NQ>
void score_queries_int8(const int16_t* queries, int64_t q_stride, const float* query_scales, const int8_t* keys,
                        const float* key_scales, int64_t dim, int64_t page_size, float* scores, int64_t s_stride,
                        Ahead& ahead) {
    int64_t key = 0;
    for (; key + KEY_STEP * LANES <= page_size; key += KEY_STEP * LANES) {
        score_step_int8<NQ, KEY_STEP>(queries, q_stride, query_scales, keys + 2 * key, key_scales + key, dim, page_size,
                                      scores + key, s_stride, ahead);
    }
    for (; key < page_size; key += LANES) {
        score_step_int8<NQ, 1>(queries, q_stride, query_scales, keys + 2 * key, key_scales + key, dim, page_size,
                               scores + key, s_stride, ahead);
    }
}

// sums[q][channel] += weight_scales[q] * sum over the pages' keys; a page is [page_size / 2][dim][2].
template <int NQ, int NV>
void value_step_int8(const int16_t* weights, int64_t w_stride, const float* weight_scales, const Pages<int8_t>& pages,
                     int64_t channel, float* sums, int64_t s_stride) {
    vi sum[NQ][NV];
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) sum[q][v] = viset(0);
    }
    for (int64_t page = 0; page < pages.count; ++page, weights += pages.keys) {
        const int8_t* values = pages.values[page] + 2 * channel;
        Ahead next = pages.ahead[page];
        for (int64_t key = 0; key < pages.keys; key += 2, values += 2 * pages.dim) {
            next.fetch();
            vpairs value[NV];
            GLM4_UNROLL
            for (int v = 0; v < NV; ++v) value[v] = load_pairs(values + v * 2 * LANES);
            GLM4_UNROLL
            for (int q = 0; q < NQ; ++q) {
                const vpairs w = set_pairs(load_pair(weights + q * w_stride + key));
                GLM4_UNROLL
                for (int v = 0; v < NV; ++v) sum[q][v] = vdot2(sum[q][v], value[v], w);
            }
        }
        pages.ahead[page] = next;
    }
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        const vf scale = vset(weight_scales[q]);
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) {
            float* to = sums + q * s_stride + v * LANES;
            vstore(to, vfma(vfloat(sum[q][v]), scale, vload(to)));
        }
    }
}

// The largest magnitude of what was added; NaN if any of it was not finite.
struct Largest {
    vf top = vset(0.0f), check = vset(0.0f);
    GLM4_MEMBER void add(vf v) {
        top = vmax(vabs(v), top);
        check = vfma(v, vset(0.0f), check);  // NaN where v is not finite
    }
    GLM4_MEMBER float value() const { return vreduce_max(top) + vreduce_add(check); }
};

// to[i] = x[i] / scale as int16, where the returned scale maps `largest`, that of x, to 32767; n is a multiple of
// LANES. If it is NaN, so are the scale and every result.
inline float quantize_int16(const float* x, int64_t n, float largest, int16_t* to) {
    const bool usable = largest >= 1e-30f;  // below it 1 / scale is infinite
    const vf inverse = vset(usable ? kMaxInt16 / largest : 0.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        const vf clipped = vmax(vset(-kMaxInt16), vmin(vmul(vload(x + i), inverse), vset(kMaxInt16)));
        store_int16(to + i, clipped);
    }
    return usable ? largest / kMaxInt16 : largest * 0.0f;
}

// Running maximum and sum of weights of one query.
struct Softmax {
    float top, total;
};

// Calls each(i, weights) with the weights of the first `visible` scores of a block relative to the running maximum, a
// vector at a time; after the last one come weights that are next to nothing. Returns the factor by which everything
// summed so far shrinks.
template <class Each>
GLM4_INLINE float softmax_block(float* scores, int64_t visible, Softmax& state, const Each& each) {
    int64_t end = visible;
    for (; end % LANES != 0; ++end) scores[end] = kMinusInfinity;
    vf top = vload(scores);
    for (int64_t i = LANES; i < end; i += LANES) top = vmax(top, vload(scores + i));
    const float block_max = vreduce_max(top);
    const float new_max = state.top > block_max ? state.top : block_max;
    vf total = vset(0.0f);
    for (int64_t i = 0; i < end; i += LANES) {
        const vf weight = vexp_falling(vsub(vload(scores + i), vset(new_max)));
        each(i, weight);
        total = vadd(total, weight);
    }
    float factor[LANES];
    factor[0] = 1.0f;
    if (state.top != new_max) vstore(factor, vexp_falling(vset(state.top - new_max)));
    state.total = state.total * factor[0] + vreduce_add(total);
    state.top = new_max;
    return factor[0];
}

// Adds the sums over a later chunk of keys to the sums over the earlier ones.
inline void merge(Softmax& state, float* sums, const Softmax& later, const float* later_sums, int64_t dim) {
    const float top = state.top > later.top ? state.top : later.top;
    float mine[LANES], theirs[LANES];
    vstore(mine, vexp(vset(state.top - top)));
    vstore(theirs, vexp(vset(later.top - top)));
    state.top = top;
    state.total = state.total * mine[0] + later.total * theirs[0];
    for (int64_t d = 0; d < dim; d += LANES) {
        vstore(sums + d, vfma(vload(later_sums + d), vset(theirs[0]), vmul(vload(sums + d), vset(mine[0]))));
    }
}

}  // namespace glm4::GLM4_ISA
