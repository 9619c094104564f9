#include "agent/backend/linux/memory/shared_object.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "agent/backend/linux/remote/proc.h"
namespace baton::linux_backend {
namespace {
constexpr std::size_t kPage = backend::kPageBytes;
constexpr std::uint64_t kChunkPages = 256;

// Bytes beyond the end of the file read as zeros, as they do through a mapping.
Result<void> read_page_range(int fd, std::uint64_t first, std::span<std::byte> out, const std::string& name) {
  std::size_t done = 0;
  while (done < out.size()) {
    ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(first * kPage + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("read shared memory", name);
    if (n == 0) {
      std::memset(out.data() + done, 0, out.size() - done);
      break;
    }
    done += static_cast<std::size_t>(n);
  }
  return {};
}
}  // namespace

Result<void> SharedObject::find_data(std::vector<PageRun>& out) {
  struct stat st {};
  if (::fstat(fd_.get(), &st) != 0) return errno_error("stat", name_);
  size_ = static_cast<std::uint64_t>(st.st_size);
  off_t at = 0;
  while (at < st.st_size) {
    off_t data = ::lseek(fd_.get(), at, SEEK_DATA);
    if (data < 0) break;   // ENXIO: no more
    off_t hole = ::lseek(fd_.get(), data, SEEK_HOLE);
    if (hole < 0) hole = st.st_size;
    auto first = static_cast<std::uint64_t>(data) / kPage;
    auto end = (static_cast<std::uint64_t>(hole) + kPage - 1) / kPage;
    if (!out.empty() && out.back().end() >= first) out.back().count = end - out.back().first;
    else out.push_back({first, end - first});
    at = hole;
  }
  return {};
}

std::optional<pb::NamedMemory> SharedObject::named() const {
  char path[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(fd_.get());
  const ssize_t n = ::readlink(link.c_str(), path, sizeof path);
  struct stat info {};
  struct statfs where {};
  if (n <= 0 || ::fstat(fd_.get(), &info) != 0 || info.st_nlink == 0 || ::fstatfs(fd_.get(), &where) != 0) return std::nullopt;
  const std::string_view name(path, static_cast<std::size_t>(n));
  if (name.ends_with(" (deleted)") || !is_named_memory(name, info, where)) return std::nullopt;
  pb::NamedMemory out;
  out.set_object(object_);
  out.set_path(std::string(name));
  out.set_mode(info.st_mode & 07777);
  out.set_uid(info.st_uid);
  out.set_gid(info.st_gid);
  return out;
}

Result<std::uint64_t> SharedObject::copy(backend::PageSink& sink) {
  std::vector<PageRun> data;
  BATON_TRY(find_data(data));
  full_ = false;
  buffer_.resize(kChunkPages * kPage);
  // Holes where pages were known.
  std::vector<PageRun> lost;
  std::uint64_t at = 0;
  auto gap = [&](std::uint64_t from, std::uint64_t to) {
    if (from < to) {
      known_.for_each_run(from, to, [&](PageRun run) {
        lost.push_back(run);
        return true;
      });
    }
  };
  for (PageRun run : data) {
    gap(at, run.first);
    at = run.end();
  }
  gap(at, ~std::uint64_t{0});
  for (PageRun run : lost) {
    known_.remove(run);
    for (std::uint64_t p = run.first; p < run.end(); ++p) digests_.erase(p);
    sink.drop(object_, run.first, run.count);
  }
  std::uint64_t total = 0;
  for (PageRun run : data) {
    for (std::uint64_t from = run.first; from < run.end(); from += kChunkPages) {
      std::uint64_t count = std::min(kChunkPages, run.end() - from);
      std::span<std::byte> bytes(buffer_.data(), count * kPage);
      BATON_TRY(read_page_range(fd_.get(), from, bytes, name_));
      for (std::uint64_t i = 0; i < count; ++i) {
        auto content = bytes.subspan(i * kPage, kPage);
        ContentMap::Digest digest = ContentMap::of(content);
        const ContentMap::Digest* before = digests_.find(from + i);
        if (before != nullptr && *before == digest) continue;
        auto room = sink.reserve(kPage);
        if (room.empty()) {
          full_ = true;
          return total;
        }
        std::memcpy(room.data(), content.data(), kPage);
        sink.emit(object_, from + i, 1);
        known_.add({from + i, 1});
        digests_.set(from + i, digest);
        ++total;
      }
    }
  }
  return total;
}

Result<std::uint64_t> SharedObject::copy_written(backend::PageSink& sink) {
  constexpr std::int64_t kSettledSeconds = 2;   // a change within the clock's step would not show
  const int seals = ::fcntl(fd_.get(), F_GET_SEALS);   // -1: no memfd
  const bool sealed = seals > 0 && (seals & F_SEAL_WRITE) != 0;
  struct stat st {};
  if (::fstat(fd_.get(), &st) != 0) return errno_error("stat", name_);
  auto same = [](const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; };
  if (settled_ && static_cast<std::uint64_t>(st.st_size) == size_ && (sealed || (same(st.st_mtim, written_) && same(st.st_ctim, changed_)))) return 0;
  written_ = st.st_mtim;
  changed_ = st.st_ctim;
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const bool quiet = now.tv_sec - std::max(written_.tv_sec, changed_.tv_sec) >= kSettledSeconds;
  BATON_ASSIGN(const std::uint64_t copied, copy(sink));
  settled_ = !full_ && (sealed || quiet);
  return copied;
}

void SharedObject::copy_again(PageRun run) {
  settled_ = false;
  std::vector<PageRun> runs;
  known_.for_each_run(run.first, run.end(), [&](PageRun r) {
    runs.push_back(r);
    return true;
  });
  for (PageRun r : runs) {
    for (std::uint64_t p = r.first; p < r.end(); ++p) digests_.erase(p);
  }
}

Result<void> SharedObject::verify(VerifyReport& report) {
  std::vector<PageRun> data;
  BATON_TRY(find_data(data));
  std::vector<std::byte> page(kPage);
  auto differs = [&](std::uint64_t number, const char* how) {
    if (report.differences++ == 0) report.first = name_ + ", page " + std::to_string(number) + ": " + how;
  };
  std::uint64_t present = 0;
  for (PageRun run : data) {
    for (std::uint64_t p = run.first; p < run.end(); ++p) {
      ++report.pages;
      BATON_TRY(read_page_range(fd_.get(), p, page, name_));
      const ContentMap::Digest* digest = digests_.find(p);
      if (digest == nullptr) differs(p, "the checkpoint lacks the page");
      else if (!(*digest == ContentMap::of(page))) differs(p, "the content differs");
      if (known_.contains(p)) ++present;
    }
  }
  if (present != known_.size()) differs(0, "the checkpoint has pages where there are none");
  return {};
}

}  // namespace baton::linux_backend
