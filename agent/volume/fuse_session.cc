#define FUSE_USE_VERSION 312
#include "agent/volume/fuse_session.h"

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace baton::volume {
namespace {

constexpr double kForever = 1e9;          // seconds: nobody else changes anything
constexpr std::size_t kMaxWrite = 1u << 20;

FileTree& tree_of(fuse_req_t request) { return *static_cast<FileTree*>(fuse_req_userdata(request)); }

void answer(fuse_req_t request, int failed) { fuse_reply_err(request, -failed); }

// Answers with the file, and counts the kernel's reference to it.
void answer_entry(fuse_req_t request, std::uint64_t id) {
  FileTree& tree = tree_of(request);
  fuse_entry_param entry{};
  entry.ino = id;
  entry.attr = tree.status(*tree.find(id));
  entry.attr_timeout = entry.entry_timeout = kForever;
  tree.look_up(id);
  if (fuse_reply_entry(request, &entry) != 0) tree.forget(id, 1);
}

void initialise(void*, fuse_conn_info* connection) {
  connection->max_write = kMaxWrite;
  // The kernel asks for no open and no release; O_TRUNC it makes a change of size.
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_AUTO_INVAL_DATA);
  connection->want |= connection->capable & FUSE_CAP_PARALLEL_DIROPS;
}

void look_up(fuse_req_t request, fuse_ino_t folder, const char* name) {
  const std::uint64_t id = tree_of(request).child(folder, name);
  if (id != 0) return answer_entry(request, id);
  fuse_entry_param none{};       // that there is none may be kept, too
  none.entry_timeout = kForever;
  fuse_reply_entry(request, &none);
}

void forget(fuse_req_t request, fuse_ino_t id, std::uint64_t lookups) {
  tree_of(request).forget(id, lookups);
  fuse_reply_none(request);
}

void forget_many(fuse_req_t request, std::size_t count, fuse_forget_data* forgets) {
  for (std::size_t i = 0; i < count; ++i) tree_of(request).forget(forgets[i].ino, forgets[i].nlookup);
  fuse_reply_none(request);
}

void get_attributes(fuse_req_t request, fuse_ino_t id, fuse_file_info*) {
  const File* file = tree_of(request).find(id);
  if (file == nullptr) return answer(request, -ENOENT);
  struct stat st = tree_of(request).status(*file);
  fuse_reply_attr(request, &st, kForever);
}

void set_attributes(fuse_req_t request, fuse_ino_t id, struct stat* wanted, int what, fuse_file_info*) {
  FileTree& tree = tree_of(request);
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const std::uint32_t mode = wanted->st_mode, uid = wanted->st_uid, gid = wanted->st_gid;
  const auto size = static_cast<std::uint64_t>(wanted->st_size);
  const std::int64_t atime = as_ns((what & FUSE_SET_ATTR_ATIME_NOW) != 0 ? now : wanted->st_atim);
  const std::int64_t mtime = as_ns((what & FUSE_SET_ATTR_MTIME_NOW) != 0 ? now : wanted->st_mtim);
  Changes changes;
  if ((what & FUSE_SET_ATTR_MODE) != 0) changes.mode = &mode;
  if ((what & FUSE_SET_ATTR_UID) != 0) changes.uid = &uid;
  if ((what & FUSE_SET_ATTR_GID) != 0) changes.gid = &gid;
  if ((what & FUSE_SET_ATTR_SIZE) != 0) changes.size = &size;
  if ((what & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW)) != 0) changes.atime_ns = &atime;
  if ((what & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) != 0) changes.mtime_ns = &mtime;
  if (int failed = tree.change(id, changes); failed != 0) return answer(request, failed);
  get_attributes(request, id, nullptr);
}

void read_link(fuse_req_t request, fuse_ino_t id) {
  const File* file = tree_of(request).find(id);
  if (file == nullptr) return answer(request, -ENOENT);
  fuse_reply_readlink(request, file->target.c_str());
}

void make(fuse_req_t request, fuse_ino_t folder, const char* name, mode_t mode, dev_t device, const char* target) {
  const fuse_ctx* who = fuse_req_ctx(request);
  std::uint64_t id = 0;
  if (int failed = tree_of(request).make_file(folder, name, mode, device, who->uid, who->gid, target, id); failed != 0) return answer(request, failed);
  answer_entry(request, id);
}

void make_node(fuse_req_t request, fuse_ino_t folder, const char* name, mode_t mode, dev_t device) { make(request, folder, name, mode, device, ""); }
void make_folder(fuse_req_t request, fuse_ino_t folder, const char* name, mode_t mode) { make(request, folder, name, (mode & 07777) | S_IFDIR, 0, ""); }
void make_symlink(fuse_req_t request, const char* target, fuse_ino_t folder, const char* name) {
  if (std::strlen(target) > 3000) return answer(request, -ENAMETOOLONG);
  make(request, folder, name, S_IFLNK | 0777, 0, target);
}

void unlink_file(fuse_req_t request, fuse_ino_t folder, const char* name) { answer(request, tree_of(request).unlink(folder, name)); }
void remove_folder(fuse_req_t request, fuse_ino_t folder, const char* name) { answer(request, tree_of(request).remove_folder(folder, name)); }
void rename_file(fuse_req_t request, fuse_ino_t folder, const char* name, fuse_ino_t to, const char* to_name, unsigned flags) {
  answer(request, tree_of(request).rename(folder, name, to, to_name, flags));
}

void link_file(fuse_req_t request, fuse_ino_t id, fuse_ino_t folder, const char* name) {
  if (int failed = tree_of(request).link(id, folder, name); failed != 0) return answer(request, failed);
  answer_entry(request, id);
}

// Not implemented, which the kernel remembers: it opens by itself.
void open_by_itself(fuse_req_t request, fuse_ino_t, fuse_file_info*) { answer(request, -ENOSYS); }
// What a checkpoint holds is durable; the working copy needs not be.
void synchronise(fuse_req_t request, fuse_ino_t, int, fuse_file_info*) { answer(request, 0); }

void read_file(fuse_req_t request, fuse_ino_t id, std::size_t bytes, off_t at, fuse_file_info*) {
  static std::vector<std::byte> buffer;
  buffer.resize(std::max(buffer.size(), bytes));
  const std::int64_t got = tree_of(request).read(id, std::span(buffer).first(bytes), static_cast<std::uint64_t>(at));
  if (got < 0) return answer(request, static_cast<int>(got));
  fuse_reply_buf(request, reinterpret_cast<const char*>(buffer.data()), static_cast<std::size_t>(got));
}

void write_file(fuse_req_t request, fuse_ino_t id, const char* data, std::size_t bytes, off_t at, fuse_file_info*) {
  const std::int64_t done = tree_of(request).write(id, std::as_bytes(std::span(data, bytes)), static_cast<std::uint64_t>(at));
  if (done < 0) return answer(request, static_cast<int>(done));
  fuse_reply_write(request, static_cast<std::size_t>(done));
}

void allocate(fuse_req_t request, fuse_ino_t id, int mode, off_t at, off_t bytes, fuse_file_info*) {
  answer(request, tree_of(request).allocate(id, mode, static_cast<std::uint64_t>(at), static_cast<std::uint64_t>(bytes)));
}

void seek(fuse_req_t request, fuse_ino_t id, off_t at, int whence, fuse_file_info*) {
  const std::int64_t found = tree_of(request).seek(id, static_cast<std::uint64_t>(at), whence);
  if (found < 0) return answer(request, static_cast<int>(found));
  fuse_reply_lseek(request, found);
}

// Positions are the orders of names, so that one in use stays right whatever comes and goes; "."
// and ".." take the first two.
void read_folder(fuse_req_t request, fuse_ino_t id, std::size_t bytes, off_t at, fuse_file_info*) {
  FileTree& tree = tree_of(request);
  const File* folder = tree.find(id);
  if (folder == nullptr) return answer(request, -ENOENT);
  std::vector<char> buffer(bytes);
  std::size_t used = 0;
  auto add = [&](const char* name, std::uint64_t number, mode_t mode, off_t next) {
    struct stat st {};
    st.st_ino = number;
    st.st_mode = mode;
    const std::size_t needed = fuse_add_direntry(request, buffer.data() + used, bytes - used, name, &st, next);
    if (needed > bytes - used) return false;
    used += needed;
    return true;
  };
  constexpr off_t kDots = 2;
  const std::uint64_t above = folder->names.empty() ? kRootFile : folder->names.front().folder;
  bool room = at >= 1 || add(".", id, S_IFDIR, 1);
  room = room && (at >= kDots || add("..", above, S_IFDIR, kDots));
  for (auto it = folder->order.upper_bound(at <= kDots ? 0 : static_cast<std::uint64_t>(at - kDots)); room && it != folder->order.end(); ++it) {
    const std::uint64_t number = tree.child(id, it->second);
    const File* file = tree.find(number);
    room = file == nullptr || add(it->second.c_str(), number, file->mode, static_cast<off_t>(it->first) + kDots);
  }
  fuse_reply_buf(request, buffer.data(), used);
}

void file_system(fuse_req_t request, fuse_ino_t) {
  struct statvfs below {};
  if (::statvfs(tree_of(request).content_folder().c_str(), &below) != 0) return answer(request, -errno);
  below.f_namemax = 255;
  below.f_files = kMaxFiles;
  below.f_ffree = below.f_favail = kMaxFiles - tree_of(request).files();
  fuse_reply_statfs(request, &below);
}

fuse_lowlevel_ops operations() {
  fuse_lowlevel_ops ops{};
  ops.init = initialise;
  ops.lookup = look_up;
  ops.forget = forget;
  ops.forget_multi = forget_many;
  ops.getattr = get_attributes;
  ops.setattr = set_attributes;
  ops.readlink = read_link;
  ops.mknod = make_node;
  ops.mkdir = make_folder;
  ops.symlink = make_symlink;
  ops.unlink = unlink_file;
  ops.rmdir = remove_folder;
  ops.rename = rename_file;
  ops.link = link_file;
  ops.open = open_by_itself;
  ops.opendir = open_by_itself;
  ops.read = read_file;
  ops.write = write_file;
  ops.fsync = synchronise;
  ops.fsyncdir = synchronise;
  ops.fallocate = allocate;
  ops.lseek = seek;
  ops.readdir = read_folder;
  ops.statfs = file_system;
  return ops;
}

Result<void> configure(int context, unsigned command, const char* key, const char* value) {
  if (::fsconfig(context, command, key, value, 0) == 0) return {};
  return errno_error("fsconfig", std::string("fuse, ") + (key != nullptr ? key : "create"));
}

}  // namespace

Result<std::unique_ptr<FuseSession>> FuseSession::start(FileTree& tree, const std::string& name) {
  auto device = open_file("/dev/fuse", O_RDWR);
  if (!device) {
    return make_error(Code::kUnsupported, "volume", device.error().message(), "Volumes need FUSE (CONFIG_FUSE_FS, module fuse) on each node.");
  }
  const int flags = ::fcntl(device->get(), F_GETFL);
  ::fcntl(device->get(), F_SETFL, flags | O_NONBLOCK);
  Fd context = Fd::adopt(::fsopen("fuse", FSOPEN_CLOEXEC));
  if (!context) return errno_error("fsopen", "fuse");
  BATON_TRY(configure(context.get(), FSCONFIG_SET_STRING, "source", name.c_str()));
  BATON_TRY(configure(context.get(), FSCONFIG_SET_STRING, "subtype", "baton"));
  BATON_TRY(configure(context.get(), FSCONFIG_SET_STRING, "fd", std::to_string(device->get()).c_str()));
  BATON_TRY(configure(context.get(), FSCONFIG_SET_STRING, "rootmode", "40000"));
  BATON_TRY(configure(context.get(), FSCONFIG_SET_STRING, "user_id", "0"));
  BATON_TRY(configure(context.get(), FSCONFIG_SET_STRING, "group_id", "0"));
  BATON_TRY(configure(context.get(), FSCONFIG_SET_FLAG, "default_permissions", nullptr));
  BATON_TRY(configure(context.get(), FSCONFIG_SET_FLAG, "allow_other", nullptr));
  BATON_TRY(configure(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr));
  std::unique_ptr<FuseSession> out(new FuseSession(tree));
  out->mount_ = Fd::adopt(::fsmount(context.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV));
  if (!out->mount_) return errno_error("fsmount", "fuse");

  static const fuse_lowlevel_ops ops = operations();
  char program[] = "baton-volume";
  char* argv[] = {program, nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, argv);
  out->session_ = fuse_session_new(&args, &ops, sizeof ops, &tree);
  fuse_opt_free_args(&args);
  if (out->session_ == nullptr) return make_error(Code::kFailed, "volume", "libfuse makes no session");
  const std::string place = "/dev/fd/" + std::to_string(device->get());
  if (fuse_session_mount(out->session_, place.c_str()) != 0) return make_error(Code::kFailed, "volume", "libfuse does not take its descriptor");
  (void)device->release();   // the session's
  return out;
}

FuseSession::~FuseSession() {
  mount_.reset();
  if (session_ == nullptr) return;
  fuse_session_unmount(session_);
  fuse_session_destroy(session_);
}

int FuseSession::fd() const { return fuse_session_fd(session_); }
bool FuseSession::ended() const { return fuse_session_exited(session_) != 0; }

void FuseSession::serve() {
  constexpr int kAtOnce = 64;      // then others have their turn
  static fuse_buf buffer{};
  for (int i = 0; i < kAtOnce && !ended(); ++i) {
    const int got = fuse_session_receive_buf(session_, &buffer);
    if (got == -EINTR) continue;
    if (got <= 0) return;          // nothing waits, or it has ended
    fuse_session_process_buf(session_, &buffer);
  }
}

}  // namespace baton::volume
