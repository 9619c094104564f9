#include "agent/warden/wire.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <string>

namespace baton::warden {
namespace {

constexpr char kInline = 1;
constexpr char kInFile = 2;
constexpr std::size_t kPacketMax = kInlineMax + 1;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

Error corrupt(std::string what) { return make_error(Code::kCorrupt, "warden message", std::move(what)); }

}  // namespace

Result<void> send_message(UnixSocket& socket, const google::protobuf::MessageLite& message,
                          std::span<const int> fds) {
  std::size_t size = message.ByteSizeLong();
  if (size > kMessageMax) {
    return make_error(Code::kNoSpace, "warden message",
                      std::to_string(size) + " bytes, the limit is " + std::to_string(kMessageMax));
  }
  std::string packet;
  if (size <= kInlineMax) {
    packet.reserve(size + 1);
    packet.push_back(kInline);
    if (!message.AppendToString(&packet)) return corrupt("cannot be serialised");
    return socket.send(bytes_of(packet), fds);
  }
  Fd file = Fd::adopt(::memfd_create("baton-message", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file) return errno_error("memfd_create", "baton-message");
  std::string payload;
  if (!message.SerializeToString(&payload)) return corrupt("cannot be serialised");
  BATON_TRY(write_all(file.get(), bytes_of(payload)));
  packet.push_back(kInFile);
  for (int i = 0; i < 8; ++i) packet.push_back(static_cast<char>(static_cast<std::uint64_t>(size) >> (8 * i)));
  std::vector<int> all{file.get()};
  all.insert(all.end(), fds.begin(), fds.end());
  return socket.send(bytes_of(packet), all);
}

Result<bool> receive_message(UnixSocket& socket, google::protobuf::MessageLite& message,
                             std::vector<Fd>& fds) {
  BATON_ASSIGN(auto received, socket.receive(kPacketMax));
  if (!received) return false;
  const std::string& packet = received->bytes;
  fds = std::move(received->fds);
  if (packet[0] == kInline) {
    if (!message.ParseFromArray(packet.data() + 1, static_cast<int>(packet.size() - 1))) {
      return corrupt("not a valid protobuf");
    }
    return true;
  }
  if (packet[0] != kInFile || packet.size() != 9 || fds.empty()) return corrupt("unknown framing");
  std::uint64_t size_untrusted = 0;
  for (int i = 0; i < 8; ++i) {
    size_untrusted |= static_cast<std::uint64_t>(static_cast<unsigned char>(packet[1 + i])) << (8 * i);
  }
  // Only memory files: reading anything else could block for ever. Read, never mapped:
  // a sender that truncates it meanwhile gets an error, not a SIGBUS here.
  struct stat info{};
  if (::fcntl(fds[0].get(), F_GET_SEALS) < 0 || ::fstat(fds[0].get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return corrupt("the payload is not in a memory file");
  }
  if (size_untrusted > kMessageMax || static_cast<std::uint64_t>(info.st_size) < size_untrusted) {
    return corrupt("a payload of " + std::to_string(size_untrusted) + " bytes");
  }
  std::string payload(size_untrusted, '\0');
  BATON_TRY(pread_exact(fds[0].get(), std::as_writable_bytes(std::span(payload.data(), payload.size())), 0));
  fds.erase(fds.begin());
  if (!message.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
    return corrupt("not a valid protobuf");
  }
  return true;
}

}  // namespace baton::warden
