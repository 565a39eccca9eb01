// Writes keys and values into the paged cache. Layouts are described at `Cache` in isa.h.
#include "isa.h"
#include "simd.h"

namespace glm4::GLM4_ISA {
namespace {

GLM4_INLINE void store_number(float* to, float x) { *to = x; }
GLM4_INLINE void store_number(uint16_t* to, float x) { *to = float_to_half(x); }

// One token of one KV head at `offset` of a page.
template <class T>
void store_token(const float* key, const float* value, const Cache& c, T* key_page, T* value_page, int64_t offset) {
    T* keys = key_page + offset;
    T* values = value_page + offset * c.dim;
    for (int64_t d = 0; d < c.dim; ++d) store_number(keys + d * c.page_size, key[d]);
    for (int64_t d = 0; d < c.dim; ++d) store_number(values + d, value[d]);
}

// Returns the scale absmax / 127 and sets `inverse` to its reciprocal. A NaN or an infinity makes the scale NaN, and
// with it everything computed from this token.
float int8_scale(const float* x, int64_t dim, float* inverse) {
    float top = 0.0f, check = 0.0f;
    for (int64_t d = 0; d < dim; ++d) {
        const float magnitude = x[d] < 0.0f ? -x[d] : x[d];
        top = magnitude > top ? magnitude : top;
        check += x[d] * 0.0f;
    }
    const bool usable = top >= 1e-30f && check == 0.0f;  // below it the reciprocal overflows
    *inverse = usable ? 127.0f / top : 0.0f;
    return usable ? top / 127.0f : check;
}

int8_t to_int8(float x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
    const float rounded = (x + magic) - magic;
    return rounded == rounded ? static_cast<int8_t>(rounded) : int8_t{0};
}

void store_token(const float* key, const float* value, const Cache& c, int8_t* key_page, int8_t* value_page,
                 int64_t offset) {
    const int64_t scales = c.dim * c.page_size + 4 * offset;
    float inverse;
    const float key_scale = int8_scale(key, c.dim, &inverse);
    memcpy(key_page + scales, &key_scale, sizeof key_scale);
    for (int64_t d = 0; d < c.dim; ++d) {
        key_page[(d / 2 * c.page_size + offset) * 2 + d % 2] = to_int8(key[d] * inverse);
    }
    const float value_scale = int8_scale(value, c.dim, &inverse);
    memcpy(value_page + scales, &value_scale, sizeof value_scale);
    for (int64_t d = 0; d < c.dim; ++d) {
        value_page[(offset / 2 * c.dim + d) * 2 + offset % 2] = to_int8(value[d] * inverse);
    }
}

template <class T>
void store_row(const Rows& k, const Rows& v, const Cache& c, int64_t row, int64_t slot) {
    for (int64_t h = 0; h < c.kv_heads; ++h) {
        const int64_t page = (slot / c.page_size * c.kv_heads + h) * c.page_nbytes();
        store_token(k.data + row * k.row_stride + h * c.dim, v.data + row * v.row_stride + h * c.dim, c,
                    reinterpret_cast<T*>(static_cast<char*>(c.k) + page),
                    reinterpret_cast<T*>(static_cast<char*>(c.v) + page), slot % c.page_size);
    }
}

// Serial: rows of one page share cache lines, and two rows may name the same slot (the later one wins).
void store_kv(const Rows& k, const Rows& v, const Cache& c, const int64_t* slots) {
    for (int64_t row = 0; row < k.count; ++row) {
        switch (c.type) {
            case kCacheFp32: store_row<float>(k, v, c, row, slots[row]); break;
            case kCacheFp16: store_row<uint16_t>(k, v, c, row, slots[row]); break;
            case kCacheInt8: store_row<int8_t>(k, v, c, row, slots[row]); break;
        }
    }
}

}  // namespace

void fill_store_kv(Kernels& table) { table.store_kv = store_kv; }

}  // namespace glm4::GLM4_ISA
