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

const char* name_of(InstructionSet set);
InstructionSet instruction_set_named(const std::string& name);

}  // namespace m3edge
