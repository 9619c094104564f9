#include "agent/backend/linux/state/ipc.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#ifndef MSG_COPY
#define MSG_COPY 040000
#endif

namespace baton::linux_backend::state {
namespace {

constexpr std::size_t kMaxMessageBytes = 16u << 20;
constexpr int kSegmentRemoved = 01000, kSegmentLocked = 02000;   // SHM_DEST, SHM_LOCKED of shmctl(2)

union SemArgument {
  int value;
  semid_ds* facts;
  unsigned short* values;
  seminfo* info;
};

void fill_owner(const ipc_perm& from, int id, pb::IpcOwner& out) {
  out.set_id(id);
  out.set_key(from.__key);
  out.set_uid(from.uid);
  out.set_gid(from.gid);
  out.set_mode(from.mode & 0777);
}

void read_segments(IpcContent& out) {
  shm_info info{};
  const int highest = ::shmctl(0, SHM_INFO, reinterpret_cast<shmid_ds*>(&info));
  if (highest < 0 || info.used_ids == 0) return;
  for (int i = 0; i <= highest; ++i) {
    shmid_ds facts{};
    const int id = ::shmctl(i, SHM_STAT, &facts);
    if (id < 0) continue;
    pb::SysvSegment segment;
    fill_owner(facts.shm_perm, id, *segment.mutable_owner());
    segment.set_size_bytes(facts.shm_segsz);
    segment.set_removed((facts.shm_perm.mode & kSegmentRemoved) != 0);
    segment.set_locked((facts.shm_perm.mode & kSegmentLocked) != 0);
    segment.set_inode(static_cast<std::uint64_t>(id));   // as the kernel numbers them
    out.segments.push_back(std::move(segment));
  }
}

Result<void> read_semaphores(IpcContent& out) {
  seminfo info{};
  SemArgument argument{};
  argument.info = &info;
  const int highest = ::semctl(0, 0, SEM_INFO, argument);
  if (highest < 0 || info.semusz == 0) return {};
  for (int i = 0; i <= highest; ++i) {
    semid_ds facts{};
    argument.facts = &facts;
    const int id = ::semctl(i, 0, SEM_STAT, argument);
    if (id < 0) continue;
    std::vector<unsigned short> values(facts.sem_nsems);
    argument.values = values.data();
    if (::semctl(id, 0, GETALL, argument) < 0) return errno_error("semctl GETALL", "semaphores " + std::to_string(id));
    pb::SysvSemaphores set;
    fill_owner(facts.sem_perm, id, *set.mutable_owner());
    for (unsigned short value : values) set.add_values(value);
    out.semaphores.push_back(std::move(set));
  }
  return {};
}

Result<void> read_queues(IpcContent& out) {
  msginfo info{};
  const int highest = ::msgctl(0, MSG_INFO, reinterpret_cast<msqid_ds*>(&info));
  if (highest < 0 || info.msgpool == 0) return {};
  for (int i = 0; i <= highest; ++i) {
    msqid_ds facts{};
    const int id = ::msgctl(i, MSG_STAT, &facts);
    if (id < 0) continue;
    pb::SysvQueue queue;
    fill_owner(facts.msg_perm, id, *queue.mutable_owner());
    queue.set_capacity_bytes(facts.msg_qbytes);
    std::vector<char> buffer(sizeof(long) + std::min<std::size_t>(facts.__msg_cbytes + 1, kMaxMessageBytes));
    for (unsigned long m = 0; m < facts.msg_qnum; ++m) {
      const ssize_t bytes = ::msgrcv(id, buffer.data(), buffer.size() - sizeof(long), static_cast<long>(m),
                                     MSG_COPY | IPC_NOWAIT | MSG_NOERROR);
      if (bytes < 0 && errno == ENOSYS) {
        return make_error(Code::kUnsupported, "capture", "message queue " + std::to_string(id) + ": this kernel cannot copy messages (CONFIG_CHECKPOINT_RESTORE)");
      }
      if (bytes < 0 && (errno == ENOMSG || errno == EIDRM || errno == EINVAL)) break;   // a running program took it
      if (bytes < 0) return errno_error("msgrcv MSG_COPY", "message queue " + std::to_string(id));
      auto& message = *queue.add_messages();
      long type = 0;
      std::memcpy(&type, buffer.data(), sizeof type);
      message.set_type(type);
      message.set_text(buffer.data() + sizeof(long), static_cast<std::size_t>(bytes));
    }
    out.queues.push_back(std::move(queue));
  }
  return {};
}

Result<Fd> open_here(int id) {
  void* at = ::shmat(id, nullptr, SHM_RDONLY);
  if (at == reinterpret_cast<void*>(-1)) return errno_error("shmat", "segment " + std::to_string(id));
  shmid_ds facts{};
  Result<Fd> out = make_error(Code::kNotFound, "open", "segment " + std::to_string(id));
  if (::shmctl(id, IPC_STAT, &facts) == 0) {
    const auto start = reinterpret_cast<std::uintptr_t>(at);
    const auto end = start + ((facts.shm_segsz + 4095) & ~std::size_t{4095});
    char link[96];
    std::snprintf(link, sizeof link, "/proc/self/map_files/%lx-%lx", start, end);
    out = open_file(link, O_RDONLY);
  }
  ::shmdt(at);
  return out;
}

ino_t ipc_namespace(const std::string& process) {
  struct stat st {};
  return ::stat(("/proc/" + process + "/ns/ipc").c_str(), &st) == 0 ? st.st_ino : 0;
}

}  // namespace

Result<std::unique_ptr<IpcNamespace>> IpcNamespace::enter(pid_t pid) {
  const ino_t theirs = ipc_namespace(std::to_string(pid));
  if (theirs == 0) return make_error(Code::kTraceeGone, "enter IPC namespace", "process " + std::to_string(pid) + " has ended");
  if (theirs == ipc_namespace("self")) return std::unique_ptr<IpcNamespace>();
  BATON_ASSIGN(Fd ns, open_file("/proc/" + std::to_string(pid) + "/ns/ipc", O_RDONLY));
  std::unique_ptr<IpcNamespace> out(new IpcNamespace());
  IpcNamespace* raw = out.get();
  raw->thread_ = std::thread([raw, fd = std::move(ns)]() mutable { raw->serve(std::move(fd)); });
  {
    std::unique_lock lock(raw->mutex_);
    raw->changed_.wait(lock, [&] { return raw->entered_; });
  }
  if (raw->problem_ != 0) return errno_error(raw->problem_, "setns", "IPC namespace of process " + std::to_string(pid));
  return out;
}

IpcNamespace::~IpcNamespace() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void IpcNamespace::serve(Fd ns) {
  std::unique_lock lock(mutex_);
  problem_ = ::setns(ns.get(), CLONE_NEWIPC) == 0 ? 0 : errno;
  ns.reset();
  entered_ = true;
  changed_.notify_all();
  while (problem_ == 0) {
    changed_.wait(lock, [&] { return ending_ || question_; });
    if (ending_) return;
    question_();
    question_ = nullptr;
    changed_.notify_all();
  }
}

void IpcNamespace::ask(std::function<void()> question) {
  std::unique_lock lock(mutex_);
  question_ = std::move(question);
  changed_.notify_all();
  changed_.wait(lock, [&] { return !question_; });
}

Result<IpcContent> IpcNamespace::read(bool stopped) {
  Result<IpcContent> out = IpcContent();
  ask([&] {
    read_segments(*out);
    IpcContent content = std::move(*out);
    auto done = read_semaphores(content);
    if (done) done = read_queues(content);
    if (done && stopped) done = read_posix_queues(queues_, content);
    if (done) {
      out = std::move(content);
    } else {
      out = std::move(done).error();
    }
  });
  return out;
}

Result<Fd> IpcNamespace::open_segment(int id) {
  Result<Fd> out = Fd();
  ask([&] { out = open_here(id); });
  return out;
}

bool shares_our_ipc(pid_t pid) { return ipc_namespace(std::to_string(pid)) == ipc_namespace("self"); }

std::string foreign_ipc(pid_t pid) {
  if (!shares_our_ipc(pid)) return {};
  shm_info info{};
  const int highest = ::shmctl(0, SHM_INFO, reinterpret_cast<shmid_ds*>(&info));
  for (int i = 0; i <= highest; ++i) {
    shmid_ds facts{};
    const int id = ::shmctl(i, SHM_STAT, &facts);
    if (id >= 0 && (facts.shm_cpid == pid || facts.shm_lpid == pid) && facts.shm_nattch > 0) {
      return "System V shared memory " + std::to_string(id);
    }
  }
  msginfo queues{};
  const int highest_queue = ::msgctl(0, MSG_INFO, reinterpret_cast<msqid_ds*>(&queues));
  for (int i = 0; i <= highest_queue; ++i) {
    msqid_ds facts{};
    const int id = ::msgctl(i, MSG_STAT, &facts);
    if (id >= 0 && (facts.msg_lspid == pid || facts.msg_lrpid == pid)) return "message queue " + std::to_string(id);
  }
  seminfo sets{};
  SemArgument argument{};
  argument.info = &sets;
  const int highest_set = ::semctl(0, 0, SEM_INFO, argument);
  for (int i = 0; i <= highest_set; ++i) {
    semid_ds facts{};
    argument.facts = &facts;
    const int id = ::semctl(i, 0, SEM_STAT, argument);
    for (unsigned long n = 0; id >= 0 && n < facts.sem_nsems; ++n) {
      if (::semctl(id, static_cast<int>(n), GETPID) == pid) return "semaphores " + std::to_string(id);
    }
  }
  return {};
}

}  // namespace baton::linux_backend::state
