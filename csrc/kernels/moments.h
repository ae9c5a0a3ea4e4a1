// The statistics of some values, mergeable: what a BatchNorm in training is made of.
#pragma once

namespace fastres {
namespace {

// Count, mean and sum of squared deviations from the mean (Chan, Golub and LeVeque, "Updating formulae and a pairwise
// algorithm for computing sample variances", 1979).
struct Moments {
  float count = 0.f, mean = 0.f, m2 = 0.f;

  __device__ void merge(const Moments& other) {
    if (other.count == 0.f) return;
    const float total = count + other.count, delta = other.mean - mean;
    const float part = __fdividef(other.count, total);  // exact enough: an exact one calls a subroutine and spills
    mean += delta * part;
    m2 += other.m2 + delta * delta * (count * part);
    count = total;
  }
};

}  // namespace
}  // namespace fastres
