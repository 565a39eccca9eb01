// Exact dot products of 16-bit integers, two at a time, for attention over an int8 cache.
//
// A `vpairs` holds LANES pairs of int16. vdot2 adds both products of each pair to an int32 lane; callers bound the
// values so that sums never overflow. All of it is exact, so it is the same on every instruction set.
#pragma once

#include "simd.h"

namespace glm4::GLM4_ISA {

#if defined(GLM4_AVX512)

using vpairs = __m512i;
GLM4_INLINE vpairs load_pairs(const int8_t* p) {  // widens 2 * LANES bytes
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
GLM4_INLINE vpairs set_pairs(int32_t pair) { return _mm512_set1_epi32(pair); }
// Assembly because GCC 12 copies the accumulators of the intrinsic back and forth (half the speed).
GLM4_INLINE vi vdot2(vi sum, vpairs a, vpairs b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
GLM4_INLINE void store_int16(int16_t* p, vf x) {  // rounded to nearest even
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}

#elif defined(GLM4_AVX2)

using vpairs = __m256i;
GLM4_INLINE vpairs load_pairs(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
GLM4_INLINE vpairs set_pairs(int32_t pair) { return _mm256_set1_epi32(pair); }
GLM4_INLINE vi vdot2(vi sum, vpairs a, vpairs b) {
    sum = vdot_words(sum, a, b);
    pin(sum);  // a third off the time of attention
    return sum;
}
GLM4_INLINE void store_int16(int16_t* p, vf x) {
    const __m256i wide = _mm256_cvtps_epi32(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}

#elif defined(GLM4_NEON)

using vpairs = int16x8_t;
GLM4_INLINE vpairs load_pairs(const int8_t* p) { return vmovl_s8(vld1_s8(p)); }
GLM4_INLINE vpairs set_pairs(int32_t pair) { return vreinterpretq_s16_s32(vdupq_n_s32(pair)); }
GLM4_INLINE vi vdot2(vi sum, vpairs a, vpairs b) {
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
}
GLM4_INLINE void store_int16(int16_t* p, vf x) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(x))); }

#else

struct vpairs {
    vi first, second;
};
GLM4_INLINE vpairs load_pairs(const int8_t* p) {
    return {vi{p[0], p[2], p[4], p[6]}, vi{p[1], p[3], p[5], p[7]}};
}
GLM4_INLINE vpairs set_pairs(int32_t pair) {
    int16_t both[2];
    memcpy(both, &pair, sizeof both);
    return {viset(both[0]), viset(both[1])};
}
GLM4_INLINE vi vdot2(vi sum, vpairs a, vpairs b) { return sum + a.first * b.first + a.second * b.second; }
GLM4_INLINE void store_int16(int16_t* p, vf x) {
    const vf integral = vround(x);
    for (int i = 0; i < LANES; ++i) p[i] = static_cast<int16_t>(integral[i]);
}

#endif

// Two adjacent int16, as set_pairs takes them.
GLM4_INLINE int32_t load_pair(const int16_t* p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return pair;
}

}  // namespace glm4::GLM4_ISA
