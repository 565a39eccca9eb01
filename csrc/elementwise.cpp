// Norms, rotary, activations, add and log_softmax. Every row is computed by itself, in a fixed order of additions.
#include <math.h>

#include "isa.h"
#include "parallel.h"
#include "simd.h"

namespace glm4::GLM4_ISA {
namespace {

constexpr int64_t SERIAL_FLOATS = 32768;      // less than this is done before a worker wakes
constexpr int64_t ELEMENTWISE_CHUNK = 16384;  // floats per task

// Runs body(row) for every row, on all threads if there is enough to do.
template <class Body>
void for_rows(int64_t rows, int64_t cols, const Body& body) {
    if (rows * cols <= SERIAL_FLOATS) {
        for (int64_t row = 0; row < rows; ++row) body(row);
        return;
    }
    const int64_t step = maximum<int64_t>(1, SERIAL_FLOATS / 4 / maximum<int64_t>(1, cols));
    parallel_for((rows + step - 1) / step, [&](int64_t chunk, int) {
        for (int64_t row = chunk * step; row < minimum(rows, (chunk + 1) * step); ++row) body(row);
    });
}

// Runs body(first, count) for parts of [0, size), on all threads if there is enough to do.
template <class Body>
void for_parts(int64_t size, int64_t serial, const Body& body) {
    const int64_t chunks = (size + ELEMENTWISE_CHUNK - 1) / ELEMENTWISE_CHUNK;
    const auto chunk = [&](int64_t index, int) {
        const int64_t first = index * ELEMENTWISE_CHUNK;
        body(first, minimum(ELEMENTWISE_CHUNK, size - first));
    };
    if (size > serial) return parallel_for(chunks, chunk);
    for (int64_t i = 0; i < chunks; ++i) chunk(i, 0);
}

// Calls full(i) for whole vectors of [0, n) and part(i, count) for the remainder.
template <class Full, class Part>
GLM4_INLINE void for_vectors(int64_t n, const Full& full, const Part& part) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) full(i);
    if (i < n) part(i, static_cast<int>(n - i));
}

// The sum of value(vector) over x, which sees zeros after the end of the last vector.
template <class Value>
GLM4_INLINE float sum_row(const float* x, int64_t cols, const Value& value) {
    vf sum[4] = {vset(0.0f), vset(0.0f), vset(0.0f), vset(0.0f)};
    int64_t i = 0;
    for (; i + 4 * LANES <= cols; i += 4 * LANES) {
        for (int v = 0; v < 4; ++v) sum[v] = value(vload(x + i + v * LANES), sum[v]);
    }
    for (; i < cols; i += LANES) {
        sum[0] = value(vload_n(x + i, static_cast<int>(minimum<int64_t>(LANES, cols - i))), sum[0]);
    }
    return vreduce_add(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3])));
}

void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t cols, float* out) {
    for_rows(rows, cols, [&](int64_t row) {
        const float* in = x + row * cols;
        float* to = out + row * cols;
        const float total = sum_row(in, cols, [](vf value, vf sum) { return vfma(value, value, sum); });
        const vf inverse = vset(1.0f / sqrtf(total / static_cast<float>(cols) + eps));
        for_vectors(
            cols, [&](int64_t j) { vstore(to + j, vmul(vmul(vload(in + j), inverse), vload(weight + j))); },
            [&](int64_t j, int n) {
                vstore_n(to + j, vmul(vmul(vload_n(in + j, n), inverse), vload_n(weight + j, n)), n);
            });
    });
}

// The first mean is rounded like a number of the row, so a row far from zero would lose digits of its variance: the
// differences from it are small and exact, and their own mean corrects both.
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t cols,
                float* out) {
    for_rows(rows, cols * 2, [&](int64_t row) {
        const float* in = x + row * cols;
        float* to = out + row * cols;
        const float count = static_cast<float>(cols);
        const vf rough = vset(sum_row(in, cols, [](vf value, vf sum) { return vadd(value, sum); }) / count);
        for_vectors(
            cols, [&](int64_t j) { vstore(to + j, vsub(vload(in + j), rough)); },
            [&](int64_t j, int n) { vstore_n(to + j, vsub(vload_n(in + j, n), rough), n); });
        const float mean = sum_row(to, cols, [](vf value, vf sum) { return vadd(value, sum); }) / count;
        const vf center = vset(mean);
        const float square = sum_row(to, cols, [](vf value, vf sum) { return vfma(value, value, sum); }) / count;
        const float variance = square < mean * mean ? 0.0f : square - mean * mean;  // NaN stays
        const vf inverse = vset(1.0f / sqrtf(variance + eps));
        const auto normal = [&](vf value, vf w, vf b) { return vadd(vmul(vmul(vsub(value, center), inverse), w), b); };
        for_vectors(
            cols, [&](int64_t j) { vstore(to + j, normal(vload(to + j), vload(weight + j), vload(bias + j))); },
            [&](int64_t j, int n) {
                vstore_n(to + j, normal(vload_n(to + j, n), vload_n(weight + j, n), vload_n(bias + j, n)), n);
            });
    });
}

void rotary(float* x, int64_t rows, int64_t row_stride, int64_t heads, int64_t dim, const float* cos, const float* sin,
            int64_t half) {
    for_rows(rows, heads * dim, [&](int64_t row) {
        const float* c = cos + row * half;
        const float* s = sin + row * half;
        for (int64_t h = 0; h < heads; ++h) {
            float* pair = x + row * row_stride + h * dim;
            for (int64_t i = 0; i < half; ++i, pair += 2) {
                const float even = pair[0], odd = pair[1];
                pair[0] = even * c[i] - odd * s[i];
                pair[1] = odd * c[i] + even * s[i];
            }
        }
    });
}

GLM4_INLINE vf silu(vf x) {
    // exp(-x) becomes infinite for x below -88 and the quotient -0, which is the limit.
    return vdiv(x, vadd(vset(1.0f), vexp(vsub(vset(0.0f), x))));
}

void swiglu(const float* gate_up, int64_t rows, int64_t half, float* out) {
    for_rows(rows, half * 4, [&](int64_t row) {  // an exponential costs about as much as four plain operations
        const float* gate = gate_up + row * 2 * half;
        const float* up = gate + half;
        float* to = out + row * half;
        for_vectors(
            half, [&](int64_t i) { vstore(to + i, vmul(silu(vload(gate + i)), vload(up + i))); },
            [&](int64_t i, int n) { vstore_n(to + i, vmul(silu(vload_n(gate + i, n)), vload_n(up + i, n)), n); });
    });
}

// max(x, 0) - |x| P(-|x|), P the normal distribution: no two large numbers cancel, and the limits are right. log P(-t)
// for t up to 14, beyond which e to it is 0, is a polynomial of our own: least squares, reweighted until the largest
// t |error of P| was least. With vexp that error is below 2e-7 everywhere, and below 1e-4 of the result above x = -4.
GLM4_INLINE vf gelu_of(vf x) {
    const vf t = vmin(vset(14.0f), vabs(x));
    vf p = vset(-1.339221e-6f);
    p = vfma(p, t, vset(1.9725734e-5f));
    p = vfma(p, t, vset(-9.261778e-5f));
    p = vfma(p, t, vset(-1.845155e-4f));
    p = vfma(p, t, vset(5.0161122e-3f));
    p = vfma(p, t, vset(-3.6474086e-2f));
    p = vfma(p, t, vset(-3.1826833e-1f));
    p = vfma(p, t, vset(-7.978895e-1f));
    p = vfma(p, t, vset(-6.9314706e-1f));
    return vsub(vmax(vset(0.0f), x), vmul(t, vexp(p)));
}

void gelu(float* x, int64_t size) {
    for_parts(size, SERIAL_FLOATS / 4, [&](int64_t first, int64_t count) {
        float* to = x + first;
        for_vectors(
            count, [&](int64_t i) { vstore(to + i, gelu_of(vload(to + i))); },
            [&](int64_t i, int n) { vstore_n(to + i, gelu_of(vload_n(to + i, n)), n); });
    });
}

void add(float* x, const float* y, int64_t size) {
    for_parts(size, SERIAL_FLOATS * 2, [&](int64_t first, int64_t count) {
        float* to = x + first;
        const float* from = y + first;
        for_vectors(
            count, [&](int64_t i) { vstore(to + i, vadd(vload(to + i), vload(from + i))); },
            [&](int64_t i, int n) { vstore_n(to + i, vadd(vload_n(to + i, n), vload_n(from + i, n)), n); });
    });
}

// Sum of exp(x - top); short runs in float, the runs in double, so that 150,000 terms keep their precision.
double sum_exp(const float* x, int64_t cols, float top) {
    constexpr int64_t RUN = 64 * LANES;
    double total = 0.0;
    for (int64_t first = 0; first < cols; first += RUN) {
        const int64_t last = minimum(cols, first + RUN);
        vf sum = vset(0.0f);
        int64_t i = first;
        for (; i + LANES <= last; i += LANES) sum = vadd(sum, vexp(vsub(vload(x + i), vset(top))));
        total += static_cast<double>(vreduce_add(sum));
        if (i < last) {
            float rest[LANES];
            vstore(rest, vexp(vsub(vload_n(x + i, static_cast<int>(last - i)), vset(top))));
            for (int64_t j = 0; j < last - i; ++j) total += static_cast<double>(rest[j]);
        }
    }
    return total;
}

void log_softmax(const float* x, int64_t rows, int64_t cols, float* out) {
    for_rows(rows, cols * 4, [&](int64_t row) {
        const float* in = x + row * cols;
        float* to = out + row * cols;
        vf tops = vset(in[0]);
        float top = in[0];
        for_vectors(
            cols, [&](int64_t i) { tops = vmax(tops, vload(in + i)); },
            [&](int64_t i, int n) {
                for (int j = 0; j < n; ++j) top = in[i + j] > top ? in[i + j] : top;
            });
        top = maximum(top, vreduce_max(tops));
        const vf shift = vset(top), log_total = vset(static_cast<float>(log(sum_exp(in, cols, top))));
        for_vectors(
            cols, [&](int64_t i) { vstore(to + i, vsub(vsub(vload(in + i), shift), log_total)); },
            [&](int64_t i, int n) { vstore_n(to + i, vsub(vsub(vload_n(in + i, n), shift), log_total), n); });
    });
}

}  // namespace

void fill_elementwise(Kernels& table) {
    table.rms_norm = rms_norm;
    table.layer_norm = layer_norm;
    table.rotary = rotary;
    table.swiglu = swiglu;
    table.gelu = gelu;
    table.add = add;
    table.log_softmax = log_softmax;
}

}  // namespace glm4::GLM4_ISA
