// Threads that share the tasks of a loop.
//
// OpenMP was measured and rejected (bench/LOG.md): its loop ends when every thread of the team has
// arrived, even one that finds nothing left to do. Beside readers, or any other program, a thread
// may wait milliseconds for a core, and the others wait for it. Here the caller takes tasks from
// the start, and waits only for tasks that another thread has begun.

#pragma once

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

// Tells the processor that this thread only waits.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
public:
    // The pool of this process. It is never destroyed, since threads may wait in it when the
    // process ends. A forked child gets a new one, since it has none of the threads.
    static Pool& instance() {
        static std::once_flag registered;
        std::call_once(registered, [] {
            current() = new Pool;
            pthread_atfork(nullptr, nullptr, [] { current() = new Pool; });
        });
        return *current();
    }

    // Calls `work(task)` for every task from 0 to n_tasks - 1, in any order, on at most
    // `n_threads` threads, the caller's among them.
    template <class Work>
    void run(int64_t n_tasks, int n_threads, const Work& work) {
        // While another caller has the pool, this one does all its tasks itself.
        std::unique_lock<std::mutex> mine(callers_, std::defer_lock);
        if (n_threads <= 1 || n_tasks <= 1 || !mine.try_lock()) {
            for (int64_t task = 0; task < n_tasks; ++task) work(task);
            return;
        }
        start_threads(n_threads - 1);
        work_ = &work;
        call_ = [](const void* given, int64_t task) { (*static_cast<const Work*>(given))(task); };
        n_tasks_ = n_tasks;
        n_helpers_ = static_cast<int>(n_tasks < n_threads ? n_tasks : n_threads) - 1;
        next_.store(0);
        open();
        take_tasks();
        close();
    }

private:
    // Bits of the gate: the number of helpers inside, whether more may come in, and the number of
    // the loop, so that no helper comes in twice.
    static constexpr uint64_t INSIDE = 0xFFFF, OPEN = 0x10000, LOOP = 0x20000;
    // Times that a helper looks for the next loop before it sleeps: about 20 microseconds, which
    // is what lies between two loops of one batch.
    static constexpr int SPINS = 500;

    static Pool*& current() {
        static Pool* pool = nullptr;
        return pool;
    }

    void start_threads(int n_wanted) {
        for (; n_threads_ < n_wanted; ++n_threads_) {
            try {
                std::thread helper(&Pool::help, this, n_threads_);
                handles_.push_back(helper.native_handle());
                helper.detach();
                avoided_ = NONE;
            } catch (const std::system_error&) {
                return;  // The system gives no more threads: those that there are take all tasks.
            }
        }
    }

    void open() {
        gate_.store(gate_.load() + LOOP + OPEN);
        if (n_asleep_.load() > 0) {
            keep_off();
            { const std::lock_guard<std::mutex> lock(sleepers_); }
            wake_.notify_all();
        }
    }

    // Keeps helpers off the caller's processor. Linux may wake a thread there although another
    // processor is idle (of few that are half busy, it looks at none). The thread would then wait
    // until the caller has done all the tasks.
    void keep_off() {
#if defined(__linux__)
        const int here = sched_getcpu();
        cpu_set_t others;
        if (here == avoided_ || here < 0 ||
            pthread_getaffinity_np(pthread_self(), sizeof others, &others) != 0) {
            return;
        }
        CPU_CLR(here, &others);
        if (CPU_COUNT(&others) == 0) return;
        for (const pthread_t helper : handles_) {
            pthread_setaffinity_np(helper, sizeof others, &others);
        }
        avoided_ = here;
#endif
    }

    void close() {
        gate_.fetch_and(~OPEN);
        for (int spin = 0; (gate_.load() & INSIDE) != 0 && spin < SPINS; ++spin) relax();
        std::unique_lock<std::mutex> lock(sleepers_);
        left_.wait(lock, [this] { return (gate_.load() & INSIDE) == 0; });
    }

    void take_tasks() {
        for (int64_t task; (task = next_.fetch_add(1)) < n_tasks_;) call_(work_, task);
    }

    // Body of a helper thread.
    void help(int number) {
        for (uint64_t seen = 0;;) {
            uint64_t gate = wait_for_loop(seen);
            seen = gate & ~(INSIDE | OPEN);
            while ((gate & OPEN) != 0 && (gate & ~(INSIDE | OPEN)) == seen) {
                if (!gate_.compare_exchange_weak(gate, gate + 1)) continue;
                if (number < n_helpers_) take_tasks();
                if ((gate_.fetch_sub(1) & (INSIDE | OPEN)) == 1) {
                    { const std::lock_guard<std::mutex> lock(sleepers_); }
                    left_.notify_one();
                }
                break;
            }
        }
    }

    // The gate, once it is open for a loop other than the one last `seen`.
    uint64_t wait_for_loop(uint64_t seen) {
        const auto is_new = [this, seen] {
            const uint64_t gate = gate_.load();
            return (gate & OPEN) != 0 && (gate & ~(INSIDE | OPEN)) != seen;
        };
        for (int spin = 0; spin < SPINS; ++spin) {
            if (is_new()) return gate_.load();
            relax();
        }
        std::unique_lock<std::mutex> lock(sleepers_);
        n_asleep_.fetch_add(1);
        wake_.wait(lock, is_new);
        n_asleep_.fetch_sub(1);
        return gate_.load();
    }

    static constexpr int NONE = -1;

    std::mutex callers_;
    int n_threads_ = 0;
    std::vector<pthread_t> handles_;
    int avoided_ = NONE;

    // The current loop; written only while no helper is inside.
    const void* work_ = nullptr;
    void (*call_)(const void*, int64_t) = nullptr;
    int64_t n_tasks_ = 0;
    int n_helpers_ = 0;
    std::atomic<int64_t> next_{0};

    std::atomic<uint64_t> gate_{0};
    std::mutex sleepers_;
    std::condition_variable wake_, left_;
    std::atomic<int> n_asleep_{0};
};
