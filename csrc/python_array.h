// Python arrays and the checks on them. They use the buffer protocol, so that a wrong dtype, shape or layout gets our
// own message.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "isa.h"

namespace glm4 {

namespace nb = nanobind;

[[noreturn]] inline void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

inline void check(bool condition, const std::string& message) {
    if (!condition) fail(message);
}

inline std::string str(int64_t n) { return std::to_string(n); }

// NumPy's name of an element type, and the buffer protocol's letters for it; a letter's size depends on the platform.
struct Dtype {
    const char* name;
    std::string_view letters;
};
template <class T>
extern const Dtype dtype;
template <>
inline constexpr Dtype dtype<float>{"float32", "f"};
template <>
inline constexpr Dtype dtype<uint8_t>{"uint8", "B"};
template <>
inline constexpr Dtype dtype<int8_t>{"int8", "b"};
template <>
inline constexpr Dtype dtype<int32_t>{"int32", "il"};
template <>
inline constexpr Dtype dtype<int64_t>{"int64", "lq"};

inline bool is_aligned(const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

// A buffer borrowed from Python for the duration of a call.
class Array {
public:
    Array(nb::handle object, const char* what, int ndim, bool writable = false) : name_(what) {
        const int flags = PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) {
            PyErr_Clear();
            if (!PyObject_CheckBuffer(object.ptr())) throw nb::type_error((name_ + " must be an array").c_str());
            fail(name_ + (writable ? " must be a writable array" : " must be an array in native byte order"));
        }
        if (buffer_.ndim != ndim) {
            const int found = buffer_.ndim;
            PyBuffer_Release(&buffer_);
            fail(name_ + " must have " + str(ndim) + " dimensions, not " + str(found));
        }
    }
    ~Array() { PyBuffer_Release(&buffer_); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;

    int64_t dim(int i) const { return buffer_.shape[i]; }

    int64_t size() const { return buffer_.len / (buffer_.itemsize > 0 ? buffer_.itemsize : 1); }

    // C-contiguous from dimension `from` on; dimensions of length 1 may have any stride, empty arrays have none.
    bool contiguous(int from = 0) const {
        Py_ssize_t expected = buffer_.itemsize;
        if (buffer_.len == 0) return true;
        for (int i = buffer_.ndim - 1; i >= from; --i) {
            if (buffer_.shape[i] != 1 && buffer_.strides[i] != expected) return false;
            expected *= buffer_.shape[i];
        }
        return true;
    }

    template <class T>
    bool is() const {
        const char* f = buffer_.format;
        if (f != nullptr && (*f == '@' || *f == '=' || *f == '<')) ++f;
        return f != nullptr && f[0] != '\0' && f[1] == '\0' && dtype<T>.letters.find(*f) != std::string_view::npos &&
               buffer_.itemsize == sizeof(T) && aligned(alignof(T));
    }

    bool is_half() const {
        const char* f = buffer_.format;
        return f != nullptr && f[0] == 'e' && f[1] == '\0' && aligned(2);
    }

    template <class T>
    T* data() const {
        check(is<T>(), name_ + " must be an aligned array of " + dtype<T>.name + format_suffix());
        check(contiguous(), name_ + " must be C-contiguous");
        return static_cast<T*>(buffer_.buf);
    }

    void* raw() const { return buffer_.buf; }

    // Three dimensions with the inner two contiguous and any non-overlapping row stride.
    Rows rows() const {
        check(is<float>(), name_ + " must be an aligned array of float32" + format_suffix());
        check(contiguous(1), name_ + " must be contiguous within a row");
        const int64_t inner = dim(1) * dim(2);
        const int64_t item = static_cast<int64_t>(sizeof(float));
        const int64_t stride = dim(0) > 1 ? buffer_.strides[0] : inner * item;
        check(stride % item == 0 && stride >= inner * item, name_ + " has overlapping or reversed rows");
        return {static_cast<const float*>(buffer_.buf), dim(0), stride / item, dim(1), dim(2)};
    }

    const std::string& name() const { return name_; }

private:
    bool aligned(size_t to) const { return reinterpret_cast<uintptr_t>(buffer_.buf) % to == 0; }

    std::string format_suffix() const {
        return std::string(", not of buffer format '") + (buffer_.format != nullptr ? buffer_.format : "?") + "'";
    }

    Py_buffer buffer_;
    std::string name_;
};

inline void check_dim(const Array& a, int dim, int64_t expected) {
    check(a.dim(dim) == expected,
          a.name() + " has length " + str(a.dim(dim)) + " in dimension " + str(dim) + ", expected " + str(expected));
}

template <class T>
void check_indices(const std::string& name, const T* index, int64_t count, int64_t size) {
    for (int64_t i = 0; i < count; ++i) {
        if (index[i] < 0 || index[i] >= size) {
            throw nb::index_error((name + "[" + str(i) + "] is " + str(index[i]) + ", outside 0.." + str(size - 1)).c_str());
        }
    }
}

}  // namespace glm4
