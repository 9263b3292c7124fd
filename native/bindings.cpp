// m3edge._native: checks what Python hands over, lets go of the GIL, calls the kernels. Nothing is computed here.
//
// Arrays are taken as they lie (`noconvert`): another type or a strided array is a TypeError, never a silent copy. The
// readable definition of every function is its twin in m3edge/_kernels_numpy.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cpu.h"
#include "maxsim.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Result = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig>;

template <class T>
Result<T> new_vector(size_t size) {
    T* data = new T[size]();
    nb::capsule owner(data, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
    return Result<T>(data, {size}, owner);
}

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

void check_finite(const char* name, const float* values, size_t size) {
    for (size_t i = 0; i < size; ++i)
        if (!std::isfinite(values[i])) refuse(std::string(name) + " must be finite, got an infinity or a NaN");
}

size_t checked_threads(int64_t n_threads) {
    if (n_threads < 1) refuse("n_threads must be at least 1, got " + std::to_string(n_threads));
    return size_t(std::min<int64_t>(n_threads, 256));
}

void check_ranges(const Vector<int64_t>& starts, const Vector<int64_t>& counts, size_t n_rows) {
    if (starts.shape(0) != counts.shape(0))
        refuse("starts and counts must be of one length, got " + std::to_string(starts.shape(0)) + " and " +
               std::to_string(counts.shape(0)));
    const int64_t rows = int64_t(n_rows);
    for (size_t i = 0; i < starts.shape(0); ++i) {
        const int64_t start = starts.data()[i], count = counts.data()[i];
        if (start < 0 || count < 0 || start > rows || count > rows - start)
            refuse("starts and counts must lie within the " + std::to_string(rows) + " records, got start " +
                   std::to_string(start) + ", count " + std::to_string(count));
    }
}

m3edge::Records checked_records(const Matrix<uint8_t>& records, int64_t bits, size_t dim) {
    if (bits != 8 && bits != 4 && bits != 1) refuse("bits must be 8, 4 or 1, got " + std::to_string(bits));
    const size_t record_bytes = records.shape(1), a_byte = size_t(8 / bits);
    const size_t needed = 4 + ((dim + a_byte - 1) / a_byte + 3) / 4 * 4;
    if (record_bytes != needed)
        refuse("records must be " + std::to_string(needed) + " bytes wide for " + std::to_string(dim) +
               " dimensions in " + std::to_string(bits) + " bits, got " + std::to_string(record_bytes));
    return {records.data(), record_bytes, int(bits)};
}

Result<float> maxsim_records(const Matrix<float>& query, const Matrix<uint8_t>& records, int64_t bits,
                             const Vector<int64_t>& starts, const Vector<int64_t>& counts, int64_t n_threads) {
    const m3edge::Records checked = checked_records(records, bits, query.shape(1));
    check_ranges(starts, counts, records.shape(0));
    check_finite("query", query.data(), query.size());
    const size_t threads = checked_threads(n_threads);
    Result<float> scores = new_vector<float>(starts.shape(0));
    {
        nb::gil_scoped_release release;
        m3edge::maxsim(query.data(), query.shape(0), query.shape(1), checked, starts.data(), counts.data(),
                       starts.shape(0), threads, scores.data());
    }
    return scores;
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "m3edge's kernels in C++; m3edge.kernels chooses between them and their numpy twins.";

    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (m3edge::InstructionSet set : m3edge::available_instruction_sets()) names.push_back(m3edge::name_of(set));
        return names;
    });
    module.def("instruction_set", [] { return std::string(m3edge::name_of(m3edge::instruction_set())); });
    module.def("set_instruction_set", [](const std::string& name) {
        m3edge::set_instruction_set(m3edge::instruction_set_named(name));
    }, "name"_a);

    module.def("maxsim_records", &maxsim_records, "query"_a.noconvert(), "records"_a.noconvert(), "bits"_a,
               "starts"_a.noconvert(), "counts"_a.noconvert(), "n_threads"_a);
}
