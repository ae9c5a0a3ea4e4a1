// Tensor maps: what cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col check and encode, and the walk over memory that
// one TMA instruction makes (CUDA Driver API, "Tensor Map Object Managment"; PTX ISA, "Tensors").
//
// Dimensions are innermost first, as in the driver's API: (C, W, H, N) of an NHWC tensor.
//
// Tiled: the box starts at the coordinates; element i of dimension d lies at coordinate + i * element_stride, and
// ceil(box / element_stride) of them are copied.
// Im2col: `pixels` pixels starting at the coordinates, W fastest, then H (then D), then N. In each spatial dimension
// pixels run from the lower corner to size - 1 + upper corner in steps of the element stride; the instruction's offsets
// are added to each pixel. What lies outside the tensor reads as the fill. The driver's header orders corners {D, H,
// W}, CUTLASS passes W first; here W is first. Not verified on hardware.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "emulator/swizzle.h"

namespace fastres::emulator {

// Numbered as CUtensorMapDataType.
enum class TensorType : uint8_t {
  kU8,
  kU16,
  kU32,
  kS32,
  kU64,
  kS64,
  kF16,
  kF32,
  kF64,
  kBF16,
  kF32Ftz,
  kTF32,
  kTF32Ftz
};
uint32_t bytes_of(TensorType type);

constexpr int kMaxRank = 5;

struct TensorMap {
  static constexpr uint32_t kMagic = 0x70616d74;
  uint32_t magic = kMagic;
  uint8_t rank = 0;
  TensorType type = TensorType::kU8;
  Swizzle swizzle = Swizzle::kNone;
  bool im2col = false;
  bool fill_nan = false;
  std::array<uint8_t, kMaxRank> element_strides{};
  std::array<uint16_t, kMaxRank> box{};  // tiled; im2col: channels per pixel, pixels per column
  std::array<int16_t, 3> lower{}, upper{};
  uint64_t address = 0;
  std::array<uint32_t, kMaxRank> last{};         // size - 1
  std::array<uint64_t, kMaxRank - 1> strides{};  // bytes, of dimensions 1 and up
};
static_assert(sizeof(TensorMap) <= 128, "a CUtensorMap is 128 bytes");

// What both encoders take. Sizes, strides and element strides are (rank), (rank - 1) and (rank).
struct TensorShape {
  TensorType type;
  uint64_t address;
  std::vector<uint64_t> sizes, strides;
  std::vector<uint32_t> element_strides;
  Swizzle swizzle = Swizzle::kNone;
  bool fill_nan = false;
};

// Throw std::invalid_argument, naming the argument, its value and what the driver expects, where it would
// return CUDA_ERROR_INVALID_VALUE.
TensorMap encode_tiled(const TensorShape& shape, const std::vector<uint32_t>& box);
TensorMap encode_im2col(const TensorShape& shape, const std::vector<int>& lower, const std::vector<int>& upper,
                        uint32_t channels, uint32_t pixels);

// Bytes of the whole box, padding and what is out of bounds included: what complete_tx counts.
uint32_t box_bytes(const TensorMap& map);
// Bytes from one row of the box to the next in shared memory: a swizzled row fills its span.
uint32_t row_pitch(const TensorMap& map);

// One innermost row of a box: `bytes` in shared memory at `shared_offset` (swizzle applies to the final address), of
// which [first, end) come from global memory at `global` + first .. and the rest is fill.
struct BoxRow {
  uint64_t global;
  uint32_t shared_offset, bytes, first, end;
};

// Calls body for every row of the box, in shared-memory order. `offsets` are the im2col offsets (rank - 2), empty when
// tiled.
void for_each_row(const TensorMap& map, const std::array<int32_t, kMaxRank>& coordinates,
                  const std::array<uint16_t, 3>& offsets, const std::function<void(const BoxRow&)>& body);

// The fill element, in the low bytes: 0, or the NaN of the type.
uint64_t fill_element(const TensorMap& map);

}  // namespace fastres::emulator
