// The thread pool alone: what a stalled worker may hold up, and that nothing is lost or done twice. test_parallel.py
// compiles this with csrc/parallel.cpp, plain and under ThreadSanitizer. No clock: a failure hangs or exits with 1.
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "parallel.h"

using namespace glm4;

namespace {

constexpr int kThreads = 3;

void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::_Exit(1);
}

// Runs a job that every thread of the pool takes part in, and returns what each reports about itself.
template <class T, class Report>
std::vector<T> everybody(const Report& report) {
    std::vector<T> reports(kThreads);
    std::atomic<int> inside{0};
    parallel_for(kThreads, [&](int64_t, int thread) {
        reports[static_cast<size_t>(thread)] = report();
        inside.fetch_add(1);
        while (inside.load() < kThreads) std::this_thread::yield();
    });
    return reports;
}

// A worker stuck in one index: all others are done without it.
void a_stuck_worker_keeps_one_index() {
    constexpr int64_t kCount = 500;
    std::atomic<int64_t> done{0};
    std::atomic<int> stuck{0};
    parallel_for(kCount, [&](int64_t, int thread) {
        if (thread == 0) {
            while (stuck.load() < kThreads - 1) std::this_thread::yield();  // both workers hold one index each
        } else if (stuck.fetch_add(1) < kThreads - 1) {
            while (done.load() < kCount - (kThreads - 1)) std::this_thread::yield();
        }
        done.fetch_add(1);
    });
    require(done.load() == kCount, "every index ran");
}

sem_t stopped, resume;

void stop_here(int) {
    sem_post(&stopped);
    while (sem_wait(&resume) != 0) {}
}

bool sleeps(pid_t thread) {
    std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
    std::string line;
    std::getline(file, line);
    return line.at(line.rfind(')') + 2) == 'S';
}

// Workers that the system does not run at all: jobs are done by the caller alone.
void sleeping_workers_delay_nobody() {
    struct Ids {
        pthread_t handle;
        pid_t number;
    };
    const auto ids = everybody<Ids>([] { return Ids{pthread_self(), static_cast<pid_t>(syscall(SYS_gettid))}; });
    sem_init(&stopped, 0, 0);
    sem_init(&resume, 0, 0);
    struct sigaction action = {};
    action.sa_handler = stop_here;
    sigaction(SIGUSR1, &action, nullptr);
    for (size_t i = 1; i < ids.size(); ++i) {
        while (!sleeps(ids[i].number)) std::this_thread::yield();
        pthread_kill(ids[i].handle, SIGUSR1);
        while (sem_wait(&stopped) != 0) {}
    }
    int64_t sum = 0;  // not atomic: only this thread may touch it
    for (int job = 0; job < 100; ++job) {
        parallel_for(50, [&](int64_t index, int thread) {
            require(thread == 0, "only the caller runs");
            sum += index;
        });
    }
    require(sum == 100 * 49 * 50 / 2, "the caller ran every index");
    for (size_t i = 1; i < ids.size(); ++i) sem_post(&resume);
    everybody<int>([] { return 0; });  // they are back
}

void jobs_neither_lose_nor_repeat_an_index() {
    for (int round = 0; round < 60; ++round) {
        set_num_threads(1 + round % 5, {});
        for (int64_t count = 0; count < 40; ++count) {
            std::vector<int> times(static_cast<size_t>(count));  // not atomic: an index belongs to one thread
            parallel_for(count, [&](int64_t index, int) { ++times[static_cast<size_t>(index)]; });
            for (const int n : times) require(n == 1, "each index ran once");
        }
    }
    set_num_threads(kThreads, {});
}

void several_callers_take_turns() {
    std::vector<std::thread> callers;
    std::vector<int64_t> sums(4);
    for (size_t c = 0; c < sums.size(); ++c) {
        callers.emplace_back([&, c] {
            for (int job = 0; job < 200; ++job) {
                CallLock lock;
                std::vector<int64_t> parts(64);
                parallel_for(64, [&](int64_t index, int) { parts[static_cast<size_t>(index)] = index; });
                for (const int64_t part : parts) sums[c] += part;
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    for (const int64_t sum : sums) require(sum == 200 * 63 * 64 / 2, "callers do not mix");
}

}  // namespace

int main() {
    set_num_threads(kThreads, {});
    sleeping_workers_delay_nobody();
    a_stuck_worker_keeps_one_index();
    jobs_neither_lose_nor_repeat_an_index();
    several_callers_take_turns();
    std::puts("ok");
    return 0;
}
