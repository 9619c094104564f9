// Writes memory at a known rate and can be asked how far it is.
//
//   --mib 64 --pages 500 --interval-us 20000 --pattern sequential|scattered
//   --port P     answers any UDP datagram on port P with "step=N errors=0"
//   --bind ADDR  (0.0.0.0)
//
// Every page holds what follows from its number and generation; the
// generations are kept apart. Written pages are checked before they are
// written; all of them on order.
#include <vector>

#include <arpa/inet.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "orders.h"

namespace {

char* memory;
std::vector<std::uint32_t> generations;
std::uint64_t steps = 0;

std::uint64_t seed_of(std::size_t page) { return page * 1'000'003 + generations[page]; }

void check(std::size_t page) {
  if (!tracee::page_holds(memory + page * tracee::kPage, seed_of(page)))
    tracee::failed("page %zu does not hold its generation %u (step %llu)", page, generations[page], static_cast<unsigned long long>(steps));
}

void check_all() {
  for (std::size_t page = 0; page < generations.size(); ++page) check(page);
}

int open_port() {
  long port = tracee::number("port", 0);
  if (port == 0) return -1;
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  EXPECT_THAT(fd >= 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  EXPECT_THAT(inet_pton(AF_INET, tracee::option("bind", "0.0.0.0").c_str(), &address.sin_addr) == 1);
  EXPECT_THAT(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  return fd;
}

void answer(int fd) {
  if (fd < 0) return;
  char buffer[64];
  sockaddr_in from{};
  socklen_t length = sizeof from;
  while (recvfrom(fd, buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length) >= 0) {
    int size = std::snprintf(buffer, sizeof buffer, "step=%llu errors=0", static_cast<unsigned long long>(steps));
    sendto(fd, buffer, static_cast<std::size_t>(size), 0, reinterpret_cast<sockaddr*>(&from), length);
    length = sizeof from;
  }
}

}  // namespace

int main(int argc, char** argv) {
  tracee::start(argc, argv);
  const std::size_t total = static_cast<std::size_t>(tracee::number("mib", 64)) * 256;
  const std::size_t pages = static_cast<std::size_t>(tracee::number("pages", 500));
  const std::int64_t interval_ns = tracee::number("interval-us", 20000) * 1000;
  const bool scattered = tracee::option("pattern", "scattered") == "scattered";
  memory = static_cast<char*>(mmap(nullptr, total * tracee::kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  EXPECT_THAT(memory != MAP_FAILED);
  generations.assign(total, 0);
  for (std::size_t page = 0; page < total; ++page) tracee::fill_page(memory + page * tracee::kPage, seed_of(page));
  int fd = open_port();
  tracee::ready();
  std::size_t cursor = 0;
  std::int64_t next = tracee::monotonic_ns();
  for (;;) {
    for (std::size_t i = 0; i < pages; ++i) {
      std::size_t page = scattered ? tracee::mix(steps * 1'000'003 + i) % total : cursor++ % total;
      check(page);
      ++generations[page];
      tracee::fill_page(memory + page * tracee::kPage, seed_of(page));
    }
    ++steps;
    next += interval_ns;
    std::int64_t now = tracee::monotonic_ns();
    if (next < now - 10 * interval_ns) next = now;       // it was away: no catching up
    do {
      answer(fd);
      long left_ms = static_cast<long>((next - tracee::monotonic_ns()) / 1'000'000);
      if (tracee::poll_order(left_ms < 0 ? 0 : left_ms > 2 ? 2 : left_ms)) {
        check_all();
        tracee::say("ok");
      }
    } while (tracee::monotonic_ns() < next);
  }
}
