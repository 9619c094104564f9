// Threads (--threads 8), each with thread-local data, live vector, mask and
// x87 registers, its own rounding mode, a turn at a condition variable and a
// futex partner. All of it is checked continuously.
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include <linux/futex.h>
#include <sys/syscall.h>

#include "orders.h"

namespace {

constexpr int kMaxThreads = 64;
int thread_count = 8;

struct alignas(64) Vectors {
  std::uint64_t words[32 * 8];
};

thread_local std::uint64_t local_id;
thread_local std::uint64_t local_words[256];

struct alignas(64) Shared {
  std::atomic<std::uint64_t> rounds{0};
  std::atomic<int> tid{0};
};
Shared progress[kMaxThreads];

std::mutex turn_mutex;
std::condition_variable turn_changed;
int turn = 0;
std::uint64_t turns_taken = 0;

std::atomic<std::uint32_t> futex_words[kMaxThreads / 2];

#if defined(__x86_64__)
// The values are in the registers for about `spin` loop turns, and nowhere else.
// The vzeroupper is needed between the 512-bit block and the SSE code after it.
__attribute__((target("avx512f,avx512bw"))) void hold_512(const Vectors& in, Vectors& out, std::uint64_t spin, std::uint64_t masks_in, std::uint64_t& masks_out) {
  std::uint64_t mask = 0;
  asm volatile(
      "vmovdqu64 0(%[i]), %%zmm0\n vmovdqu64 64(%[i]), %%zmm1\n vmovdqu64 128(%[i]), %%zmm7\n vmovdqu64 192(%[i]), %%zmm15\n"
      "vmovdqu64 256(%[i]), %%zmm16\n vmovdqu64 320(%[i]), %%zmm17\n vmovdqu64 384(%[i]), %%zmm24\n vmovdqu64 448(%[i]), %%zmm31\n"
      "kmovq %[min], %%k1\n kmovq %[min], %%k7\n"
      "1: dec %[n]\n jnz 1b\n"
      "vmovdqu64 %%zmm0, 0(%[o])\n vmovdqu64 %%zmm1, 64(%[o])\n vmovdqu64 %%zmm7, 128(%[o])\n vmovdqu64 %%zmm15, 192(%[o])\n"
      "vmovdqu64 %%zmm16, 256(%[o])\n vmovdqu64 %%zmm17, 320(%[o])\n vmovdqu64 %%zmm24, 384(%[o])\n vmovdqu64 %%zmm31, 448(%[o])\n"
      "kxorq %%k1, %%k7, %%k2\n kmovq %%k2, %[mout]\n kmovq %%k1, %%rax\n or %%rax, %[mout]\n vzeroupper\n"
      : [n] "+r"(spin), [mout] "=&r"(mask)
      : [i] "r"(in.words), [o] "r"(out.words), [min] "r"(masks_in)
      : "rax", "memory", "cc", "xmm0", "xmm1", "xmm7", "xmm15", "xmm16", "xmm17", "xmm24", "xmm31", "k1", "k2", "k7");
  masks_out = mask;
}

__attribute__((target("avx2"))) void hold_256(const Vectors& in, Vectors& out, std::uint64_t spin) {
  asm volatile(
      "vmovdqu 0(%[i]), %%ymm0\n vmovdqu 32(%[i]), %%ymm1\n vmovdqu 64(%[i]), %%ymm3\n vmovdqu 96(%[i]), %%ymm6\n"
      "vmovdqu 128(%[i]), %%ymm8\n vmovdqu 160(%[i]), %%ymm11\n vmovdqu 192(%[i]), %%ymm14\n vmovdqu 224(%[i]), %%ymm15\n"
      "1: dec %[n]\n jnz 1b\n"
      "vmovdqu %%ymm0, 0(%[o])\n vmovdqu %%ymm1, 32(%[o])\n vmovdqu %%ymm3, 64(%[o])\n vmovdqu %%ymm6, 96(%[o])\n"
      "vmovdqu %%ymm8, 128(%[o])\n vmovdqu %%ymm11, 160(%[o])\n vmovdqu %%ymm14, 192(%[o])\n vmovdqu %%ymm15, 224(%[o])\n vzeroupper\n"
      : [n] "+r"(spin)
      : [i] "r"(in.words), [o] "r"(out.words)
      : "memory", "cc", "xmm0", "xmm1", "xmm3", "xmm6", "xmm8", "xmm11", "xmm14", "xmm15");
}

long double hold_x87(std::uint64_t spin, long double value) {
  long double out = 0;
  asm volatile("fldt %[v]\n fldpi\n 1: dec %[n]\n jnz 1b\n fmulp\n fstpt %[o]\n" : [n] "+r"(spin), [o] "=m"(out) : [v] "m"(value) : "cc", "st", "st(1)");
  return out;
}
#endif

void check_registers(std::uint64_t seed) {
  alignas(64) Vectors in, out;
  for (std::size_t i = 0; i < 64; ++i) in.words[i] = tracee::mix(seed + i);
  std::memset(&out, 0, sizeof out);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw")) {
    std::uint64_t masks = 0;
    std::uint64_t want = tracee::mix(seed) | 1;
    hold_512(in, out, 40000, want, masks);
    if (std::memcmp(&in, &out, 512) != 0) tracee::failed("AVX-512 registers changed");
    if (masks != want) tracee::failed("mask registers changed");
  } else if (__builtin_cpu_supports("avx2")) {
    hold_256(in, out, 40000);
    if (std::memcmp(&in, &out, 256) != 0) tracee::failed("AVX2 registers changed");
  }
  long double value = static_cast<long double>(seed % 1000003);
  if (hold_x87(20000, value) != hold_x87(1, value)) tracee::failed("x87 registers changed");
#else
  volatile double kept[8];
  for (int i = 0; i < 8; ++i) kept[i] = static_cast<double>(in.words[i] >> 12);
  for (int i = 0; i < 8; ++i) {
    if (kept[i] != static_cast<double>(in.words[i] >> 12)) tracee::failed("registers changed");
  }
#endif
}

void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t value) {
  timespec limit{1, 0};
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, &limit, nullptr, 0);
}

void futex_wake(std::atomic<std::uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }

// The partners of a pair hand one word back and forth: even is the first's turn.
void futex_round(int id) {
  int pair = id / 2;
  if (pair * 2 + 1 >= thread_count) return;
  auto& word = futex_words[pair];
  std::uint32_t mine = static_cast<std::uint32_t>(id % 2);
  std::uint32_t seen = word.load();
  while (seen % 2 != mine) {
    futex_wait(word, seen);
    seen = word.load();
  }
  if (word.exchange(seen + 1) != seen) tracee::failed("a futex word changed under its owner");
  futex_wake(word);
}

// noipa: folded into the loop, g++ 12 makes a relocation that no linker can meet.
__attribute__((noipa)) void fill_words(std::uint64_t* words, std::uint64_t seed) {
  for (std::size_t i = 0; i < 256; ++i) words[i] = tracee::mix(seed + i);
}

__attribute__((noipa)) bool words_hold(const std::uint64_t* words, std::uint64_t seed) {
  for (std::size_t i = 0; i < 256; ++i) {
    if (words[i] != tracee::mix(seed + i)) return false;
  }
  return true;
}

void work(int id) {
  local_id = static_cast<std::uint64_t>(id);
  fill_words(local_words, local_id * 1000);
  const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
  std::fesetround(modes[id % 4]);
  const int tid = static_cast<int>(syscall(SYS_gettid));
  const pthread_t self = pthread_self();
  progress[id].tid = tid;
  std::uint64_t chain = local_id;
  for (std::uint64_t round = 1;; ++round) {
    check_registers(local_id * 7919 + round);
    if (std::fegetround() != modes[id % 4]) tracee::failed("thread %d: its rounding mode changed", id);
    if (local_id != static_cast<std::uint64_t>(id)) tracee::failed("thread %d: thread-local data is another thread's", id);
    if (!words_hold(local_words, local_id * 1000)) tracee::failed("thread %d: thread-local data changed", id);
    if (static_cast<int>(syscall(SYS_gettid)) != tid) tracee::failed("thread %d: its TID changed", id);
    if (!pthread_equal(pthread_self(), self)) tracee::failed("thread %d: its thread pointer changed", id);
    std::uint64_t again = chain;
    for (int i = 0; i < 1000; ++i) chain = tracee::mix(chain);
    for (int i = 0; i < 1000; ++i) again = tracee::mix(again);
    if (chain != again) tracee::failed("thread %d: arithmetic went wrong", id);
    futex_round(id);
    {
      std::unique_lock lock(turn_mutex);
      turn_changed.wait(lock, [&] { return turn == id; });
      if (turns_taken % static_cast<std::uint64_t>(thread_count) != local_id) tracee::failed("thread %d: a turn was lost", id);
      ++turns_taken;
      turn = (id + 1) % thread_count;
      turn_changed.notify_all();
    }
    progress[id].rounds.fetch_add(1);
  }
}

// Every thread gets further within five seconds.
void verify() {
  std::uint64_t before[kMaxThreads];
  for (int i = 0; i < thread_count; ++i) before[i] = progress[i].rounds;
  for (int waited_ms = 0;; waited_ms += 10) {
    bool all = true;
    for (int i = 0; i < thread_count; ++i) all = all && progress[i].rounds > before[i];
    if (all) return;
    if (waited_ms > 5000) tracee::failed("a thread makes no progress");
    usleep(10000);
  }
}

}  // namespace

int main(int argc, char** argv) {
  tracee::start(argc, argv);
  thread_count = static_cast<int>(tracee::number("threads", 8));
  if (thread_count < 1 || thread_count > kMaxThreads) return 2;
  std::vector<std::thread> threads;
  for (int i = 0; i < thread_count; ++i) threads.emplace_back(work, i);
  verify();
  tracee::ready();
  tracee::serve(verify);
}
