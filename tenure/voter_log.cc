#include "tenure/voter_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <span>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/fault_point.h"

namespace baton::tenure {
namespace {

constexpr char kMagic[8] = {'B', 'T', 'N', 'V', 'O', 'T', 'E', '1'};
constexpr std::size_t kHeadBytes = 16;          // of an entry: length, its checksum, the body's
constexpr std::uint32_t kVersion = 1;

void put(std::string& out, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}
std::uint64_t get(std::string_view in, std::size_t at, int bytes) {
  std::uint64_t out = 0;
  for (int i = 0; i < bytes; ++i) out |= static_cast<std::uint64_t>(static_cast<unsigned char>(in[at + static_cast<std::size_t>(i)])) << (8 * i);
  return out;
}

std::string encode(const pb::VoterFile& entry) {
  const std::string body = entry.SerializeAsString();
  std::string out;
  put(out, body.size(), 4);
  put(out, XXH3_64bits(out.data(), 4) & 0xffffffff, 4);
  put(out, XXH3_64bits(body.data(), body.size()), 8);
  return out + body;
}

void apply(pb::VoterFile& file, const pb::VoterFile& change) {
  if (change.version() != 0) file.set_version(change.version());
  if (change.start() != 0) file.set_start(change.start());
  if (change.born_ns() != 0) file.set_born_ns(change.born_ns());
  auto& all = *file.mutable_workloads();
  auto drop = [&](const std::string& name) {
    all.erase(std::remove_if(all.begin(), all.end(), [&](const pb::VoterState& s) { return s.base().workload() == name; }), all.end());
  };
  for (const auto& name : change.erased()) drop(name);
  for (const auto& state : change.workloads()) {
    drop(state.base().workload());
    *all.Add() = state;
  }
}

// 0: the file system keeps none.
std::uint64_t born_ns(int fd) {
  struct statx facts{};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &facts) != 0 || !(facts.stx_mask & STATX_BTIME)) return 0;
  return static_cast<std::uint64_t>(facts.stx_btime.tv_sec) * 1'000'000'000u + facts.stx_btime.tv_nsec;
}

Result<void> sync_folder(const std::string& path) {
  BATON_ASSIGN(Fd folder, open_file(std::filesystem::path(path).parent_path(), O_RDONLY | O_DIRECTORY));
  if (::fsync(folder.get()) != 0) return errno_error("fsync", path);
  return {};
}

}  // namespace

Result<std::unique_ptr<VoterLog>> VoterLog::open(const std::string& folder, Callbacks callbacks) {
  std::error_code ignored;
  std::filesystem::create_directories(folder, ignored);
  std::unique_ptr<VoterLog> log(new VoterLog(folder, std::move(callbacks)));
  BATON_TRY(log->load());
  log->now_ = log->found_;
  log->now_.set_version(kVersion);
  log->now_.set_start(log->found_.start() + 1);
  BATON_TRY(log->rewrite());
  log->thread_ = std::thread([raw = log.get()] { raw->run(); });
  return log;
}

VoterLog::~VoterLog() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

Result<void> VoterLog::load() {
  auto file = open_file(path_, O_RDONLY);
  if (!file && file.error().code == Code::kNotFound) return {};
  if (!file) return std::move(file).error();
  auto content = read_file(path_, kMaxVoterLogBytes);
  if (!content) return std::move(content).error();
  const std::string& bytes = *content;
  if (bytes.size() < sizeof kMagic || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    return make_error(Code::kCorrupt, "open voter log", path_ + " is not one",
                      "Move it away only if no other node holds a copy of this node's workloads: it is what this voter has promised.");
  }
  std::size_t at = sizeof kMagic;
  while (at < bytes.size()) {
    pb::VoterFile change;
    const bool head = at + kHeadBytes <= bytes.size();
    const bool sane = head && (XXH3_64bits(bytes.data() + at, 4) & 0xffffffff) == get(bytes, at + 4, 4);
    const std::size_t length = sane ? get(bytes, at, 4) : 0;
    const bool whole = sane && length <= bytes.size() - at - kHeadBytes;
    const std::string_view body = whole ? std::string_view(bytes).substr(at + kHeadBytes, length) : std::string_view();
    if (!whole || XXH3_64bits(body.data(), body.size()) != get(bytes, at + 8, 8) ||
        !change.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
      // An append that a crash cut short was told to nobody, and nothing follows it; what a file
      // system had made room for and not written is zeros.
      const bool zeros = bytes.find_first_not_of('\0', at) == bytes.npos;
      doubtful_ = (whole && at + kHeadBytes + length < bytes.size()) || (head && !sane && !zeros);
      break;
    }
    if (change.version() > kVersion) {
      return make_error(Code::kUnsupported, "open voter log", path_ + " is of version " + std::to_string(change.version()),
                        "It was written by a newer Baton: install that one again.");
    }
    apply(found_, change);
    at += kHeadBytes + length;
  }
  const std::uint64_t born = born_ns(file->get());
  if (born != 0 && found_.born_ns() != 0 && born != found_.born_ns()) doubtful_ = true;
  return {};
}

Result<void> VoterLog::rewrite() {
  const std::string fresh = path_ + ".new";
  ::unlink(fresh.c_str());   // of an attempt that a crash cut short
  BATON_ASSIGN(Fd file, open_file(fresh, O_WRONLY | O_CREAT | O_EXCL | O_APPEND, 0600));
  now_.set_born_ns(born_ns(file.get()));
  std::string bytes(kMagic, sizeof kMagic);
  bytes += encode(now_);
  BATON_TRY(fault_point("tenure.log.rewrite"));
  BATON_TRY(write_all(file.get(), std::as_bytes(std::span(bytes))));
  if (::fsync(file.get()) != 0) return errno_error("fsync", fresh);
  if (::rename(fresh.c_str(), path_.c_str()) != 0) return errno_error("rename", fresh);
  BATON_TRY(sync_folder(path_));
  file_ = std::move(file);
  bytes_ = bytes.size();
  return {};
}

Result<void> VoterLog::write(const std::vector<Entry>& entries) {
  std::string bytes;
  for (const auto& entry : entries) {
    apply(now_, entry.change);
    bytes += encode(entry.change);
  }
  if (!file_ || bytes_ + bytes.size() > kCompactVoterLogBytes) return rewrite();
  if (auto fault = fault_point("tenure.log.append"); !fault) {
    file_.reset();
    return fault;
  }
  auto written = write_all(file_.get(), std::as_bytes(std::span(bytes)));
  if (written && ::fdatasync(file_.get()) != 0) written = errno_error("fdatasync", path_);
  if (!written) file_.reset();      // the next attempt writes everything anew
  bytes_ += bytes.size();
  return written;
}

void VoterLog::append(std::uint64_t token, const pb::VoterState& state) {
  Entry entry{token, {}};
  *entry.change.add_workloads() = state;
  queue(std::move(entry));
}

void VoterLog::erase(std::uint64_t token, const std::string& workload) {
  Entry entry{token, {}};
  entry.change.add_erased(workload);
  queue(std::move(entry));
}

void VoterLog::queue(Entry entry) {
  std::lock_guard lock(mutex_);
  queue_.push_back(std::move(entry));
  changed_.notify_all();
}

void VoterLog::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    std::vector<Entry> batch;
    batch.swap(queue_);
    lock.unlock();
    auto written = write(batch);
    bool failed = false;
    while (!written) {
      if (!std::exchange(failed, true)) callbacks_.problem(written.error().message());
      lock.lock();
      if (changed_.wait_for(lock, std::chrono::milliseconds(200), [&] { return stopping_; })) return;
      lock.unlock();
      written = rewrite();
    }
    if (failed) callbacks_.problem({});
    callbacks_.done(batch.back().token);
    lock.lock();
  }
}

}  // namespace baton::tenure
