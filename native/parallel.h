// Threads that live for one call: nothing is left running, so forking and unloading are safe.
#pragma once

#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace m3edge {

// Calls work(0), …, work(n_workers - 1), each on its own thread, work(0) on the caller's. `work` must not throw, and
// must share the items through a counter of its own: where the system gives fewer threads, some calls are left out.
template <class Work>
void run_workers(size_t n_workers, const Work& work) {
    std::vector<std::thread> helpers;
    helpers.reserve(n_workers);
    try {
        for (size_t worker = 1; worker < n_workers; ++worker) helpers.emplace_back([&work, worker] { work(worker); });
    } catch (const std::system_error&) {
    }
    work(0);
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace m3edge
