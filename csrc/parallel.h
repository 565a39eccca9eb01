// Thread pool: persistent workers that spin briefly between calls and then sleep; the caller participates.
//
// One call runs at a time: a caller of kernels holds a CallLock, so Python threads queue up instead of racing for the
// workers and the workspace. After fork() the child starts with a fresh pool whose workers are created on first use.
// Indices are handed out one by one: a thread that the system does not run leaves its share to the others, and delays
// them only by its current index. Tasks must not throw.
#pragma once

#include <cstdint>
#include <vector>

namespace glm4 {

// Runs one index of a job on thread `thread` (0 = the caller).
using Task = void (*)(const void* context, int64_t index, int thread);

// Runs task(context, i, thread) for every i in [0, count), in any order and on any thread; returns when all are done.
void parallel_run(int64_t count, Task task, const void* context);

// Threads in use, including the caller.
int num_threads();

// Processors that each worker is bound to; empty means none. The caller is never bound.
using Binding = std::vector<std::vector<int>>;

// Sets the number of threads, at least 1, and binds worker i, from 1 on, to binding[i - 1] if given and the system
// supports it. A forked child keeps the number and binds nothing: it has no processors to itself. The caller holds a
// CallLock.
void set_num_threads(int count, const Binding& binding);

// Serializes kernel calls from different Python threads, and guards the workspace.
class CallLock {
public:
    CallLock();
    ~CallLock();
    CallLock(const CallLock&) = delete;
    CallLock& operator=(const CallLock&) = delete;
};

// parallel_for(n, body): body(index, thread) for every index. A template per lambda, so that kernel files compiled for
// different instruction sets never share an instantiation.
template <class Body>
inline void parallel_for(int64_t count, const Body& body) {
    if (count == 1) {
        body(0, 0);
        return;
    }
    parallel_run(
        count, [](const void* context, int64_t index, int thread) { (*static_cast<const Body*>(context))(index, thread); },
        &body);
}

}  // namespace glm4
