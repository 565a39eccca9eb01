// y = x Wᵀ + b for any weight format, embedding rows, and unpacking.
//
// Activation rows are divided into tiles of a few rows and packed into panels (quantized for the integer formats). A
// task takes one block of 32 outputs and a band of rows, and walks the block in pieces that stay in the first-level
// cache while every tile of the band uses them; partial sums are kept in float, so the pieces do not change any result.
#include "parallel.h"
#include "tiles.h"

namespace glm4::GLM4_ISA {
namespace {

constexpr int64_t BAND_ROWS = 240;           // at most; a multiple of every tile
// Of panels, to stay in the second-level cache from block to block: 1 MB with AVX-512, 512 KB or less elsewhere.
#if defined(GLM4_AVX512)
constexpr int64_t BAND_NBYTES = 640 << 10;
#else
constexpr int64_t BAND_NBYTES = 320 << 10;
#endif
constexpr int64_t PIECE_NBYTES = 16 << 10;   // of a weight block, per pass over the band
constexpr int64_t SERIAL_NBYTES = 32 << 10;  // weights too small to wake the workers for
constexpr int64_t RUN_NBYTES = 256 << 10;    // of adjacent blocks, in one task: prefetchers restart at each task
constexpr int64_t RUNS_PER_THREAD = 8;       // at least, so that the wait for the last one is short

int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }

// Rows are distributed evenly over the fewest tiles: 7 rows are 4 + 3, not 6 + 1.
struct Tiling {
    int64_t first_row(int64_t tile) const { return rows * tile / tiles; }
    int height(int64_t tile) const { return static_cast<int>(first_row(tile + 1) - first_row(tile)); }
    int64_t rows, tiles;
};

Tiling tiling(int64_t rows, int tile) { return {rows, (rows + tile - 1) / tile}; }

template <class F>
constexpr bool is_float = F::format == kFp32 || F::format == kBf16;

template <class F>
constexpr int TILE = is_float<F> ? FLOAT_TILE : F::format == kInt8 ? INT8_TILE : INT4_TILE;

// Bytes of panel per activation row and whole span.
template <class F>
constexpr int64_t span_panel_nbytes() {
    if constexpr (is_float<F>) {
        return kSpanCells * kColGroup * static_cast<int64_t>(sizeof(float));
    } else {
        return static_cast<int64_t>(sizeof(Record<F, 1>));
    }
}

// Bytes of panel per activation row. The last span of a float panel may be shorter, but no piece starts in it.
template <class F>
int64_t panel_row_nbytes(const Weight& w) {
    if constexpr (is_float<F>) return w.groups() * kColGroup * static_cast<int64_t>(sizeof(float));
    return w.spans() * span_panel_nbytes<F>();
}

// Columns first .. first + wanted of one row, with zeros past the end.
GLM4_INLINE void load_columns(const float* row, int64_t cols, int64_t first, int wanted, float* out) {
    const int64_t count = maximum<int64_t>(0, minimum<int64_t>(wanted, cols - first));
    memcpy(out, row + first, static_cast<size_t>(count) * sizeof(float));
    for (int64_t i = count; i < wanted; ++i) out[i] = 0.0f;
}

template <int R>
void float_panel(const float* x, int64_t cols, int64_t groups, float* panel) {
    for (int64_t g = 0; g < groups; ++g, panel += kColGroup * R) {
        for (int r = 0; r < R; ++r) {
            float values[kColGroup];
            load_columns(x + r * cols, cols, g * kColGroup, kColGroup, values);
            for (int k = 0; k < kColGroup; ++k) panel[k * R + r] = values[k];
        }
    }
}

// Quantizes `cells` groups of one row that share a scale; the arithmetic is that of quantize_activations in
// kernels/reference.py. Writes the sum of each group.
GLM4_INLINE float quantize_groups(const float* values, int cells, int8_t* quants, int32_t* sums) {
    const int count = cells * kColGroup;
    vi top = viset(0);
    for (int i = 0; i < count; i += LANES) top = vmax(top, vmagnitude(vload(values + i)));
    const uint32_t top_bits = static_cast<uint32_t>(vreduce_max(top));
    const float absmax = bits_float(top_bits);
    float inverse = 0.0f, scale = 0.0f;
    if (top_bits >= 0x7f800000u) {
        scale = bits_float(0x7fc00000u);  // NaN or infinity: the row's results become NaN
    } else if (absmax >= 1e-30f) {
        inverse = 127.0f / absmax;
        scale = absmax / 127.0f;
    }
    for (int c = 0; c < cells; ++c, values += kColGroup, quants += kColGroup) {
        sums[c] = 0;
        if (inverse == 0.0f) {
            memset(quants, 0, kColGroup);
            continue;
        }
        vi sum = viset(0);
        for (int i = 0; i < kColGroup; i += LANES) {
            sum = vadd(sum, vstore_int8(quants + i, vround(vmul(vload(values + i), vset(inverse)))));
        }
        sums[c] = vreduce_add(sum);
    }
    return scale;
}

template <class F, int R>
void int_panel(const float* x, const Weight& w, uint8_t* panel) {
    constexpr int SHARED = F::activation_cells;
    for (int64_t span = 0; span < w.spans(); ++span, panel += sizeof(Record<F, R>)) {
        Record<F, R>& record = *reinterpret_cast<Record<F, R>*>(panel);
        for (int r = 0; r < R; ++r) {
            float values[kSpanCells * kColGroup];
            int8_t quants[kSpanCells * kColGroup];
            int32_t sums[kSpanCells];
            constexpr int WIDTH = kSpanCells * kColGroup;
            const float* from = x + r * w.cols + span * WIDTH;
            if ((span + 1) * WIDTH > w.cols) {
                load_columns(x + r * w.cols, w.cols, span * WIDTH, WIDTH, values);
                from = values;
            }
            for (int c = 0; c < kSpanCells; c += SHARED) {
                record.scale[c][r] = quantize_groups(from + c * kColGroup, SHARED, quants + c * kColGroup, sums + c);
            }
            for (int c = 0; c < kSpanCells; ++c) {
                F::store_quants(quants + c * kColGroup, record.quants[c][r]);
                record.start[c][r] = F::start_of(sums[c]);
            }
        }
    }
}

template <class F, int R>
void make_panel(const float* x, const Weight& w, uint8_t* panel) {
    if constexpr (is_float<F>) {
        float_panel<R>(x, w.cols, w.groups(), reinterpret_cast<float*>(panel));
    } else {
        int_panel<F, R>(x, w, panel);
    }
}

template <class F, int R>
void run_tile(const uint8_t* cell, int64_t groups, const uint8_t* panel, float* sums) {
    if constexpr (is_float<F>) {
        float_tile<F, R>(cell, groups, reinterpret_cast<const float*>(panel), sums);
    } else {
        int_tile<F, R>(cell, groups, panel, sums);
    }
}

// Calls f with the tile's height as a compile-time constant.
template <int MAX, class Function>
GLM4_INLINE void with_height(int height, const Function& f) {
    if constexpr (MAX == 1) {
        f.template operator()<1>();
    } else {
        if (height == MAX) return f.template operator()<MAX>();
        with_height<MAX - 1>(height, f);
    }
}

// Bands of roughly equal height.
int64_t bands_for(int64_t rows, int64_t row_nbytes) {
    const int64_t height = maximum<int64_t>(48, minimum(BAND_ROWS, BAND_NBYTES / row_nbytes));
    return (rows + height - 1) / height;
}

struct Layout {
    int64_t panel_nbytes, sums_nbytes;  // of all rows; of one thread
};

template <class F>
Layout layout(const Weight& w, int64_t m) {
    return {align64(m * panel_row_nbytes<F>(w)),
            align64(minimum<int64_t>(m, BAND_ROWS + 2 * TILE<F>) * kRowBlock * static_cast<int64_t>(sizeof(float)))};
}

template <class F>
struct Linear {
    const float* x;
    Weight w;
    const float* bias;
    float* y;
    uint8_t* panels;
    uint8_t* sums;
    int64_t sums_nbytes, row_nbytes, bands;
    Tiling tiles;
    int64_t run_blocks;

    int64_t runs() const { return (w.blocks() + run_blocks - 1) / run_blocks; }  // per band

    void run(int64_t index, int thread) const {
        const int64_t first = index % runs() * run_blocks, last = minimum(w.blocks(), first + run_blocks);
        for (int64_t b = first; b < last; ++b) block(index / runs(), b, thread);
    }

    // Tiles of one band: [first, last).
    int64_t band_tile(int64_t band) const { return tiles.tiles * band / bands; }

    void block(int64_t band, int64_t b, int thread) const {
        const int64_t first = band_tile(band), last = band_tile(band + 1);
        const int64_t row0 = tiles.first_row(first), rows = tiles.first_row(last) - row0;
        float* sum = reinterpret_cast<float*>(sums + thread * sums_nbytes);
        memset(sum, 0, static_cast<size_t>(rows) * kRowBlock * sizeof(float));
        const uint8_t* cells = w.block(b);
        const int64_t spans = w.spans();
        const int64_t piece = last - first == 1 ? spans : maximum<int64_t>(1, PIECE_NBYTES / span_nbytes(F::format));
        for (int64_t s = 0; s < spans; s += piece) {
            const int64_t groups = minimum(piece * kSpanCells, w.groups() - s * kSpanCells);
            for (int64_t t = first; t < last; ++t) {
                const int64_t row = tiles.first_row(t);
                const int height = tiles.height(t);
                const uint8_t* panel = panels + row * row_nbytes + s * span_panel_nbytes<F>() * height;
                with_height<TILE<F>>(height, [&]<int R>() {
                    run_tile<F, R>(cells + s * span_nbytes(F::format), groups, panel, sum + (row - row0) * kRowBlock);
                });
            }
        }
        write(b, row0, rows, sum);
    }

    // Applies the rows' scales of int4 and the bias.
    void write(int64_t b, int64_t row0, int64_t rows, float* sum) const {
        const int64_t out = b * kRowBlock;
        const int count = static_cast<int>(minimum<int64_t>(kRowBlock, w.rows - out));
        for (int64_t r = 0; r < rows; ++r) {
            float* to = y + (row0 + r) * w.rows + out;
            float* from = sum + r * kRowBlock;
            if constexpr (F::format == kInt4) {
                const float* scales = w.row_scales(w.block(b));
                for (int i = 0; i < kRowBlock; i += LANES) vstore(from + i, vmul(vload(from + i), vload(scales + i)));
            }
            for (int i = 0; i < count; ++i) to[i] = bias == nullptr ? from[i] : from[i] + bias[out + i];
        }
    }
};

// Blocks of a task.
int64_t blocks_per_run(const Weight& w, int64_t bands, int threads) {
    const int64_t most = w.blocks() * bands / (threads * RUNS_PER_THREAD);
    return maximum<int64_t>(1, minimum(RUN_NBYTES / w.block_nbytes(), most));
}

template <class F>
void run_linear(const float* x, int64_t m, const Weight& w, const float* bias, float* y, uint8_t* scratch) {
    const Layout l = layout<F>(w, m);
    const int64_t row_nbytes = panel_row_nbytes<F>(w), bands = bands_for(m, row_nbytes);
    const Linear<F> op{x,     w,     bias,       y, scratch, scratch + l.panel_nbytes, l.sums_nbytes, row_nbytes,
                       bands, tiling(m, TILE<F>), blocks_per_run(w, bands, num_threads())};
    const bool serial = w.blocks() * w.block_nbytes() * m < SERIAL_NBYTES;
    const auto panel = [&](int64_t t, int) {
        const int64_t row = op.tiles.first_row(t);
        with_height<TILE<F>>(op.tiles.height(t), [&]<int R>() {
            make_panel<F, R>(x + row * w.cols, w, op.panels + row * op.row_nbytes);
        });
    };
    const auto run = [&](int64_t index, int thread) { op.run(index, thread); };
    if (serial || op.tiles.tiles == 1) {
        for (int64_t t = 0; t < op.tiles.tiles; ++t) panel(t, 0);
    } else {
        parallel_for(op.tiles.tiles, panel);
    }
    const int64_t tasks = op.runs() * bands;
    if (serial) {
        for (int64_t i = 0; i < tasks; ++i) run(i, 0);
    } else {
        parallel_for(tasks, run);
    }
}

size_t linear_scratch(const Weight& w, int64_t m, int threads) {
    return with_format(w.format, [&](auto f) {
        const Layout l = layout<decltype(f)>(w, m);
        return static_cast<size_t>(l.panel_nbytes + l.sums_nbytes * threads);
    });
}

void linear(const float* x, int64_t m, const Weight& w, const float* bias, float* y, void* scratch) {
    with_format(w.format, [&](auto f) {
        run_linear<decltype(f)>(x, m, w, bias, y, static_cast<uint8_t*>(scratch));
    });
}

template <class F>
void copy_row(const Weight& w, int64_t row, float* out) {
    const uint8_t* block = w.block(row / kRowBlock);
    const int lane = static_cast<int>(row % kRowBlock);
    for (int64_t g = 0; g < w.groups(); ++g) {
        const int count = static_cast<int>(minimum<int64_t>(kColGroup, w.cols - g * kColGroup));
        cell_row<F>(w, block, g, lane, count, out + g * kColGroup);
    }
}

void unpack(const Weight& w, float* out) {
    with_format(w.format, [&](auto f) {
        parallel_for(w.blocks(), [&](int64_t b, int) {
            const int64_t last = minimum(w.rows, (b + 1) * kRowBlock);
            for (int64_t row = b * kRowBlock; row < last; ++row) copy_row<decltype(f)>(w, row, out + row * w.cols);
        });
    });
}

void embedding(const Weight& w, const int32_t* ids, int64_t count, float* out) {
    with_format(w.format, [&](auto f) {
        for (int64_t i = 0; i < count; ++i) copy_row<decltype(f)>(w, ids[i], out + i * w.cols);
    });
}

}  // namespace

void fill_linear(Kernels& table) {
    table.linear_scratch = linear_scratch;
    table.linear = linear;
    table.unpack = unpack;
    table.embedding = embedding;
}

}  // namespace glm4::GLM4_ISA
