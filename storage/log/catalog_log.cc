#include "storage/log/catalog_log.h"

#include <sys/stat.h>

#include <cstring>
#include <vector>

#include "base/check.h"
#include "storage/bytes/byte_io.h"
#include "storage/bytes/checksum.h"
#include "storage/checkpoint_record.h"

namespace baton::storage {
namespace {

constexpr std::string_view kLogMagic = "BATONLOG";
constexpr std::uint32_t kLogVersion = 2;  // 1: without marks and policies
constexpr std::uint32_t kEntryMagic = 0x52544E45;  // "ENTR"
constexpr std::size_t kLogHeadBytes = 32;
constexpr std::size_t kEntryHeadBytes = 64;
constexpr std::uint8_t kPagesSynced = 1;
constexpr std::uint8_t kPayloadSealed = 2;

std::string make_log_head(std::uint32_t version = kLogVersion) {
  std::string head(kLogMagic);
  put_int(head, version);
  head.resize(kLogHeadBytes - 8);
  put_int<std::uint64_t>(head, checksum(head));
  return head;
}

std::string make_entry_head(const LogEntry& entry, std::string_view payload) {
  std::string head;
  put_int(head, kEntryMagic);
  put_int(head, static_cast<std::uint8_t>(entry.type));
  put_int(head, static_cast<std::uint8_t>((entry.pages_synced ? kPagesSynced : 0) | (entry.sealed ? kPayloadSealed : 0)));
  put_int<std::uint16_t>(head, 0);
  put_int<std::uint64_t>(head, payload.size());
  put_int(head, entry.value);
  put_int(head, entry.commit_wall_ns);
  put_int(head, entry.changed_pages);
  put_int(head, entry.parent_seq);
  put_int<std::uint64_t>(head, checksum(payload));
  put_int<std::uint64_t>(head, checksum(head));
  CHECK(head.size() == kEntryHeadBytes);
  return head;
}

bool parse_entry_head(std::string_view bytes, LogEntry& entry, std::uint64_t& payload_bytes,
                      std::uint64_t& payload_sum) {
  ByteReader in(as_bytes_of(bytes));
  std::uint32_t magic;
  std::uint8_t type, flags;
  std::uint16_t reserved;
  std::uint64_t head_sum;
  if (!in.read_int(magic) || magic != kEntryMagic || !in.read_int(type) || !in.read_int(flags) ||
      !in.read_int(reserved) || !in.read_int(payload_bytes) || !in.read_int(entry.value) ||
      !in.read_int(entry.commit_wall_ns) || !in.read_int(entry.changed_pages) ||
      !in.read_int(entry.parent_seq) || !in.read_int(payload_sum) || !in.read_int(head_sum)) {
    return false;
  }
  entry.type = static_cast<EntryType>(type);
  entry.pages_synced = flags & kPagesSynced;
  entry.sealed = flags & kPayloadSealed;
  return checksum(bytes.substr(0, kEntryHeadBytes - 8)) == head_sum && type >= 1 && type <= 6 &&
         payload_bytes <= kMaxRecordBytes;
}

std::span<std::byte> bytes_of(std::string& text) {
  return std::as_writable_bytes(std::span(text.data(), text.size()));
}

}  // namespace

Result<std::shared_ptr<CatalogLog>> CatalogLog::create(const std::string& path, Disk& disk) {
  BATON_ASSIGN(Fd fd, disk.create(path));
  auto log = std::shared_ptr<CatalogLog>(new CatalogLog(path, std::move(fd), disk));
  const std::string head = make_log_head();
  const std::string_view part = head;
  if (auto written = log->write(std::span(&part, 1)); !written) {
    (void)disk.unlink(path);
    return written.error();
  }
  return log;
}

Result<std::shared_ptr<CatalogLog>> CatalogLog::open(const std::string& path, Disk& disk,
                                                     const Visit& visit, std::uint64_t& damaged) {
  BATON_ASSIGN(Fd fd, disk.open(path));
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return errno_error("fstat", path);
  const auto size = static_cast<std::uint64_t>(st.st_size);
  auto log = std::shared_ptr<CatalogLog>(new CatalogLog(path, std::move(fd), disk));
  std::string head(kLogHeadBytes, '\0');
  if (size < kLogHeadBytes) {
    return make_error(Code::kCorrupt, "open catalog log", path + ": its head is not whole");
  }
  BATON_TRY(pread_exact(log->fd_.get(), bytes_of(head), 0));
  std::uint32_t version;
  std::memcpy(&version, head.data() + kLogMagic.size(), sizeof version);
  if (version == 0 || head != make_log_head(version)) {
    return make_error(Code::kCorrupt, "open catalog log", path + ": its head is damaged");
  }
  if (version > kLogVersion) {
    return make_error(Code::kUnsupported, "open catalog log",
                      path + ": format version " + std::to_string(version) + ", this program knows up to " +
                          std::to_string(kLogVersion),
                      "Use the version of Baton that wrote it, or a newer one.");
  }
  if (version != kLogVersion) log->outdated_ = true;

  std::uint64_t at = kLogHeadBytes, good_end = kLogHeadBytes, skipped = 0;
  std::string payload;
  while (size - at >= kEntryHeadBytes) {
    head.resize(kEntryHeadBytes);
    BATON_TRY(pread_exact(log->fd_.get(), bytes_of(head), static_cast<off_t>(at)));
    LogEntry entry;
    std::uint64_t payload_bytes, payload_sum;
    if (!parse_entry_head(head, entry, payload_bytes, payload_sum)) {
      ++at;  // looks for the next head: rare, and each step costs one small read
      if (at == good_end + 1) ++skipped;
      // Skips quickly to the next candidate.
      std::string window(std::min<std::uint64_t>(size - at, 1u << 20), '\0');
      BATON_TRY(pread_exact(log->fd_.get(), bytes_of(window), static_cast<off_t>(at)));
      std::string_view magic(reinterpret_cast<const char*>(&kEntryMagic), 4);
      std::size_t hit = window.find(magic);
      if (hit != std::string::npos) {
        at += hit;
      } else if (window.size() == size - at) {
        break;
      } else {
        at += window.size() - 3;
      }
      continue;
    }
    const std::uint64_t payload_at = at + kEntryHeadBytes;
    if (payload_bytes > size - payload_at) break;  // torn
    payload.resize(payload_bytes);
    BATON_TRY(pread_exact(log->fd_.get(), bytes_of(payload), static_cast<off_t>(payload_at)));
    at = payload_at + payload_bytes;
    if (checksum(payload) != payload_sum) {
      ++skipped;
      continue;
    }
    damaged += std::exchange(skipped, 0);
    visit(entry, as_bytes_of(payload), payload_at);
    ++log->entries_;
    good_end = at;
  }
  if (good_end < size && !disk.truncate(log->fd_.get(), good_end)) log->broken_ = true;
  log->end_ = good_end;
  log->dirty_ = true;
  return log;
}

Result<std::uint64_t> CatalogLog::write(std::span<const std::string_view> parts) {
  if (broken_) {
    return make_error(Code::kFailed, "append to catalog log", path_ + ": the file is not trusted");
  }
  std::vector<iovec> vec;
  std::uint64_t bytes = 0;
  for (std::string_view part : parts) {
    vec.push_back({const_cast<char*>(part.data()), part.size()});
    bytes += part.size();
  }
  const std::uint64_t at = end_.load();
  auto written = disk_.write_at(fd_.get(), vec, at);
  dirty_ = true;
  if (!written) {
    if (!disk_.truncate(fd_.get(), at)) broken_ = true;
    Error error = written.error();
    error.subject = path_;
    if (error.code == Code::kNoSpace) error.hint = "Free space on the disk, or lower the budget.";
    return error;
  }
  end_ = at + bytes;
  return at;
}

Result<std::uint64_t> CatalogLog::append(const LogEntry& entry, std::string_view payload) {
  const std::string head = make_entry_head(entry, payload);
  const std::string_view parts[] = {head, payload};
  BATON_ASSIGN(std::uint64_t at, write(parts));
  ++entries_;
  return at + kEntryHeadBytes;
}

Result<std::uint64_t> CatalogLog::append_raw(std::string_view entries, std::uint64_t count) {
  BATON_ASSIGN(std::uint64_t at, write(std::span(&entries, 1)));
  entries_ += count;
  return at;
}

Result<void> CatalogLog::sync() {
  if (!dirty_.exchange(false)) return {};
  if (auto synced = disk_.sync(fd_.get()); !synced) {
    broken_ = true;  // what the kernel could not write it may forget (fsync(2), NOTES)
    Error error = synced.error();
    error.subject = path_;
    return error;
  }
  return {};
}

Result<std::string> CatalogLog::read(std::uint64_t at, std::uint64_t bytes) const {
  std::string out(bytes, '\0');
  BATON_TRY(pread_exact(fd_.get(), bytes_of(out), static_cast<off_t>(at)));
  return out;
}

}  // namespace baton::storage
