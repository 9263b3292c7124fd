// Which instruction set the kernels use: the best that this processor has, or a lesser one on request.
#pragma once

#include <string>
#include <vector>

namespace m3edge {

enum class InstructionSet { plain, avx2, avxvnni, avx512vnni, neon };

// Those this processor has and this binary was built for, best first; the last is always plain.
const std::vector<InstructionSet>& available_instruction_sets();

// The one in use; all kernels look here.
InstructionSet instruction_set();

// Use another available one, in the whole process. Throws std::invalid_argument when it is not available.
void set_instruction_set(InstructionSet wanted);

// One kernel for each instruction set, null where the compiler could not build it; `plain` is always there.
template <class Kernel>
struct Kernels {
    Kernel plain, avx2, avxvnni, avx512vnni, neon;

    // That of the instruction set in use.
    Kernel in_use() const {
        Kernel best = nullptr;
        switch (instruction_set()) {
            case InstructionSet::avx512vnni: best = avx512vnni; break;
            case InstructionSet::avxvnni: best = avxvnni; break;
            case InstructionSet::avx2: best = avx2; break;
            case InstructionSet::neon: best = neon; break;
            case InstructionSet::plain: break;
        }
        return best != nullptr ? best : plain;
    }
};

const char* name_of(InstructionSet set);
InstructionSet instruction_set_named(const std::string& name);

}  // namespace m3edge
