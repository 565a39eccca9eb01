#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace glm4 {
namespace {

constexpr int kMaxIsas = 3;

struct Isas {
    Kernels tables[kMaxIsas];
    int count = 0;

    template <class... Fill>
    void add(const char* name, Fill... fill) {
        Kernels& table = tables[count++];
        table.name = name;
        (fill(table), ...);
    }
};

#define GLM4_ADD_ISA(isas, isa) \
    (isas).add(#isa, isa::fill_linear, isa::fill_attention, isa::fill_store_kv, isa::fill_elementwise, \
                isa::fill_quantize, isa::fill_rounding)

#if defined(__x86_64__)
bool has_f16c() {  // __builtin_cpu_supports does not support it everywhere
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#elif defined(__aarch64__)
bool has_dotprod() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return true;  // every Apple processor that runs macOS
#endif
}
#endif

Isas detect() {
    Isas isas;
#if defined(__x86_64__)
    // __builtin_cpu_supports also checks whether the operating system saves the wide registers.
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512) GLM4_ADD_ISA(isas, avx512);
    if (avx2) GLM4_ADD_ISA(isas, avx2);
#elif defined(__aarch64__)
    if (has_dotprod()) GLM4_ADD_ISA(isas, neon);
#endif
    GLM4_ADD_ISA(isas, generic);
    return isas;
}

const Isas& isas() {
    static const Isas found = detect();
    return found;
}

}  // namespace

int isa_count() { return isas().count; }

const Kernels& isa_at(int index) { return isas().tables[index]; }

}  // namespace glm4
