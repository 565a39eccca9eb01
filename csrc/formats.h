// Weight formats: the meaning of the bytes of a cell of 32 outputs x 32 inputs, and its dot products with R rows of
// activations, which tiles.h adds up.
//
// A float format multiplies with float activations in a panel [column][R]; an integer format with activations
// quantized per row and group, in a panel of one Record per span, whose `start` removes the weights' bias from an
// unsigned dot product. For a given output the additions happen in the same order whatever R is: that is the batch
// invariance.
#pragma once

#include "isa.h"
#include "simd.h"

namespace glm4::GLM4_ISA {

constexpr int VECTORS = kRowBlock / LANES;  // vectors that cover the 32 outputs of a block

// Vectors of outputs that an integer tile of R rows processes at once.
#if defined(GLM4_AVX512)
template <int R>
constexpr int STEP = 2;
#elif defined(GLM4_AVX2)
// With few rows every operand read serves more vectors, and one or two rows walk through memory in whole lines; with
// many rows the sums alone fill the sixteen registers.
template <int R>
constexpr int STEP = R <= 2 ? 4 : R <= 4 ? 2 : 1;
#elif defined(GLM4_NEON)
template <int R>
constexpr int STEP = 1;
#else
template <int R>
constexpr int STEP = 4;
#endif

template <int R>
using Dots = vi[R][STEP<R>];

// Activations of R rows and one span, in the layout of the integer format F.
template <class F, int R>
struct Record {
    typename F::Quant quants[kSpanCells][R][kColGroup];
    int32_t start[kSpanCells][R];  // of a cell's dot products: zero_point and offset taken out, see each format
    float scale[kSpanCells][R];    // a format whose activation group is a span uses only the first
};

struct Fp32 {
    static constexpr Format format = kFp32;
    GLM4_INLINE vf load(const uint8_t* cell, int col, int v) {
        return vload(reinterpret_cast<const float*>(cell) + col * kRowBlock + v * LANES);
    }
    static float value(const uint8_t* cell, int row, int col) {
        return reinterpret_cast<const float*>(cell)[col * kRowBlock + row];
    }
};

struct Bf16 {
    static constexpr Format format = kBf16;
    GLM4_INLINE vf load(const uint8_t* cell, int col, int v) {
        const uint16_t* p = reinterpret_cast<const uint16_t*>(cell) + (col / 2 * kRowBlock + v * LANES) * 2;
        return col % 2 == 0 ? vload_bf16_even(p) : vload_bf16_odd(p);
    }
    static float value(const uint8_t* cell, int row, int col) {
        const uint16_t* p = reinterpret_cast<const uint16_t*>(cell);
        return bits_float(static_cast<uint32_t>(p[(col / 2 * kRowBlock + row) * 2 + col % 2]) << 16);
    }
};

// Four activations of a byte, or two of a word, as one 32-bit operand.
template <class Quant>
GLM4_INLINE int32_t operand(const Quant* quants, int index) {
    int32_t bits;
    memcpy(&bits, reinterpret_cast<const char*>(quants) + index * 4, 4);
    return bits;
}

#if defined(GLM4_AVX512)
GLM4_INLINE vi line(const uint8_t* p) { return _mm512_loadu_si512(p); }
#elif defined(GLM4_AVX2)
GLM4_INLINE vi line(const uint8_t* p) { return load_bytes(p); }
// Pairs of products of unsigned w and signed a, summed to 16 bits; exact while 2 * |w| * |a| stays below 32768.
GLM4_INLINE vi pairs(vi w, vi a) { return _mm256_maddubs_epi16(w, a); }
GLM4_INLINE vi widen(vi x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }
#endif

// Initial sums, which remove the weights' bias.
template <int R>
GLM4_INLINE void start_sums(const int32_t (&start)[R], Dots<R>& out) {
    GLM4_UNROLL
    for (int r = 0; r < R; ++r) {
        GLM4_UNROLL
        for (int i = 0; i < STEP<R>; ++i) out[r][i] = viset(start[r]);
    }
}

#if !defined(GLM4_AVX512) && !defined(GLM4_AVX2) && !defined(GLM4_NEON)
// Bits [shift, shift + 8) & mask of the 32-bit word of each lane.
GLM4_INLINE vf byte_floats(const uint8_t* p, int shift, uint32_t mask) {
    vu words;
    memcpy(&words, p, sizeof words);
    return vfloat(reinterpret_cast<vi>((words >> shift) & mask));
}

// Sums of 32 products in float: below 2^24 they are exact, and every processor multiplies floats fast.
template <int R, class Weights>
GLM4_INLINE void float_sums(const int8_t (&quants)[R][kColGroup], const int32_t (&start)[R], Dots<R>& out,
                            const Weights& weights) {
    vf sum[R][STEP<R>];
    GLM4_UNROLL
    for (int r = 0; r < R; ++r) {
        GLM4_UNROLL
        for (int i = 0; i < STEP<R>; ++i) sum[r][i] = vset(0.0f);
    }
    for (int k = 0; k < kColGroup; ++k) {
        vf w[STEP<R>];
        GLM4_UNROLL
        for (int i = 0; i < STEP<R>; ++i) w[i] = weights(k, i);
        GLM4_UNROLL
        for (int r = 0; r < R; ++r) {
            const vf x = vset(static_cast<float>(quants[r][k]));
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) sum[r][i] = vadd(sum[r][i], vmul(w[i], x));
        }
    }
    GLM4_UNROLL
    for (int r = 0; r < R; ++r) {
        GLM4_UNROLL
        for (int i = 0; i < STEP<R>; ++i) out[r][i] = __builtin_convertvector(sum[r][i], vi) + viset(start[r]);
    }
}
#endif

struct Int8 {
    static constexpr Format format = kInt8;
    static constexpr int zero_point = 128;
    static constexpr int activation_cells = 1;  // cells that share an activation scale
#if defined(GLM4_AVX2)
    // There is no exact full-range byte product here: words, and each quad in the order 0 2 1 3, by which the even and
    // the odd bytes of four weights are multiplied.
    using Quant = int16_t;
    GLM4_INLINE void store_quants(const int8_t* from, int16_t* to) {
        for (int k = 0; k < kColGroup; k += 4) {
            to[k] = from[k], to[k + 1] = from[k + 2], to[k + 2] = from[k + 1], to[k + 3] = from[k + 3];
        }
    }
#else
    using Quant = int8_t;
    GLM4_INLINE void store_quants(const int8_t* from, int8_t* to) { memcpy(to, from, kColGroup); }
#endif

    static int32_t start_of(int32_t sum) { return -zero_point * sum; }

    // out[r][i] = sum over the 32 columns for outputs of vectors v .. v + STEP<R> - 1.
    template <int R>
    GLM4_INLINE void dot(const uint8_t* cell, const Quant (&quants)[R][kColGroup],
                         [[maybe_unused]] const int32_t (&start)[R], int v, Dots<R>& out) {
#if defined(GLM4_AVX512)
        start_sums(start, out);
        GLM4_UNROLL
        for (int k = 0; k < 8; ++k) {
            vi w[STEP<R>];
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) w[i] = line(cell + k * 128 + (v + i) * 64);
            GLM4_UNROLL
            for (int r = 0; r < R; ++r) {
                const vi x = viset(operand(quants[r], k));
                GLM4_UNROLL
                for (int i = 0; i < STEP<R>; ++i) out[r][i] = _mm512_dpbusd_epi32(out[r][i], w[i], x);
            }
        }
#elif defined(GLM4_AVX2)
        start_sums(start, out);
        const vi low_bytes = _mm256_set1_epi16(255);
        GLM4_UNROLL
        for (int k = 0; k < 8; ++k) {
            vi even[STEP<R>], odd[STEP<R>];
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) {
                const vi bytes = line(cell + k * 128 + (v + i) * 32);
                even[i] = _mm256_and_si256(bytes, low_bytes);
                odd[i] = _mm256_srli_epi16(bytes, 8);
            }
            GLM4_UNROLL
            for (int r = 0; r < R; ++r) {
                const vi x = viset(operand(quants[r], 2 * k)), y = viset(operand(quants[r], 2 * k + 1));
                GLM4_UNROLL
                for (int i = 0; i < STEP<R>; ++i) {
                    out[r][i] = vdot_words(vdot_words(out[r][i], even[i], x), odd[i], y);
                    pin(out[r][i]);
                }
            }
        }
#elif defined(GLM4_NEON)
        GLM4_UNROLL
        for (int r = 0; r < R; ++r) out[r][0] = vdupq_n_s32(0);
        for (int k = 0; k < 8; ++k) {
            const uint8x16_t biased = veorq_u8(vld1q_u8(cell + k * 128 + v * 16), vdupq_n_u8(0x80));
            for (int r = 0; r < R; ++r) {
                const int8x16_t x = vreinterpretq_s8_s32(viset(operand(quants[r], k)));
                out[r][0] = vdotq_s32(out[r][0], vreinterpretq_s8_u8(biased), x);
            }
        }
#else
        float_sums<R>(quants, start, out, [&](int k, int i) {
            return byte_floats(cell + k / 4 * 128 + (v + i) * 16, k % 4 * 8, 255);
        });
#endif
    }
    static int quant(const uint8_t* cell, int row, int col) {
        return cell[(col / 4 * kRowBlock + row) * 4 + col % 4] - zero_point;
    }
};

struct Int4 {
    static constexpr Format format = kInt4;
    static constexpr int zero_point = 8;
    static constexpr int activation_cells = kSpanCells;
    using Quant = int8_t;
    GLM4_INLINE void store_quants(const int8_t* from, int8_t* to) { memcpy(to, from, kColGroup); }
    static constexpr int offset_unit = kInt4OffsetUnit;
    static constexpr int64_t scale_offset = 512;

    // Dot products of a cell come out as 65536 * offset_unit * sum(a) + sum((q - 8) * a): two 16-bit halves that one
    // multiply-add of words turns into scale * sum((q - 8) * a) + offset * offset_unit * sum(a). The low half is at most
    // 8 * 127 * 32 = 32512. Where it is negative the high half is one less: an error of offset / offset_unit of one
    // activation step, kept because it is the same on every instruction set and in the twin.
    static int32_t start_of(int32_t sum) { return 65536 * offset_unit * sum - zero_point * sum; }

    template <int R>
    GLM4_INLINE void dot(const uint8_t* cell, const Quant (&quants)[R][kColGroup],
                         [[maybe_unused]] const int32_t (&start)[R], int v, Dots<R>& out) {
#if defined(GLM4_AVX512)
        const vi mask = _mm512_set1_epi8(15);
        start_sums(start, out);
        GLM4_UNROLL
        for (int k = 0; k < 4; ++k) {
            vi low[STEP<R>], high[STEP<R>];
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) {
                const vi both = line(cell + k * 128 + (v + i) * 64);
                low[i] = _mm512_and_si512(both, mask);
                high[i] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
            }
            GLM4_UNROLL
            for (int r = 0; r < R; ++r) {
                const vi x = viset(operand(quants[r], 2 * k)), y = viset(operand(quants[r], 2 * k + 1));
                GLM4_UNROLL
                for (int i = 0; i < STEP<R>; ++i) {
                    out[r][i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(out[r][i], low[i], x), high[i], y);
                }
            }
        }
#elif defined(GLM4_AVX2)
        // Eight sums of two products of at most 15 * 127 fit 16 bits: one widening per cell.
        const vi mask = _mm256_set1_epi8(15);
        GLM4_UNROLL
        for (int r = 0; r < R; ++r) {
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) out[r][i] = _mm256_setzero_si256();
        }
        GLM4_UNROLL
        for (int k = 0; k < 4; ++k) {
            vi low[STEP<R>], high[STEP<R>];
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) {
                const vi both = line(cell + k * 128 + (v + i) * 32);
                low[i] = _mm256_and_si256(both, mask);
                high[i] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
            }
            GLM4_UNROLL
            for (int r = 0; r < R; ++r) {
                const vi x = viset(operand(quants[r], 2 * k)), y = viset(operand(quants[r], 2 * k + 1));
                GLM4_UNROLL
                for (int i = 0; i < STEP<R>; ++i) {
                    out[r][i] = _mm256_add_epi16(out[r][i], _mm256_add_epi16(pairs(low[i], x), pairs(high[i], y)));
                    pin(out[r][i]);
                }
            }
        }
        GLM4_UNROLL
        for (int r = 0; r < R; ++r) {
            GLM4_UNROLL
            for (int i = 0; i < STEP<R>; ++i) out[r][i] = _mm256_add_epi32(widen(out[r][i]), viset(start[r]));
        }
#elif defined(GLM4_NEON)
        GLM4_UNROLL
        for (int r = 0; r < R; ++r) out[r][0] = viset(start[r]);
        for (int k = 0; k < 4; ++k) {
            const uint8x16_t both = vld1q_u8(cell + k * 128 + v * 16);
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            for (int r = 0; r < R; ++r) {
                const int8x16_t x = vreinterpretq_s8_s32(viset(operand(quants[r], 2 * k)));
                const int8x16_t y = vreinterpretq_s8_s32(viset(operand(quants[r], 2 * k + 1)));
                out[r][0] = vdotq_s32(vdotq_s32(out[r][0], low, x), high, y);
            }
        }
#else
        float_sums<R>(quants, start, out, [&](int k, int i) {
            return byte_floats(cell + k / 8 * 128 + (v + i) * 16, k % 4 * 8 + k % 8 / 4 * 4, 15);
        });
#endif
    }
    static int quant(const uint8_t* cell, int row, int col) {
        const uint8_t both = cell[(col / 8 * kRowBlock + row) * 4 + col % 4];
        return (col % 8 < 4 ? both & 15 : both >> 4) - zero_point;
    }
};

// Dequantized values of one row of a block: row `lane` of cell g.
template <class F>
void cell_row(const Weight& w, const uint8_t* block, int64_t g, int lane, int count, float* out) {
    const uint8_t* cell = block + g / kSpanCells * span_nbytes(F::format) + g % kSpanCells * kCellBytes[F::format];
    if constexpr (F::format == kFp32 || F::format == kBf16) {
        for (int i = 0; i < count; ++i) out[i] = F::value(cell, lane, i);
    } else if constexpr (F::format == kInt8) {
        const int64_t cells = minimum<int64_t>(kSpanCells, w.groups() - g / kSpanCells * kSpanCells);
        const uint8_t* scales = cell + (cells - g % kSpanCells) * kCellBytes[kInt8];
        const float scale = half_to_float(reinterpret_cast<const uint16_t*>(scales)[lane]);
        for (int i = 0; i < count; ++i) out[i] = static_cast<float>(F::quant(cell, lane, i)) * scale;
    } else {
        const uint8_t* pair = cell + F::scale_offset + 2 * lane;
        const int scale = pair[0], offset = (pair[1] - 128) * F::offset_unit;
        const float unit = w.row_scales(block)[lane];
        for (int i = 0; i < count; ++i) out[i] = static_cast<float>(scale * F::quant(cell, lane, i) + offset) * unit;
    }
}

// The list of formats: calls f(F{}) for the given one.
template <class Function>
auto with_format(Format format, const Function& f) {
    switch (format) {
        case kFp32: return f(Fp32{});
        case kBf16: return f(Bf16{});
        case kInt8: return f(Int8{});
        default: return f(Int4{});
    }
}

}  // namespace glm4::GLM4_ISA
