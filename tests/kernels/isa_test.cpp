// Every instruction set of this build and processor against the portable one, without Python: equal values where the
// contract promises them (packing, rounding, caches, additions), and agreement to rounding elsewhere. tools/neon.sh
// builds this for aarch64 and runs it in an emulator; elsewhere the Python tests see more.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "isa.h"
#include "parallel.h"

using namespace glm4;

namespace {

using Floats = std::vector<float>;

std::mt19937 source(20);

Floats gaussian(int64_t count, float spread = 1.0f) {
    std::normal_distribution<float> draw(0.0f, spread);
    Floats values(static_cast<size_t>(count));
    for (float& value : values) value = draw(source);
    return values;
}

[[noreturn]] void fail(const std::string& what) {
    std::printf("failed: %s\n", what.c_str());
    std::exit(1);
}

// Largest difference relative to the largest expected value.
void require_close(const Floats& found, const Floats& expected, float tolerance, const std::string& what) {
    float largest = 1e-30f, difference = 0.0f;
    for (size_t i = 0; i < expected.size(); ++i) {
        if (!std::isfinite(found[i])) fail(what + ": not finite");
        largest = std::max(largest, std::abs(expected[i]));
        difference = std::max(difference, std::abs(found[i] - expected[i]));
    }
    if (difference > tolerance * largest) fail(what + ": off by " + std::to_string(difference / largest));
}

template <class T>
void require_equal(const std::vector<T>& found, const std::vector<T>& expected, const std::string& what) {
    if (found != expected) fail(what + ": other values");  // -0 equals 0
}

// 64-byte aligned memory that a kernel works in.
struct Scratch {
    explicit Scratch(size_t nbytes) : data(std::aligned_alloc(64, (nbytes + 64) / 64 * 64)) {}
    ~Scratch() { std::free(data); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* data;
};

constexpr const char* kFormats[kNumFormats] = {"fp32", "bf16", "int8", "int4"};

void check_linear(const Kernels& ours, const Kernels& portable) {
    for (int f = 0; f < kNumFormats; ++f) {
        const auto format = static_cast<Format>(f);
        for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{33, 31}, {64, 128}, {97, 160}, {130, 513}}) {
            const std::string what = std::string(kFormats[f]) + " " + std::to_string(rows) + " x " + std::to_string(cols);
            Weight shape{nullptr, format, rows, cols};
            std::vector<uint8_t> packed(static_cast<size_t>(shape.blocks() * shape.block_nbytes()) + 64, 0), twin = packed;
            const auto align = [](std::vector<uint8_t>& v) { return v.data() + (-reinterpret_cast<uintptr_t>(v.data()) & 63); };
            const Floats w = gaussian(rows * cols, 0.02f), bias = gaussian(rows);
            if (ours.pack(format, w.data(), rows, cols, 1e15f, align(packed)) != -1) fail(what + ": refused");
            portable.pack(format, w.data(), rows, cols, 1e15f, align(twin));
            if (std::memcmp(align(packed), align(twin), packed.size() - 64) != 0) fail("pack " + what + ": other bytes");
            const Weight weight{align(packed), format, rows, cols};
            Floats all(w.size()), expected_all(w.size());
            ours.unpack(weight, all.data());
            portable.unpack(weight, expected_all.data());
            require_equal(all, expected_all, "unpack " + what);
            for (const int64_t m : {1, 2, 3, 5, 8, 31, 129}) {
                const Floats x = gaussian(m * cols);
                Floats found(static_cast<size_t>(m * rows)), expected(found.size());
                Scratch a(ours.linear_scratch(weight, m, num_threads())), b(portable.linear_scratch(weight, m, num_threads()));
                ours.linear(x.data(), m, weight, bias.data(), found.data(), a.data);
                portable.linear(x.data(), m, weight, bias.data(), expected.data(), b.data);
                require_close(found, expected, 1e-5f, "linear " + what + ", rows of x: " + std::to_string(m));
            }
        }
    }
}

void check_attention(const Kernels& ours, const Kernels& portable, CacheType type) {
    const int64_t kv_heads = 2, group = 5, dim = 48, page_size = 32, pages = 4, tokens = 100;
    const std::string what = type == kCacheFp32 ? "fp32" : type == kCacheFp16 ? "fp16" : "int8";
    Cache shape{nullptr, nullptr, type, pages, kv_heads, dim, page_size};
    const auto nbytes = static_cast<size_t>(pages * kv_heads * shape.page_nbytes());
    std::vector<uint8_t> k(nbytes, 0), v(nbytes, 0), twin_k(nbytes, 0), twin_v(nbytes, 0);
    const Floats keys = gaussian(tokens * kv_heads * dim), values = gaussian(tokens * kv_heads * dim);
    const std::vector<int32_t> table{2, 0, 3, 1};
    std::vector<int64_t> slots(static_cast<size_t>(tokens));
    for (int64_t t = 0; t < tokens; ++t) slots[t] = table[t / page_size] * page_size + t % page_size;
    const Rows key_rows{keys.data(), tokens, kv_heads * dim, kv_heads, dim};
    const Rows value_rows{values.data(), tokens, kv_heads * dim, kv_heads, dim};
    Cache cache = shape, twin = shape;
    cache.k = k.data(), cache.v = v.data(), twin.k = twin_k.data(), twin.v = twin_v.data();
    ours.store_kv(key_rows, value_rows, cache, slots.data());
    portable.store_kv(key_rows, value_rows, twin, slots.data());
    require_equal(k, twin_k, "keys in " + what);
    require_equal(v, twin_v, "values in " + what);
    for (const int32_t rows : {1, 2, 7, 40, 100}) {
        const int64_t width = kv_heads * group * dim;
        const Floats q = gaussian(rows * width);
        Floats found(q.size()), expected(q.size());
        const std::vector<int32_t> starts{0, rows}, contexts{static_cast<int32_t>(tokens)};
        Attention args{{q.data(), rows, width, kv_heads * group, dim}, cache, table.data(), 4, starts.data(), contexts.data(),
                       1, 0.3f, true, found.data()};
        for (const bool causal : {true, false}) {
            args.causal = causal;
            Scratch a(ours.attention_scratch(args, num_threads())), b(portable.attention_scratch(args, num_threads()));
            args.out = found.data();
            ours.attention(args, a.data);
            args.out = expected.data();
            portable.attention(args, b.data);
            require_close(found, expected, type == kCacheInt8 ? 2e-4f : 5e-6f, "attention over " + what);
        }
    }
}

void check_elementwise(const Kernels& ours, const Kernels& portable) {
    for (const int64_t cols : {1, 31, 33, 129, 256}) {
        const int64_t rows = 7;
        const Floats x = gaussian(rows * 2 * cols, 4.0f), weight = gaussian(2 * cols);
        Floats found(x.size()), expected(x.size());
        const auto compare = [&](const char* what, const std::function<void(const Kernels&, float*)>& run, float tolerance) {
            found = expected = x;  // what is not written stays
            run(ours, found.data());
            run(portable, expected.data());
            require_close(found, expected, tolerance, what);
        };
        compare("rms_norm", [&](const Kernels& k, float* out) { k.rms_norm(x.data(), weight.data(), 1e-6f, rows, 2 * cols, out); }, 2e-6f);
        compare("layer_norm", [&](const Kernels& k, float* out) { k.layer_norm(x.data(), weight.data(), x.data(), 1e-6f, rows, 2 * cols, out); }, 5e-6f);
        compare("gelu", [&](const Kernels& k, float* out) { k.gelu(out, rows * 2 * cols); }, 5e-7f);
        compare("swiglu", [&](const Kernels& k, float* out) { k.swiglu(x.data(), rows, cols, out); }, 2e-6f);
        compare("log_softmax", [&](const Kernels& k, float* out) { k.log_softmax(x.data(), rows, 2 * cols, out); }, 2e-6f);
        compare("add", [&](const Kernels& k, float* out) { k.add(out, x.data(), rows * 2 * cols); }, 0.0f);
        compare("rotary", [&](const Kernels& k, float* out) { k.rotary(out, rows, 2 * cols, 1, 2 * cols, x.data(), x.data() + 1, cols / 2); }, 1e-6f);
    }
}

void check_rounding(const Kernels& ours, const Kernels& portable) {
    for (const int64_t rows : {1, 7, 33, 129}) {
        const int64_t columns = 32;
        const Floats target = gaussian(columns * rows), weights(32, 1.5f), upper = gaussian(columns * columns, 0.1f);
        const Floats unit(static_cast<size_t>(rows), 4e-3f), centre(static_cast<size_t>(rows), 0.0f);
        Floats scale(unit.size()), offset(unit.size()), scale2(unit.size()), offset2(unit.size());
        ours.search_int4({columns, rows, target.data(), unit.data(), weights.data(), 48.0f, scale.data(), offset.data()});
        portable.search_int4({columns, rows, target.data(), unit.data(), weights.data(), 48.0f, scale2.data(), offset2.data()});
        require_equal(scale, scale2, "scales of search_int4");
        require_equal(offset, offset2, "offsets of search_int4");
        Floats error(target.size()), error2(target.size());
        std::vector<int8_t> quants(target.size()), quants2(target.size());
        const Floats step(unit.size(), 0.25f);
        Rounding args{columns, rows, target.data(), target.data(), upper.data(), step.data(), centre.data(), 0, 0, -8, 7, error.data(), quants.data()};
        ours.round_columns(args);
        args.error = error2.data(), args.quants = quants2.data();
        portable.round_columns(args);
        require_equal(quants, quants2, "quants of round_columns");
        require_equal(error, error2, "errors of round_columns");
    }
}

}  // namespace

int main() {
    set_num_threads(3, {});
    const CallLock lock;
    const Kernels& portable = isa_at(isa_count() - 1);
    for (int i = 0; i + 1 < isa_count(); ++i) {
        const Kernels& ours = isa_at(i);
        check_linear(ours, portable);
        for (const CacheType type : {kCacheFp32, kCacheFp16, kCacheInt8}) check_attention(ours, portable, type);
        check_elementwise(ours, portable);
        check_rounding(ours, portable);
        std::printf("%s agrees with %s\n", ours.name, portable.name);
    }
    if (isa_count() < 2) fail("there is only one instruction set here");
}
