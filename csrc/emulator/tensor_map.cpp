#include "emulator/tensor_map.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace fastres::emulator {
namespace {

template <class Value>
void require(bool ok, const std::string& name, Value value, const std::string& expected) {
  if (ok) return;
  std::ostringstream text;
  text << name << " is " << value << ", expected " << expected;
  throw std::invalid_argument(text.str());
}

std::string item(const char* name, size_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

TensorMap encode_shape(const TensorShape& shape) {
  const size_t rank = shape.sizes.size();
  require(rank >= 1 && rank <= kMaxRank, "rank", rank, "1 to 5");
  require(shape.strides.size() == rank - 1, "len(strides)", shape.strides.size(), "rank - 1");
  require(shape.element_strides.size() == rank, "len(element_strides)", shape.element_strides.size(), "rank");
  require(shape.address % 16 == 0, "address", shape.address, "a multiple of 16 bytes");
  TensorMap map;
  map.rank = static_cast<uint8_t>(rank);
  map.type = shape.type;
  map.swizzle = shape.swizzle;
  map.fill_nan = shape.fill_nan;
  map.address = shape.address;
  const bool floating = shape.type >= TensorType::kF16;
  require(!shape.fill_nan || floating, "fill", "nan", "zero for an integer type");
  for (size_t i = 0; i < rank; ++i) {
    require(shape.sizes[i] >= 1 && shape.sizes[i] <= 1ull << 32, item("size", i), shape.sizes[i], "1 to 2^32");
    map.last[i] = static_cast<uint32_t>(shape.sizes[i] - 1);
    require(shape.element_strides[i] >= 1 && shape.element_strides[i] <= 8, item("element_stride", i),
            shape.element_strides[i], "1 to 8");
    map.element_strides[i] = static_cast<uint8_t>(shape.element_strides[i]);
  }
  require(shape.element_strides[0] == 1, "element_stride[0]", shape.element_strides[0],
          "1: TMA does not step the innermost dimension");
  for (size_t i = 0; i + 1 < rank; ++i) {
    require(shape.strides[i] % 16 == 0 && shape.strides[i] < 1ull << 40, item("stride", i), shape.strides[i],
            "a multiple of 16 bytes below 2^40");
    map.strides[i] = shape.strides[i];
  }
  return map;
}

void check_inner(const TensorMap& map) {
  const uint32_t bytes = map.box[0] * bytes_of(map.type);
  require(bytes % 16 == 0, "the box's inner extent in bytes", bytes, "a multiple of 16");
  if (map.swizzle != Swizzle::kNone) {
    require(bytes <= swizzle_span(map.swizzle), "the box's inner extent in bytes", bytes,
            "at most the swizzle's span, " + std::to_string(swizzle_span(map.swizzle)));
  }
}

uint32_t steps(const TensorMap& map, int d) {
  return (map.box[d] + map.element_strides[d] - 1) / map.element_strides[d];
}

// The row whose innermost element is at coordinates[0], all others fixed.
BoxRow row_at(const TensorMap& map, const std::array<int64_t, kMaxRank>& coordinates, uint32_t shared_offset) {
  const int64_t size = bytes_of(map.type), bytes = map.box[0] * size;
  bool inside = true;
  uint64_t global = map.address + static_cast<uint64_t>(coordinates[0] * size);
  for (int d = 1; d < map.rank; ++d) {
    inside &= coordinates[d] >= 0 && coordinates[d] <= map.last[d];
    global += static_cast<uint64_t>(coordinates[d]) * map.strides[d - 1];
  }
  const int64_t extent = (static_cast<int64_t>(map.last[0]) + 1) * size, start = coordinates[0] * size;
  const int64_t first = std::clamp<int64_t>(-start, 0, bytes), end = std::clamp<int64_t>(extent - start, first, bytes);
  return {global, shared_offset, static_cast<uint32_t>(bytes), static_cast<uint32_t>(inside ? first : 0),
          static_cast<uint32_t>(inside ? end : 0)};
}

void walk_tiled(const TensorMap& map, const std::array<int32_t, kMaxRank>& coordinates,
                const std::function<void(const BoxRow&)>& body) {
  std::array<uint32_t, kMaxRank> index{};
  for (uint32_t row = 0;; ++row) {
    std::array<int64_t, kMaxRank> at{};
    for (int d = 0; d < map.rank; ++d) {
      at[d] = coordinates[d] + static_cast<int64_t>(index[d]) * map.element_strides[d];
    }
    body(row_at(map, at, row * row_pitch(map)));
    int d = 1;
    while (d < map.rank && ++index[d] == steps(map, d)) index[d++] = 0;
    if (d >= map.rank) return;
  }
}

void walk_im2col(const TensorMap& map, const std::array<int32_t, kMaxRank>& coordinates,
                 const std::array<uint16_t, 3>& offsets, const std::function<void(const BoxRow&)>& body) {
  std::array<int64_t, kMaxRank> pixel{};
  std::copy(coordinates.begin(), coordinates.end(), pixel.begin());
  const int batch = map.rank - 1;
  for (uint32_t i = 0; i < map.box[1]; ++i) {
    std::array<int64_t, kMaxRank> at = pixel;
    for (int d = 1; d < batch; ++d) at[d] += offsets[d - 1];
    body(row_at(map, at, i * row_pitch(map)));
    int d = 1;
    for (; d < batch; ++d) {
      pixel[d] += map.element_strides[d];
      if (pixel[d] <= static_cast<int64_t>(map.last[d]) + map.upper[d - 1]) break;
      pixel[d] = map.lower[d - 1];
    }
    if (d == batch) pixel[batch] += map.element_strides[batch];
  }
}

}  // namespace

uint32_t bytes_of(TensorType type) {
  switch (type) {
    case TensorType::kU8:
      return 1;
    case TensorType::kU16:
    case TensorType::kF16:
    case TensorType::kBF16:
      return 2;
    case TensorType::kU64:
    case TensorType::kS64:
    case TensorType::kF64:
      return 8;
    default:
      return 4;
  }
}

TensorMap encode_tiled(const TensorShape& shape, const std::vector<uint32_t>& box) {
  TensorMap map = encode_shape(shape);
  require(box.size() == map.rank, "len(box)", box.size(), "rank");
  for (size_t i = 0; i < box.size(); ++i) {
    require(box[i] >= 1 && box[i] <= 256, item("box", i), box[i], "1 to 256");
    map.box[i] = static_cast<uint16_t>(box[i]);
  }
  check_inner(map);
  return map;
}

TensorMap encode_im2col(const TensorShape& shape, const std::vector<int>& lower, const std::vector<int>& upper,
                        uint32_t channels, uint32_t pixels) {
  TensorMap map = encode_shape(shape);
  map.im2col = true;
  require(map.rank >= 3, "rank", static_cast<int>(map.rank), "3 to 5 for im2col");
  const size_t spatial = map.rank - 2u;
  require(lower.size() == spatial, "len(lower)", lower.size(), "rank - 2");
  require(upper.size() == spatial, "len(upper)", upper.size(), "rank - 2");
  const int limit = 1 << (16 / static_cast<int>(spatial) - 1);
  const std::string range = std::to_string(-limit) + " to " + std::to_string(limit - 1);
  for (size_t i = 0; i < spatial; ++i) {
    require(lower[i] >= -limit && lower[i] < limit, item("lower", i), lower[i], range);
    require(upper[i] >= -limit && upper[i] < limit, item("upper", i), upper[i], range);
    const int64_t width = static_cast<int64_t>(map.last[i + 1]) + 1 + upper[i] - lower[i];
    require(width > 0, item("bounding box", i), width, "at least one pixel");
    map.lower[i] = static_cast<int16_t>(lower[i]);
    map.upper[i] = static_cast<int16_t>(upper[i]);
  }
  require(channels >= 1 && channels <= 256, "channels per pixel", channels, "1 to 256");
  require(pixels >= 1 && pixels <= 1024, "pixels per column", pixels, "1 to 1024");
  map.box[0] = static_cast<uint16_t>(channels);
  map.box[1] = static_cast<uint16_t>(pixels);
  check_inner(map);
  return map;
}

uint32_t box_bytes(const TensorMap& map) {
  uint32_t bytes = map.box[0] * bytes_of(map.type);
  if (map.im2col) return bytes * map.box[1];
  for (int d = 1; d < map.rank; ++d) bytes *= steps(map, d);
  return bytes;
}

uint32_t row_pitch(const TensorMap& map) {
  const uint32_t bytes = map.box[0] * bytes_of(map.type);
  return map.swizzle == Swizzle::kNone ? bytes : swizzle_span(map.swizzle);
}

void for_each_row(const TensorMap& map, const std::array<int32_t, kMaxRank>& coordinates,
                  const std::array<uint16_t, 3>& offsets, const std::function<void(const BoxRow&)>& body) {
  if (map.im2col) {
    walk_im2col(map, coordinates, offsets, body);
  } else {
    walk_tiled(map, coordinates, body);
  }
}

uint64_t fill_element(const TensorMap& map) {
  if (!map.fill_nan) return 0;
  switch (map.type) {
    case TensorType::kF16:
    case TensorType::kBF16:
      return 0x7fff;
    case TensorType::kF64:
      return 0x7fffffffffffffff;
    default:
      return 0x7fffffff;
  }
}

}  // namespace fastres::emulator
