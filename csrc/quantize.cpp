// pack: float32 weights into cells, quantized for the integer formats. Byte-identical to `pack` in
// kernels/reference.py on every instruction set: the same float operations in the same order, never contracted.
#include <vector>

#include "formats.h"
#include "parallel.h"

namespace glm4::GLM4_ISA {
namespace {

constexpr float INT4_MIN_UNIT = 1e-30f;

// One cell, transposed: a column of 32 rows is contiguous, and vector lanes are rows.
using Cell = float[kColGroup][kRowBlock];

GLM4_INLINE vf half_round(vf x) {
    uint16_t part[LANES];
    vstore_half(part, x);
    return vload_half(part);
}

void pack_fp32(const Cell& cell, uint8_t* out) { memcpy(out, cell, sizeof(Cell)); }

void pack_bf16(const Cell& cell, uint8_t* out) {
    uint16_t* to = reinterpret_cast<uint16_t*>(out);
    for (int col = 0; col < kColGroup; ++col) {
        for (int row = 0; row < kRowBlock; ++row) {
            const uint32_t bits = float_bits(cell[col][row]);
            to[(col / 2 * kRowBlock + row) * 2 + col % 2] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
        }
    }
}

vf column_max(const Cell& cell, int first) {
    vf top = vset(0.0f);
    for (int col = 0; col < kColGroup; ++col) top = vmax(top, vabs(vload(cell[col] + first)));
    return top;
}

// A span of cells, then one fp16 scale per row for all of them.
void pack_int8(const Cell* cells, int count, uint8_t* out) {
    uint16_t* scales = reinterpret_cast<uint16_t*>(out + count * kCellBytes[kInt8]);
    for (int first = 0; first < kRowBlock; first += LANES) {
        vf top = vset(0.0f);
        for (int c = 0; c < count; ++c) top = vmax(top, column_max(cells[c], first));
        const vf scale = half_round(vdiv(top, vset(127.0f)));
        const vf inverse = reciprocal(scale);
        vstore_half(scales + first, scale);
        for (int col = 0; col < count * kColGroup; ++col) {
            float q[LANES];
            vstore(q, round_clipped(vmul(vload(cells[col / kColGroup][col % kColGroup] + first), inverse), -127.0f, 127.0f));
            for (int i = 0; i < LANES; ++i) {
                out[(col / 4 * kRowBlock + first + i) * 4 + col % 4] = static_cast<uint8_t>(static_cast<int>(q[i]) + 128);
            }
        }
    }
}

// The step and the center (the value of q = 8) with the least squared error for LANES rows of a cell.
void search_int4(const Cell& cell, int first, float* steps, float* centres) {
    vf low = vload(cell[0] + first), high = low;
    for (int col = 1; col < kColGroup; ++col) {
        const vf w = vload(cell[col] + first);
        low = vmin(low, w);
        high = vmax(high, w);
    }
    const vf range = vsub(high, low);
    vf sy = vset(0.0f);
    for (int col = 0; col < kColGroup; ++col) sy = vadd(sy, vsub(vload(cell[col] + first), low));
    vf best_gain = vset(-1.0f), best_step = vset(0.0f), best_start = vset(0.0f);
    for (int candidate = 0; candidate < kInt4Candidates; ++candidate) {
        vf step = vdiv(range, vset(12.0f + static_cast<float>(candidate)));
        vf base = vmul(vsub(range, vmul(step, vset(15.0f))), vset(0.5f)), gain = vset(0.0f);
        for (int pass = 0; pass < kInt4Passes; ++pass) {
            const vf inverse = reciprocal(step);
            vf sq = vset(0.0f), sqq = vset(0.0f), sqy = vset(0.0f);
            for (int col = 0; col < kColGroup; ++col) {
                const vf y = vsub(vload(cell[col] + first), low);
                const vf q = round_clipped(vmul(vsub(y, base), inverse), 0.0f, 15.0f);
                sq = vadd(sq, q);
                sqq = vadd(sqq, vmul(q, q));
                sqy = vadd(sqy, vmul(q, y));
            }
            // Least squares y ~ step * q + base. It reduces the sum of squares by base * sum(y) + step * sum(q y).
            const vf n = vset(static_cast<float>(kColGroup)), nth = vset(1.0f / static_cast<float>(kColGroup));
            const vf spread = vsub(vmul(n, sqq), vmul(sq, sq)), rise = vsub(vmul(n, sqy), vmul(sq, sy));
            step = vselect_gt(spread, vset(0.0f), vdiv(rise, vmax(spread, vset(1.0f))), vset(0.0f));
            base = vmul(vsub(sy, vmul(step, sq)), nth);
            gain = vadd(vmul(base, sy), vmul(step, sqy));
        }
        best_step = vselect_gt(gain, best_gain, step, best_step);
        best_start = vselect_gt(gain, best_gain, base, best_start);
        best_gain = vselect_gt(gain, best_gain, gain, best_gain);
    }
    vstore(steps + first, best_step);
    vstore(centres + first, vadd(vadd(best_start, low), vmul(best_step, vset(8.0f))));
}

// The unit of a row: the largest step is 255 units, the largest center 127 offset units, whichever is more.
void int4_units(const std::vector<float>& steps, const std::vector<float>& centres, float* units) {
    for (int first = 0; first < kRowBlock; first += LANES) {
        vf step = vset(0.0f), centre = vset(0.0f);
        for (size_t at = static_cast<size_t>(first); at < steps.size(); at += kRowBlock) {
            step = vmax(step, vload(&steps[at]));
            centre = vmax(centre, vabs(vload(&centres[at])));
        }
        const vf unit = vmax(vdiv(step, vset(255.0f)), vdiv(centre, vset(127.0f * kInt4OffsetUnit)));
        vstore(units + first, vselect_gt(unit, vset(INT4_MIN_UNIT), unit, vset(0.0f)));
    }
}

void pack_int4(const Cell& cell, const float* steps, const float* centres, const float* units, uint8_t* out) {
    for (int first = 0; first < kRowBlock; first += LANES) {
        const vf inverse = reciprocal(vload(units + first));
        const vf scale = round_clipped(vmul(vload(steps + first), inverse), 0.0f, 255.0f);
        const vf eighth = vset(1.0f / static_cast<float>(kInt4OffsetUnit));
        const vf offset = round_clipped(vmul(vmul(vload(centres + first), inverse), eighth), -127.0f, 127.0f);
        const vf shift = vmul(offset, vset(static_cast<float>(kInt4OffsetUnit))), per_scale = reciprocal(scale);
        const auto quants = [&](int col, float* to) {
            const vf u = vsub(vmul(vload(cell[col] + first), inverse), shift);
            vstore(to, vadd(round_clipped(vmul(u, per_scale), -8.0f, 7.0f), vset(8.0f)));
        };
        float scales[LANES], offsets[LANES];
        vstore(scales, scale);
        vstore(offsets, offset);
        for (int i = 0; i < LANES; ++i) {
            out[Int4::scale_offset + 2 * (first + i)] = static_cast<uint8_t>(static_cast<int>(scales[i]));
            out[Int4::scale_offset + 2 * (first + i) + 1] = static_cast<uint8_t>(static_cast<int>(offsets[i]) + 128);
        }
        for (int col = 0; col < kColGroup; ++col) {
            if (col % 8 >= 4) continue;
            float low[LANES], high[LANES];
            quants(col, low);
            quants(col + 4, high);
            for (int i = 0; i < LANES; ++i) {
                out[(col / 8 * kRowBlock + first + i) * 4 + col % 4] =
                    static_cast<uint8_t>(static_cast<int>(low[i]) | static_cast<int>(high[i]) << 4);
            }
        }
    }
}

// The part of a matrix that one cell covers.
struct Source {
    const float* w;
    int64_t rows, cols;
    float max_weight;

    // Fills a cell, with zeros outside the matrix. Returns the first row with an unusable weight, or `rows`.
    int64_t load(int64_t block, int64_t group, Cell& cell) const {
        const int64_t row0 = block * kRowBlock, col0 = group * kColGroup;
        const int height = static_cast<int>(minimum<int64_t>(kRowBlock, rows - row0));
        const int width = static_cast<int>(minimum<int64_t>(kColGroup, cols - col0));
        memset(cell, 0, sizeof(Cell));
        int64_t bad = rows;
        for (int r = height - 1; r >= 0; --r) {
            const float* from = w + (row0 + r) * cols + col0;
            bool good = true;
            for (int c = 0; c < width; ++c) {
                const float x = from[c];
                good &= x <= max_weight && x >= -max_weight;  // false for NaN
                cell[c][r] = x;
            }
            if (!good) bad = row0 + r;
        }
        return bad;
    }
};

// Packs one row block. Returns the first row with an unusable weight, or `rows`; the block is then unchanged.
int64_t pack_block(const Source& source, const Weight& w, int64_t b, uint8_t* out) {
    Cell span[kSpanCells];
    std::vector<float> steps, centres;
    if (w.format == kInt4) {
        steps.resize(static_cast<size_t>(w.groups() * kRowBlock));
        centres.resize(steps.size());
    }
    int64_t bad = w.rows;
    for (int64_t s = 0; s < w.spans() && bad == w.rows; ++s, out += span_nbytes(w.format)) {
        const int count = static_cast<int>(minimum<int64_t>(kSpanCells, w.groups() - s * kSpanCells));
        for (int c = 0; c < count; ++c) bad = minimum(bad, source.load(b, s * kSpanCells + c, span[c]));
        if (w.format == kInt8) pack_int8(span, count, out);
        for (int c = 0; c < count; ++c) {
            if (w.format == kFp32) pack_fp32(span[c], out + c * kCellBytes[kFp32]);
            if (w.format == kBf16) pack_bf16(span[c], out + c * kCellBytes[kBf16]);
            if (w.format != kInt4) continue;
            const size_t at = static_cast<size_t>((s * kSpanCells + c) * kRowBlock);
            for (int first = 0; first < kRowBlock; first += LANES) search_int4(span[c], first, &steps[at], &centres[at]);
        }
    }
    if (bad < w.rows || w.format != kInt4) return bad;
    float* units = const_cast<float*>(w.row_scales(w.block(b)));
    int4_units(steps, centres, units);
    uint8_t* cell = const_cast<uint8_t*>(w.block(b));
    for (int64_t g = 0; g < w.groups(); ++g, cell += kCellBytes[kInt4]) {
        source.load(b, g, span[0]);
        pack_int4(span[0], &steps[static_cast<size_t>(g * kRowBlock)], &centres[static_cast<size_t>(g * kRowBlock)], units, cell);
    }
    return bad;
}

int64_t pack(Format format, const float* w, int64_t rows, int64_t cols, float max_weight, uint8_t* out) {
    const Source source{w, rows, cols, max_weight};
    const Weight packed{out, format, rows, cols};
    int64_t first_bad = rows;
    parallel_for(packed.blocks(), [&](int64_t b, int) {
        const int64_t bad = pack_block(source, packed, b, out + b * packed.block_nbytes());
        int64_t seen = __atomic_load_n(&first_bad, __ATOMIC_RELAXED);
        while (bad < seen &&
               !__atomic_compare_exchange_n(&first_bad, &seen, bad, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
    });
    return first_bad == rows ? -1 : first_bad;
}

}  // namespace

void fill_quantize(Kernels& table) { table.pack = pack; }

}  // namespace glm4::GLM4_ISA
