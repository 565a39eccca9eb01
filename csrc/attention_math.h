// Arithmetic of one page for up to QUERY_STEP queries: scores against its keys, and weighted sums of its values.
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
constexpr int CHANNEL_STEP = 2;
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

// sums[q][channel] += sum over keys of weights[q][key] * values[key][channel]; the last vector may be partial.
template <class T, int NQ, int NV>
GLM4_INLINE void value_step(const float* weights, int64_t w_stride, int64_t keys, const T* values, int64_t dim, int last,
                            float* sums, int64_t s_stride, Ahead& ahead) {
    vf sum[NQ][NV];
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) sum[q][v] = vload(sums + q * s_stride + v * LANES);
    }
    Ahead next = ahead;
    for (int64_t key = 0; key < keys; ++key, values += dim) {
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
    ahead = next;
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) vstore(sums + q * s_stride + v * LANES, sum[q][v]);
    }
}

template <class T, int NQ>
void value_queries(const float* weights, int64_t w_stride, int64_t keys, const T* values, int64_t dim, float* sums,
                   int64_t s_stride, Ahead& ahead) {
    int64_t d = 0;
    for (; d + CHANNEL_STEP * LANES <= dim; d += CHANNEL_STEP * LANES) {
        value_step<T, NQ, CHANNEL_STEP>(weights, w_stride, keys, values + d, dim, LANES, sums + d, s_stride, ahead);
    }
    for (; d < dim; d += LANES) {
        const int last = static_cast<int>(minimum<int64_t>(LANES, dim - d));
        value_step<T, NQ, 1>(weights, w_stride, keys, values + d, dim, last, sums + d, s_stride, ahead);
    }
}

// The int8 cache. Queries and weights are int16 with a scale each, keys and values int8 with a scale per token. A sum of
// up to 512 products (channels of a head, or keys of a page) stays below 512 * 32767 * 127 < 2^31.

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

// sums[q][channel] += weight_scales[q] * sum over `pairs` pairs of keys; values is [page_size / 2][dim][2].
template <int NQ, int NV>
GLM4_INLINE void value_step_int8(const int16_t* weights, int64_t w_stride, const float* weight_scales, int64_t pairs,
                                 const int8_t* values, int64_t dim, float* sums, int64_t s_stride, Ahead& ahead) {
    vi sum[NQ][NV];
    GLM4_UNROLL
    for (int q = 0; q < NQ; ++q) {
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) sum[q][v] = viset(0);
    }
    Ahead next = ahead;
    for (int64_t pair = 0; pair < pairs; ++pair, values += 2 * dim) {
        next.fetch();
        vpairs value[NV];
        GLM4_UNROLL
        for (int v = 0; v < NV; ++v) value[v] = load_pairs(values + v * 2 * LANES);
        GLM4_UNROLL
        for (int q = 0; q < NQ; ++q) {
            const vpairs w = set_pairs(load_pair(weights + q * w_stride + 2 * pair));
            GLM4_UNROLL
            for (int v = 0; v < NV; ++v) sum[q][v] = vdot2(sum[q][v], value[v], w);
        }
    }
    ahead = next;
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

template <int NQ>
void value_queries_int8(const int16_t* weights, int64_t w_stride, const float* weight_scales, int64_t pairs,
                        const int8_t* values, int64_t dim, float* sums, int64_t s_stride, Ahead& ahead) {
    int64_t d = 0;
    for (; d + CHANNEL_STEP * LANES <= dim; d += CHANNEL_STEP * LANES) {
        value_step_int8<NQ, CHANNEL_STEP>(weights, w_stride, weight_scales, pairs, values + 2 * d, dim, sums + d,
                                          s_stride, ahead);
    }
    for (; d < dim; d += LANES) {
        value_step_int8<NQ, 1>(weights, w_stride, weight_scales, pairs, values + 2 * d, dim, sums + d, s_stride, ahead);
    }
}

// to[i] = x[i] / scale as int16, where the returned scale maps the largest magnitude to 32767. n is a multiple of LANES.
// A NaN or an infinity in x makes the scale, and so every result, NaN.
inline float quantize_int16(const float* x, int64_t n, int16_t* to) {
    vf top = vset(0.0f), check = vset(0.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        const vf v = vload(x + i);
        top = vmax(vabs(v), top);
        check = vfma(v, vset(0.0f), check);  // NaN where v is not finite
    }
    const float largest = vreduce_max(top) + vreduce_add(check);
    const bool usable = largest >= 1e-30f;  // below it 1 / scale is infinite
    const vf inverse = vset(usable ? kMaxInt16 / largest : 0.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        const vf clipped = vmax(vset(-kMaxInt16), vmin(vmul(vload(x + i), inverse), vset(kMaxInt16)));
        store_int16(to + i, vround(clipped));
    }
    return usable ? largest / kMaxInt16 : largest * 0.0f;
}

// Running maximum and sum of weights of one query.
struct Softmax {
    float top, total;
};

// Turns the first `visible` scores of a block into weights relative to the running maximum, with zeros up to the next
// full vector. Returns the factor by which everything summed so far shrinks.
inline float softmax_block(float* scores, int64_t visible, Softmax& state) {
    int64_t end = visible;
    for (; end % LANES != 0; ++end) scores[end] = kMinusInfinity;
    vf top = vload(scores);
    for (int64_t i = LANES; i < end; i += LANES) top = vmax(top, vload(scores + i));
    const float block_max = vreduce_max(top);
    const float new_max = state.top > block_max ? state.top : block_max;
    vf total = vset(0.0f);
    for (int64_t i = 0; i < end; i += LANES) {
        const vf weight = vexp(vsub(vload(scores + i), vset(new_max)));
        vstore(scores + i, weight);
        total = vadd(total, weight);
    }
    float factor[LANES];
    factor[0] = 1.0f;
    if (state.top != new_max) vstore(factor, vexp(vset(state.top - new_max)));
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
