// The two inner loops of error-compensated rounding (quantization/rounding.py). Lanes are rows of the weight matrix; every
// array is [columns][rows] with the rows contiguous. Byte-identical to kernels/reference_rounding.py on every
// instruction set: the same float operations in the same order, never contracted.
#include "isa.h"
#include "parallel.h"
#include "simd.h"

namespace glm4::GLM4_ISA {
namespace {

constexpr int64_t ROWS = 8 * LANES;  // of one task
constexpr int COLUMNS = 32;          // at most, in a batch
constexpr float TINY = 1e-30f;

// Calls f(first row, count of lanes in use) for vectors of rows, on all threads.
template <class Function>
void for_rows(int64_t rows, const Function& f) {
    parallel_for((rows + ROWS - 1) / ROWS, [&](int64_t task, int) {
        const int64_t last = minimum(rows, (task + 1) * ROWS);
        for (int64_t row = task * ROWS; row < last; row += LANES) f(row, static_cast<int>(minimum<int64_t>(LANES, last - row)));
    });
}

void round_columns(const Rounding& a) {
    for_rows(a.rows, [&](int64_t row, int lanes) {
        vf wrong[COLUMNS];
        for (int64_t k = 0; k < a.columns; ++k) {
            vf target = vload_n(a.target + k * a.rows + row, lanes);
            for (int64_t j = 0; j < k; ++j) target = vadd(target, vmul(vset(a.upper[j * a.columns + k]), wrong[j]));
            const vf step = vload_n(a.step + k * a.step_stride + row, lanes);
            const vf centre = vload_n(a.centre + k * a.centre_stride + row, lanes);
            const vf quant = round_clipped(vmul(vsub(target, centre), reciprocal(step)), a.lowest, a.highest);
            wrong[k] = vsub(vload_n(a.source + k * a.rows + row, lanes), vadd(vmul(step, quant), centre));
            vstore_n(a.error + k * a.rows + row, wrong[k], lanes);
            int8_t bytes[LANES];
            vstore_int8(bytes, quant);
            memcpy(a.quants + k * a.rows + row, bytes, static_cast<size_t>(lanes));
        }
    });
}

// One vector of rows of a group of at most 32 columns.
struct Group {
    vf target[COLUMNS], y[COLUMNS];  // y = target - middle of the row's range
    vf low, high, middle, weighted_sum;

    GLM4_MEMBER void load(const GridSearch& a, int64_t row, int lanes) {
        for (int64_t c = 0; c < a.columns; ++c) target[c] = vload_n(a.target + c * a.rows + row, lanes);
        low = high = target[0];
        for (int64_t c = 1; c < a.columns; ++c) low = vmin(low, target[c]), high = vmax(high, target[c]);
        middle = vmul(vadd(low, high), vset(0.5f));
        weighted_sum = vset(0.0f);
        for (int64_t c = 0; c < a.columns; ++c) {
            y[c] = vsub(target[c], middle);
            weighted_sum = vadd(weighted_sum, vmul(y[c], vset(a.weights[c])));
        }
    }

    // Weighted least squares y ~ fit * q + base, from a first guess.
    GLM4_MEMBER void improve(const GridSearch& a, vf& fit, vf& base) const {
        const vf total = vset(a.total_weight);
        for (int pass = 0; pass < kInt4Passes; ++pass) {
            const vf inverse = reciprocal(fit);
            vf sq = vset(0.0f), sqq = vset(0.0f), sqy = vset(0.0f);
            for (int64_t c = 0; c < a.columns; ++c) {
                const vf q = round_clipped(vmul(vsub(y[c], base), inverse), -8.0f, 7.0f);
                const vf weighted = vmul(q, vset(a.weights[c]));
                sq = vadd(sq, weighted);
                sqq = vadd(sqq, vmul(weighted, q));
                sqy = vadd(sqy, vmul(weighted, y[c]));
            }
            const vf spread = vsub(vmul(total, sqq), vmul(sq, sq)), rise = vsub(vmul(total, sqy), vmul(sq, weighted_sum));
            fit = vselect_gt(spread, vset(0.0f), vdiv(rise, vmax(spread, vset(TINY))), vset(0.0f));
            base = vdiv(vsub(weighted_sum, vmul(fit, sq)), total);
        }
    }

    GLM4_MEMBER vf squared_error(const GridSearch& a, vf step, vf centre) const {
        const vf inverse = reciprocal(step);
        vf sum = vset(0.0f);
        for (int64_t c = 0; c < a.columns; ++c) {
            vf wrong = vsub(target[c], centre);
            wrong = vsub(wrong, vmul(step, round_clipped(vmul(wrong, inverse), -8.0f, 7.0f)));
            sum = vadd(sum, vmul(vmul(wrong, wrong), vset(a.weights[c])));
        }
        return sum;
    }
};

void search_int4(const GridSearch& a) {
    const vf offset_unit = vset(static_cast<float>(kInt4OffsetUnit));
    for_rows(a.rows, [&](int64_t row, int lanes) {
        Group group;
        group.load(a, row, lanes);
        const vf unit = vload_n(a.unit + row, lanes), inverse_unit = reciprocal(unit);
        vf least = vset(0.0f), best_scale = vset(0.0f), best_offset = vset(0.0f);
        for (int candidate = 0; candidate < kInt4Candidates; ++candidate) {
            vf fit = vdiv(vsub(group.high, group.low), vset(12.0f + static_cast<float>(candidate)));
            vf base = vmul(fit, vset(0.5f));
            group.improve(a, fit, base);
            const vf scale = round_clipped(vmul(fit, inverse_unit), 0.0f, 255.0f);
            const vf offset =
                round_clipped(vdiv(vmul(vadd(base, group.middle), inverse_unit), offset_unit), -127.0f, 127.0f);
            const vf error = group.squared_error(a, vmul(unit, scale), vmul(unit, vmul(offset, offset_unit)));
            if (candidate == 0) {
                least = error, best_scale = scale, best_offset = offset;
                continue;
            }
            best_scale = vselect_gt(least, error, scale, best_scale);
            best_offset = vselect_gt(least, error, offset, best_offset);
            least = vselect_gt(least, error, error, least);
        }
        vstore_n(a.scale + row, best_scale, lanes);
        vstore_n(a.offset + row, best_offset, lanes);
    });
}

}  // namespace

void fill_rounding(Kernels& table) {
    table.round_columns = round_columns;
    table.search_int4 = search_int4;
}

}  // namespace glm4::GLM4_ISA
