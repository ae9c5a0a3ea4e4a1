#include "max_pool.h"

#include <algorithm>

#include "parallel.h"
#include "rows.h"

namespace fastres::cpu {

template <class T>
void max_pool(const MaxPool<T>& of) {
  constexpr int64_t kBand = 64 * 1024;  // elements of y
  const PoolKernel<T> rows = best<T>().pool;
  const int64_t height = of.gradient ? of.h : of.p, each = of.gradient ? 1 : of.stride * of.stride;
  const int64_t row = (of.gradient ? of.w : of.q) * of.channels * each;
  const int64_t band = std::clamp<int64_t>(kBand / row, std::min(2 * of.kernel, height), height);
  const int64_t bands = (height + band - 1) / band;
  parallel(of.n * bands, of.threads, [&](int64_t task) {
    const int64_t first = task % bands * band;
    rows(of, task / bands, first, std::min(first + band, height));
  });
}

template void max_pool(const MaxPool<float>&);
template void max_pool(const MaxPool<double>&);

}  // namespace fastres::cpu
