#include "agent/backend/linux/remote/ptrace_thread.h"

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
