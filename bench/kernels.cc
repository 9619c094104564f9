// Programs in the manner of those that papers protect, written for this bench:
//
//   bench_kernels pricing   --bytes N [--progress FILE]
//   bench_kernels annealing --bytes N --pages P [--progress FILE]
//   bench_kernels loop      --bytes N --pages P --period-us U [--progress FILE]
//
// pricing: the Black-Scholes price of each of many options, over and over: large inputs that are
// read in order, results written in order (structure of PARSEC's blackscholes).
// annealing: elements of a netlist that exchange places when their wires become shorter, at random:
// scattered reads, few scattered writes (structure of PARSEC's canneal). How many moves are only
// looked at between two that are made is found out at the start, so that P pages are written in
// 20 ms; from then on the work is the same whatever disturbs it.
// loop: a control loop with absolute deadlines that writes P pages of its state in each period.
//
// FILE is mapped and shows how far it is (struct Progress), without a system call.
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

// Read by bench_slowdown while it changes; little-endian, no padding.
struct Progress {
  volatile std::uint64_t ready;         // 1: the measured work has begun
  volatile std::uint64_t work;          // options priced, moves looked at, periods
  volatile std::uint64_t pages;         // written, at least
  volatile std::uint64_t worst_ns;      // loop: latest start of a period; the reader may set it back to 0
  volatile std::uint64_t late;          // loop: periods whose length was more than 10 % off
};

struct Options {
  std::string kind = "pricing", progress;
  std::size_t bytes = 600u << 20;
  std::uint64_t pages = 300, period_us = 1000;
};

std::uint64_t now_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

std::uint64_t processor_ns() {
  timespec ts{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

std::uint64_t state = 88172645463325252ull;
std::uint64_t next_random() {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}
float uniform() { return static_cast<float>(next_random() >> 40) / 16777216.0f; }

template <typename T>
T* allocate(std::size_t count) {
  void* at = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    std::perror("bench_kernels: mmap");
    std::exit(1);
  }
  return static_cast<T*>(at);
}

void begin(Progress& progress) {
  progress.ready = 1;
  std::printf("ready\n");
  std::fflush(stdout);
}

// --- pricing -----------------------------------------------------------------

float normal_distribution(float x) { return 0.5f * std::erfc(-x * 0.70710678f); }

float price(float spot, float strike, float rate, float volatility, float years, bool put) {
  float root = volatility * std::sqrt(years);
  float d1 = (std::log(spot / strike) + (rate + 0.5f * volatility * volatility) * years) / root;
  float d2 = d1 - root;
  float discounted = strike * std::exp(-rate * years);
  return put ? discounted * normal_distribution(-d2) - spot * normal_distribution(-d1)
             : spot * normal_distribution(d1) - discounted * normal_distribution(d2);
}

[[noreturn]] void pricing(const Options& options, Progress& progress) {
  const std::size_t count = options.bytes / (7 * sizeof(float));
  auto* spot = allocate<float>(count);
  auto* strike = allocate<float>(count);
  auto* rate = allocate<float>(count);
  auto* volatility = allocate<float>(count);
  auto* years = allocate<float>(count);
  auto* put = allocate<std::uint32_t>(count);
  auto* result = allocate<float>(count);
  for (std::size_t i = 0; i < count; ++i) {
    spot[i] = 20 + 80 * uniform();
    strike[i] = 20 + 80 * uniform();
    rate[i] = 0.01f + 0.09f * uniform();
    volatility[i] = 0.05f + 0.6f * uniform();
    years[i] = 0.1f + 2 * uniform();
    put[i] = next_random() & 1;
    result[i] = 0;
  }
  begin(progress);
  for (std::uint64_t turn = 1;; ++turn) {
    float shift = 1.0f + 1e-6f * static_cast<float>(turn);   // each pass has other results
    for (std::size_t i = 0; i < count; ++i) {
      result[i] = price(spot[i] * shift, strike[i], rate[i], volatility[i], years[i], put[i] != 0);
      if (i % 64 == 63) progress.work = progress.work + 64;
      if (i % 1024 == 1023) progress.pages = progress.pages + 1;
    }
  }
}

// --- annealing ---------------------------------------------------------------

struct Element {
  std::uint32_t x, y;
  std::uint32_t wires[6];      // elements that it is connected to
};

[[noreturn]] void annealing(const Options& options, Progress& progress) {
  const auto count = static_cast<std::uint32_t>(options.bytes / sizeof(Element));
  auto* elements = allocate<Element>(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    elements[i].x = static_cast<std::uint32_t>(next_random() % 65536);
    elements[i].y = static_cast<std::uint32_t>(next_random() % 65536);
    for (auto& w : elements[i].wires) w = static_cast<std::uint32_t>(next_random() % count);
  }
  auto cost = [&](const Element& e, std::uint32_t x, std::uint32_t y) {
    std::int64_t sum = 0;
    for (std::uint32_t w : e.wires) {
      sum += std::abs(static_cast<std::int64_t>(elements[w].x) - x) + std::abs(static_cast<std::int64_t>(elements[w].y) - y);
    }
    return sum;
  };
  // Looks at the move of two elements; makes it if asked to.
  auto move = [&](bool make) {
    Element& a = elements[next_random() % count];
    Element& b = elements[next_random() % count];
    std::int64_t gain = cost(a, a.x, a.y) + cost(b, b.x, b.y) - cost(a, b.x, b.y) - cost(b, a.x, a.y);
    if (make) {
      std::swap(a.x, b.x);
      std::swap(a.y, b.y);
    }
    return gain;
  };
  // How many moves fit into 20 ms of processor time, hence how many for each one that is made (two
  // pages each).
  std::int64_t sum = 0;
  std::uint64_t tried = 0;
  for (int turn = 0; turn < 2; ++turn) {          // the first one only warms up
    std::uint64_t start = processor_ns();
    tried = 0;
    while (processor_ns() - start < 500'000'000) {
      for (int i = 0; i < 100; ++i) sum += move(false);
      tried += 100;
    }
  }
  std::uint64_t per_made = std::max<std::uint64_t>(tried / 25 / std::max<std::uint64_t>(options.pages / 2, 1), 1);
  if (sum == 1) std::puts("");     // it is used
  begin(progress);
  for (std::uint64_t n = 1;; ++n) {
    bool make = n % per_made == 0;
    sum += move(make);
    if (make) progress.pages = progress.pages + 2;
    progress.work = progress.work + 1;
  }
}

// --- control loop --------------------------------------------------------------

[[noreturn]] void loop(const Options& options, Progress& progress) {
  const std::size_t pages = options.bytes / 4096;
  auto* memory = allocate<std::uint64_t>(options.bytes / 8);
  for (std::size_t i = 0; i < options.bytes / 8; ++i) memory[i] = next_random();
  begin(progress);
  const std::uint64_t period = options.period_us * 1000;
  std::uint64_t due = now_ns() + period, last = 0;
  for (;;) {
    timespec until{static_cast<time_t>(due / 1'000'000'000), static_cast<long>(due % 1'000'000'000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) != 0) {}
    std::uint64_t now = now_ns(), lateness = now - due;
    if (lateness > progress.worst_ns) progress.worst_ns = lateness;
    if (last != 0 && (now - last > period + period / 10 || now - last + period / 10 < period)) progress.late = progress.late + 1;
    last = now;
    for (std::uint64_t n = 0; n < options.pages; ++n) {
      std::uint64_t* page = memory + next_random() % pages * 512;
      page[next_random() % 512] += progress.work;
    }
    progress.pages = progress.pages + options.pages;
    progress.work = progress.work + 1;
    due += period;
    if (now > due + 100 * period) due = now;     // it was away for long
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (argc > 1) options.kind = argv[1];
  for (int i = 2; i + 1 < argc; i += 2) {
    std::string key = argv[i], value = argv[i + 1];
    if (key == "--bytes") options.bytes = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--pages") options.pages = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--period-us") options.period_us = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--progress") options.progress = value;
    else {
      std::fprintf(stderr, "bench_kernels: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  static Progress own;
  Progress* progress = &own;
  if (!options.progress.empty()) {
    int fd = open(options.progress.c_str(), O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 4096) != 0) {
      std::perror(options.progress.c_str());
      return 1;
    }
    void* at = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED) return 1;
    progress = static_cast<Progress*>(at);
    progress->ready = 0;
    progress->work = 0;
    progress->pages = 0;
    progress->worst_ns = 0;
    progress->late = 0;
  }
  if (options.kind == "pricing") pricing(options, *progress);
  if (options.kind == "annealing") annealing(options, *progress);
  if (options.kind == "loop") loop(options, *progress);
  std::fprintf(stderr, "bench_kernels: pricing, annealing or loop\n");
  return 2;
}
