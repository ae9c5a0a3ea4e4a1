// PyTorch's OpenMP threads spin for a while after each of its operators. Threads of our own would wait for a core
// behind them, so the same pool is used: its entry, which GNU's, LLVM's and Intel's OpenMP all have, is found by name
// in the process. Where there is none, threads are started for the call.
#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace fastres::cpu {

namespace {

using OpenMP = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct Queue {
  std::atomic<int64_t> next{0};
  int64_t tasks;
  void (*task)(const void*, int64_t);
  const void* context;
};

void work(void* of) {
  Queue& queue = *static_cast<Queue*>(of);
  for (int64_t i; (i = queue.next.fetch_add(1, std::memory_order_relaxed)) < queue.tasks;) queue.task(queue.context, i);
}

}  // namespace

void parallel(int64_t tasks, int threads, void (*task)(const void*, int64_t), const void* context) {
  Queue queue;
  queue.tasks = tasks, queue.task = task, queue.context = context;
  threads = static_cast<int>(std::min<int64_t>(threads, tasks));
  if (threads <= 1) return work(&queue);
  static const auto openmp = reinterpret_cast<OpenMP>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (openmp) return openmp(work, &queue, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, &queue);
  work(&queue);
  for (std::thread& other : others) other.join();
}

}  // namespace fastres::cpu
