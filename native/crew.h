// Several threads going through one program's steps together: each step is a number of equal items that whoever is free
// takes. A thread that comes late, or not at all, is missed by nobody: the others take its items.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "parallel.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace m3edge {

class Crew {
  public:
    // Runs program(crew) on the calling thread while n_workers - 1 others help with what it shares.
    template <class Program>
    static void run(size_t n_workers, Program& program) {
        Crew crew;
        run_workers(n_workers, [&](size_t worker) {
            if (worker == 0) {
                program(crew);
                crew.open_.store(ended, std::memory_order_release);
            } else {
                crew.help(worker);
            }
        });
    }

    // Calls work(item, worker) for every item below n_items, which is less than 2 ** 32, and returns when all are done;
    // worker: less than n_workers, and nobody else's meanwhile. Only for the program's own thread. `work` must not throw.
    template <class Work>
    void share(size_t n_items, const Work& work) {
        if (n_items == 0) return;
        n_items_ = n_items;
        work_ = &work;
        call_ = [](const void* of, size_t item, size_t worker) { (*static_cast<const Work*>(of))(item, worker); };
        n_done_.store(0, std::memory_order_relaxed);
        step_ += uint64_t(1) << 32;
        open_.store(step_ | n_items, std::memory_order_release);
        while (take(0)) {
        }
        for (Patience patience; n_done_.load(std::memory_order_acquire) != n_items;) patience.wait();
    }

  private:
    static constexpr uint64_t ended = ~uint64_t(0), count = 0xffffffff;

    // Awake for some 100 us, longer than most steps take; then the thread offers its place to others.
    struct Patience {
        int rounds = 0;

        void wait() {
            if (++rounds > 2000) return std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
            _mm_pause();
#endif
        }
    };

    void help(size_t worker) {
        Patience patience;
        while (open_.load(std::memory_order_acquire) != ended) {
            if (take(worker))
                patience = {};
            else
                patience.wait();
        }
    }

    // Takes an item of the open step and does it; false when none is left. The step's number is part of what is compared:
    // of a step that has ended in between nothing is taken. What is taken keeps its step open.
    bool take(size_t worker) {
        uint64_t open = open_.load(std::memory_order_acquire);
        do {
            if ((open & count) == 0 || open == ended) return false;
        } while (!open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel, std::memory_order_acquire));
        call_(work_, n_items_ - size_t(open & count), worker);
        n_done_.fetch_add(1, std::memory_order_release);
        return true;
    }

    alignas(64) std::atomic<uint64_t> open_{0};  // the step's number, and how many of its items nobody has taken
    alignas(64) std::atomic<size_t> n_done_{0};
    uint64_t step_ = 0;
    size_t n_items_ = 0;
    const void* work_ = nullptr;
    void (*call_)(const void*, size_t, size_t) = nullptr;
};

}  // namespace m3edge
