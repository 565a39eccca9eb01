// The kernel table of one instruction set, and the choice among the sets this processor has.
//
// Kernel files (linear, attention, elementwise, quantize, rounding) are compiled once per instruction set with GLM4_ISA set to
// the namespace; each fills its part of the table. Arguments are checked in bindings.cpp: kernels trust them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glm4 {

// Mirror of FORMATS in kernels/formats.py; the byte layouts are described there.
enum Format : int { kFp32 = 0, kBf16 = 1, kInt8 = 2, kInt4 = 3, kNumFormats = 4 };
constexpr int kRowBlock = 32;
constexpr int kColGroup = 32;
constexpr int kSpanCells = 4;
constexpr int64_t kCellBytes[kNumFormats] = {4096, 2048, 1024, 576};
constexpr int64_t kSpanBytes[kNumFormats] = {0, 0, 64, 0};    // after the cells of a span
constexpr int64_t kBlockBytes[kNumFormats] = {0, 0, 0, 128};  // after the spans of a row block
constexpr int kInt4OffsetUnit = 8;
// For every search of an int4 grid; see reference_packing.py. The range of a group spans 12, 13 … 19 steps, and each
// candidate gets this many passes of rounding and least squares.
constexpr int kInt4Candidates = 8;
constexpr int kInt4Passes = 3;

// Always inlined: the linker must never choose a copy from a file compiled for a newer instruction set.
#define GLM4_MEMBER __attribute__((always_inline)) inline

struct Weight {
    const uint8_t* data;
    Format format;
    int64_t rows, cols;
    GLM4_MEMBER int64_t blocks() const { return (rows + kRowBlock - 1) / kRowBlock; }
    GLM4_MEMBER int64_t groups() const { return (cols + kColGroup - 1) / kColGroup; }
    GLM4_MEMBER int64_t spans() const { return (groups() + kSpanCells - 1) / kSpanCells; }
    GLM4_MEMBER int64_t cells_nbytes() const { return groups() * kCellBytes[format] + spans() * kSpanBytes[format]; }
    GLM4_MEMBER int64_t block_nbytes() const { return cells_nbytes() + kBlockBytes[format]; }
    GLM4_MEMBER const uint8_t* block(int64_t b) const { return data + b * block_nbytes(); }
    // float32 [32] at the end of an int4 block.
    GLM4_MEMBER const float* row_scales(const uint8_t* block) const {
        return reinterpret_cast<const float*>(block + cells_nbytes());
    }
};

// Bytes from one span to the next.
GLM4_MEMBER constexpr int64_t span_nbytes(Format format) { return kSpanCells * kCellBytes[format] + kSpanBytes[format]; }

// Three dimensions, the inner two contiguous; row_stride counts floats.
struct Rows {
    const float* data;
    int64_t count, row_stride, heads, dim;
};

enum CacheType : int { kCacheFp32, kCacheFp16, kCacheInt8 };

// One layer's paged cache: k [pages, kv_heads, dim, page_size], v [pages, kv_heads, page_size, dim].
// int8: a page of a head is dim * page_size numbers, k as [dim / 2, page_size, 2] and v as [page_size / 2, dim, 2] (the
// pairs that one instruction multiplies are adjacent), followed by page_size float32 scales, one per token.
struct Cache {
    void* k;
    void* v;
    CacheType type;
    int64_t pages, kv_heads, dim, page_size;
    // Bytes of one page of one head, in k and in v.
    GLM4_MEMBER int64_t page_nbytes() const {
        const int64_t numbers = dim * page_size;
        return type == kCacheFp32 ? 4 * numbers : type == kCacheFp16 ? 2 * numbers : numbers + 4 * page_size;
    }
};

struct Attention {
    Rows q;
    Cache cache;
    const int32_t* block_tables;
    int64_t table_width;
    const int32_t* query_starts;
    const int32_t* context_lens;
    int64_t sequences;
    float scale;
    bool causal;  // a row sees the keys up to its own; else all of its sequence
    float* out;
};

// A batch of at most 32 columns to round, one after another; arrays [columns][rows]. See quantization/rounding.py.
struct Rounding {
    int64_t columns, rows;
    const float* target;  // the columns' targets, including the errors of all earlier batches
    const float* source;  // the weights
    const float* upper;   // [columns][columns]: what the error of one column adds to the target of a later one
    const float* step;
    const float* centre;
    int64_t step_stride, centre_stride;  // 0: one row of them for all columns
    float lowest, highest;
    float* error;
    int8_t* quants;
};

// Scale and offset of an int4 group, at most 32 columns, with the least weighted error; target [columns][rows].
struct GridSearch {
    int64_t columns, rows;
    const float* target;
    const float* unit;     // [rows]
    const float* weights;  // [columns]
    float total_weight;
    float* scale;   // [rows], integral
    float* offset;  // [rows], integral
};

// A rounded int4 group, at most 32 columns, to round once more: see Kernels.refine_int4 in glm4/kernels/base.py.
struct Refinement {
    int64_t columns, rows;
    const float* gradient;  // [columns][rows]
    const float* hessian;   // [columns][columns], symmetric
    float hessian_sum;
    const float* source;  // [columns][rows], the weights
    const float* unit;    // [rows]
    float* scale;         // [rows], integral; scale, offset and quants are read and replaced
    float* offset;        // [rows], integral
    int8_t* quants;       // [columns][rows]
    float* error;         // [columns][rows]; only written
};

struct Kernels {
    const char* name;

    // Bytes of scratch that linear needs for m rows; scratch is 64-byte aligned.
    size_t (*linear_scratch)(const Weight& weight, int64_t m, int threads);
    void (*linear)(const float* x, int64_t m, const Weight& weight, const float* bias, float* y, void* scratch);
    void (*unpack)(const Weight& weight, float* out);
    void (*embedding)(const Weight& weight, const int32_t* ids, int64_t count, float* out);
    // Returns the first row with a weight that is not finite or exceeds max_weight, or -1.
    int64_t (*pack)(Format format, const float* w, int64_t rows, int64_t cols, float max_weight, uint8_t* out);

    void (*round_columns)(const Rounding& args);
    void (*search_int4)(const GridSearch& args);
    void (*refine_int4)(const Refinement& args);

    size_t (*attention_scratch)(const Attention& args, int threads);
    void (*attention)(const Attention& args, void* scratch);
    void (*store_kv)(const Rows& k, const Rows& v, const Cache& cache, const int64_t* slots);

    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t rows, int64_t cols, float* out);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t cols,
                       float* out);
    void (*rotary)(float* x, int64_t rows, int64_t row_stride, int64_t heads, int64_t dim, const float* cos,
                   const float* sin, int64_t half);
    void (*swiglu)(const float* gate_up, int64_t rows, int64_t half, float* out);
    void (*gelu)(float* x, int64_t size);
    void (*add)(float* x, const float* y, int64_t size);
    void (*log_softmax)(const float* x, int64_t rows, int64_t cols, float* out);
};

// Number of instruction sets that both this build and this processor support; best first.
int isa_count();
const Kernels& isa_at(int index);

}  // namespace glm4

#define GLM4_DECLARE_ISA(isa)              \
    namespace glm4::isa {                  \
    void fill_linear(Kernels& table);      \
    void fill_attention(Kernels& table);   \
    void fill_store_kv(Kernels& table);    \
    void fill_elementwise(Kernels& table); \
    void fill_quantize(Kernels& table);    \
    void fill_rounding(Kernels& table);    \
    }
GLM4_DECLARE_ISA(generic)
GLM4_DECLARE_ISA(avx2)
GLM4_DECLARE_ISA(avx512)
GLM4_DECLARE_ISA(neon)
#undef GLM4_DECLARE_ISA
