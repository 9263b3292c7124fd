// MaxSim of one query against documents whose token vectors lie in a mapped file, quantized or in half precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace m3edge {

// n token records of record_bytes each. With 16 bits: `width` IEEE half-precision numbers and nothing else. With fewer:
// a float32 scale, then `width / (8 / bits)` bytes of codes, a multiple of 4.
// The codes of a byte are in planes: with p planes of w bytes, plane i of byte j is the code of dimension i * w + j.
//   8 bits: the number itself, signed; 4 bits: the number + 8; 1 bit: 0 for -1, 1 for 1
struct Records {
    const uint8_t* data;
    size_t record_bytes;
    int bits;

    size_t scale_bytes() const { return bits == 16 ? 0 : sizeof(float); }
    size_t code_bytes() const { return record_bytes - scale_bytes(); }
    size_t width() const { return bits == 16 ? code_bytes() / 2 : code_bytes() * (8 / bits); }
};

// One query made ready, and what each of n_workers needs to score documents side by side with the others.
class MaxSim {
  public:
    MaxSim(const float* query, size_t n_tokens, size_t dim, const Records& records, size_t n_workers);
    ~MaxSim();

    // The score of the document that owns records start ... start + count, as maxsim() says. worker: less than n_workers,
    // and nobody else's meanwhile; next: the first record that will be wanted after this document
    float operator()(size_t worker, int64_t start, int64_t count, int64_t next);

  private:
    struct Workers;
    std::unique_ptr<Workers> workers_;
};

// scores[i] = mean over the query's tokens of max over j in [starts[i], starts[i] + counts[i]) of <query token, j>;
// 0 for a document or a query without tokens. Query tokens are quantized to 8 bits, each with its own scale; with 16-bit
// records they stay as they are, and products are summed in float32.
//   query: n_tokens rows of dim finite floats, dim <= records.width()
void maxsim(const float* query, size_t n_tokens, size_t dim, const Records& records, const int64_t* starts,
            const int64_t* counts, size_t n_documents, size_t n_threads, float* scores);

}  // namespace m3edge
