#include "agent/warden/lease_table.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/clock.h"
#include "base/log.h"

extern char** environ;

namespace baton::warden {
namespace {

constexpr std::uint64_t kMagic = 0x3230534c4e544142;   // "BATNLS02"
constexpr std::uint64_t kNever = UINT64_MAX;
constexpr std::uint32_t kBeside = 1, kStopped = 2;      // Slot::capturing
constexpr int kGuardWakeFd = 3;
constexpr auto kGuardPause = std::chrono::milliseconds(200);
constexpr std::uint64_t kGuardLookNs = 200'000'000;    // for a newer guard
constexpr std::uint64_t kRetryNs = 1'000'000;          // a freeze that failed, a capture that is let end

std::uint64_t boot_ns() { return static_cast<std::uint64_t>(read_clock(CLOCK_BOOTTIME).count()); }

Result<void> write_freeze(const std::string& cgroup, bool freeze) {
  BATON_ASSIGN(Fd fd, open_file(cgroup + "/cgroup.freeze", O_WRONLY));
  if (::write(fd.get(), freeze ? "1" : "0", 1) != 1) return errno_error("write cgroup.freeze", cgroup);
  return {};
}

// A process that was killed is gone at once, whether or not its parent has asked for its status.
bool is_gone(pid_t pid) {
  Fd process = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) return errno == ESRCH;
  pollfd entry{process.get(), POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

// Wakes at `until_ns` of boot time; never for UINT64_MAX.
void arm(int timer, std::uint64_t until_ns) {
  itimerspec spec{};
  if (until_ns != kNever) {
    until_ns = std::max<std::uint64_t>(until_ns, 1);
    spec.it_value.tv_sec = static_cast<time_t>(until_ns / 1'000'000'000);
    spec.it_value.tv_nsec = static_cast<long>(until_ns % 1'000'000'000);
  }
  ::timerfd_settime(timer, TFD_TIMER_ABSTIME, &spec, nullptr);
}

void drain(int fd) {
  std::uint64_t count;
  if (::read(fd, &count, sizeof count) < 0) return;   // nonblocking: nothing was there
}

}  // namespace

struct LeaseTable::Slot {
  std::atomic<std::uint32_t> used;
  std::atomic<std::uint32_t> frozen;       // by an enforcer; changed under the slot's lock
  std::atomic<std::uint32_t> held;
  std::atomic<std::uint32_t> capturing;
  std::atomic<std::int32_t> capturer;      // the process that captures: its death ends that
  std::atomic<std::uint64_t> until_ns;     // 0: no lease
  std::atomic<std::uint64_t> incarnation;
  char workload[64];                       // written under the slot's lock, before `used`
  char cgroup[448];
};

struct LeaseTable::Layout {
  std::atomic<std::uint64_t> magic;
  std::uint64_t bytes;
  char boot_id[64];
  std::atomic<std::uint32_t> guard;
  std::uint32_t padding;
  Slot slots[kLeasesMax];
};

// A lock of the kernel per slot (open file description): it dies with who holds it. A fresh
// description each time, because one is shared by the threads of a process.
class LeaseTable::SlotLock {
 public:
  SlotLock(const LeaseTable& table, std::size_t index) : index_(static_cast<off_t>(index)) {
    std::string path = "/proc/self/fd/" + std::to_string(table.fd_.get());
    if (auto fd = open_file(path, O_RDWR)) fd_ = std::move(*fd);
    set(F_WRLCK);
  }
  ~SlotLock() { set(F_UNLCK); }
  SlotLock(const SlotLock&) = delete;
  SlotLock& operator=(const SlotLock&) = delete;

 private:
  void set(short type) {
    if (!fd_) return;
    struct flock lock{};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = index_;
    lock.l_len = 1;
    while (::fcntl(fd_.get(), F_OFD_SETLKW, &lock) != 0 && errno == EINTR) {}
  }
  Fd fd_;
  off_t index_;
};

Result<std::unique_ptr<LeaseTable>> LeaseTable::open(const std::string& path, const std::string& boot_id) {
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);
  BATON_ASSIGN(Fd fd, open_file(path, O_RDWR | O_CREAT, 0600));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return errno_error("fstat", path);
  const bool fits = info.st_size == static_cast<off_t>(sizeof(Layout));
  if (!fits && ::ftruncate(fd.get(), sizeof(Layout)) != 0) return errno_error("ftruncate", path);
  void* at = ::mmap(nullptr, sizeof(Layout), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return errno_error("mmap", path);
  auto* layout = static_cast<Layout*>(at);
  std::unique_ptr<LeaseTable> table(new LeaseTable(std::move(fd), layout));
  const bool same_boot = fits && layout->magic.load() == kMagic && layout->bytes == sizeof(Layout) &&
                         std::strncmp(layout->boot_id, boot_id.c_str(), sizeof layout->boot_id - 1) == 0;
  if (!same_boot) {
    layout->magic.store(0);
    std::memset(static_cast<void*>(layout->slots), 0, sizeof layout->slots);
    layout->bytes = sizeof(Layout);
    std::strncpy(layout->boot_id, boot_id.c_str(), sizeof layout->boot_id - 1);
    layout->magic.store(kMagic);
  }
  return table;
}

void LeaseTable::sooner() const {
  std::uint64_t one = 1;
  for (int fd : wakes_) {
    if (::write(fd, &one, sizeof one) < 0) continue;   // full: it is awake anyway
  }
}

LeaseTable::~LeaseTable() { ::munmap(layout_, sizeof(Layout)); }

LeaseTable::Slot* LeaseTable::find(const std::string& workload) const {
  for (Slot& slot : layout_->slots) {
    if (slot.used.load(std::memory_order_acquire) != 0 && workload == slot.workload) return &slot;
  }
  return nullptr;
}

Result<bool> LeaseTable::renew(const std::string& workload, const std::string& cgroup, std::uint64_t until_ns,
                               std::uint64_t incarnation) {
  // An activation and a renewal come at once: one slot for both.
  std::unique_lock making(making_);
  Slot* slot = find(workload);
  if (slot) making.unlock();
  if (!slot) {
    if (until_ns == 0) return false;
    if (workload.size() >= sizeof slot->workload || cgroup.size() >= sizeof slot->cgroup) {
      return make_error(Code::kInvalid, "lease", workload + ": the path of its cgroup is too long");
    }
    for (std::size_t i = 0; i < kLeasesMax && !slot; ++i) {
      Slot& one = layout_->slots[i];
      if (one.used.load() != 0) continue;
      SlotLock lock(*this, i);
      if (one.used.load() != 0) continue;
      std::strcpy(one.workload, workload.c_str());
      std::strcpy(one.cgroup, cgroup.c_str());
      one.frozen = one.held = one.capturing = 0;
      one.until_ns = until_ns;
      one.incarnation = incarnation;
      one.used.store(1, std::memory_order_release);
      slot = &one;
    }
    if (!slot) return make_error(Code::kNoSpace, "lease", "too many leases on this node");
    sooner();
    return false;
  }
  if (incarnation < slot->incarnation.load()) {
    return make_error(Code::kConflict, "lease",
                      workload + " was leased under incarnation " + std::to_string(slot->incarnation.load()) +
                          ", not " + std::to_string(incarnation));
  }
  slot->incarnation = incarnation;
  const std::uint64_t before = slot->until_ns.exchange(until_ns);
  if (slot->frozen.load() == 0) {
    if (until_ns != 0 && (before == 0 || until_ns < before)) sooner();
    return false;
  }
  const std::size_t index = static_cast<std::size_t>(slot - layout_->slots);
  SlotLock lock(*this, index);
  if (slot->frozen.load() == 0) return false;
  if (until_ns != 0 && until_ns <= boot_ns()) return false;   // it has run out already, too
  if (slot->held.load() == 0) BATON_TRY(write_freeze(slot->cgroup, false));
  slot->frozen = 0;
  sooner();
  return true;
}

LeaseTable::State LeaseTable::get(const std::string& workload) const {
  State out;
  if (Slot* slot = find(workload)) {
    out.known = true;
    out.until_ns = slot->until_ns.load();
    out.frozen = slot->frozen.load() != 0;
    out.held = slot->held.load() != 0;
  }
  return out;
}

void LeaseTable::set_held(const std::string& workload, bool held) {
  if (Slot* slot = find(workload)) slot->held = held ? 1 : 0;
}

void LeaseTable::forget(const std::string& workload) {
  if (Slot* slot = find(workload)) {
    SlotLock lock(*this, static_cast<std::size_t>(slot - layout_->slots));
    slot->until_ns = 0;
    slot->used.store(0);
  }
}

LeaseTable::Capturing::Capturing(LeaseTable& table, const std::string& workload, bool stopped)
    : table_(table), slot_(table.find(workload)) {
  auto* slot = static_cast<Slot*>(slot_);
  if (!slot) return;
  slot->capturer = ::getpid();
  slot->capturing = stopped ? kStopped : kBeside;
  const std::uint64_t until = slot->until_ns.load();
  allowed_ = slot->frozen.load() == 0 && (until == 0 || boot_ns() < until);
}

LeaseTable::Capturing::~Capturing() {
  auto* slot = static_cast<Slot*>(slot_);
  if (!slot) return;
  slot->capturing = 0;
  const std::uint64_t until = slot->until_ns.load();
  if (until != 0 && boot_ns() >= until) table_.enforce();
}

bool LeaseTable::expire(Slot& slot, std::size_t index) {
  SlotLock lock(*this, index);
  const std::uint64_t until = slot.until_ns.load();
  if (slot.used.load() == 0 || until == 0 || boot_ns() < until || slot.frozen.load() != 0) return false;
  auto frozen = write_freeze(slot.cgroup, true);
  if (!frozen) {
    if (frozen.error().code == Code::kNotFound) {   // the workload is gone, and its cgroup
      slot.until_ns = 0;
      return false;
    }
    spdlog::error("{}: its lease has run out, and it cannot be frozen: {}", slot.workload, frozen.error().message());
    return false;
  }
  slot.frozen = 1;
  return true;
}

std::uint64_t LeaseTable::enforce(const std::function<void(const std::string& workload)>& frozen) {
  std::uint64_t next = kNever;
  // A capture that its warden did not live to end has let the program go already.
  auto patience = [](const Slot& slot) -> std::uint64_t {
    const std::uint32_t capturing = slot.capturing.load();
    if (capturing == 0 || is_gone(slot.capturer.load())) return 0;
    return static_cast<std::uint64_t>(std::chrono::nanoseconds(capturing == kStopped ? kCapturePatience : kRoundPatience).count());
  };
  for (std::size_t i = 0; i < kLeasesMax; ++i) {
    Slot& slot = layout_->slots[i];
    const std::uint64_t until = slot.until_ns.load();
    if (slot.used.load() == 0 || until == 0 || slot.frozen.load() != 0) continue;
    const std::uint64_t now = boot_ns();
    if (now < until) {
      next = std::min(next, until);
    } else if (now < until + patience(slot)) {
      next = std::min(next, now + kRetryNs / 4);
    } else if (expire(slot, i)) {
      if (frozen) frozen(slot.workload);
    } else {
      next = std::min(next, now + kRetryNs);
    }
  }
  return next;
}

std::size_t LeaseTable::running() const {
  return static_cast<std::size_t>(std::count_if(std::begin(layout_->slots), std::end(layout_->slots), [](Slot& slot) {
    return slot.used.load() != 0 && slot.until_ns.load() != 0 && slot.frozen.load() == 0;
  }));
}

std::uint32_t LeaseTable::next_guard() { return ++layout_->guard; }
std::uint32_t LeaseTable::guard() const { return layout_->guard.load(); }

bool make_realtime() noexcept {
  sched_param param{};
  param.sched_priority = 2;
  return ::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &param) == 0;
}

// ---- the warden's own thread

LeaseEnforcer::LeaseEnforcer(LeaseTable& table, std::function<void(const std::string& workload)> frozen)
    : table_(table), frozen_(std::move(frozen)),
      timer_(Fd::adopt(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK))),
      wake_(Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))) {
  table_.wake_on_sooner(wake_.get());
  thread_ = std::thread([this] { run(); });
}

LeaseEnforcer::~LeaseEnforcer() {
  ending_ = true;
  std::uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) < 0) spdlog::error("the lease thread cannot be woken");
  thread_.join();
}

void LeaseEnforcer::run() {
  make_realtime();
  while (!ending_) {
    arm(timer_.get(), table_.enforce(frozen_));
    pollfd entries[] = {{timer_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    ::poll(entries, 2, -1);
    drain(timer_.get());
    drain(wake_.get());
  }
}

// ---- the guard

int guard_leases(const std::string& path, pid_t warden, int wake) {
  auto text = read_file("/proc/sys/kernel/random/boot_id", 64);
  std::string boot = text ? text->substr(0, text->find('\n')) : std::string();
  auto table = LeaseTable::open(path, boot);
  if (!table) return 1;
  Fd watched = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, warden, 0)));
  Fd timer = Fd::adopt(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer) return 1;
  ::mlockall(MCL_CURRENT);
  make_realtime();
  const std::uint32_t mine = (*table)->next_guard();
  for (;;) {
    std::uint64_t next = (*table)->enforce();
    if ((*table)->guard() != mine) return 0;
    if (!watched && (*table)->running() == 0) return 0;
    arm(timer.get(), std::min(next, boot_ns() + kGuardLookNs));
    pollfd entries[] = {{timer.get(), POLLIN, 0}, {wake, POLLIN, 0}, {watched.get(), POLLIN, 0}};
    ::poll(entries, watched ? 3 : 2, -1);
    drain(wake);
    drain(timer.get());
    if (watched && entries[2].revents != 0) watched.reset();
  }
}

GuardKeeper::GuardKeeper(LeaseTable& table, std::string table_path)
    : path_(std::move(table_path)), wake_(Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))),
      wake_guard_(Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))) {
  table.wake_on_sooner(wake_guard_.get());
  thread_ = std::thread([this] { run(); });
}

GuardKeeper::~GuardKeeper() {
  ending_ = true;
  std::uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) < 0) spdlog::error("the guard's keeper cannot be woken");
  thread_.join();
}

void GuardKeeper::run() {
  while (!ending_) {
    const std::string warden = std::to_string(::getpid());
    std::string exe = "/proc/self/exe", name = "baton-warden", verb = "--guard-leases", path = path_, by = "--guarded";
    std::string pid = warden;
    std::string eventfd = "--guard-wake", number = std::to_string(kGuardWakeFd);
    char* argv[] = {name.data(), verb.data(), path.data(), by.data(), pid.data(), eventfd.data(), number.data(), nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, wake_guard_.get(), kGuardWakeFd);
    pid_t child = -1;
    posix_spawnattr_t attributes;
    ::posix_spawnattr_init(&attributes);
    // Of its own session: what is sent to the warden's group is not meant for it.
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
    const int failed = ::posix_spawn(&child, exe.c_str(), &actions, &attributes, argv, environ);
    ::posix_spawnattr_destroy(&attributes);
    ::posix_spawn_file_actions_destroy(&actions);
    Fd held = failed == 0 ? Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, child, 0))) : Fd();
    if (failed != 0) spdlog::error("the guard of the leases does not start: {}", std::strerror(failed));
    pollfd entries[] = {{wake_.get(), POLLIN, 0}, {held.get(), POLLIN, 0}};
    ::poll(entries, held ? 2 : 1, held ? -1 : static_cast<int>(kGuardPause.count()));
    if (ending_) return;
    if (failed == 0) {
      int status = 0;
      ::waitpid(child, &status, 0);
      spdlog::warn("the guard of the leases ended; another one is started");
      pollfd pause{wake_.get(), POLLIN, 0};
      ::poll(&pause, 1, static_cast<int>(kGuardPause.count()));
    }
  }
}

}  // namespace baton::warden
