#include "agent/backend/linux/memory/pagemap.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace baton::linux_backend {
namespace {
constexpr std::size_t kRegions = 32768;

// One buffer per thread, zero beyond what is in use: after a failed scan this shows how many
// regions the kernel had written, whose pages are protected already.
std::vector<abi::PageRegion>& region_buffer() {
  thread_local std::vector<abi::PageRegion> buffer(kRegions);
  return buffer;
}
}  // namespace

Result<Pagemap> Pagemap::open(pid_t pid) {
  Pagemap p;
  p.pid_ = pid;
  auto fd = open_file("/proc/" + std::to_string(pid) + "/pagemap", O_RDONLY);
  if (!fd) {
    Error e = std::move(fd).error();
    if (e.sys_errno == ENOENT || e.sys_errno == ESRCH) e.code = Code::kTraceeGone;
    return e;
  }
  p.fd_ = std::move(*fd);
  return p;
}

Result<void> Pagemap::read(std::uint64_t first_page, std::span<std::uint64_t> out) const {
  auto bytes = std::as_writable_bytes(out);
  std::size_t done = 0;
  while (done < bytes.size()) {
    ssize_t n = ::pread(fd_.get(), bytes.data() + done, bytes.size() - done,
                        static_cast<off_t>(first_page * 8 + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("read pagemap of", "process " + std::to_string(pid_));
    if (n == 0) {
      std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(done), bytes.end(), std::byte{0});
      return {};
    }
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<Pagemap::Outcome> Pagemap::scan(std::uint64_t start, std::uint64_t end, const Query& query,
                                       std::vector<PageRun>& out) const {
  auto& buffer = region_buffer();
  const std::size_t own = out.size();   // earlier runs are left as they are
  while (start < end) {
    abi::PagemapScanArg arg{};
    arg.size = sizeof arg;
    arg.flags = query.flags;
    arg.start = start;
    arg.end = end;
    arg.vec = reinterpret_cast<std::uint64_t>(buffer.data());
    arg.vec_len = buffer.size();
    arg.category_inverted = query.inverted;
    arg.category_mask = query.mask;
    arg.category_anyof_mask = query.any_of;
    arg.return_mask = query.returned;
    long n = ::ioctl(fd_.get(), abi::kPagemapScan, &arg);
    int saved = n < 0 ? errno : 0;
    for (std::size_t i = 0; i < buffer.size() && buffer[i].end != 0; ++i) {
      PageRun run{buffer[i].start / 4096, (buffer[i].end - buffer[i].start) / 4096};
      if (out.size() > own && out.back().end() == run.first) out.back().count += run.count;
      else out.push_back(run);
      buffer[i] = {};
    }
    if (n < 0) {
      if (saved == EINTR) continue;
      if (saved == EPERM) return Outcome::kNotTracked;
      return errno_error(saved, "PAGEMAP_SCAN", "process " + std::to_string(pid_));
    }
    if (arg.walk_end <= start) break;
    start = arg.walk_end;
  }
  return Outcome::kDone;
}

}  // namespace baton::linux_backend
