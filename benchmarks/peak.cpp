// The arithmetic peak of one core: dot products of bytes between registers, nothing else. Compiled and called by
// kernels.py; returns operations (two per product) per call.
#include <stdint.h>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
using Vector = __m512i;
static inline Vector dot(Vector sum, Vector a, Vector b) { return _mm512_dpbusd_epi32(sum, a, b); }
#elif defined(__AVX2__)
#include <immintrin.h>
using Vector = __m256i;
static inline Vector dot(Vector sum, Vector a, Vector b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
using Vector = int32x4_t;
static inline Vector dot(Vector sum, Vector a, Vector b) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#endif

static inline void opaque(Vector& v) {
#if defined(__aarch64__)
    asm volatile("" : "+w"(v));
#else
    asm volatile("" : "+v"(v));
#endif
}

extern "C" double glm4_peak_operations(int64_t rounds) {
    Vector x{}, y{};
    Vector s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{};
    // Opaque to the compiler, which would otherwise keep one of twelve equal sums.
    opaque(s0), opaque(s1), opaque(s2), opaque(s3), opaque(s4), opaque(s5);
    opaque(s6), opaque(s7), opaque(s8), opaque(s9), opaque(s10), opaque(s11);
    // Opaque before each: equal products would be computed once for all twelve.
    const auto step = [&](Vector& sum) {
        opaque(x), opaque(y);
        sum = dot(sum, x, y);
    };
    for (int64_t i = 0; i < rounds; ++i) {
        step(s0), step(s1), step(s2), step(s3), step(s4), step(s5);
        step(s6), step(s7), step(s8), step(s9), step(s10), step(s11);
    }
    Vector all[] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11};
    volatile unsigned char sink = 0;
    for (const Vector& s : all) sink = static_cast<unsigned char>(sink + *reinterpret_cast<const unsigned char*>(&s));
    return static_cast<double>(rounds) * 12 * sizeof(Vector) * 2;
}
