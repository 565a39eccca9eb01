// The only file, with python_array.h, that knows Python: checks every argument, releases the GIL, owns the workspace.
//
// Results go into arrays that glm4/kernels/native.py allocates. Not covered: a Python thread that modifies an array while
// a call that has checked it is still running.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "python_array.h"

namespace nb = nanobind;
using namespace glm4;

namespace {

const Kernels* table = &isa_at(0);

// Grow-only memory for kernels, guarded by the CallLock.
class Scratch {
public:
    void* reserve(size_t nbytes) {
        if (nbytes > size_) {
            std::free(data_);
            size_ = 0;
            data_ = nullptr;
            const size_t rounded = (nbytes + nbytes / 4 + 4095) / 4096 * 4096;
            data_ = std::aligned_alloc(4096, rounded);
            if (data_ == nullptr) throw std::bad_alloc();
            size_ = rounded;
        }
        return data_;
    }

private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

Scratch scratch;

// Releases the GIL first and takes the lock second: the reverse order could wait for a thread that waits for the GIL.
template <class Body>
void run(const Body& body) {
    nb::gil_scoped_release release;
    CallLock lock;
    body(*table);
}

constexpr int64_t kMaxDimension = int64_t{1} << 30;

Weight weight_of(const Array& data, int format, int64_t rows, int64_t cols) {
    check(format >= 0 && format < kNumFormats, "unknown weight format code " + str(format));
    check(rows >= 1 && rows <= kMaxDimension && cols >= 1 && cols <= kMaxDimension,
          "a weight of " + str(rows) + " x " + str(cols) + " is out of range");
    Weight w{data.data<uint8_t>(), static_cast<Format>(format), rows, cols};
    const int64_t expected = w.blocks() * w.block_nbytes();
    check(data.dim(0) == expected, data.name() + " has " + str(data.dim(0)) + " bytes, expected " + str(expected));
    check(reinterpret_cast<uintptr_t>(w.data) % 64 == 0, data.name() + " is not aligned to 64 bytes");
    return w;
}

void linear(nb::handle x_, nb::handle data_, int format, int64_t rows, int64_t cols, nb::handle bias_, nb::handle y_) {
    const Array x(x_, "linear: x", 2), data(data_, "linear: weight", 1), y(y_, "linear: out", 2, true);
    const Weight w = weight_of(data, format, rows, cols);
    check_dim(x, 1, cols);
    check_dim(y, 0, x.dim(0));
    check_dim(y, 1, rows);
    const float* bias = nullptr;
    const bool has_bias = !bias_.is_none();
    const Array bias_array(has_bias ? bias_ : x_, "linear: bias", has_bias ? 1 : 2);
    if (has_bias) {
        check_dim(bias_array, 0, rows);
        bias = bias_array.data<float>();
    }
    const float* from = x.data<float>();
    float* to = y.data<float>();
    const int64_t m = x.dim(0);
    if (m == 0) return;
    run([&](const Kernels& k) { k.linear(from, m, w, bias, to, scratch.reserve(k.linear_scratch(w, m, num_threads()))); });
}

int64_t pack(int format, nb::handle weight_, double max_weight, nb::handle out_) {
    const Array weight(weight_, "pack: weight", 2), out(out_, "pack: out", 1, true);
    const Weight w = weight_of(out, format, weight.dim(0), weight.dim(1));
    const float* from = weight.data<float>();
    int64_t bad = -1;
    run([&](const Kernels& k) {
        bad = k.pack(w.format, from, w.rows, w.cols, static_cast<float>(max_weight), const_cast<uint8_t*>(w.data));
    });
    return bad;
}

void unpack(nb::handle data_, int format, int64_t rows, int64_t cols, nb::handle out_) {
    const Array data(data_, "unpack: weight", 1), out(out_, "unpack: out", 2, true);
    const Weight w = weight_of(data, format, rows, cols);
    check_dim(out, 0, rows);
    check_dim(out, 1, cols);
    float* to = out.data<float>();
    run([&](const Kernels& k) { k.unpack(w, to); });
}

constexpr int64_t kMaxBatchColumns = 32;

// One row for each of `columns`, or one for all of them.
const float* rows_of(const Array& a, int64_t columns, int64_t rows, int64_t& stride) {
    if (a.dim(0) != 1) check_dim(a, 0, columns);
    check_dim(a, 1, rows);
    stride = a.dim(0) == 1 ? 0 : rows;
    return a.data<float>();
}

void round_columns(nb::handle target_, nb::handle source_, nb::handle upper_, nb::handle step_, nb::handle centre_,
                   double lowest, double highest, nb::handle error_, nb::handle quants_) {
    const Array target(target_, "round_columns: target", 2), source(source_, "round_columns: source", 2),
        upper(upper_, "round_columns: upper", 2), step(step_, "round_columns: step", 2),
        centre(centre_, "round_columns: centre", 2), error(error_, "round_columns: error", 2, true),
        quants(quants_, "round_columns: quants", 2, true);
    Rounding args{};
    args.columns = target.dim(0), args.rows = target.dim(1);
    check(args.columns >= 1 && args.columns <= kMaxBatchColumns, "round_columns: 1 to 32 columns, not " + str(args.columns));
    check(lowest >= -128 && lowest <= highest && highest <= 127, "round_columns: quants are 8-bit integers");
    for (const Array* same : {&source, &error, &quants}) {
        check_dim(*same, 0, args.columns);
        check_dim(*same, 1, args.rows);
    }
    check_dim(upper, 0, args.columns);
    check_dim(upper, 1, args.columns);
    args.target = target.data<float>(), args.source = source.data<float>(), args.upper = upper.data<float>();
    args.step = rows_of(step, args.columns, args.rows, args.step_stride);
    args.centre = rows_of(centre, args.columns, args.rows, args.centre_stride);
    args.lowest = static_cast<float>(lowest), args.highest = static_cast<float>(highest);
    args.error = error.data<float>(), args.quants = quants.data<int8_t>();
    run([&](const Kernels& k) { k.round_columns(args); });
}

void search_int4(nb::handle target_, nb::handle unit_, nb::handle weights_, double total, nb::handle scale_,
                 nb::handle offset_) {
    const Array target(target_, "search_int4: target", 2), unit(unit_, "search_int4: unit", 1),
        weights(weights_, "search_int4: weights", 1), scale(scale_, "search_int4: scale", 1, true),
        offset(offset_, "search_int4: offset", 1, true);
    GridSearch args{};
    args.columns = target.dim(0), args.rows = target.dim(1);
    check(args.columns >= 1 && args.columns <= kMaxBatchColumns, "search_int4: 1 to 32 columns, not " + str(args.columns));
    for (const Array* same : {&unit, &scale, &offset}) check_dim(*same, 0, args.rows);
    check_dim(weights, 0, args.columns);
    args.target = target.data<float>(), args.unit = unit.data<float>(), args.weights = weights.data<float>();
    args.total_weight = static_cast<float>(total);
    args.scale = scale.data<float>(), args.offset = offset.data<float>();
    run([&](const Kernels& k) { k.search_int4(args); });
}

void refine_int4(nb::handle gradient_, nb::handle hessian_, double sum, nb::handle source_, nb::handle unit_,
                 nb::handle scale_, nb::handle offset_, nb::handle quants_, nb::handle error_) {
    const Array gradient(gradient_, "refine_int4: gradient", 2), hessian(hessian_, "refine_int4: hessian", 2),
        source(source_, "refine_int4: source", 2), unit(unit_, "refine_int4: unit", 1),
        scale(scale_, "refine_int4: scale", 1, true), offset(offset_, "refine_int4: offset", 1, true),
        quants(quants_, "refine_int4: quants", 2, true), error(error_, "refine_int4: error", 2, true);
    Refinement args{};
    args.columns = gradient.dim(0), args.rows = gradient.dim(1);
    check(args.columns >= 1 && args.columns <= kMaxBatchColumns, "refine_int4: 1 to 32 columns, not " + str(args.columns));
    for (int axis : {0, 1}) check_dim(hessian, axis, args.columns);
    for (const Array* same : {&source, &quants, &error}) {
        check_dim(*same, 0, args.columns);
        check_dim(*same, 1, args.rows);
    }
    for (const Array* same : {&unit, &scale, &offset}) check_dim(*same, 0, args.rows);
    args.gradient = gradient.data<float>(), args.hessian = hessian.data<float>();
    args.hessian_sum = static_cast<float>(sum);
    args.source = source.data<float>(), args.unit = unit.data<float>();
    args.scale = scale.data<float>(), args.offset = offset.data<float>();
    args.quants = quants.data<int8_t>(), args.error = error.data<float>();
    run([&](const Kernels& k) { k.refine_int4(args); });
}

void embedding(nb::handle data_, int format, int64_t rows, int64_t cols, nb::handle ids_, nb::handle out_) {
    const Array data(data_, "embedding: weight", 1), ids(ids_, "embedding: ids", 1), out(out_, "embedding: out", 2, true);
    const Weight w = weight_of(data, format, rows, cols);
    check_dim(out, 0, ids.dim(0));
    check_dim(out, 1, cols);
    const int32_t* index = ids.data<int32_t>();
    check_indices(ids.name(), index, ids.dim(0), rows);
    float* to = out.data<float>();
    run([&](const Kernels& k) { k.embedding(w, index, ids.dim(0), to); });
}

void rms_norm(nb::handle x_, nb::handle weight_, double eps, nb::handle out_) {
    const Array x(x_, "rms_norm: x", 2), weight(weight_, "rms_norm: weight", 1), out(out_, "rms_norm: out", 2, true);
    check_dim(weight, 0, x.dim(1));
    check_dim(out, 0, x.dim(0));
    check_dim(out, 1, x.dim(1));
    const float *from = x.data<float>(), *scale = weight.data<float>();
    float* to = out.data<float>();
    run([&](const Kernels& k) { k.rms_norm(from, scale, static_cast<float>(eps), x.dim(0), x.dim(1), to); });
}

void layer_norm(nb::handle x_, nb::handle weight_, nb::handle bias_, double eps, nb::handle out_) {
    const Array x(x_, "layer_norm: x", 2), weight(weight_, "layer_norm: weight", 1), bias(bias_, "layer_norm: bias", 1),
        out(out_, "layer_norm: out", 2, true);
    for (const Array* same : {&weight, &bias}) check_dim(*same, 0, x.dim(1));
    for (int axis : {0, 1}) check_dim(out, axis, x.dim(axis));
    const float *from = x.data<float>(), *scale = weight.data<float>(), *shift = bias.data<float>();
    float* to = out.data<float>();
    run([&](const Kernels& k) { k.layer_norm(from, scale, shift, static_cast<float>(eps), x.dim(0), x.dim(1), to); });
}

void rotary(nb::handle x_, nb::handle cos_, nb::handle sin_) {
    const Array x(x_, "rotary: x", 3, true), cos(cos_, "rotary: cos", 2), sin(sin_, "rotary: sin", 2);
    const Rows rows = x.rows();
    for (const Array* table : {&cos, &sin}) {
        check_dim(*table, 0, rows.count);
        check_dim(*table, 1, cos.dim(1));
    }
    const int64_t half = cos.dim(1);
    check(2 * half <= rows.dim, "rotary: " + str(2 * half) + " rotated channels, but heads have " + str(rows.dim));
    const float *c = cos.data<float>(), *s = sin.data<float>();
    float* to = const_cast<float*>(rows.data);
    run([&](const Kernels& k) { k.rotary(to, rows.count, rows.row_stride, rows.heads, rows.dim, c, s, half); });
}

void swiglu(nb::handle gate_up_, nb::handle out_) {
    const Array gate_up(gate_up_, "swiglu: gate_up", 2), out(out_, "swiglu: out", 2, true);
    check(gate_up.dim(1) % 2 == 0, "swiglu: gate_up has an odd number of columns, " + str(gate_up.dim(1)));
    check_dim(out, 0, gate_up.dim(0));
    check_dim(out, 1, gate_up.dim(1) / 2);
    const float* from = gate_up.data<float>();
    float* to = out.data<float>();
    run([&](const Kernels& k) { k.swiglu(from, out.dim(0), out.dim(1), to); });
}

void gelu(nb::handle x_) {
    const Array x(x_, "gelu_: x", 2, true);
    float* to = x.data<float>();
    run([&](const Kernels& k) { k.gelu(to, x.size()); });
}

void add(nb::handle x_, nb::handle y_) {
    const Array x(x_, "add_: x", 2, true), y(y_, "add_: y", 2);
    check_dim(y, 0, x.dim(0));
    check_dim(y, 1, x.dim(1));
    float* to = x.data<float>();
    const float* from = y.data<float>();
    run([&](const Kernels& k) { k.add(to, from, x.size()); });
}

void log_softmax(nb::handle x_, nb::handle out_) {
    const Array x(x_, "log_softmax: x", 2), out(out_, "log_softmax: out", 2, true);
    check(x.dim(1) > 0, "log_softmax: x has no columns");
    check_dim(out, 0, x.dim(0));
    check_dim(out, 1, x.dim(1));
    const float* from = x.data<float>();
    float* to = out.data<float>();
    run([&](const Kernels& k) { k.log_softmax(from, x.dim(0), x.dim(1), to); });
}

Cache cache_of(const Array& k, const Array& v) {
    const CacheType type = k.is_half() ? kCacheFp16 : k.is<int8_t>() ? kCacheInt8 : kCacheFp32;
    check(type == kCacheFp16 ? v.is_half() : type == kCacheInt8 ? v.is<int8_t>() : k.is<float>() && v.is<float>(),
          k.name() + " and v_cache must both be float32, both float16 or both int8, aligned");
    check(k.contiguous() && v.contiguous(), k.name() + " and v_cache must be C-contiguous");
    const int64_t scales = type == kCacheInt8 ? 4 : 0;  // bytes per token in addition to its numbers
    const Cache cache{k.raw(), v.raw(), type, k.dim(0), k.dim(1), k.dim(2) - scales, k.dim(3)};
    check_dim(v, 0, cache.pages);
    check_dim(v, 1, cache.kv_heads);
    check_dim(v, 2, cache.page_size);
    check_dim(v, 3, k.dim(2));
    const int64_t largest = type == kCacheInt8 ? 512 : 65536;  // int8: products are summed in int32
    check(cache.page_size > 0 && cache.page_size % 16 == 0 && cache.page_size <= largest,
          k.name() + " has page size " + str(cache.page_size) + ", expected a multiple of 16 up to " + str(largest));
    check(cache.dim > 0, k.name() + " has head size " + str(cache.dim) + ", expected at least 1");
    if (type == kCacheInt8) {
        check(cache.dim % 16 == 0 && cache.dim <= largest,
              k.name() + " in int8 has head size " + str(cache.dim) + ", expected a multiple of 16 up to " + str(largest));
        check(is_aligned(k.raw(), 4) && is_aligned(v.raw(), 4), k.name() + " and v_cache must be aligned to 4 bytes");
    }
    return cache;
}

void store_kv(nb::handle k_, nb::handle v_, nb::handle k_cache_, nb::handle v_cache_, nb::handle slots_) {
    const Array k(k_, "store_kv: k", 3), v(v_, "store_kv: v", 3), slots(slots_, "store_kv: slots", 1);
    const Array k_cache(k_cache_, "store_kv: k_cache", 4, true), v_cache(v_cache_, "store_kv: v_cache", 4, true);
    const Cache cache = cache_of(k_cache, v_cache);
    const Rows keys = k.rows(), values = v.rows();
    for (const Array* rows : {&k, &v}) {
        check_dim(*rows, 0, slots.dim(0));
        check_dim(*rows, 1, cache.kv_heads);
        check_dim(*rows, 2, cache.dim);
    }
    const int64_t* slot = slots.data<int64_t>();
    check_indices(slots.name(), slot, slots.dim(0), cache.pages * cache.page_size);
    run([&](const Kernels& table) { table.store_kv(keys, values, cache, slot); });
}

void check_sequences(const Attention& a) {
    const std::string op = "paged_attention: ";
    check(a.query_starts[0] == 0 && a.query_starts[a.sequences] == a.q.count,
          op + "query_starts must run from 0 to the rows of q, " + str(a.q.count));
    for (int64_t s = 0; s < a.sequences; ++s) {
        const int64_t rows = int64_t{a.query_starts[s + 1]} - a.query_starts[s], context = a.context_lens[s];
        check(rows >= 0, op + "query_starts decreases at " + str(s + 1));
        check(context >= rows,
              op + "sequence " + str(s) + " has " + str(rows) + " queries but a context of " + str(context));
        const int64_t used = (context + a.cache.page_size - 1) / a.cache.page_size;
        check(used <= a.table_width,
              op + "sequence " + str(s) + " needs " + str(used) + " pages, its table has " + str(a.table_width));
        check_indices(op + "block_tables[" + str(s) + "]", a.block_tables + s * a.table_width, used, a.cache.pages);
    }
}

void paged_attention(nb::handle q_, nb::handle k_cache_, nb::handle v_cache_, nb::handle tables_, nb::handle starts_,
                     nb::handle lens_, double scale, bool causal, nb::handle out_) {
    const Array q(q_, "paged_attention: q", 3), tables(tables_, "paged_attention: block_tables", 2);
    const Array starts(starts_, "paged_attention: query_starts", 1), lens(lens_, "paged_attention: context_lens", 1);
    const Array k_cache(k_cache_, "paged_attention: k_cache", 4), v_cache(v_cache_, "paged_attention: v_cache", 4);
    const Array out(out_, "paged_attention: out", 3, true);
    const Cache cache = cache_of(k_cache, v_cache);
    Attention a{q.rows(), cache, tables.data<int32_t>(), tables.dim(1), starts.data<int32_t>(),
                lens.data<int32_t>(), lens.dim(0), static_cast<float>(scale), causal, out.data<float>()};
    for (int i = 0; i < 3; ++i) check_dim(out, i, q.dim(i));
    check_dim(q, 2, cache.dim);
    check(cache.kv_heads > 0 && a.q.heads % cache.kv_heads == 0,
          "paged_attention: " + str(a.q.heads) + " heads over " + str(cache.kv_heads) + " KV heads");
    check_dim(tables, 0, a.sequences);
    check_dim(starts, 0, a.sequences + 1);
    check_sequences(a);
    run([&](const Kernels& k) { k.attention(a, scratch.reserve(k.attention_scratch(a, num_threads()))); });
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (int i = 0; i < isa_count(); ++i) names.emplace_back(isa_at(i).name);
    return names;
}

void set_isa(const std::string& name) {
    for (int i = 0; i < isa_count(); ++i) {
        if (name == isa_at(i).name) {
            run([&](const Kernels&) { table = &isa_at(i); });
            return;
        }
    }
    fail("unknown or unsupported instruction set '" + name + "'");
}

void set_threads(int count, const Binding& binding) {
    check(count >= 1 && count <= 1024, "set_num_threads: " + str(count) + " is not within 1..1024");
    run([&](const Kernels&) { set_num_threads(count, binding); });
}

int threads() {
    int count = 0;
    run([&](const Kernels&) { count = num_threads(); });
    return count;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Compiled kernels; call them through glm4.kernels.native, which allocates the results.";
    const auto none = nb::arg().none();
    const auto arg = nb::arg();
    m.def("isas", &isas);
    m.def("isa", [] { return std::string(table->name); });
    m.def("set_isa", &set_isa, nb::arg("name"));
    m.def("set_num_threads", &set_threads, nb::arg("count"), nb::arg("binding"));
    m.def("num_threads", &threads);
    m.def("pack", &pack);
    m.def("unpack", &unpack);
    m.def("round_columns", &round_columns);
    m.def("search_int4", &search_int4);
    m.def("refine_int4", &refine_int4);
    m.def("linear", &linear, arg, arg, arg, arg, arg, none, arg);
    m.def("embedding", &embedding);
    m.def("rms_norm", &rms_norm);
    m.def("layer_norm", &layer_norm);
    m.def("rotary", &rotary);
    m.def("swiglu", &swiglu);
    m.def("gelu", &gelu);
    m.def("add", &add);
    m.def("log_softmax", &log_softmax);
    m.def("store_kv", &store_kv);
    m.def("paged_attention", &paged_attention);
}
