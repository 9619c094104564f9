// Injects into every thread of a process until it is killed or done:
//   injector PID ROUNDS
// Used by crash_test.cc, which arms a fault point in it.
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/remote/tracee.h"

using namespace baton;
using namespace baton::linux_backend;

namespace {
Result<void> inject(pid_t tid) {
  BATON_ASSIGN(Tracee tracee, Tracee::seize(tid));
  BATON_TRY(tracee.stop());
  BATON_ASSIGN(std::int64_t self, tracee.syscall(SYS_gettid));
  if (self != tid) return make_error(Code::kFailed, "gettid", std::to_string(self));
  std::vector<RemoteCall> calls(20, RemoteCall{SYS_getppid, {}});
  BATON_ASSIGN(auto answers, tracee.batch(calls, true));
  if (answers.size() != 20) return make_error(Code::kFailed, "batch", "too few");
  return tracee.detach();
}
}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  pid_t pid = std::atoi(argv[1]);
  for (int round = std::atoi(argv[2]); round > 0; --round) {
    auto threads = list_threads(pid);
    if (!threads) {
      std::fprintf(stderr, "%s\n", threads.error().message().c_str());
      return 1;
    }
    for (pid_t tid : *threads) {
      auto done = inject(tid);
      if (!done && done.error().code != Code::kTraceeGone) {
        std::fprintf(stderr, "%s\n", done.error().message().c_str());
        return 1;
      }
    }
  }
  return 0;
}
