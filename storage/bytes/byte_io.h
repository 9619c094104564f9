// Little-endian writing to, and bounded reading from, byte strings.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace baton::storage {

static_assert(std::endian::native == std::endian::little, "byte_io copies integers as they are");

template <typename T>
void put_int(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

inline void put_raw(std::string& out, std::span<const std::byte> bytes) {
  out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// LEB128: seven bits a byte, lowest first.
inline void put_varint(std::string& out, std::uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

inline std::span<const std::byte> as_bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Every read says whether the bytes were there; after a false, stop.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  std::size_t left() const { return rest_.size(); }

  template <typename T>
  bool read_int(T& out) {
    if (rest_.size() < sizeof out) return false;
    std::memcpy(&out, rest_.data(), sizeof out);
    rest_ = rest_.subspan(sizeof out);
    return true;
  }
  bool read_raw(std::span<std::byte> out) {
    if (rest_.size() < out.size()) return false;
    std::memcpy(out.data(), rest_.data(), out.size());
    rest_ = rest_.subspan(out.size());
    return true;
  }
  bool read_view(std::size_t bytes, std::span<const std::byte>& out) {
    if (rest_.size() < bytes) return false;
    out = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return true;
  }
  // Refuses encodings longer than needed, so that equal values have equal bytes.
  bool read_varint(std::uint64_t& out) {
    out = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      std::uint8_t byte;
      if (!read_int(byte)) return false;
      if (shift == 63 && byte > 1) return false;
      out |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return byte != 0 || shift == 0;
    }
    return false;
  }

 private:
  std::span<const std::byte> rest_;
};

}  // namespace baton::storage
