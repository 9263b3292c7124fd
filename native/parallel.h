// Threads that live for one call: nothing is left waiting for work, so forking and unloading are safe.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace m3edge {

// How many workers are worth their start, which takes about 30 us: with less than `least` work each, a further thread
// takes longer to start than it saves. At most one for each item, and at least one.
inline size_t workers_worth(double work, double least, size_t n_items, size_t n_threads) {
    const double useful = std::clamp(work / least, 1.0, 1e6);
    return std::max<size_t>(1, std::min({n_threads, n_items, size_t(useful)}));
}

// Calls work(0), …, work(n_workers - 1), each on its own thread, work(0) on the caller's. `work` must not throw, and
// must share the items through a counter of its own: some calls are left out, where the system gives fewer threads, and
// where all is done before one begins. On a busy machine a thread waits milliseconds for its turn; the caller need not.
template <class Work>
void run_workers(size_t n_workers, const Work& work) {
    struct Helper {
        std::shared_ptr<std::atomic<bool>> taken;  // by the thread, to begin, or by the caller, to call it off
        std::thread thread;
    };
    std::vector<Helper> helpers;
    helpers.reserve(n_workers);
    try {
        for (size_t worker = 1; worker < n_workers; ++worker) {
            auto taken = std::make_shared<std::atomic<bool>>(false);
            std::thread thread([taken, &work, worker] {
                if (!taken->exchange(true)) work(worker);
            });
            helpers.push_back({std::move(taken), std::move(thread)});
        }
    } catch (const std::system_error&) {
    }
    work(0);
    for (Helper& helper : helpers) {
        if (helper.taken->exchange(true))
            helper.thread.join();
        else
            helper.thread.detach();  // it will find itself called off, and touch nothing of this call
    }
}

}  // namespace m3edge
