// Tiles: a few rows of activations times cells of one block, float or integer, added to float sums.
//
// A tile walks the spans of its block in order, so an output's additions are the same whatever R is.
#pragma once

#include "formats.h"

namespace glm4::GLM4_ISA {

// Rows per micro-tile, sized to the register file.
#if defined(GLM4_AVX512)
constexpr int FLOAT_TILE = 6;
constexpr int INT8_TILE = 6;
constexpr int INT4_TILE = 6;
#elif defined(GLM4_AVX2)
constexpr int FLOAT_TILE = 3;
constexpr int INT8_TILE = 4;
constexpr int INT4_TILE = 8;
#elif defined(GLM4_NEON)
constexpr int FLOAT_TILE = 2;
constexpr int INT8_TILE = 4;
constexpr int INT4_TILE = 4;
#else
constexpr int FLOAT_TILE = 2;
constexpr int INT8_TILE = 2;
constexpr int INT4_TILE = 2;
#endif

// Tiles wait for memory, and the processor's own prefetchers restart at every 4 KB page. The distance in bytes that was
// best on Zen 3, where one core then takes 10 to 40 % less time for 2 to 8 rows; 0 where nothing was measured.
#if defined(GLM4_AVX2)
constexpr int64_t kPrefetchDistance = 2048;
#else
constexpr int64_t kPrefetchDistance = 0;
#endif

// Prefetches the cell kPrefetchDistance after this one, in the first pass over a span: a later pass finds everything in
// the first-level cache.
template <int64_t NBYTES>
GLM4_INLINE void prefetch_cell([[maybe_unused]] const uint8_t* cell, [[maybe_unused]] int pass) {
    if constexpr (kPrefetchDistance > 0) {
        if (pass > 0) return;
        GLM4_UNROLL
        for (int64_t at = 0; at < NBYTES; at += 64) __builtin_prefetch(cell + kPrefetchDistance + at);
    }
}

// Adds `groups` cells to the sums of R rows; sums is [R][32].
template <class F, int R>
void float_tile(const uint8_t* cell, int64_t groups, const float* panel, float* sums) {
    vf sum[R][VECTORS];
    GLM4_UNROLL
    for (int r = 0; r < R; ++r) {
        GLM4_UNROLL
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = vload(sums + r * kRowBlock + v * LANES);
    }
    for (int64_t g = 0; g < groups; ++g, cell += kCellBytes[F::format], panel += kColGroup * R) {
        for (int pair = 0; pair < kColGroup; pair += 2) {
            GLM4_UNROLL
            for (int col = pair; col < pair + 2; ++col) {
                vf x[R];
                GLM4_UNROLL
                for (int r = 0; r < R; ++r) x[r] = vset(panel[col * R + r]);
                GLM4_UNROLL
                for (int v = 0; v < VECTORS; ++v) {
                    const vf w = F::load(cell, col, v);
                    GLM4_UNROLL
                    for (int r = 0; r < R; ++r) sum[r][v] = vfma(w, x[r], sum[r][v]);
                }
            }
        }
    }
    GLM4_UNROLL
    for (int r = 0; r < R; ++r) {
        GLM4_UNROLL
        for (int v = 0; v < VECTORS; ++v) vstore(sums + r * kRowBlock + v * LANES, sum[r][v]);
    }
}

// sums[r] += scale of the weights * sum over the cells of (dot products * scale of the activations).
template <int R>
GLM4_INLINE void int8_span(const uint8_t* cell, int cells, const Record<Int8, R>& a, float* sums) {
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(cell + cells * kCellBytes[kInt8]);
    GLM4_UNROLL
    for (int v = 0; v < VECTORS; v += STEP<R>) {
        vf part[R][STEP<R>];
        GLM4_UNROLL
        for (int r = 0; r < R; ++r) {
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) part[r][i] = vset(0.0f);
        }
        GLM4_ROLLED  // each load then walks through memory in small steps, which prefetchers follow
        for (int c = 0; c < cells; ++c) {
            const uint8_t* at = cell + c * kCellBytes[kInt8];
            prefetch_cell<kCellBytes[kInt8]>(at, v);
            Dots<R> dot;
            Int8::dot<R>(at, a.quants[c], a.start[c], v, dot);
            GLM4_UNROLL
            for (int r = 0; r < R; ++r) {
                GLM4_UNROLL
                for (int i = 0; i < STEP<R>; ++i) {
                    part[r][i] = vfma(vfloat(dot[r][i]), vset(a.scale[c][r]), part[r][i]);
                }
            }
        }
        GLM4_UNROLL
        for (int i = 0; i < STEP<R>; ++i) {
            const vf scale = vload_half(scales + (v + i) * LANES);
            GLM4_UNROLL
            for (int r = 0; r < R; ++r) {
                float* sum = sums + r * kRowBlock + (v + i) * LANES;
                vstore(sum, vfma(part[r][i], scale, vload(sum)));
            }
        }
    }
}

// sums[r] += scale of the activations * sum over the cells of integers; the rows' scales come last, see `write` in linear.cpp.
template <int R>
GLM4_INLINE void int4_span(const uint8_t* cell, int cells, const Record<Int4, R>& a, float* sums) {
    GLM4_UNROLL
    for (int v = 0; v < VECTORS; v += STEP<R>) {
        vi part[R][STEP<R>];
        GLM4_UNROLL
        for (int r = 0; r < R; ++r) {
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) part[r][i] = viset(0);
        }
        GLM4_ROLLED
        for (int c = 0; c < cells; ++c, cell += kCellBytes[kInt4]) {
            prefetch_cell<kCellBytes[kInt4]>(cell, v);
            Dots<R> dot;
            Int4::dot<R>(cell, a.quants[c], a.start[c], v, dot);
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) {
                const vi pairs = vload_scale_pairs(cell + Int4::scale_offset + (v + i) * LANES * 2);
                GLM4_UNROLL
                for (int r = 0; r < R; ++r) part[r][i] = vdot_words(part[r][i], dot[r][i], pairs);
            }
        }
        cell -= cells * kCellBytes[kInt4];
        GLM4_UNROLL
        for (int r = 0; r < R; ++r) {
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) {
                float* sum = sums + r * kRowBlock + (v + i) * LANES;
                vstore(sum, vfma(vfloat(part[r][i]), vset(a.scale[0][r]), vload(sum)));
            }
        }
    }
}

// Adds `groups` cells, which start at a span, to the sums of R rows; sums is [R][32].
template <class F, int R>
void int_tile(const uint8_t* cell, int64_t groups, const uint8_t* panel, float* sums) {
    for (; groups > 0; groups -= kSpanCells, cell += span_nbytes(F::format), panel += sizeof(Record<F, R>)) {
        const int cells = static_cast<int>(minimum<int64_t>(kSpanCells, groups));
        const Record<F, R>& a = *reinterpret_cast<const Record<F, R>*>(panel);
        if constexpr (F::format == kInt8) {
            int8_span<R>(cell, cells, a, sums);
        } else {
            int4_span<R>(cell, cells, a, sums);
        }
    }
}

}  // namespace glm4::GLM4_ISA
