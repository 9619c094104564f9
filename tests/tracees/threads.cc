// Eight threads: thread-local data, vector registers that live across the freeze,
// condition variables and futexes, and arithmetic that is checked all the time.
#include <immintrin.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "tracee.h"

namespace {

constexpr int kThreads = 8;
thread_local std::uint64_t t_identity = 0;
thread_local std::uint64_t t_rounds = 0;
std::atomic<std::uint64_t> g_rounds[kThreads];
std::mutex g_mutex;
std::condition_variable g_turned;
int g_turn = 0;
std::uint64_t g_turns = 0;

// Keeps sixteen registers loaded through a long loop; any lost register shows.
__attribute__((target("avx2"), noinline)) bool avx2_round(std::uint64_t seed) {
  __m256i r[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_set1_epi64x(static_cast<long long>(seed + static_cast<unsigned>(i)));
  const __m256i one = _mm256_set1_epi64x(1);
  for (int n = 0; n < 20000; ++n) {
    for (auto& x : r) x = _mm256_add_epi64(x, one);
    asm volatile("" : "+x"(r[0]), "+x"(r[1]), "+x"(r[2]), "+x"(r[3]), "+x"(r[4]), "+x"(r[5]), "+x"(r[6]), "+x"(r[7]));
  }
  for (int i = 0; i < 8; ++i) {
    alignas(32) std::uint64_t out[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), r[i]);
    for (std::uint64_t lane : out)
      if (lane != seed + static_cast<unsigned>(i) + 20000) return false;
  }
  return true;
}

__attribute__((target("avx512f"), noinline)) bool avx512_round(std::uint64_t seed) {
  __m512i r[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm512_set1_epi64(static_cast<long long>(seed + static_cast<unsigned>(i)));
  const __m512i one = _mm512_set1_epi64(1);
  __mmask8 mask = 0xA5;
  for (int n = 0; n < 20000; ++n) {
    for (auto& x : r) x = _mm512_mask_add_epi64(x, mask, x, one);
    asm volatile("" : "+v"(r[0]), "+v"(r[1]), "+v"(r[2]), "+v"(r[3]), "+v"(r[4]), "+v"(r[5]), "+v"(r[6]), "+v"(r[7]), "+Yk"(mask));
  }
  for (int i = 0; i < 8; ++i) {
    alignas(64) std::uint64_t out[8];
    _mm512_store_si512(out, r[i]);
    for (int lane = 0; lane < 8; ++lane) {
      std::uint64_t wanted = seed + static_cast<unsigned>(i) + ((0xA5 >> lane) & 1 ? 20000 : 0);
      if (out[lane] != wanted) return false;
    }
  }
  return mask == 0xA5;
}

bool x87_round(long double seed) {
  long double x = seed;
  for (int n = 0; n < 2000; ++n) {
    x = x * 1.5L + 1.0L;
    x = (x - 1.0L) / 1.5L;
  }
  long double difference = x > seed ? x - seed : seed - x;
  return difference < 1e-9L * seed;
}

void work(int index) {
  t_identity = 0x1234000000000000ull + static_cast<unsigned>(index);
  const bool has_avx512 = __builtin_cpu_supports("avx512f");
  for (;;) {
    if (index % 2 == 0) {
      bool fine = has_avx512 ? avx512_round(t_rounds * 31 + static_cast<unsigned>(index))
                             : avx2_round(t_rounds * 31 + static_cast<unsigned>(index));
      if (!fine) tracee::fail_now("vector registers changed");
      if (!x87_round(1.0L + index)) tracee::fail_now("x87 registers changed");
    } else {
      std::unique_lock lock(g_mutex);   // the odd threads hand a turn around
      g_turned.wait(lock, [&] { return g_turn == index; });
      g_turn = index == kThreads - 1 ? 1 : index + 2;
      ++g_turns;
      g_turned.notify_all();
    }
    if (t_identity != 0x1234000000000000ull + static_cast<unsigned>(index)) tracee::fail_now("thread-local data changed");
    ++t_rounds;
    if (g_rounds[index].fetch_add(1) + 1 != t_rounds) tracee::fail_now("the round counters differ");
    if (index % 2 == 0) usleep(200);
  }
}

}  // namespace

int main() {
  g_turn = 1;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
  tracee::ready();
  std::uint64_t before[kThreads] = {};
  for (;;) {
    tracee::wait_until_asked();
    for (int i = 0; i < kThreads; ++i) before[i] = g_rounds[i];
    for (int n = 0; n < 200; ++n) {
      bool all = true;
      for (int i = 0; i < kThreads; ++i) all = all && g_rounds[i] > before[i];
      if (all) break;
      usleep(20000);
    }
    tracee::Check check;
    for (int i = 0; i < kThreads; ++i) check.expect(g_rounds[i] > before[i], "a thread stands still", i);
  }
}
