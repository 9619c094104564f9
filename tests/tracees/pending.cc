// Signals that wait, in a program of two threads: queued
// and senders; handlers, masks and alternate stacks. On order the waiting ones
// are taken, compared and queued again.
#include <atomic>
#include <thread>

#include <sys/syscall.h>

#include "orders.h"

namespace {

constexpr int kQueued = 5;
std::atomic<int> order{0}, answered{0};
char stack_memory[65536];

void handler(int, siginfo_t*, void*) {}

void queue_to_process() {
  for (int i = 0; i < kQueued; ++i) {
    sigval value{};
    value.sival_int = 1000 + i;
    EXPECT_THAT(sigqueue(getpid(), SIGRTMIN + 5, value) == 0);
  }
  EXPECT_THAT(kill(getpid(), SIGUSR2) == 0);
}

void queue_to_thread(pthread_t thread) {
  for (int i = 0; i < kQueued; ++i) {
    sigval value{};
    value.sival_int = 2000 + i;
    EXPECT_THAT(pthread_sigqueue(thread, SIGRTMIN + 6, value) == 0);
  }
}

void take(int signal, int first, int count) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  timespec now{0, 0};
  for (int i = 0; i < count; ++i) {
    siginfo_t info{};
    if (sigtimedwait(&set, &info, &now) != signal) tracee::failed("signal %d: %d of %d waiting ones are lost", signal, count - i, count);
    if (first && (info.si_code != SI_QUEUE || info.si_value.sival_int != first + i)) tracee::failed("signal %d: code %d value %d, not value %d", signal, info.si_code, info.si_value.sival_int, first + i);
    if (info.si_pid != getpid() || info.si_uid != getuid()) tracee::failed("signal %d: sender %d, not %d", signal, info.si_pid, getpid());
  }
  if (sigtimedwait(&set, nullptr, &now) == signal) tracee::failed("signal %d waits once too often", signal);
}

void check_stack() {
  stack_t now{};
  EXPECT_THAT(sigaltstack(nullptr, &now) == 0);
  EXPECT_THAT(now.ss_sp == stack_memory && now.ss_size == sizeof stack_memory);
}

void check_handlers() {
  struct sigaction now{};
  EXPECT_THAT(sigaction(SIGUSR2, nullptr, &now) == 0);
  EXPECT_THAT(now.sa_sigaction == handler);
  EXPECT_THAT((now.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESETHAND)) == (SA_SIGINFO | SA_ONSTACK));
  EXPECT_THAT(sigismember(&now.sa_mask, SIGHUP) == 1 && sigismember(&now.sa_mask, SIGQUIT) == 0);
  EXPECT_THAT(sigaction(SIGHUP, nullptr, &now) == 0 && now.sa_handler == SIG_IGN);
  EXPECT_THAT(sigaction(SIGTERM, nullptr, &now) == 0 && now.sa_handler == SIG_DFL);
  sigset_t mask;
  EXPECT_THAT(pthread_sigmask(SIG_BLOCK, nullptr, &mask) == 0);
  EXPECT_THAT(sigismember(&mask, SIGRTMIN + 5) == 1 && sigismember(&mask, SIGRTMIN + 6) == 1 && sigismember(&mask, SIGUSR2) == 1 && sigismember(&mask, SIGQUIT) == 0);
}

void thread_main() {
  queue_to_thread(pthread_self());
  answered = 1;
  for (int seen = 0;;) {
    usleep(5000);
    if (order == seen) continue;
    seen = order;
    take(SIGRTMIN + 6, 2000, kQueued);
    queue_to_thread(pthread_self());
    check_handlers();
    answered = seen + 1;
  }
}

void verify() {
  take(SIGRTMIN + 5, 1000, kQueued);
  take(SIGUSR2, 0, 1);
  queue_to_process();
  check_stack();
  check_handlers();
  int wanted = ++order + 1;
  for (int i = 0; answered != wanted; ++i) {
    if (i > 1000) tracee::failed("the other thread does not answer");
    usleep(5000);
  }
}

}  // namespace

int main(int argc, char** argv) {
  tracee::start(argc, argv);
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGRTMIN + 5, SIGRTMIN + 6, static_cast<int>(SIGUSR2)}) sigaddset(&set, signal);
  EXPECT_THAT(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  stack_t stack{};
  stack.ss_sp = stack_memory;
  stack.ss_size = sizeof stack_memory;
  EXPECT_THAT(sigaltstack(&stack, nullptr) == 0);
  struct sigaction action{};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaddset(&action.sa_mask, SIGHUP);
  EXPECT_THAT(sigaction(SIGUSR2, &action, nullptr) == 0);
  EXPECT_THAT(std::signal(SIGHUP, SIG_IGN) != SIG_ERR);
  queue_to_process();
  std::thread thread(thread_main);
  while (answered == 0) usleep(1000);
  tracee::ready();
  tracee::serve(verify);
}
