#include "agent/backend/linux/remote/tracee.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/remote/tracee_impl.h"
#include "base/check.h"

namespace baton::linux_backend {
namespace {
thread_local bool tainted = false;
}

void taint_thread() { tainted = true; }
bool Tracee::thread_is_tainted() { return tainted; }

Tracee::Tracee(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tracee::Tracee(Tracee&&) noexcept = default;
Tracee& Tracee::operator=(Tracee&& other) noexcept {
  if (this != &other) {
    if (impl_) (void)detach();
    impl_ = std::move(other.impl_);
  }
  return *this;
}
Tracee::~Tracee() {
  if (impl_) (void)detach();
}

pid_t Tracee::tid() const { return impl_->tid; }
bool Tracee::stopped() const { return impl_->stopped; }
bool Tracee::group_stopped() const { return impl_->group_stop; }
std::vector<pid_t> Tracee::take_new_children() { return std::exchange(impl_->new_children, {}); }

Result<Tracee> Tracee::seize(pid_t tid) {
  if (::ptrace(PTRACE_SEIZE, tid, nullptr, static_cast<std::uintptr_t>(PTRACE_O_TRACESYSGOOD)) < 0) {
    int saved = errno;
    std::string subject = "thread " + std::to_string(tid);
    if (saved == ESRCH) return make_error(Code::kTraceeGone, "seize", subject + ": no such thread");
    auto status = read_task_status(tid);
    if (!status) return make_error(Code::kTraceeGone, "seize", subject + ": it has ended");
    if (status->kernel_thread) {
      return make_error(Code::kUnsupported, "seize", subject + ": it is a kernel thread");
    }
    if (status->tracer == ::gettid()) {
      // One of ours that could not be given back (thread_is_tainted).
      return make_error(Code::kTimedOut, "seize",
                        subject + ": it has not stopped since an earlier attempt (a parent in vfork)");
    }
    if (status->tracer != 0) {
      return make_error(Code::kConflict, "seize",
                        subject + ": already traced by process " + std::to_string(status->tracer),
                        "End the debugger or tracer first.");
    }
    if (status->state == 'Z' || status->state == 'X') {
      return make_error(Code::kTraceeGone, "seize", subject + ": it has exited");
    }
    return errno_error(saved, "seize", subject);
  }
  auto impl = std::make_unique<Impl>();
  impl->tid = tid;
  impl->seized = true;
  impl->options = PTRACE_O_TRACESYSGOOD;
  return Tracee(std::move(impl));
}

Result<Tracee> Tracee::adopt(pid_t tid) {
  auto impl = std::make_unique<Impl>();
  impl->tid = tid;
  impl->seized = true;
  impl->options = PTRACE_O_TRACESYSGOOD;
  Tracee tracee(std::move(impl));
  // The first stop may still be on its way.
  Impl& t = *tracee.impl_;
  BATON_ASSIGN(StopEvent e, t.wait_event(std::chrono::steady_clock::now() + std::chrono::seconds(5)));
  if (e.gone) return t.gone_error("adopt");
  t.stopped = true;
  t.in_trap = t.at_event_stop = e.event == PTRACE_EVENT_STOP;
  t.group_stop = e.event == PTRACE_EVENT_STOP && e.signal != SIGTRAP;
  BATON_TRY(t.trace(PTRACE_SETOPTIONS, t.options));
  return tracee;
}

Result<void> Tracee::set_options(std::uint32_t options) {
  impl_->options = options | PTRACE_O_TRACESYSGOOD;
  std::uint32_t all = impl_->options;
  if (impl_->seccomp_suspended) all |= PTRACE_O_SUSPEND_SECCOMP;
  return impl_->trace(PTRACE_SETOPTIONS, all);
}

Result<void> Tracee::resume() {
  Impl& t = *impl_;
  if (!t.stopped) return {};
  BATON_TRY(t.load_own());   // hides the interruption of a call, if there was one
  BATON_TRY(t.end_session());
  if (t.group_stop) {
    // Back into the stop of its own, still traced.
    if (!t.at_event_stop) {
      BATON_TRY(t.trap_again(std::chrono::steady_clock::now() + std::chrono::seconds(5)));
    }
    if (t.group_stop) {
      BATON_TRY(t.trace(PTRACE_LISTEN, 0));
      t.stopped = false;
      return {};
    }
  }
  return t.go_on(false, std::exchange(t.deliver_signal, 0));
}

Result<void> Tracee::detach() {
  Impl& t = *impl_;
  if (!t.seized || t.gone) return {};
  if (!t.stopped) {
    auto stopped_now = stop();
    if (!stopped_now) {
      if (!t.gone) taint_thread();
      t.seized = false;
      return std::move(stopped_now).error();
    }
  }
  Result<void> given_back = {};
  if (auto loaded = t.load_own(); !loaded && !t.gone) given_back = std::move(loaded);
  if (t.scratch_bytes != 0) given_back = release_scratch();
  if (!t.gone) {
    auto ended = t.end_session();
    if (!ended && given_back) given_back = std::move(ended);
  }
  if (t.gone) return given_back;
  if (::ptrace(PTRACE_DETACH, t.tid, nullptr,
               static_cast<std::uintptr_t>(std::exchange(t.deliver_signal, 0))) < 0) {
    Error e = errno_error("detach", t.name());
    if (e.sys_errno == ESRCH) {
      // Killed meanwhile: reap it, so that its own parent hears of it.
      auto event = t.wait_event(std::chrono::steady_clock::now() + std::chrono::seconds(1));
      if (!event || !event->gone) taint_thread();
      t.seized = t.stopped = false;
      t.gone = true;
      return t.gone_error("detach");
    }
    return e;
  }
  t.seized = t.stopped = false;
  t.mem.reset();
  return given_back;
}

void Tracee::let_go(std::chrono::nanoseconds timeout) {
  Impl& t = *impl_;
  if (!t.seized || t.gone) return;
  if (!t.stopped && !await_stop(timeout)) {
    if (!t.gone) taint_thread();
    t.seized = false;
    return;
  }
  (void)detach();
}

// --- memory ---------------------------------------------------------------

Result<void> Tracee::Impl::open_mem() {
  if (mem) return {};
  auto opened = open_file("/proc/" + std::to_string(tid) + "/mem", O_RDWR);
  if (!opened) return std::move(opened).error();
  mem = std::move(*opened);
  return {};
}

Result<void> Tracee::Impl::poke(std::uint64_t at, std::span<const std::byte> bytes) {
  BATON_TRY(open_mem());
  std::size_t done = 0;
  while (done < bytes.size()) {
    ssize_t n = ::pwrite(mem.get(), bytes.data() + done, bytes.size() - done,
                         static_cast<off_t>(at + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return errno_error(n == 0 ? EFAULT : errno, "write memory of", name());
    }
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> Tracee::read(RemotePtr<const void> from, std::span<std::byte> out) {
  Impl& t = *impl_;
  if (out.empty()) return {};
  iovec local{out.data(), out.size()};
  iovec remote{reinterpret_cast<void*>(from.address), out.size()};
  ssize_t n = ::process_vm_readv(t.tid, &local, 1, &remote, 1, 0);
  if (n == static_cast<ssize_t>(out.size())) return {};
  if (n < 0 && errno == ESRCH) return t.gone_error("read memory");
  BATON_TRY(t.open_mem());  // also reads what the program itself may not
  std::size_t done = 0;
  while (done < out.size()) {
    n = ::pread(t.mem.get(), out.data() + done, out.size() - done,
                static_cast<off_t>(from.address + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return errno_error(n == 0 ? EFAULT : errno, "read memory of", t.name());
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> Tracee::write(RemotePtr<void> to, std::span<const std::byte> bytes) {
  Impl& t = *impl_;
  if (bytes.empty()) return {};
  iovec local{const_cast<std::byte*>(bytes.data()), bytes.size()};
  iovec remote{reinterpret_cast<void*>(to.address), bytes.size()};
  ssize_t n = ::process_vm_writev(t.tid, &local, 1, &remote, 1, 0);
  if (n == static_cast<ssize_t>(bytes.size())) return {};
  if (n < 0 && errno == ESRCH) return t.gone_error("write memory");
  return t.poke(to.address, bytes);
}

// --- registers ------------------------------------------------------------

Result<std::vector<std::byte>> Tracee::general_registers() {
  BATON_TRY(impl_->load_own());
  auto bytes = std::as_bytes(std::span(&impl_->own, 1));
  return std::vector<std::byte>(bytes.begin(), bytes.end());
}

Result<void> Tracee::set_general_registers(std::span<const std::byte> image) {
  Impl& t = *impl_;
  if (!t.stopped) return make_error(Code::kInvalid, "set registers", t.name() + ": not stopped");
  if (image.size() != sizeof t.own) {
    return make_error(Code::kInvalid, "set registers",
                      t.name() + ": image of " + std::to_string(image.size()) + " bytes");
  }
  BATON_TRY(t.end_session());
  std::memcpy(&t.own, image.data(), sizeof t.own);
  t.have_own = t.own_dirty = true;
  return {};
}

Result<std::vector<std::byte>> Tracee::extended_state() {
  std::vector<std::byte> image(arch::kMaxExtendedStateBytes);
  iovec iov{image.data(), image.size()};
  if (::ptrace(PTRACE_GETREGSET, impl_->tid, arch::extended_state_note(), &iov) < 0) {
    return errno_error("read extended registers of", impl_->name());
  }
  image.resize(iov.iov_len);
  return image;
}

Result<void> Tracee::set_extended_state(std::span<const std::byte> image) {
  iovec iov{const_cast<std::byte*>(image.data()), image.size()};
  if (::ptrace(PTRACE_SETREGSET, impl_->tid, arch::extended_state_note(), &iov) < 0) {
    return errno_error("set extended registers of", impl_->name());
  }
  return {};
}

Result<std::uint64_t> Tracee::signal_mask() {
  BATON_TRY(impl_->load_mask());
  return impl_->own_mask;
}

Result<void> Tracee::set_signal_mask(std::uint64_t mask) {
  Impl& t = *impl_;
  if (!t.stopped) return make_error(Code::kInvalid, "set signal mask", t.name() + ": not stopped");
  BATON_TRY(t.end_session());
  t.own_mask = mask;
  t.have_mask = t.mask_dirty = true;
  return {};
}

}  // namespace baton::linux_backend
