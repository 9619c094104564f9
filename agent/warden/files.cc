#include "agent/warden/files.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>

#include <openssl/evp.h>

#include "base/fault_point.h"

namespace baton::warden {
namespace {

constexpr std::string_view kPartSuffix = ".baton-part";
constexpr const char* kLeftAttribute = "trusted.baton.left";

Result<void> check_path(const std::string& path) {
  bool fine = path.size() > 1 && path.size() < 4096 && path[0] == '/' && path.back() != '/' &&
              path.find('\0') == std::string::npos;
  for (std::size_t at = 0; fine && at < path.size();) {
    std::size_t end = std::min(path.find('/', at), path.size());
    if (path.substr(at, end - at) == "..") fine = false;
    at = end + 1;
  }
  if (fine) return {};
  return make_error(Code::kInvalid, "file", path + ": must be an absolute path of a file, without '..'");
}

// Symbolic links are followed, within the root of process `root_of`.
Result<Fd> open_regular(const std::string& path, pid_t root_of) {
  BATON_TRY(check_path(path));
  std::string root = root_of == 0 ? "/" : "/proc/" + std::to_string(root_of) + "/root";
  BATON_ASSIGN(Fd folder, open_file(root, O_PATH | O_DIRECTORY));
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  int number;
  do {
    number = static_cast<int>(::syscall(SYS_openat2, folder.get(), path.c_str(), &how, sizeof how));
  } while (number < 0 && (errno == EINTR || errno == EAGAIN));
  if (number < 0) return errno_error("open", path);
  Fd fd = Fd::adopt(number);
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return errno_error("fstat", path);
  if (!S_ISREG(info.st_mode)) return make_error(Code::kUnsupported, "file", path + ": not a regular file");
  return fd;
}

std::int64_t nanoseconds(const timespec& time) { return time.tv_sec * 1'000'000'000LL + time.tv_nsec; }

// What the mark of a copy left behind says; it holds for this version of the file only.
std::string left_mark(const std::string& workload, const struct stat& info) {
  return workload + " " + std::to_string(info.st_ino) + " " + std::to_string(info.st_size) + " " +
         std::to_string(nanoseconds(info.st_mtim));
}

void mark_left(int fd, const std::string& workload) {
  struct stat info{};
  if (::fstat(fd, &info) != 0) return;
  const std::string mark = left_mark(workload, info);
  (void)::fsetxattr(fd, kLeftAttribute, mark.data(), mark.size(), 0);   // without it: a conflict later
}

bool was_left_by(const std::string& workload, const std::string& path) {
  if (workload.empty()) return false;
  struct stat info{};
  char mark[512];
  if (::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return false;
  const ssize_t n = ::lgetxattr(path.c_str(), kLeftAttribute, mark, sizeof mark);
  return n > 0 && std::string_view(mark, static_cast<std::size_t>(n)) == left_mark(workload, info);
}

Result<std::string> sha256_of(int fd) {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
    return make_error(Code::kFailed, "SHA-256", "cannot be set up");
  }
  std::vector<char> buffer(1u << 20);
  for (off_t at = 0;;) {
    ssize_t n = ::pread(fd, buffer.data(), buffer.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("pread", "");
    if (n == 0) break;
    EVP_DigestUpdate(context.get(), buffer.data(), static_cast<std::size_t>(n));
    at += n;
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EVP_DigestFinal_ex(context.get(), digest, &size);
  return std::string(reinterpret_cast<char*>(digest), size);
}

// Missing folders on the way to `path`.
Result<void> make_parents(const std::string& path) {
  for (std::size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
    std::string folder = path.substr(0, at);
    if (::mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) return errno_error("mkdir", folder);
  }
  return {};
}

}  // namespace

Result<std::string> FileRoom::digest(int fd, bool changing) {
  struct stat before{};
  if (::fstat(fd, &before) != 0) return errno_error("fstat", "");
  Key key{before.st_dev, before.st_ino, before.st_size, nanoseconds(before.st_mtim), nanoseconds(before.st_ctim)};
  if (!changing) {
    std::lock_guard lock(mutex_);
    if (auto it = digests_.find(key); it != digests_.end()) return it->second;
  }
  BATON_ASSIGN(std::string out, sha256_of(fd));
  struct stat after{};
  if (::fstat(fd, &after) != 0) return errno_error("fstat", "");
  // A file that changed while it was read, or so lately that the clock tick may hide another
  // change, is not worth remembering.
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  bool steady = !changing && nanoseconds(after.st_ctim) == nanoseconds(before.st_ctim) &&
                nanoseconds(now) - nanoseconds(after.st_ctim) > 1'000'000'000LL;
  if (steady) {
    std::lock_guard lock(mutex_);
    if (digests_.size() >= kProofCacheMax) digests_.clear();
    digests_[key] = out;
  }
  return out;
}

Result<pb::FileProof> FileRoom::prove(const std::string& path_untrusted, pid_t root_of, bool changing) {
  BATON_ASSIGN(Fd fd, open_regular(path_untrusted, root_of));
  BATON_ASSIGN(std::string sum, digest(fd.get(), changing));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return errno_error("fstat", path_untrusted);
  pb::FileProof proof;
  proof.set_path(path_untrusted);
  proof.set_size_bytes(static_cast<std::uint64_t>(info.st_size));
  proof.set_sha256(sum);
  proof.set_mode(info.st_mode & 07777);
  proof.set_mtime_ns(static_cast<std::uint64_t>(nanoseconds(info.st_mtim)));
  return proof;
}

pb::ProveFilesResponse FileRoom::compare(const pb::ProveFilesRequest& request) {
  pb::ProveFilesResponse out;
  for (const auto& asked : request.files()) {
    auto* verdict = out.add_files();
    verdict->set_path(asked.path());
    auto held = prove(asked.path(), 0, may_change_unseen(asked));
    if (!held) {
      verdict->set_detail(held.error().code == Code::kNotFound ? "missing" : held.error().message());
      continue;
    }
    if (held->size_bytes() != asked.size_bytes()) {
      verdict->set_detail("size " + std::to_string(held->size_bytes()) + " here, " +
                          std::to_string(asked.size_bytes()) + " there");
    } else if (asked.sha256().empty()) {
      verdict->set_detail("no digest was given to compare with");
    } else if (held->sha256() != asked.sha256()) {
      verdict->set_detail("same size, different content");
    } else {
      verdict->set_same(true);
    }
    *verdict->mutable_actual() = std::move(*held);
  }
  return out;
}

Result<pb::ReadFileResponse> FileRoom::read(const pb::ReadFileRequest& request, pid_t root_of) {
  BATON_ASSIGN(Fd fd, open_regular(request.path(), root_of));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return errno_error("fstat", request.path());
  std::size_t bytes = std::min<std::size_t>(request.max_bytes() == 0 ? kFileChunkMax : request.max_bytes(), kFileChunkMax);
  auto size = static_cast<std::uint64_t>(info.st_size);
  if (request.offset() > size) return make_error(Code::kInvalid, "read", request.path() + ": offset past its end");
  bytes = std::min<std::uint64_t>(bytes, size - request.offset());
  pb::ReadFileResponse out;
  out.mutable_data()->resize(bytes);
  BATON_TRY(pread_exact(fd.get(), std::as_writable_bytes(std::span(out.mutable_data()->data(), bytes)),
                        static_cast<off_t>(request.offset())));
  out.set_end(request.offset() + bytes == size);
  out.set_mode(info.st_mode & 07777);
  out.set_uid(info.st_uid);
  out.set_gid(info.st_gid);
  out.set_mtime_ns(nanoseconds(info.st_mtim));
  out.set_size(size);
  if (request.leaving() && !request.workload().empty()) mark_left(fd.get(), request.workload());
  return out;
}

Result<void> FileRoom::write(const pb::WriteFileRequest& request) {
  const std::string& path = request.path();
  BATON_TRY(check_path(path));
  if (request.data().size() > kFileChunkMax) {
    return make_error(Code::kInvalid, "write", path + ": a piece larger than 8 MiB");
  }
  if (path.ends_with(kPartSuffix)) return make_error(Code::kInvalid, "write", path + ": a name of Baton's own");
  std::string part = path + std::string(kPartSuffix);
  BATON_TRY(fault_point("warden.write_file.before"));
  if (request.offset() == 0) {
    BATON_TRY(make_parents(path));
    ::unlink(part.c_str());   // what an earlier attempt left
  }
  BATON_ASSIGN(Fd fd, open_file(part, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | (request.offset() == 0 ? O_CREAT | O_EXCL : 0), 0600));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return errno_error("fstat", part);
  if (!S_ISREG(info.st_mode) || static_cast<std::uint64_t>(info.st_size) != request.offset()) {
    return make_error(Code::kConflict, "write", path + ": pieces out of order", "Begin again at offset 0.");
  }
  BATON_TRY(pwrite_all(fd.get(), std::as_bytes(std::span(request.data().data(), request.data().size())),
                       static_cast<off_t>(request.offset())));
  if (!request.end()) return {};
  if (::fchown(fd.get(), request.uid(), request.gid()) != 0) return errno_error("fchown", part);
  if (::fchmod(fd.get(), request.mode() & 07777) != 0) return errno_error("fchmod", part);
  const std::int64_t mtime_ns = std::max<std::int64_t>(request.mtime_ns(), 0);
  const timespec times[2] = {{0, UTIME_OMIT}, {mtime_ns / 1'000'000'000, static_cast<long>(mtime_ns % 1'000'000'000)}};
  if (::futimens(fd.get(), times) != 0) return errno_error("futimens", part);
  if (::fsync(fd.get()) != 0) return errno_error("fsync", part);
  BATON_TRY(fault_point("warden.write_file.rename"));
  if (::renameat2(AT_FDCWD, part.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) == 0) return {};
  Error error = errno_error("rename", path);
  if (error.sys_errno == EEXIST) {
    auto theirs = prove(path, 0, true);
    auto ours = prove(part, 0, true);
    if (theirs && ours && theirs->sha256() == ours->sha256() && theirs->size_bytes() == ours->size_bytes()) {
      ::unlink(part.c_str());
      return {};
    }
    if (was_left_by(request.workload(), path) && ::rename(part.c_str(), path.c_str()) == 0) return {};
    ::unlink(part.c_str());
    return make_error(Code::kConflict, "write", path + ": a file with another content is there",
                      "Move it away on this node; Baton overwrites nothing.");
  }
  ::unlink(part.c_str());
  return error;
}

}  // namespace baton::warden
