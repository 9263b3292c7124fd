// Numbers that start at a cache line.
#pragma once

#include <cstddef>
#include <vector>

namespace m3edge {

// As many as were asked for, or a few more, up to the end of their last cache line.
template <class T>
class Aligned {
  public:
    static constexpr size_t line = 64;  // bytes

    Aligned() = default;
    explicit Aligned(size_t size) { grow(size); }

    // Room for `size`, of zeros where there was less; what was there may be lost.
    void grow(size_t size) {
        const size_t lines = (size * sizeof(T) + line - 1) / line;
        if (lines > lines_.size()) std::vector<Line>(lines).swap(lines_);
    }
    T* data() { return reinterpret_cast<T*>(lines_.data()); }
    const T* data() const { return reinterpret_cast<const T*>(lines_.data()); }
    size_t bytes() const { return lines_.size() * line; }

  private:
    struct alignas(line) Line {
        T of[line / sizeof(T)];
    };

    std::vector<Line> lines_;
};

}  // namespace m3edge
