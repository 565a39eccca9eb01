// The inner loops of error-compensated rounding (quantization/rounding.py). Lanes are rows of the weight matrix; every
// array is [columns][rows] with the rows contiguous. Byte-identical to kernels/reference_rounding.py on every
// instruction set: the same float operations in the same order, never contracted.
#include "isa.h"
#include "parallel.h"
#include "simd.h"

namespace glm4::GLM4_ISA {
namespace {

constexpr int64_t ROWS = 8 * LANES;  // per task
constexpr int COLUMNS = 32;          // at most, per batch
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

    // Weighted least squares y ~ fit * q + base, from an initial guess.
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

// One vector of rows of a group that is already rounded.
struct RoundedGroup {
    vf gradient[COLUMNS], quant[COLUMNS];

    GLM4_MEMBER void load(const Refinement& a, int64_t row, int lanes) {
        for (int64_t k = 0; k < a.columns; ++k) {
            gradient[k] = vload_n(a.gradient + k * a.rows + row, lanes);
            float values[LANES] = {};
            for (int i = 0; i < lanes; ++i) values[i] = static_cast<float>(a.quants[k * a.rows + row + i]);
            quant[k] = vload(values);
        }
    }

    // Each quant in turn becomes the best one given all others.
    GLM4_MEMBER void round_again(const Refinement& a, vf step) {
        const vf inverse = reciprocal(step);
        for (int64_t k = 0; k < a.columns; ++k) {
            const float* h = a.hessian + k * a.columns;
            const vf wanted = vmul(vmul(gradient[k], vset(1.0f / h[k])), inverse);
            const vf better = round_clipped(vadd(quant[k], wanted), -8.0f, 7.0f);
            const vf change = vmul(step, vsub(better, quant[k]));
            quant[k] = better;
            for (int64_t j = 0; j < a.columns; ++j) gradient[j] = vsub(gradient[j], vmul(vset(h[j]), change));
        }
    }

    // The step and the center with the least error for these quants, as integers; used only if better.
    GLM4_MEMBER void fit(const Refinement& a, vf unit, vf& scale, vf& offset) const {
        const vf zero = vset(0.0f), eight = vset(static_cast<float>(kInt4OffsetUnit)), total = vset(a.hessian_sum);
        vf qq = zero, q1 = zero, gq = zero, g1 = zero;
        for (int64_t k = 0; k < a.columns; ++k) {
            vf product = zero;
            for (int64_t j = 0; j < a.columns; ++j) {
                product = vadd(product, vmul(vset(a.hessian[k * a.columns + j]), quant[j]));
            }
            qq = vadd(qq, vmul(quant[k], product));
            q1 = vadd(q1, product);
            gq = vadd(gq, vmul(gradient[k], quant[k]));
            g1 = vadd(g1, gradient[k]);
        }
        const vf spread = vsub(vmul(qq, total), vmul(q1, q1)), divisor = vmax(spread, vset(TINY));
        const vf step_more = vdiv(vsub(vmul(gq, total), vmul(g1, q1)), divisor);
        const vf centre_more = vdiv(vsub(vmul(g1, qq), vmul(gq, q1)), divisor);
        const vf inverse = reciprocal(unit);
        const vf new_scale = round_clipped(vadd(scale, vmul(step_more, inverse)), 0.0f, 255.0f);
        const vf new_offset = round_clipped(vadd(offset, vdiv(vmul(centre_more, inverse), eight)), -127.0f, 127.0f);
        const vf step = vmul(unit, vsub(new_scale, scale)), centre = vmul(unit, vmul(vsub(new_offset, offset), eight));
        const vf slope = vadd(vmul(step, gq), vmul(centre, g1));
        const vf bend = vadd(vadd(vmul(vmul(step, step), qq), vmul(vmul(vset(2.0f), vmul(step, centre)), q1)),
                             vmul(vmul(centre, centre), total));
        const vf gain = vselect_gt(spread, zero, vsub(vmul(vset(2.0f), slope), bend), zero);
        scale = vselect_gt(gain, zero, new_scale, scale);
        offset = vselect_gt(gain, zero, new_offset, offset);
    }
};

void refine_int4(const Refinement& a) {
    for_rows(a.rows, [&](int64_t row, int lanes) {
        RoundedGroup group;
        group.load(a, row, lanes);
        const vf unit = vload_n(a.unit + row, lanes);
        vf scale = vload_n(a.scale + row, lanes), offset = vload_n(a.offset + row, lanes);
        group.round_again(a, vmul(unit, scale));
        group.fit(a, unit, scale, offset);
        vstore_n(a.scale + row, scale, lanes);
        vstore_n(a.offset + row, offset, lanes);
        const vf step = vmul(unit, scale), centre = vmul(unit, vmul(offset, vset(static_cast<float>(kInt4OffsetUnit))));
        for (int64_t k = 0; k < a.columns; ++k) {
            const vf value = vadd(vmul(step, group.quant[k]), centre);
            vstore_n(a.error + k * a.rows + row, vsub(vload_n(a.source + k * a.rows + row, lanes), value), lanes);
            int8_t bytes[LANES];
            vstore_int8(bytes, group.quant[k]);
            memcpy(a.quants + k * a.rows + row, bytes, static_cast<size_t>(lanes));
        }
    });
}

}  // namespace

void fill_rounding(Kernels& table) {
    table.round_columns = round_columns;
    table.search_int4 = search_int4;
    table.refine_int4 = refine_int4;
}

}  // namespace glm4::GLM4_ISA
