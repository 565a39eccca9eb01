// The vector operations that kernels are written in, once per instruction set.
//
// `vf` is LANES floats, `vi` LANES int32. fma is fused where the hardware has it and is otherwise a multiply and an
// add; nothing else is ever contracted (-ffp-contract=off), so a result depends on the instruction set but never on
// how a call was tiled. vmax(a, b) and vmin(a, b) return b when either is NaN.
#pragma once

#include <stdint.h>
#include <string.h>

#if !defined(GLM4_ISA)
#error "compile with -DGLM4_ISA=generic|avx2|avx512|neon"
#endif

#if defined(GLM4_AVX2) || defined(GLM4_AVX512)
#include <immintrin.h>
#elif defined(GLM4_NEON)
#include <arm_neon.h>
#endif

#define GLM4_INLINE static inline __attribute__((always_inline))

// Arrays of vectors live in registers only if every loop over them is unrolled.
#if defined(__clang__)
#define GLM4_UNROLL _Pragma("unroll")
#define GLM4_ROLLED _Pragma("nounroll")
#else
#define GLM4_UNROLL _Pragma("GCC unroll 32")
#define GLM4_ROLLED _Pragma("GCC unroll 1")
#endif

namespace glm4::GLM4_ISA {

constexpr float kHalfMax = 65504.0f;

template <class T>
constexpr T minimum(T a, T b) {
    return a < b ? a : b;
}

template <class T>
constexpr T maximum(T a, T b) {
    return a > b ? a : b;
}

GLM4_INLINE uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

GLM4_INLINE float bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Exact; also for subnormals, infinities and NaN.
GLM4_INLINE float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude << 13));
    const float scaled = bits_float(magnitude << 13) * bits_float(0x77800000u);  // times 2^112
    return bits_float(sign | float_bits(scaled));
}

// Nearest, ties to even, saturated to +-65504; NaN stays NaN.
GLM4_INLINE uint16_t float_to_half(float x) {
    const uint16_t sign = static_cast<uint16_t>((float_bits(x) >> 16) & 0x8000u);
    const uint32_t magnitude = float_bits(x) & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude >= float_bits(kHalfMax)) return sign | 0x7bffu;
    if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal half in the low bits, rounded
        return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
    return static_cast<uint16_t>(sign | (rounded >> 13));
}

#if defined(GLM4_AVX512)

constexpr int LANES = 16;
using vf = __m512;
using vi = __m512i;

GLM4_INLINE vf vset(float x) { return _mm512_set1_ps(x); }
GLM4_INLINE vf vload(const float* p) { return _mm512_loadu_ps(p); }
GLM4_INLINE void vstore(float* p, vf x) { _mm512_storeu_ps(p, x); }
GLM4_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
GLM4_INLINE vf vload_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
GLM4_INLINE void vstore_n(float* p, vf x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
GLM4_INLINE vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
GLM4_INLINE vf vsub(vf a, vf b) { return _mm512_sub_ps(a, b); }
GLM4_INLINE vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
GLM4_INLINE vf vdiv(vf a, vf b) { return _mm512_div_ps(a, b); }
GLM4_INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
GLM4_INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
GLM4_INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
GLM4_INLINE vf vabs(vf a) { return _mm512_abs_ps(a); }
GLM4_INLINE vf vround(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a > b ? x : y, lane by lane; false for NaN.
GLM4_INLINE vf vselect_gt(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
GLM4_INLINE vf vload_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
GLM4_INLINE vf vload_half_n(const uint16_t* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
GLM4_INLINE void vstore_half(uint16_t* p, vf x) {
    const vf clipped = vmax(vset(-kHalfMax), vmin(vset(kHalfMax), x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(clipped, _MM_FROUND_TO_NEAREST_INT));
}
GLM4_INLINE vf vpow2(vf n) {  // n integral, -126..127
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
GLM4_INLINE vf low_bits_to_exponent(vf x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23)); }
GLM4_INLINE vf vload_bf16_even(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
GLM4_INLINE vf vload_bf16_odd(const uint16_t* p) {
    const vi high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), high));
}
GLM4_INLINE vi viset(int x) { return _mm512_set1_epi32(x); }
GLM4_INLINE vf vfloat(vi a) { return _mm512_cvtepi32_ps(a); }
// Stores integral floats in -128..127 as bytes and returns them as integers.
GLM4_INLINE vi vstore_int8(int8_t* p, vf x) {
    const vi q = _mm512_cvtps_epi32(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(q));
    return q;
}
GLM4_INLINE int32_t vreduce_add(vi a) { return _mm512_reduce_add_epi32(a); }
// The largest magnitude as bits: as integers, magnitudes compare like floats, and infinities and NaN are the largest.
GLM4_INLINE vi vmagnitude(vf x) { return _mm512_castps_si512(vabs(x)); }
GLM4_INLINE vi vmax(vi a, vi b) { return _mm512_max_epi32(a, b); }
GLM4_INLINE vi vadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
GLM4_INLINE int32_t vreduce_max(vi a) { return _mm512_reduce_max_epi32(a); }
// One 32-bit lane of words {low byte, high byte - 128} from every two bytes.
GLM4_INLINE vi vload_scale_pairs(const uint8_t* p) {
    const vi words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_sub_epi16(words, _mm512_set1_epi32(128 << 16));
}
// c + low words' product + high words' product.
GLM4_INLINE vi vdot_words(vi c, vi a, vi b) { return _mm512_dpwssd_epi32(c, a, b); }

#elif defined(GLM4_AVX2)

constexpr int LANES = 8;
using vf = __m256;
using vi = __m256i;

GLM4_INLINE vf vset(float x) { return _mm256_set1_ps(x); }
GLM4_INLINE vf vload(const float* p) { return _mm256_loadu_ps(p); }
GLM4_INLINE void vstore(float* p, vf x) { _mm256_storeu_ps(p, x); }
GLM4_INLINE vi first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GLM4_INLINE vf vload_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
GLM4_INLINE void vstore_n(float* p, vf x, int n) { _mm256_maskstore_ps(p, first_lanes(n), x); }
GLM4_INLINE vf vadd(vf a, vf b) { return _mm256_add_ps(a, b); }
GLM4_INLINE vf vsub(vf a, vf b) { return _mm256_sub_ps(a, b); }
GLM4_INLINE vf vmul(vf a, vf b) { return _mm256_mul_ps(a, b); }
GLM4_INLINE vf vdiv(vf a, vf b) { return _mm256_div_ps(a, b); }
GLM4_INLINE vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
GLM4_INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
GLM4_INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
GLM4_INLINE vf vabs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
GLM4_INLINE vf vround(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
GLM4_INLINE vf vselect_gt(vf a, vf b, vf x, vf y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
GLM4_INLINE vf vload_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
GLM4_INLINE vf vload_half_n(const uint16_t* p, int n) {
    uint16_t part[LANES] = {};
    memcpy(part, p, static_cast<size_t>(n) * 2);
    return vload_half(part);
}
GLM4_INLINE void vstore_half(uint16_t* p, vf x) {
    const vf clipped = vmax(vset(-kHalfMax), vmin(vset(kHalfMax), x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(clipped, _MM_FROUND_TO_NEAREST_INT));
}
GLM4_INLINE vf vpow2(vf n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
GLM4_INLINE vf low_bits_to_exponent(vf x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23)); }
GLM4_INLINE vi load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const vi*>(p)); }
GLM4_INLINE vf vload_bf16_even(const uint16_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(load_bytes(p), 16)); }
GLM4_INLINE vf vload_bf16_odd(const uint16_t* p) {
    const vi high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm256_castsi256_ps(_mm256_and_si256(load_bytes(p), high));
}
GLM4_INLINE vi viset(int x) { return _mm256_set1_epi32(x); }
GLM4_INLINE vf vfloat(vi a) { return _mm256_cvtepi32_ps(a); }
GLM4_INLINE vi vmagnitude(vf x) { return _mm256_castps_si256(vabs(x)); }
GLM4_INLINE vi vmax(vi a, vi b) { return _mm256_max_epi32(a, b); }
GLM4_INLINE vi vadd(vi a, vi b) { return _mm256_add_epi32(a, b); }
GLM4_INLINE vi vload_scale_pairs(const uint8_t* p) {
    const vi words = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_sub_epi16(words, _mm256_set1_epi32(128 << 16));
}
GLM4_INLINE vi vdot_words(vi c, vi a, vi b) { return _mm256_add_epi32(c, _mm256_madd_epi16(a, b)); }
// Pins a sum to its place: otherwise GCC reorders a long chain of integer additions, computes all products first and
// spills them.
GLM4_INLINE void pin(vi& sum) { asm("" : "+x"(sum)); }
GLM4_INLINE vi vstore_int8(int8_t* p, vf x) {
    const vi q = _mm256_cvtps_epi32(x);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
    return q;
}

#elif defined(GLM4_NEON)

constexpr int LANES = 4;
using vf = float32x4_t;
using vi = int32x4_t;

GLM4_INLINE vf vset(float x) { return vdupq_n_f32(x); }
GLM4_INLINE vf vload(const float* p) { return vld1q_f32(p); }
GLM4_INLINE void vstore(float* p, vf x) { vst1q_f32(p, x); }
GLM4_INLINE vf vadd(vf a, vf b) { return vaddq_f32(a, b); }
GLM4_INLINE vf vsub(vf a, vf b) { return vsubq_f32(a, b); }
GLM4_INLINE vf vmul(vf a, vf b) { return vmulq_f32(a, b); }
GLM4_INLINE vf vdiv(vf a, vf b) { return vdivq_f32(a, b); }
GLM4_INLINE vf vfma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
GLM4_INLINE vf vabs(vf a) { return vabsq_f32(a); }
GLM4_INLINE vf vround(vf a) { return vrndnq_f32(a); }
GLM4_INLINE vf vselect_gt(vf a, vf b, vf x, vf y) { return vbslq_f32(vcgtq_f32(a, b), x, y); }
GLM4_INLINE vf vmax(vf a, vf b) { return vselect_gt(a, b, a, b); }
GLM4_INLINE vf vmin(vf a, vf b) { return vselect_gt(b, a, a, b); }
GLM4_INLINE vf vload_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
GLM4_INLINE void vstore_half(uint16_t* p, vf x) {
    const vf clipped = vmax(vset(-kHalfMax), vmin(vset(kHalfMax), x));
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(clipped)));
}
GLM4_INLINE vf vpow2(vf n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
GLM4_INLINE vf low_bits_to_exponent(vf x) { return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(x), 23)); }
GLM4_INLINE vf vload_bf16_even(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vld1q_u32(reinterpret_cast<const uint32_t*>(p)), 16));
}
GLM4_INLINE vf vload_bf16_odd(const uint16_t* p) {
    return vreinterpretq_f32_u32(vandq_u32(vld1q_u32(reinterpret_cast<const uint32_t*>(p)), vdupq_n_u32(0xffff0000u)));
}
GLM4_INLINE vi viset(int x) { return vdupq_n_s32(x); }
GLM4_INLINE vf vfloat(vi a) { return vcvtq_f32_s32(a); }
GLM4_INLINE vi vmagnitude(vf x) { return vreinterpretq_s32_f32(vabs(x)); }
GLM4_INLINE vi vmax(vi a, vi b) { return vmaxq_s32(a, b); }
GLM4_INLINE vi vadd(vi a, vi b) { return vaddq_s32(a, b); }
GLM4_INLINE vi vload_scale_pairs(const uint8_t* p) {
    const uint32x4_t words = vreinterpretq_u32_u16(vmovl_u8(vld1_u8(p)));
    return vreinterpretq_s32_u16(vsubq_u16(vreinterpretq_u16_u32(words), vreinterpretq_u16_u32(vdupq_n_u32(128u << 16))));
}
GLM4_INLINE vi vdot_words(vi c, vi a, vi b) {
    const vi low = vmulq_s32(vshrq_n_s32(vshlq_n_s32(a, 16), 16), vshrq_n_s32(vshlq_n_s32(b, 16), 16));
    return vmlaq_s32(vaddq_s32(c, low), vshrq_n_s32(a, 16), vshrq_n_s32(b, 16));
}

#else  // generic: GCC and Clang vector extensions, which compile to reasonable code for every processor

constexpr int LANES = 4;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

GLM4_INLINE vf vset(float x) { return vf{x, x, x, x}; }
GLM4_INLINE vi viset(int x) { return vi{x, x, x, x}; }
GLM4_INLINE vf vload(const float* p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
GLM4_INLINE void vstore(float* p, vf x) { memcpy(p, &x, sizeof x); }
GLM4_INLINE vf vadd(vf a, vf b) { return a + b; }
GLM4_INLINE vf vsub(vf a, vf b) { return a - b; }
GLM4_INLINE vf vmul(vf a, vf b) { return a * b; }
GLM4_INLINE vf vdiv(vf a, vf b) { return a / b; }
GLM4_INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; }
GLM4_INLINE vf vselect_gt(vf a, vf b, vf x, vf y) {
    const vi mask = a > b;
    return reinterpret_cast<vf>((mask & reinterpret_cast<vi>(x)) | (~mask & reinterpret_cast<vi>(y)));
}
GLM4_INLINE vf vmax(vf a, vf b) { return vselect_gt(a, b, a, b); }
GLM4_INLINE vf vmin(vf a, vf b) { return vselect_gt(b, a, a, b); }
GLM4_INLINE vf vabs(vf a) { return reinterpret_cast<vf>(reinterpret_cast<vi>(a) & viset(0x7fffffff)); }
GLM4_INLINE vf vround(vf a) {  // |a| < 2^22: adding 1.5 * 2^23 rounds to nearest even
    const vf magic = vset(12582912.0f);
    return (a + magic) - magic;
}
GLM4_INLINE vf vload_half(const uint16_t* p) {
    return vf{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}
GLM4_INLINE void vstore_half(uint16_t* p, vf x) {
    for (int i = 0; i < LANES; ++i) p[i] = float_to_half(x[i]);
}
GLM4_INLINE vf vpow2(vf n) {
    const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
    return reinterpret_cast<vf>(bits);
}
GLM4_INLINE vf low_bits_to_exponent(vf x) { return reinterpret_cast<vf>(reinterpret_cast<vu>(x) << 23); }
GLM4_INLINE vf vload_bf16_even(const uint16_t* p) {
    vu x;
    memcpy(&x, p, sizeof x);
    return reinterpret_cast<vf>(x << 16);
}
GLM4_INLINE vf vload_bf16_odd(const uint16_t* p) {
    vu x;
    memcpy(&x, p, sizeof x);
    return reinterpret_cast<vf>(x & 0xffff0000u);
}
GLM4_INLINE vf vfloat(vi a) { return __builtin_convertvector(a, vf); }
GLM4_INLINE vi vmagnitude(vf x) { return reinterpret_cast<vi>(vabs(x)); }
GLM4_INLINE vi vmax(vi a, vi b) { return (a & (a > b)) | (b & ~(a > b)); }
GLM4_INLINE vi vadd(vi a, vi b) { return a + b; }
GLM4_INLINE vi vload_scale_pairs(const uint8_t* p) {
    vi pairs;
    for (int i = 0; i < LANES; ++i) pairs[i] = p[2 * i] + (p[2 * i + 1] - 128) * 65536;
    return pairs;
}
GLM4_INLINE vi vdot_words(vi c, vi a, vi b) {
    for (int i = 0; i < LANES; ++i) {
        c[i] += static_cast<int16_t>(a[i] & 0xffff) * static_cast<int16_t>(b[i] & 0xffff) + (a[i] >> 16) * (b[i] >> 16);
    }
    return c;
}

#endif

#if !defined(GLM4_AVX512) && !defined(GLM4_AVX2)
GLM4_INLINE vi vstore_int8(int8_t* p, vf x) {
    float part[LANES];
    vstore(part, x);
    int32_t q[LANES];
    for (int i = 0; i < LANES; ++i) {
        q[i] = static_cast<int32_t>(part[i]);
        p[i] = static_cast<int8_t>(q[i]);
    }
    vi lanes;
    memcpy(&lanes, q, sizeof lanes);
    return lanes;
}
#endif
#if !defined(GLM4_AVX512)
GLM4_INLINE int32_t vreduce_add(vi a) {
    int32_t part[LANES], sum = 0;
    memcpy(part, &a, sizeof part);
    for (int i = 0; i < LANES; ++i) sum += part[i];
    return sum;
}
GLM4_INLINE int32_t vreduce_max(vi a) {
    int32_t part[LANES], top = INT32_MIN;
    memcpy(part, &a, sizeof part);
    for (int i = 0; i < LANES; ++i) top = part[i] > top ? part[i] : top;
    return top;
}
#endif

#if !defined(GLM4_AVX512) && !defined(GLM4_AVX2)
GLM4_INLINE vf vload_n(const float* p, int n) {
    float part[LANES] = {};
    memcpy(part, p, static_cast<size_t>(n) * 4);
    return vload(part);
}
GLM4_INLINE void vstore_n(float* p, vf x, int n) {
    float part[LANES];
    vstore(part, x);
    memcpy(p, part, static_cast<size_t>(n) * 4);
}
GLM4_INLINE vf vload_half_n(const uint16_t* p, int n) {
    uint16_t part[LANES] = {};
    memcpy(part, p, static_cast<size_t>(n) * 2);
    return vload_half(part);
}
#endif

// vreduce_add adds the upper half to the lower until one number is left, on every instruction set in this order.
// vreduce_max: NaN in any lane gives NaN or the largest of some lanes; callers continue with x - max, which is NaN
// there anyway.
#if defined(GLM4_AVX512) || defined(GLM4_AVX2)
#if defined(GLM4_AVX512)
GLM4_INLINE __m256 halve_add(vf x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}
GLM4_INLINE __m256 halve_max(vf x) {
    return _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}
#else
GLM4_INLINE __m256 halve_add(vf x) { return x; }
GLM4_INLINE __m256 halve_max(vf x) { return x; }
#endif
GLM4_INLINE float vreduce_add(vf x) {
    const __m256 eight = halve_add(x);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
GLM4_INLINE float vreduce_max(vf x) {
    const __m256 eight = halve_max(x);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
GLM4_INLINE float vreduce_add(vf x) {
    float part[LANES];
    vstore(part, x);
    for (int width = LANES / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    }
    return part[0];
}
GLM4_INLINE float vreduce_max(vf x) {
    float part[LANES];
    vstore(part, x);
    float top = part[0];
    for (int i = 1; i < LANES; ++i) top = part[i] > top ? part[i] : top;
    return top;
}
#endif

// 1 / x, and 0 for 0.
GLM4_INLINE vf reciprocal(vf x) { return vselect_gt(vabs(x), vset(0.0f), vdiv(vset(1.0f), x), vset(0.0f)); }

GLM4_INLINE vf round_clipped(vf x, float low, float high) { return vround(vmin(vset(high), vmax(vset(low), x))); }

// e^r for |r| <= ln(2) / 2, polynomial as in Cephes' expf.
GLM4_INLINE vf vexp_reduced(vf r) {
    vf p = vset(1.9875691500e-4f);
    p = vfma(p, r, vset(1.3981999507e-3f));
    p = vfma(p, r, vset(8.3334519073e-3f));
    p = vfma(p, r, vset(4.1665795894e-2f));
    p = vfma(p, r, vset(1.6666665459e-1f));
    p = vfma(p, r, vset(5.0000001201e-1f));
    return vadd(vfma(p, vmul(r, r), r), vset(1.0f));
}

// e^x within 2 ulp: 0 below -104, infinity above 88.7, NaN for NaN. Range reduction as in Cephes' expf.
GLM4_INLINE vf vexp(vf x) {
    x = vmin(vset(89.0f), vmax(vset(-105.0f), x));
    const vf n = vround(vmul(x, vset(1.44269504088896341f)));
    vf r = vfma(n, vset(-0.693359375f), x);
    r = vfma(n, vset(2.12194440e-4f), r);
    const vf p = vexp_reduced(r);
    // 2^n in two factors: n may be below -126 or 128, where a single factor is not a normal number.
    const vf half = vround(vmul(n, vset(0.5f)));
    return vmul(vmul(p, vpow2(half)), vpow2(vsub(n, half)));
}

// e^x for x <= 0 in half the operations of vexp: within 2 ulp down to -87, about 1e-38 below, NaN for NaN. The sum with
// 1.5 * 2^23 + 127 is rounded to an integer and has the exponent of 2^n in its low bits.
GLM4_INLINE vf vexp_falling(vf x) {
    x = vmax(vset(-87.0f), x);
    const vf shift = vset(12583039.0f);
    const vf exponent = vfma(x, vset(1.44269504088896341f), shift);
    const vf n = vsub(exponent, shift);
    const vf r = vfma(n, vset(2.12194440e-4f), vfma(n, vset(-0.693359375f), x));
    return vmul(vexp_reduced(r), low_bits_to_exponent(exponent));
}

}  // namespace glm4::GLM4_ISA
