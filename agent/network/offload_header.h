// What a packet socket with PACKET_VNET_HDR puts before each frame, and wants before it: which
// work on the frame is still to be done by whoever sends it on (struct virtio_net_hdr of
// linux/virtio_net.h, which is no C++).
#pragma once

#include <cstdint>

namespace baton::network {

struct OffloadHeader {
  std::uint8_t flags = 0;
  std::uint8_t segmentation = 0;
  std::uint16_t header_bytes = 0, segment_bytes = 0, checksum_start = 0, checksum_offset = 0;
};
static_assert(sizeof(OffloadHeader) == 10);
inline constexpr std::uint8_t kNeedsChecksum = 1;   // VIRTIO_NET_HDR_F_NEEDS_CSUM

}  // namespace baton::network
