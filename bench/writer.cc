// The program under test of the benchmarks: maps memory, fills it, and then writes a
// fixed number of pages per interval, in order or scattered.
//
//   writer --bytes N --pages P --interval-us U --pattern sequential|scattered
//          --random-share 0.5 --maps M --threads T --spread 0|1 --huge 0|1 --descriptors D
//
// random-share is the share of each page that does not compress. maps: the memory is split into
// M mappings that do not merge. threads: so many more threads, which sleep and wake a thousand
// times a second. spread: the pages of an interval are written evenly over it instead of at its
// beginning. huge: transparent huge pages are asked for. descriptors: so many are open, as a daemon
// has them: files, pipes, unix and UDP sockets, listeners, eventfds, timerfds, epoll; in every
// interval a byte goes through a pipe and a unix socket and a file is read on.
//
// Prints "ready" once the memory is filled, then runs until it is killed. What the program sees
// of Baton: the gaps between two looks at the clock while it writes or busily waits for the
// next interval (it never sleeps with --watch 1). At SIGUSR1 it prints, since the last time:
//   stalls N worst_us W turns T
// --step 1: it writes only when it is told to. At SIGUSR1 it writes the pages of one interval, a
// word of each and none twice in order, and prints the nanoseconds that this took:
//   burst_ns N
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

volatile sig_atomic_t report_wanted = 0;

std::uint64_t now_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

std::uint64_t state = 88172645463325252ull;
std::uint64_t next_random() {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

void fill_page(unsigned char* page, std::size_t random_bytes) {
  for (std::size_t at = 0; at + 8 <= random_bytes; at += 8) {
    std::uint64_t value = next_random();
    std::memcpy(page + at, &value, 8);
  }
  if (random_bytes < 4096) std::memset(page + random_bytes, static_cast<int>(next_random() & 7) + 1, 4096 - random_bytes);
}

// Looks at the clock; a gap of more than 20 µs since the last look is a stall.
struct Watch {
  std::uint64_t last = 0, worst = 0, stalls = 0;
  std::uint64_t look() {
    std::uint64_t now = now_ns();
    std::uint64_t gap = last == 0 ? 0 : now - last;
    if (gap > 20'000) ++stalls;
    if (gap > worst) worst = gap;
    last = now;
    return now;
  }
};

// What a daemon has open, and a little use of it.
class Descriptors {
 public:
  bool open(int count) {
    for (int kind = 0; count > 0; kind = (kind + 1) % 9) {
      const int before = made_;
      if (!open_one(kind)) return false;
      count -= made_ - before;
    }
    return true;
  }
  void use() {
    char byte = 'x';
    if (pipe_[1] >= 0) (void)!(::write(pipe_[1], &byte, 1) == 1 && ::read(pipe_[0], &byte, 1) == 1);
    if (pair_[1] >= 0) (void)!(::write(pair_[1], &byte, 1) == 1 && ::read(pair_[0], &byte, 1) == 1);
    if (file_ >= 0 && ::read(file_, &byte, 1) == 0) ::lseek(file_, 0, SEEK_SET);
  }

 private:
  bool open_one(int kind) {
    int both[2] = {-1, -1};
    sockaddr_in loopback{};
    loopback.sin_family = AF_INET;
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    switch (kind) {
      case 0: return took(file_ = ::open("/etc/services", O_RDONLY));
      case 1: return ::pipe(pipe_) == 0 && took(pipe_[0]) && took(pipe_[1]);
      case 2: return ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair_) == 0 && took(pair_[0]) && took(pair_[1]);
      case 3: return took(both[0] = ::socket(AF_INET, SOCK_DGRAM, 0)) && ::bind(both[0], reinterpret_cast<sockaddr*>(&loopback), sizeof loopback) == 0;
      case 4:
        return took(both[0] = ::socket(AF_INET, SOCK_STREAM, 0)) && ::bind(both[0], reinterpret_cast<sockaddr*>(&loopback), sizeof loopback) == 0 &&
               ::listen(both[0], 16) == 0;
      case 5: return took(event_ = ::eventfd(0, EFD_NONBLOCK));
      case 6: return took(::timerfd_create(CLOCK_MONOTONIC, 0));
      case 7: {
        epoll_event watch{};
        watch.events = EPOLLIN;
        return took(both[0] = ::epoll_create1(0)) && ::epoll_ctl(both[0], EPOLL_CTL_ADD, event_, &watch) == 0;
      }
      default: return took(::open("/dev/null", O_RDWR));
    }
  }
  bool took(int fd) {
    ++made_;
    return fd >= 0;
  }
  int made_ = 0, file_ = -1, event_ = -1;
  int pipe_[2] = {-1, -1}, pair_[2] = {-1, -1};
};

void sleep_until(std::uint64_t due) {
  timespec until{static_cast<time_t>(due / 1'000'000'000), static_cast<long>(due % 1'000'000'000)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t bytes = 256u << 20, pages_per_interval = 2000, maps = 1;
  std::uint64_t interval_us = 20000;
  bool scattered = false, spread = false, huge = false, watching = false, step = false;
  int threads = 0, descriptors = 0;
  double random_share = 0.5;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = argv[i], value = argv[i + 1];
    if (key == "--bytes") bytes = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--pages") pages_per_interval = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--interval-us") interval_us = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--pattern") scattered = value == "scattered";
    else if (key == "--random-share") random_share = std::atof(value.c_str());
    else if (key == "--maps") maps = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--threads") threads = std::atoi(value.c_str());
    else if (key == "--descriptors") descriptors = std::atoi(value.c_str());
    else if (key == "--spread") spread = value == "1";
    else if (key == "--huge") huge = value == "1";
    else if (key == "--watch") watching = value == "1";
    else if (key == "--step") step = value == "1";
    else {
      std::fprintf(stderr, "writer: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  std::signal(SIGUSR1, [](int) { report_wanted = 1; });
  sigset_t told;
  sigemptyset(&told);
  sigaddset(&told, SIGUSR1);
  if (step) sigprocmask(SIG_BLOCK, &told, nullptr);
  const std::size_t pages = std::max<std::size_t>(bytes / 4096, 1), per_map = std::max<std::size_t>(pages / maps, 1);
  std::vector<unsigned char*> areas;
  for (std::size_t done = 0; done < pages; done += per_map) {
    // A page that may not be touched at the end keeps neighbours apart.
    std::size_t size = std::min(per_map, pages - done) * 4096;
    auto* at = static_cast<unsigned char*>(
        mmap(nullptr, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (at == MAP_FAILED || mprotect(at + size, 4096, PROT_NONE) != 0) {
      std::perror("writer: mmap");
      return 1;
    }
    madvise(at, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    areas.push_back(at);
  }
  auto page_at = [&](std::size_t p) { return areas[p / per_map] + p % per_map * 4096; };
  const auto random_bytes = static_cast<std::size_t>(4096 * random_share) & ~std::size_t{7};
  for (std::size_t p = 0; p < pages; ++p) fill_page(page_at(p), random_bytes);
  Descriptors open_files;
  if (!open_files.open(descriptors)) {
    std::perror("writer: descriptors");
    return 1;
  }
  for (int i = 0; i < threads; ++i) {
    std::thread([] {
      for (;;) sleep_until(now_ns() + 1'000'000);
    }).detach();
  }
  std::printf("ready\n");
  std::fflush(stdout);
  std::size_t cursor = 0;
  for (int got = 0; step;) {
    sigwait(&told, &got);
    std::uint64_t begun = now_ns();
    for (std::size_t n = 0; n < pages_per_interval; ++n) {
      std::size_t page = scattered ? next_random() % pages : cursor++ % pages;
      auto* word = reinterpret_cast<std::uint64_t*>(page_at(page));
      *word += begun | 1;
    }
    std::printf("burst_ns %llu\n", static_cast<unsigned long long>(now_ns() - begun));
    std::fflush(stdout);
  }
  Watch watch;
  std::uint64_t due = now_ns(), turns = 0;
  const std::uint64_t gap_ns = pages_per_interval == 0 ? 0 : interval_us * 1000 / pages_per_interval;
  for (;;) {
    for (std::size_t n = 0; n < pages_per_interval; ++n) {
      std::size_t page = scattered ? next_random() % pages : cursor++ % pages;
      std::uint64_t value = next_random();
      std::memcpy(page_at(page) + (value % 500) * 8, &value, 8);
      if (watching) watch.look();
      if (spread) {
        std::uint64_t until = due + n * gap_ns;
        if (watching) {
          while (watch.look() < until) {}
        } else if (n % 32 == 31) {
          sleep_until(until);
        }
      }
    }
    open_files.use();
    ++turns;
    due += interval_us * 1000;
    std::uint64_t now = now_ns();
    if (watching) {
      while ((now = watch.look()) < due) {}
    } else if (now < due) {
      sleep_until(due);
      now = now_ns();
      if (now > due && now - due > watch.worst) watch.worst = now - due;
    }
    if (now > due + interval_us * 1000) due = now;
    if (report_wanted) {
      report_wanted = 0;
      std::printf("stalls %llu worst_us %llu turns %llu\n", static_cast<unsigned long long>(watch.stalls),
                  static_cast<unsigned long long>(watch.worst / 1000), static_cast<unsigned long long>(turns));
      std::fflush(stdout);
      watch = {};
      turns = 0;
    }
  }
}
