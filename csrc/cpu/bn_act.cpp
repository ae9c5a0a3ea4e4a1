#include "bn_act.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "rows.h"

namespace fastres::cpu {

namespace {

constexpr int64_t kWide = 256;        // columns that a row should have, for loops over columns to be worth it
constexpr int64_t kSlab = 64 * 1024;  // elements of a slab, which fits in a core's second-level cache
constexpr int64_t kFewRows = 64;      // of a slab; fewer, and merging slabs would count

// An activation as slabs of wide rows. Rows of few channels are taken several as one, vectors repeated; what is left at
// the end, less than one wide row, is a slab of its own.
struct Slabs {
  int64_t repeat, width, wide_rows, rows_each, full, rest;

  Slabs(int64_t rows, int64_t channels) {
    repeat = std::clamp<int64_t>((kWide + channels - 1) / channels, 1, rows);
    width = repeat * channels;
    wide_rows = rows / repeat;
    rest = rows % repeat * channels;
    rows_each = std::max(kSlab / width, kFewRows);
    full = (wide_rows + rows_each - 1) / rows_each;
    rows_each = (wide_rows + full - 1) / full;  // all alike
    full = (wide_rows + rows_each - 1) / rows_each;
  }

  int64_t count() const { return full + (rest > 0); }
  int64_t first(int64_t slab) const { return std::min(slab * rows_each, wide_rows) * width; }
  int64_t rows(int64_t slab) const { return slab == full ? 1 : std::min(rows_each, wide_rows - slab * rows_each); }
  int64_t columns(int64_t slab) const { return slab == full ? rest : width; }
};

// Vectors as long as a wide row.
template <class T>
class Repeated {
 public:
  Repeated(const Slabs& slabs, int64_t channels) : repeat_(slabs.repeat), channels_(channels) {}

  const T* operator()(const T* vector) {
    if (!vector || repeat_ == 1) return vector;
    std::vector<T>& copy = copies_[used_++];
    copy.reserve(repeat_ * channels_);
    for (int64_t i = 0; i < repeat_; ++i) copy.insert(copy.end(), vector, vector + channels_);
    return copy.data();
  }

 private:
  int64_t repeat_, channels_;
  std::vector<T> copies_[8];
  int used_ = 0;
};

// Chan, Golub and LeVeque's formula (1979) over all slabs at once: means first, then deviations from the common one.
template <class T>
void merge_moments(const Slabs& slabs, int64_t rows, int64_t channels, const T* partial, T* result) {
  std::vector<double> sum(channels), m2(channels);
  const auto each = [&](auto&& visit) {
    for (int64_t slab = 0; slab < slabs.count(); ++slab) {
      const T* of = partial + slab * kSums * slabs.width;
      const int64_t columns = slabs.columns(slab);
      const double n = static_cast<double>(slabs.rows(slab));
      for (int64_t start = 0; start < columns; start += channels) {
        for (int64_t c = 0; c < channels; ++c) {
          const T* column = of + start + c;
          const double near = column[0];
          visit(c, n, near, std::isfinite(near) ? column[columns] / n : 0.0, static_cast<double>(column[2 * columns]));
        }
      }
    }
  };
  each([&](int64_t c, double n, double near, double correction, double) { sum[c] += n * (near + correction); });
  const double all = static_cast<double>(rows);
  each([&](int64_t c, double n, double near, double correction, double squares) {
    const double deviation = near + correction - sum[c] / all;
    m2[c] += squares - n * correction * correction + n * deviation * deviation;
  });
  for (int64_t c = 0; c < channels; ++c) {
    result[3 * c] = static_cast<T>(all);
    result[3 * c + 1] = static_cast<T>(sum[c] / all);
    result[3 * c + 2] = static_cast<T>(m2[c] < 0 ? 0.0 : m2[c]);  // NaN stays
  }
}

template <class T>
void merge_sums(const Slabs& slabs, int64_t channels, const T* partial, T* result) {
  std::vector<double> sums(2 * channels);
  for (int64_t slab = 0; slab < slabs.count(); ++slab) {
    const T* of = partial + slab * kSums * slabs.width;
    const int64_t columns = slabs.columns(slab);
    for (int64_t start = 0; start < columns; start += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        sums[c] += of[start + c];
        sums[channels + c] += of[columns + start + c];
      }
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    result[2 * c] = static_cast<T>(sums[c]);
    result[2 * c + 1] = static_cast<T>(sums[channels + c]);
  }
}

}  // namespace

template <class T>
void bn_act(Pass pass, const BnAct<T>& of) {
  const Slabs slabs(of.rows, of.channels);
  const RowKernels<T>& kernels = best<T>().rows;
  const bool reduces = pass == Pass::kStatistics || pass == Pass::kSums;

  std::vector<T> slope, offset, partial;
  if (pass == Pass::kBackward) {
    slope.resize(of.channels), offset.resize(of.channels);
    for (int64_t c = 0; c < of.channels; ++c) {
      const double scale = of.gradient_scale[c], invstd = of.invstd[c];
      slope[c] = static_cast<T>(of.sums[2 * c + 1] * scale * invstd * invstd / -of.values);
      offset[c] = static_cast<T>(of.sums[2 * c] * scale / -of.values);
    }
  }
  if (reduces) partial.resize(slabs.count() * kSums * slabs.width);

  Repeated<T> repeated(slabs, of.channels);
  Rows<T> all;
  all.scale = repeated(of.scale), all.shift = repeated(of.shift);
  all.scale2 = repeated(of.scale2), all.shift2 = repeated(of.shift2);
  all.factor = repeated(of.gradient_scale), all.mean = repeated(of.mean);
  if (pass == Pass::kBackward) all.slope = repeated(slope.data()), all.offset = repeated(offset.data());
  all.relu = of.relu;

  parallel(slabs.count(), of.threads, [&](int64_t slab) {
    Rows<T> rows = all;
    const int64_t at = slabs.first(slab);
    const auto from = [at](auto* pointer) { return pointer ? pointer + at : nullptr; };
    rows.rows = slabs.rows(slab), rows.width = slabs.columns(slab);
    rows.y = from(of.y), rows.shortcut = from(of.shortcut), rows.gradient = from(of.gradient);
    rows.out = from(of.out), rows.masked = from(of.masked);
    if (reduces) rows.sums = partial.data() + slab * kSums * slabs.width;
    switch (pass) {
      case Pass::kApply:
        return kernels.apply(rows);
      case Pass::kStatistics:
        return kernels.moments(rows);
      case Pass::kSums:
        return kernels.sums(rows);
      case Pass::kBackward:
        return kernels.backward(rows);
    }
  });
  if (pass == Pass::kStatistics) merge_moments(slabs, of.rows, of.channels, partial.data(), of.result);
  if (pass == Pass::kSums) merge_sums(slabs, of.channels, partial.data(), of.result);
}

template <class T>
void bn_vectors(int64_t channels, const T* statistics, double values, const T* gamma, const T* beta, double eps,
                T* vectors) {
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = statistics[3 * c + 1], m2 = statistics[3 * c + 2];
    const T invstd = static_cast<T>(1 / std::sqrt(m2 / values + eps));
    const T scale = gamma ? gamma[c] * invstd : invstd;
    vectors[c] = static_cast<T>(mean);
    vectors[channels + c] = invstd;
    vectors[2 * channels + c] = scale;
    vectors[3 * channels + c] = static_cast<T>((beta ? beta[c] : 0) - mean * scale);
  }
}

template <class T>
void bn_track(int64_t channels, const T* statistics, double weight, T* mean, T* var) {
  for (int64_t c = 0; c < channels; ++c) {
    const double count = statistics[3 * c], of_batch = statistics[3 * c + 2] / (count - 1);
    mean[c] = static_cast<T>(mean[c] + weight * (static_cast<double>(statistics[3 * c + 1]) - mean[c]));
    var[c] = static_cast<T>(var[c] + weight * (of_batch - var[c]));
  }
}

template void bn_act(Pass, const BnAct<float>&);
template void bn_act(Pass, const BnAct<double>&);

template void bn_vectors(int64_t, const float*, double, const float*, const float*, double, float*);
template void bn_vectors(int64_t, const double*, double, const double*, const double*, double, double*);
template void bn_track(int64_t, const float*, double, float*, float*);
template void bn_track(int64_t, const double*, double, double*, double*);

}  // namespace fastres::cpu
