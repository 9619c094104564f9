#include "agent/warden/record.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include <boost/crc.hpp>

#include "base/fd.h"
#include "base/log.h"

namespace baton::warden {
namespace {

constexpr std::string_view kMagic = "BATONWR1";
constexpr std::size_t kHeader = 16;
constexpr std::size_t kRecordMax = 16u << 20;
constexpr std::string_view kSuffix = ".workload";

std::uint32_t checksum(std::string_view bytes) {
  boost::crc_32_type crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}

void append_u32(std::string& out, std::uint32_t value) {
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

std::uint32_t read_u32(std::string_view in, std::size_t at) {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    value |= static_cast<std::uint32_t>(static_cast<unsigned char>(in[at + static_cast<std::size_t>(i)])) << (8 * i);
  }
  return value;
}

}  // namespace

Result<void> check_name(const std::string& name_untrusted) {
  auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  bool fine = !name_untrusted.empty() && name_untrusted.size() <= 63 && plain(name_untrusted[0]);
  for (char c : name_untrusted) fine = fine && (plain(c) || c == '-');
  if (fine) return {};
  return make_error(Code::kInvalid, "workload", "a name has 1 to 63 of a-z, 0-9 and '-', and begins with no '-'");
}

std::string encode_record(const pb::WardenRecord& record) {
  std::string body = record.SerializeAsString();
  std::string out(kMagic);
  append_u32(out, static_cast<std::uint32_t>(body.size()));
  append_u32(out, checksum(body));
  return out + body;
}

Result<pb::WardenRecord> decode_record(std::string_view bytes_untrusted) {
  auto bad = [](const char* why) { return make_error(Code::kCorrupt, "workload record", why); };
  if (bytes_untrusted.size() < kHeader || bytes_untrusted.substr(0, 8) != kMagic) return bad("no such header");
  std::string_view body = bytes_untrusted.substr(kHeader);
  if (read_u32(bytes_untrusted, 8) != body.size()) return bad("cut short or too long");
  if (read_u32(bytes_untrusted, 12) != checksum(body)) return bad("its checksum is wrong");
  pb::WardenRecord record;
  if (!record.ParseFromArray(body.data(), static_cast<int>(body.size()))) return bad("not a valid record");
  if (record.version() != 1) return bad("of another version");
  if (!check_name(record.workload())) return bad("names no workload");
  return record;
}

Result<RecordStore> RecordStore::open(std::string directory) {
  if (directory.empty() || directory[0] != '/') {
    return make_error(Code::kInvalid, "state directory", directory + ": must be an absolute path");
  }
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return errno_error("mkdir", directory);
  struct stat info{};
  if (::stat(directory.c_str(), &info) != 0) return errno_error("stat", directory);
  if (!S_ISDIR(info.st_mode)) return make_error(Code::kInvalid, "state directory", directory + ": not a directory");
  return RecordStore(std::move(directory));
}

Result<void> RecordStore::save(const pb::WardenRecord& record) const {
  std::string path = record_path(record.workload()), temporary = path + ".new";
  std::string bytes = encode_record(record);
  BATON_ASSIGN(Fd fd, open_file(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600));
  BATON_TRY(write_all(fd.get(), std::as_bytes(std::span(bytes.data(), bytes.size()))));
  if (::rename(temporary.c_str(), path.c_str()) != 0) return errno_error("rename", path);
  return {};
}

Result<std::string> RecordStore::volume_socket() const {
  const std::string folder = directory_ + "/volumes";
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return errno_error("mkdir", folder);
  std::uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) return errno_error("getrandom", folder);
  char name[24];
  std::snprintf(name, sizeof name, "/%016llx", static_cast<unsigned long long>(number));
  return folder + name;
}

void RecordStore::remove(const pb::WardenRecord& record) const {
  ::unlink(record_path(record.workload()).c_str());
  ::unlink(log_path(record.workload()).c_str());
  ::unlink(exit_path(record.workload()).c_str());
}

std::vector<pb::WardenRecord> RecordStore::load_all() const {
  std::vector<pb::WardenRecord> out;
  DIR* dir = ::opendir(directory_.c_str());
  if (!dir) return out;
  std::vector<std::string> names;
  while (dirent* entry = ::readdir(dir)) {
    std::string name = entry->d_name;
    if (name.size() > kSuffix.size() && name.ends_with(kSuffix)) names.push_back(std::move(name));
  }
  ::closedir(dir);
  for (const auto& name : names) {
    std::string path = directory_ + "/" + name;
    auto bytes = read_file(path, kRecordMax);
    if (!bytes) {
      spdlog::error("{}", bytes.error().message());
      continue;
    }
    auto record = decode_record(*bytes);
    if (!record || record->workload() + std::string(kSuffix) != name) {
      std::string why = record ? "names another workload" : record.error().message();
      spdlog::error("{}: {}; moved aside, its processes are left alone", path, why);
      ::rename(path.c_str(), (path + ".corrupt").c_str());
      continue;
    }
    out.push_back(std::move(*record));
  }
  return out;
}

std::string boot_id() {
  auto text = read_file("/proc/sys/kernel/random/boot_id", 256);
  if (!text) return {};
  while (!text->empty() && text->back() == '\n') text->pop_back();
  return *text;
}

}  // namespace baton::warden
