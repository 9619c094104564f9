// System V shared memory, semaphores, message queues; POSIX shared memory, semaphores, queues.
#include <fcntl.h>
#include <mqueue.h>
#include <semaphore.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <memory>
#include <string>

#include "zoo.h"

using namespace zoo;

namespace {

union Argument { int value; semid_ds* info; unsigned short* array; };

Animal shm_private() {
  int id = shmget(IPC_PRIVATE, 100000, IPC_CREAT | 0640);
  auto* at = static_cast<char*>(shmat(id, nullptr, 0));
  MUST(at != reinterpret_cast<char*>(-1));
  auto turn = std::make_shared<int>(0);
  strcpy(at + 50000, "turn 0");
  return {[=](Check& c) {
            c.same(strcmp(at + 50000, ("turn " + std::to_string(*turn)).c_str()), 0, "content");
            shmid_ds info{};
            c.same(shmctl(id, IPC_STAT, &info), 0, "the id is known");
            c.same((long long)info.shm_segsz, 100000, "size");
            c.same((long long)info.shm_nattch, 1, "attachments");
            c.same(info.shm_perm.mode & 0777, 0640, "mode");
          },
          [=] { strcpy(at + 50000, ("turn " + std::to_string(++*turn)).c_str()); }};
}

Animal shm_keyed() {
  int id = shmget(0x5eed, 8192, IPC_CREAT | IPC_EXCL | 0600);
  MUST(id >= 0);
  auto* at = static_cast<char*>(shmat(id, nullptr, 0));
  at[0] = 'k';
  return {[=](Check& c) {
            c.same(shmget(0x5eed, 0, 0), id, "found by its key");
            auto* again = static_cast<char*>(shmat(id, nullptr, SHM_RDONLY));
            c.expect(again != reinterpret_cast<char*>(-1), "attach again");
            if (again != reinterpret_cast<char*>(-1)) {
              c.same(again[0], 'k', "content");
              shmdt(again);
            }
            c.same(shmdt(at), 0, "detach");
            c.same(static_cast<char*>(shmat(id, at, 0)) == at, 1, "attach where it was");
          },
          {}};
}

Animal shm_removed() {
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  auto* at = static_cast<char*>(shmat(id, nullptr, 0));
  shmctl(id, IPC_RMID, nullptr);
  at[9] = 'r';
  return {[=](Check& c) {
            c.same(at[9], 'r', "content");
            shmid_ds info{};
            c.same(shmctl(id, IPC_STAT, &info), 0, "still there");
            c.same(info.shm_perm.mode & SHM_DEST, SHM_DEST, "goes with its last attachment");
          },
          {}};
}

Animal shm_unattached() {
  int id = shmget(IPC_PRIVATE, 20000, 0600);
  auto* at = static_cast<char*>(shmat(id, nullptr, 0));
  strcpy(at + 12000, "nobody looks");
  shmdt(at);
  return {[=](Check& c) {
            auto* again = static_cast<char*>(shmat(id, nullptr, 0));
            c.expect(again != reinterpret_cast<char*>(-1), "attach");
            if (again == reinterpret_cast<char*>(-1)) return;
            c.same(strcmp(again + 12000, "nobody looks"), 0, "content");
            shmdt(again);
          },
          {}};
}

Animal shm_shared() {
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  auto* at = static_cast<volatile int*>(shmat(id, nullptr, 0));
  at[0] = 0;
  child([=] {
    for (;;) {
      if (at[0] == 1) at[0] = 2;
      usleep(1000);
    }
  });
  return {[=](Check& c) {
            at[0] = 1;
            for (int i = 0; i < 5000 && at[0] != 2; ++i) usleep(1000);
            c.same(at[0], 2, "the child sees it and answers");
          },
          {}};
}

Animal shm_partial() {
  int id = shmget(IPC_PRIVATE, 4096 * 8, 0600);
  auto* at = static_cast<char*>(shmat(id, nullptr, 0));
  for (int i = 0; i < 8; ++i) at[i * 4096] = (char)('a' + i);
  MUST(munmap(at + 4096 * 2, 4096) == 0);
  MUST(mprotect(at + 4096 * 5, 4096, PROT_READ) == 0);
  return {[=](Check& c) {
            for (int i = 0; i < 8; ++i) {
              if (i != 2) c.same(at[i * 4096], 'a' + i, "content");
            }
            unsigned char there = 0;
            c.same(mincore(at + 4096 * 2, 4096, &there), -1, "the hole");
          },
          {}};
}

Animal sem_values() {
  int id = semget(0x5e11, 3, IPC_CREAT | 0600);
  unsigned short values[3] = {4, 0, 9};
  MUST(semctl(id, 0, SETALL, Argument{.array = values}) == 0);
  return {[=](Check& c) {
            unsigned short now[3] = {};
            c.same(semget(0x5e11, 0, 0), id, "found by its key");
            c.same(semctl(id, 0, GETALL, Argument{.array = now}), 0, "read");
            c.same(now[0], 4, "first");
            c.same(now[1], 0, "second");
            c.same(now[2], 9, "third");
          },
          {}};
}

Animal sem_waited_for() {
  int id = semget(IPC_PRIVATE, 2, 0600);
  unsigned short values[2] = {0, 0};
  semctl(id, 0, SETALL, Argument{.array = values});
  child([=] {
    for (;;) {
      sembuf take{0, -1, 0}, give{1, 1, 0};
      if (semop(id, &take, 1) != 0) _exit(1);   // an interruption would show
      semop(id, &give, 1);
    }
  });
  usleep(20000);
  return {[=](Check& c) {
            sembuf give{0, 1, 0}, take{1, -1, 0};
            c.same(semop(id, &give, 1), 0, "give");
            timespec limit{5, 0};
            c.same(semtimedop(id, &take, 1, &limit), 0, "the waiter goes on");
          },
          {}};
}

Animal msg_waiting() {
  int id = msgget(0x3519, IPC_CREAT | 0600);
  struct Message { long type; char text[64]; };
  auto send = [=](long type, const char* text) {
    Message m{type, {}};
    strcpy(m.text, text);
    MUST(msgsnd(id, &m, strlen(text) + 1, 0) == 0);
  };
  send(3, "three");
  send(1, "one");
  return {[=](Check& c) {
            Message m{};
            c.same(msgget(0x3519, 0), id, "found by its key");
            c.same(msgrcv(id, &m, sizeof m.text, 1, IPC_NOWAIT), 4, "by type");
            c.same(strcmp(m.text, "one"), 0, "text");
            c.same(msgrcv(id, &m, sizeof m.text, 0, IPC_NOWAIT), 6, "the other");
            c.same(m.type, 3, "type");
            send(3, "three");
            send(1, "one");
          },
          {}};
}

Animal posix_shm() {
  std::string name = "/zoo-" + std::to_string(getpid());
  shm_unlink(name.c_str());
  int fd = shm_open(name.c_str(), O_CREAT | O_RDWR | O_EXCL, 0600);
  MUST(ftruncate(fd, 8192) == 0);
  auto* at = static_cast<char*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  shm_unlink(name.c_str());
  auto turn = std::make_shared<int>(0);
  at[5000] = 'p';
  return {[=](Check& c) {
            c.same(at[5000], 'p' + *turn, "content");
            c.same(pwrite(fd, "w", 1, 100), 1, "write");
            c.same(at[100], 'w', "one memory");
          },
          [=] { at[5000] = (char)('p' + ++*turn); }};
}

// As PostgreSQL has it: mapped, closed, and opened again by its name.
Animal posix_shm_named() {
  const std::string name = "/zoo-named-" + std::to_string(getpid());
  shm_unlink(name.c_str());
  const int fd = shm_open(name.c_str(), O_CREAT | O_RDWR | O_EXCL, 0640);
  MUST(ftruncate(fd, 12288) == 0);
  auto* at = static_cast<char*>(mmap(nullptr, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  close(fd);
  auto turn = std::make_shared<int>(0);
  at[9000] = 'p';
  return {[=](Check& c) {
            c.same(at[9000], 'p' + *turn, "content");
            const int again = shm_open(name.c_str(), O_RDWR, 0);
            c.same(again >= 0, true, "opened by its name");
            if (again < 0) return;
            struct stat info{};
            fstat(again, &info);
            c.same(info.st_mode & 07777, 0640, "mode");
            c.same(info.st_size, 12288, "size");
            c.same(info.st_nlink, 1, "links");
            char byte = 0;
            c.same(pread(again, &byte, 1, 9000), 1, "read");
            c.same(byte, 'p' + *turn, "content by its name");
            const char other = (char)('a' + *turn);
            c.same(pwrite(again, &other, 1, 70), 1, "write");
            c.same(at[70], other, "one memory");
            close(again);
          },
          [=] { at[9000] = (char)('p' + ++*turn); }};
}

Animal posix_semaphore_named() {
  const std::string name = "/zoo-sem-" + std::to_string(getpid());
  sem_unlink(name.c_str());
  sem_t* sem = sem_open(name.c_str(), O_CREAT | O_EXCL, 0600, 2);
  MUST(sem != SEM_FAILED);
  auto posts = std::make_shared<int>(2);
  return {[=](Check& c) {
            sem_t* again = sem_open(name.c_str(), 0);
            c.same(again == sem, true, "the same address for the same name");   // the C library compares inodes
            int value = -1;
            sem_getvalue(sem, &value);
            c.same(value, *posts, "value");
            if (again != SEM_FAILED) sem_close(again);
          },
          [=] {
            sem_post(sem);
            ++*posts;
          }};
}

Animal posix_semaphore() {
  auto* sem = static_cast<sem_t*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  auto* done = sem + 1;
  sem_init(sem, 1, 0);
  sem_init(done, 1, 0);
  child([=] {
    for (;;) {
      if (sem_wait(sem) != 0) _exit(1);
      sem_post(done);
    }
  });
  return {[=](Check& c) {
            sem_post(sem);
            timespec limit{};
            clock_gettime(CLOCK_REALTIME, &limit);
            limit.tv_sec += 5;
            c.same(sem_timedwait(done, &limit), 0, "the child answers");
          },
          {}};
}

Animal mqueue_empty() {
  mq_attr attributes{};
  attributes.mq_maxmsg = 7;
  attributes.mq_msgsize = 300;
  mqd_t queue = mq_open("/zoo", O_CREAT | O_RDWR | O_NONBLOCK | O_EXCL, 0640, &attributes);
  MUST(queue >= 0);
  return {[=](Check& c) {
            mq_attr now{};
            c.same(mq_getattr(queue, &now), 0, "attributes");
            c.same(now.mq_maxmsg, 7, "messages");
            c.same(now.mq_msgsize, 300, "size");
            c.same(now.mq_flags, O_NONBLOCK, "flags");
            c.same(mq_send(queue, "hello", 5, 9), 0, "send");
            char text[300];
            unsigned priority = 0;
            mqd_t again = mq_open("/zoo", O_RDONLY);
            c.expect(again >= 0, "open by name");
            c.same(mq_receive(again, text, sizeof text, &priority), 5, "receive");
            c.same(priority, 9, "priority");
            mq_close(again);
          },
          {}};
}

Animal mqueue_closed() {
  mqd_t queue = mq_open("/zoo-closed", O_CREAT | O_RDWR | O_EXCL, 0600, nullptr);
  MUST(queue >= 0);
  mq_close(queue);
  return {[=](Check& c) {
            mqd_t again = mq_open("/zoo-closed", O_RDWR);
            c.expect(again >= 0, "still there");
            if (again >= 0) mq_close(again);
          },
          {}};
}

// Messages of several priorities, in their order, whoever looks at them meanwhile.
Animal mqueue_full() {
  mq_attr attributes{};
  attributes.mq_maxmsg = 10;
  attributes.mq_msgsize = 100;
  mqd_t queue = mq_open("/zoo-full", O_CREAT | O_RDWR | O_NONBLOCK, 0600, &attributes);
  MUST(queue >= 0);
  struct Message { unsigned priority; std::string text; };
  auto expected = std::make_shared<std::vector<Message>>(std::vector<Message>{{9, "urgent"}, {3, "a"}, {3, "b"}, {3, "c"}, {0, ""}, {0, "last"}});
  auto fill = [=] {
    for (unsigned priority : {0u, 3u, 9u}) {
      for (const auto& m : *expected) if (m.priority == priority) MUST(mq_send(queue, m.text.data(), m.text.size(), m.priority) == 0);
    }
  };
  fill();
  return {[=](Check& c) {
            mq_attr now{};
            mq_getattr(queue, &now);
            c.same(now.mq_curmsgs, (long long)expected->size(), "messages wait");
            for (const auto& m : *expected) {
              char text[100];
              unsigned priority = 99;
              const ssize_t n = mq_receive(queue, text, sizeof text, &priority);
              c.same(n, (long long)m.text.size(), "size");
              c.same(priority, m.priority, "priority");
              c.same(m.text.compare(0, 100, text, n > 0 ? (size_t)n : 0), 0, "text");
            }
            c.same(mq_receive(queue, nullptr, 0, nullptr), -1, "no more");
            fill();
          },
          [=] {
            char text[100];
            MUST(mq_receive(queue, text, sizeof text, nullptr) == 6);
            MUST(mq_send(queue, "again9", 6, 9) == 0);
            (*expected)[0].text = "again9";
          }};
}

// The whole capacity, by a name that others may not open; a process of the workload waits for room.
Animal mqueue_waited_for() {
  mq_attr attributes{};
  attributes.mq_maxmsg = 2;
  attributes.mq_msgsize = 16;
  mqd_t queue = mq_open("/zoo-room", O_CREAT | O_RDWR, 0604, &attributes);
  MUST(queue >= 0 && fchown(queue, 12, 34) == 0);
  for (int i = 0; i < 2; ++i) MUST(mq_send(queue, "full", 4, 1) == 0);
  child([=] {
    for (;;) {
      if (mq_send(queue, "room", 4, 0) != 0) _exit(3);
    }
  });
  usleep(50000);
  return {[=](Check& c) {
            struct stat st{};
            c.same(fstat(queue, &st), 0, "stat");
            c.same(st.st_mode & 0777, 0604, "mode");
            c.same(st.st_uid, 12, "owner");
            c.same(st.st_gid, 34, "group");
            char text[16];
            for (int i = 0; i < 8; ++i) c.same(mq_receive(queue, text, sizeof text, nullptr), 4, "a message comes");
          },
          {}};
}

Animal mqueue_notified() {
  mqd_t queue = mq_open("/zoo-notified", O_CREAT | O_RDWR, 0600, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN;
  MUST(mq_notify(queue, &event) == 0);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return {[=](Check& c) {
            MUST(mq_send(queue, "x", 1, 0) == 0);
            timespec limit{2, 0};
            siginfo_t info{};
            c.same(sigtimedwait(&set, &info, &limit), SIGRTMIN, "told");
            char text[8192];
            MUST(mq_receive(queue, text, sizeof text, nullptr) == 1);
            MUST(mq_notify(queue, &event) == 0);
          },
          {}};
}

const std::vector<Case> kCases = {
    {"shm-private", "System V shared memory", nullptr, shm_private},
    {"shm-keyed", "System V shared memory", nullptr, shm_keyed},
    {"shm-removed", "System V shared memory", nullptr, shm_removed},
    {"shm-unattached", "System V shared memory", nullptr, shm_unattached},
    {"shm-shared", "System V shared memory", nullptr, shm_shared},
    {"shm-partial", "System V shared memory", "part of the System V segment", shm_partial},
    {"sem-values", "System V semaphores", nullptr, sem_values},
    {"sem-waited-for", "System V semaphores", nullptr, sem_waited_for},
    {"msg-waiting", "System V queue", nullptr, msg_waiting},
    {"posix-shm", "POSIX shared memory", nullptr, posix_shm},
    {"posix-shm-named", "POSIX shared memory that keeps its name", nullptr, posix_shm_named},
    {"posix-semaphore-named", "a POSIX semaphore with a name", nullptr, posix_semaphore_named},
    {"posix-semaphore", "POSIX semaphore", nullptr, posix_semaphore},
    {"mqueue-empty", "POSIX queue", nullptr, mqueue_empty},
    {"mqueue-closed", "POSIX queue", nullptr, mqueue_closed},
    {"mqueue-full", "POSIX queue", nullptr, mqueue_full},
    {"mqueue-waited-for", "POSIX queue", nullptr, mqueue_waited_for},
    {"mqueue-notified", "POSIX queue", "asked to be notified", mqueue_notified},
};

}  // namespace

int main(int argc, char** argv) { return run(kCases, argc, argv); }
