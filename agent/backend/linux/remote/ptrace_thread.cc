#include "agent/backend/linux/remote/ptrace_thread.h"

#include <sys/prctl.h>
#include <sys/resource.h>

#include "agent/backend/linux/remote/tracee.h"

namespace baton::linux_backend {

void PtraceThread::start() {
  stop_ = tainted_ = false;
  thread_ = std::thread([this] { loop(); });
}

void PtraceThread::finish() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    wake_.notify_one();
  }
  thread_.join();
}

void PtraceThread::loop() {
  // While it works, a program stands still: short naps are to be short, and on a busy machine it
  // goes first. Without the privilege for that it goes on as it is.
  ::prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
  (void)::setpriority(PRIO_PROCESS, 0, -20);  // on Linux: of this thread alone
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || work_ != nullptr; });
    if (work_ == nullptr) return;
    const auto* work = work_;
    lock.unlock();
    (*work)();
    lock.lock();
    tainted_ = Tracee::thread_is_tainted();
    work_ = nullptr;
    done_.notify_one();
  }
}

void PtraceThread::run(const std::function<void()>& work) {
  bool replace = false;
  {
    std::unique_lock lock(mutex_);
    work_ = &work;
    wake_.notify_one();
    done_.wait(lock, [&] { return work_ == nullptr; });
    replace = tainted_;
  }
  if (replace) {
    finish();
    start();
  }
}

}  // namespace baton::linux_backend
