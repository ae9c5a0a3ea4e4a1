// Tasks over the threads that PyTorch has started already.
#pragma once

#include <cstdint>

namespace fastres::cpu {

// task(context, i) for every i in [0, tasks), each once and in no order, on up to `threads` threads.
void parallel(int64_t tasks, int threads, void (*task)(const void*, int64_t), const void* context);

// The same of a callable, which must not throw.
template <class Task>
void parallel(int64_t tasks, int threads, const Task& task) {
  parallel(tasks, threads, [](const void* of, int64_t i) { (*static_cast<const Task*>(of))(i); }, &task);
}

}  // namespace fastres::cpu
