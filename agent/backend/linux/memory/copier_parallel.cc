// Copier "parallel": the batch is cut into equal shares, one for each of its threads and one for
// the caller. While a program is frozen its own processor is free for this. Small batches are
// copied by the caller alone: waking a thread takes as long as copying some 40 pages.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "agent/backend/linux/memory/copier.h"

namespace baton::linux_backend {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::uint64_t kSharePages = 48;       // less is not worth a thread
constexpr std::uint32_t kMaxThreads = 8;

class Parallel final : public Copier {
 public:
  Parallel(std::uint32_t threads, const std::vector<int>& cpus) : helpers_(threads - 1) {
    for (auto& h : helpers_) h.thread = std::thread([this, &h, cpus] { help(h, cpus); });
  }
  ~Parallel() override {
    for (auto& h : helpers_) {
      {
        std::lock_guard lock(h.mutex);
        h.stop = true;
      }
      h.wake.notify_one();
      h.thread.join();
    }
  }
  std::string_view name() const override { return "parallel"; }

  Result<std::uint64_t> copy(pid_t pid, std::span<const PageRun> runs, std::span<std::byte> to) override {
    std::uint64_t pages = 0;
    for (const PageRun& r : runs) pages += r.count;
    std::size_t shares = std::min<std::uint64_t>(helpers_.size() + 1, std::max<std::uint64_t>(pages / kSharePages, 1));
    if (shares < 2) return read_remote(pid, runs, to);
    std::vector<Share> cut(shares);
    std::size_t at = 0;
    std::uint64_t done = 0, in_run = 0;
    for (std::size_t s = 0; s < shares; ++s) {
      std::uint64_t end = pages * (s + 1) / shares, begin = done;
      while (done < end) {
        std::uint64_t take = std::min(runs[at].count - in_run, end - done);
        cut[s].runs.push_back({runs[at].first + in_run, take});
        in_run += take;
        done += take;
        if (in_run == runs[at].count) {
          ++at;
          in_run = 0;
        }
      }
      cut[s].pid = pid;
      cut[s].pages = done - begin;
      cut[s].to = to.subspan(begin * kPage, cut[s].pages * kPage);
    }
    for (std::size_t s = 1; s < shares; ++s) helpers_[s - 1].give(&cut[s]);
    cut[0].got = read_remote(pid, cut[0].runs, cut[0].to);
    for (std::size_t s = 1; s < shares; ++s) helpers_[s - 1].await();
    std::uint64_t got = 0;
    for (Share& share : cut) {
      if (!*share.got) return std::move(*share.got);
      got += **share.got;
      if (**share.got < share.pages) break;      // what later shares read does not count
    }
    return got;
  }

 private:
  struct Share {
    pid_t pid = 0;
    std::vector<PageRun> runs;
    std::span<std::byte> to;
    std::uint64_t pages = 0;
    std::optional<Result<std::uint64_t>> got;
  };
  struct Helper {
    std::thread thread;
    std::mutex mutex;
    std::condition_variable wake, done;
    Share* share = nullptr;
    bool stop = false;
    void give(Share* s) {
      {
        std::lock_guard lock(mutex);
        share = s;
      }
      wake.notify_one();
    }
    void await() {
      std::unique_lock lock(mutex);
      done.wait(lock, [&] { return share == nullptr; });
    }
  };

  static void help(Helper& h, const std::vector<int>& cpus) {
    ::prctl(PR_SET_NAME, "baton-copier");
    (void)::setpriority(PRIO_PROCESS, 0, -20);   // of this thread; without the privilege as it is
    if (!cpus.empty()) {
      cpu_set_t set;
      CPU_ZERO(&set);
      for (int cpu : cpus) CPU_SET(static_cast<unsigned>(cpu), &set);
      (void)::sched_setaffinity(0, sizeof set, &set);   // a processor that is not there: anywhere
    }
    std::unique_lock lock(h.mutex);
    for (;;) {
      h.wake.wait(lock, [&] { return h.stop || h.share != nullptr; });
      if (h.share == nullptr) return;
      Share* share = h.share;
      lock.unlock();
      share->got = read_remote(share->pid, share->runs, share->to);
      lock.lock();
      h.share = nullptr;
      h.done.notify_one();
    }
  }

  std::vector<Helper> helpers_;
};

Result<std::unique_ptr<Copier>> make(const CopierOptions& options) {
  std::uint32_t threads = options.threads;
  if (threads == 0) {
    long cpus = options.cpus.empty() ? ::sysconf(_SC_NPROCESSORS_ONLN) : static_cast<long>(options.cpus.size());
    threads = std::min(kMaxThreads, static_cast<std::uint32_t>(std::max(cpus, 1L)));
  }
  if (threads < 2) return make_error(Code::kUnsupported, "copier", "parallel: this node has one processor");
  return std::unique_ptr<Copier>(std::make_unique<Parallel>(threads, options.cpus));
}

const CopierRegistrar registrar({"parallel", 20, make});

}  // namespace
}  // namespace baton::linux_backend
