// Which instruction set the kernels use: the best that this processor has, or a lesser one on request.
#pragma once

#include <string>
#include <vector>

namespace m3edge {

enum class InstructionSet { plain, avx2, avxvnni, avx512vnni, amx, neon };

// Those this processor has and this binary was built for, best first; the last is always plain.
const std::vector<InstructionSet>& available_instruction_sets();

// The one in use; all kernels look here.
InstructionSet instruction_set();

// Use another available one, in the whole process. Throws std::invalid_argument when it is not available.
void set_instruction_set(InstructionSet wanted);

// One kernel for each instruction set, null where there is none of its own or the compiler could not build it; `plain` is
// always there.
template <class Kernel>
struct Kernels {
    Kernel plain, avx2, avxvnni, avx512vnni, amx, neon;

    // That of the instruction set in use, or the best of those that it includes.
    Kernel in_use() const {
        const InstructionSet set = instruction_set();
        const bool has_amx = set == InstructionSet::amx;
        const bool has_avx512vnni = has_amx || set == InstructionSet::avx512vnni;
        const bool has_avxvnni = set == InstructionSet::avxvnni;  // some processors with AVX512-VNNI lack it
        const bool has_avx2 = has_avx512vnni || has_avxvnni || set == InstructionSet::avx2;
        if (has_amx && amx != nullptr) return amx;
        if (has_avx512vnni && avx512vnni != nullptr) return avx512vnni;
        if (has_avxvnni && avxvnni != nullptr) return avxvnni;
        if (has_avx2 && avx2 != nullptr) return avx2;
        if (set == InstructionSet::neon && neon != nullptr) return neon;
        return plain;
    }
};

const char* name_of(InstructionSet set);
InstructionSet instruction_set_named(const std::string& name);

}  // namespace m3edge
