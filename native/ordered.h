// In which order scores stand: what is no number, as whoever writes to a mapped file can make one, comes last.
#pragma once

#include <cmath>
#include <limits>

namespace m3edge {

inline float ordered(float score) { return !std::isnan(score) ? score : -std::numeric_limits<float>::infinity(); }

}  // namespace m3edge
