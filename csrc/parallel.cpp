#include "parallel.h"

#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace glm4 {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Long enough to bridge the Python code between two kernels, short enough not to waste a shared machine's time.
constexpr auto kSpin = std::chrono::microseconds(60);
constexpr int kPausesPerClockRead = 32;

// Binds the calling thread and names it for `top -H`. A missing or forbidden processor binds nothing.
void settle(int thread, const std::vector<int>& processors) {
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int processor : processors) {
        if (processor >= 0 && processor < CPU_SETSIZE) CPU_SET(static_cast<size_t>(processor), &set);
    }
    if (CPU_COUNT(&set) > 0) pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
    pthread_setname_np(pthread_self(), ("glm4-" + std::to_string(thread)).c_str());
#else
    (void)thread, (void)processors;
#endif
}

class Pool {
public:
    ~Pool() { stop(); }

    int size() const { return size_; }

    void resize(int count, const Binding& binding) {
        stop();
        size_ = count;
        binding_ = binding;
    }

    void run(int64_t count, Task task, const void* context) {
        if (size_ == 1 || count <= 1) {
            for (int64_t i = 0; i < count; ++i) task(context, i, 0);
            return;
        }
        if (workers_.empty()) start();
        task_ = task;
        context_ = context;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        open_.store(true, std::memory_order_seq_cst);
        epoch_.fetch_add(1, std::memory_order_seq_cst);
        epoch_.notify_all();  // a system call only if a worker sleeps
        work(0);
        // A worker that wakes after this point finds the job closed and never touches it, so a worker the operating
        // system has not scheduled yet causes no delay.
        open_.store(false, std::memory_order_seq_cst);
        for (int spins = 0; active_.load(std::memory_order_seq_cst) != 0; ++spins) {
            if (spins < 4096) {
                pause_cpu();
            } else {
                std::this_thread::yield();
            }
        }
    }

private:
    void work(int thread) {
        for (;;) {
            const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
            if (index >= count_) return;
            task_(context_, index, thread);
        }
    }

    void worker(int thread) {
        const size_t place = static_cast<size_t>(thread - 1);
        settle(thread, place < binding_.size() ? binding_[place] : std::vector<int>());
        uint32_t seen = 0;
        for (;;) {
            wait_for_job(seen);
            seen = epoch_.load(std::memory_order_seq_cst);
            if (stopping_.load(std::memory_order_seq_cst)) return;
            // Announce first, check second: run() closes first and counts second, so one of the two sees the other.
            active_.fetch_add(1, std::memory_order_seq_cst);
            if (open_.load(std::memory_order_seq_cst)) work(thread);
            active_.fetch_sub(1, std::memory_order_seq_cst);
        }
    }

    // No lock anywhere: a thread that the system stops would keep holding it.
    void wait_for_job(uint32_t seen) {
        const auto deadline = std::chrono::steady_clock::now() + kSpin;
        do {
            for (int i = 0; i < kPausesPerClockRead; ++i) {
                if (epoch_.load(std::memory_order_acquire) != seen) return;
                pause_cpu();
            }
        } while (std::chrono::steady_clock::now() < deadline);
        epoch_.wait(seen, std::memory_order_seq_cst);
    }

    void start() {
        epoch_.store(0);
        stopping_.store(false);
        try {
            for (int i = 1; i < size_; ++i) workers_.emplace_back([this, i] { worker(i); });
        } catch (const std::system_error&) {
            size_ = static_cast<int>(workers_.size()) + 1;  // the system grants no more threads; continue with these
        }
    }

    void stop() {
        if (workers_.empty()) return;
        stopping_.store(true);
        epoch_.fetch_add(1);
        epoch_.notify_all();
        for (std::thread& thread : workers_) thread.join();
        workers_.clear();
    }

    int size_ = 1;
    Binding binding_;
    std::vector<std::thread> workers_;
    Task task_ = nullptr;
    const void* context_ = nullptr;
    int64_t count_ = 0;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    std::atomic<bool> open_{false};
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<int> active_{0};
};

std::mutex call_mutex;

// Never destroyed at exit: a worker may outlive static destructors. Replaced in a forked child, which has no workers.
Pool* pool = nullptr;

Pool& the_pool() {
    if (pool == nullptr) {
        pool = new Pool();
        pthread_atfork([] { call_mutex.lock(); }, [] { call_mutex.unlock(); },
                       [] {
                           const int size = pool->size();
                           pool = new Pool();
                           pool->resize(size, {});
                           call_mutex.unlock();
                       });
    }
    return *pool;
}

}  // namespace

void parallel_run(int64_t count, Task task, const void* context) { the_pool().run(count, task, context); }

int num_threads() { return the_pool().size(); }

void set_num_threads(int count, const Binding& binding) { the_pool().resize(count, binding); }

CallLock::CallLock() { call_mutex.lock(); }

CallLock::~CallLock() { call_mutex.unlock(); }

}  // namespace glm4
