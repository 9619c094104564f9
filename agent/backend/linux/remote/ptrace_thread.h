// PtraceThread: a thread that does all the tracing of one attachment, because ptrace(2)
// binds a tracee to the thread that seized it, and because the end of that thread is the
// one way to let go of a tracee that will not stop: after such a run it is replaced.
//
// run() may be called from any thread, one call at a time, and blocks until the work is done.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace baton::linux_backend {

class PtraceThread {
 public:
  PtraceThread() { start(); }
  ~PtraceThread() { finish(); }
  PtraceThread(const PtraceThread&) = delete;
  PtraceThread& operator=(const PtraceThread&) = delete;

  void run(const std::function<void()>& work);

 private:
  void start();
  void finish();
  void loop();

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void()>* work_ = nullptr;
  bool stop_ = false, tainted_ = false;
  std::thread thread_;
};

}  // namespace baton::linux_backend
