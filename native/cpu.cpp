#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <cpuid.h>
#define M3EDGE_X86 1
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace m3edge {
namespace {

struct Named {
    InstructionSet set;
    const char* name;
};
constexpr Named names[] = {
    {InstructionSet::plain, "plain"},      {InstructionSet::avx2, "avx2"},
    {InstructionSet::avxvnni, "avx-vnni"}, {InstructionSet::avx512vnni, "avx512-vnni"},
    {InstructionSet::amx, "amx-int8"},     {InstructionSet::neon, "neon"},
};

// Whether the system lets this process use AMX's tiles. Linux wants to be asked, since they enlarge what it saves.
[[maybe_unused]] bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

std::vector<InstructionSet> detect() {
    std::vector<InstructionSet> found;
#if defined(M3EDGE_X86)
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 27))) {  // OSXSAVE: the system says what it saves
        uint32_t low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        const bool saves_ymm = (low & 0x06) == 0x06;
        const bool saves_zmm = (low & 0xe6) == 0xe6;
        const bool saves_tiles = (low & 0x60000) == 0x60000;
        const bool fma_f16c_pclmul = (ecx & (1u << 12)) && (ecx & (1u << 29)) && (ecx & (1u << 1));
        if (saves_ymm && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
            const bool avx2 = (ebx & (1u << 5)) && fma_f16c_pclmul;  // their files are compiled for all four
            const bool avx512 = (ebx & (1u << 16)) && (ebx & (1u << 30)) && (ebx & (1u << 31));  // F, BW, VL
            const bool avx512vnni = saves_zmm && avx2 && avx512 && (ecx & (1u << 11));
            constexpr unsigned bf16_products = 1u << 22, tiles = 1u << 24, byte_products = 1u << 25;
            constexpr unsigned amx_features = bf16_products | tiles | byte_products;
            const bool amx_tiles = saves_tiles && (edx & amx_features) == amx_features;
            const bool has_leaf_1 = eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx);
            const bool avx512bf16 = has_leaf_1 && (eax & (1u << 5)), avxvnni = has_leaf_1 && avx2 && (eax & (1u << 4));
            if (avx512vnni && avx512bf16 && amx_tiles && may_use_tiles()) found.push_back(InstructionSet::amx);
            if (avx512vnni) found.push_back(InstructionSet::avx512vnni);
            if (avxvnni) found.push_back(InstructionSet::avxvnni);
            if (avx2) found.push_back(InstructionSet::avx2);
        }
    }
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
    found.push_back(InstructionSet::neon);
#endif
    found.push_back(InstructionSet::plain);
    return found;
}

std::atomic<InstructionSet>& chosen() {
    static std::atomic<InstructionSet> set{available_instruction_sets().front()};
    return set;
}

}  // namespace

const std::vector<InstructionSet>& available_instruction_sets() {
    static const std::vector<InstructionSet> found = detect();
    return found;
}

InstructionSet instruction_set() { return chosen().load(std::memory_order_relaxed); }

void set_instruction_set(InstructionSet wanted) {
    const auto& available = available_instruction_sets();
    if (std::find(available.begin(), available.end(), wanted) == available.end())
        throw std::invalid_argument(std::string("this processor has no ") + name_of(wanted));
    chosen().store(wanted);
}

const char* name_of(InstructionSet set) {
    for (const Named& named : names)
        if (named.set == set) return named.name;
    return "unknown";
}

InstructionSet instruction_set_named(const std::string& name) {
    for (const Named& named : names)
        if (name == named.name) return named.set;
    throw std::invalid_argument("no instruction set is called '" + name + "'");
}

}  // namespace m3edge
