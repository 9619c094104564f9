// System V objects and POSIX message queues in the IPC namespace of what is built, the former with
// the identifiers that the programs know: the kernel takes the next identifier from /proc/sys/kernel/*_next_id.
#include <fcntl.h>
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "agent/backend/linux/restore/construction.h"

namespace baton::restore {
namespace {

std::uint64_t u(std::int64_t value) { return static_cast<std::uint64_t>(value); }

std::string what(const char* kind, const pb::IpcOwner& owner) { return std::string(kind) + " " + std::to_string(owner.id()); }

Result<void> set_next_id(Construction& c, const std::string& file, int id) {
  Puppet& maker = c.maker();
  const std::string path = "/proc/sys/kernel/" + file;
  BATON_ASSIGN(std::uint64_t name, maker.put(path));
  BATON_ASSIGN(std::uint64_t fd, maker.checked("open", path, SYS_openat, {u(AT_FDCWD), name, O_WRONLY | O_CLOEXEC, 0}));
  const std::string text = std::to_string(id);
  auto written = [&]() -> Result<void> {
    BATON_ASSIGN(std::uint64_t at, maker.put(text));
    BATON_TRY(maker.checked("write", path, SYS_write, {fd, at, text.size()}));
    return {};
  }();
  BATON_TRY(maker.call(SYS_close, {fd}));
  return written;
}

Result<void> is_wanted(std::uint64_t got, const pb::IpcOwner& owner, const char* kind) {
  if (static_cast<int>(got) == owner.id()) return {};
  return make_error(Code::kFailed, "build", what(kind, owner) + ": the kernel numbered it " + std::to_string(got));
}

// shmctl, semctl and msgctl with IPC_SET take the owner and the mode; of a queue its capacity too.
template <typename Facts>
Result<std::uint64_t> put_facts(Construction& c, ipc_perm Facts::*perm, const pb::IpcOwner& owner, Facts facts = {}) {
  (facts.*perm).uid = owner.uid();
  (facts.*perm).gid = owner.gid();
  (facts.*perm).mode = static_cast<decltype((facts.*perm).mode)>(owner.mode());
  return c.maker().put(std::as_bytes(std::span(&facts, 1)));
}

// A descriptor of ours for the content.
Result<Fd> reach(Construction& c, int id, std::uint64_t size_bytes) {
  Puppet& maker = c.maker();
  BATON_ASSIGN(std::uint64_t at, maker.checked("shmat", "segment " + std::to_string(id), SYS_shmat, {u(id), 0, 0}));
  const std::uint64_t end = at + (size_bytes + backend::kPageBytes - 1) / backend::kPageBytes * backend::kPageBytes;
  char link[96];
  std::snprintf(link, sizeof link, "/proc/%d/map_files/%lx-%lx", maker.pid(), at, end);
  auto fd = open_file(link, O_RDWR);
  BATON_TRY(maker.checked("shmdt", "segment", SYS_shmdt, {at}));
  return fd;
}

Result<void> make_segment(Construction& c, const pb::SysvSegment& segment) {
  const pb::IpcOwner& owner = segment.owner();
  BATON_TRY(set_next_id(c, "shm_next_id", owner.id()));
  BATON_ASSIGN(std::uint64_t got, c.maker().checked("shmget", what("segment", owner), SYS_shmget,
                                                    {u(owner.key()), segment.size_bytes(), u(IPC_CREAT | IPC_EXCL | static_cast<int>(owner.mode()))}));
  BATON_TRY(is_wanted(got, owner, "segment"));
  BATON_ASSIGN(std::uint64_t facts, put_facts(c, &shmid_ds::shm_perm, owner));
  BATON_TRY(c.maker().checked("IPC_SET", what("segment", owner), SYS_shmctl, {got, IPC_SET, facts}));
  SharedObject made;
  made.segment = owner.id();
  made.size_bytes = segment.size_bytes();
  BATON_ASSIGN(made.ours, reach(c, owner.id(), segment.size_bytes()));
  c.objects.emplace(segment.object(), std::move(made));
  return {};
}

Result<void> set_values(Construction& c, const pb::SysvSemaphores& set) {
  std::vector<unsigned short> values;
  for (auto value : set.values()) values.push_back(static_cast<unsigned short>(value));
  BATON_ASSIGN(std::uint64_t at, c.maker().put(std::as_bytes(std::span(values))));
  BATON_TRY(c.maker().checked("SETALL", what("semaphores", set.owner()), SYS_semctl, {u(set.owner().id()), 0, SETALL, at}));
  return {};
}

Result<void> make_semaphores(Construction& c, const pb::SysvSemaphores& set) {
  const pb::IpcOwner& owner = set.owner();
  BATON_TRY(set_next_id(c, "sem_next_id", owner.id()));
  BATON_ASSIGN(std::uint64_t got, c.maker().checked("semget", what("semaphores", owner), SYS_semget,
                                                    {u(owner.key()), u(set.values_size()), u(IPC_CREAT | IPC_EXCL | static_cast<int>(owner.mode()))}));
  BATON_TRY(is_wanted(got, owner, "semaphores"));
  BATON_TRY(set_values(c, set));
  BATON_ASSIGN(std::uint64_t facts, put_facts(c, &semid_ds::sem_perm, owner));
  BATON_TRY(c.maker().checked("IPC_SET", what("semaphores", owner), SYS_semctl, {got, 0, IPC_SET, facts}));
  return {};
}

Result<void> send_messages(Construction& c, const pb::SysvQueue& queue) {
  for (const auto& message : queue.messages()) {
    std::string bytes(sizeof(long), '\0');
    const long type = static_cast<long>(message.type());
    std::memcpy(bytes.data(), &type, sizeof type);
    bytes += message.text();
    if (bytes.size() > kAreaDataBytes) {
      return make_error(Code::kUnsupported, "build", what("message queue", queue.owner()) + ": a message of " + std::to_string(message.text().size()) + " bytes");
    }
    BATON_ASSIGN(std::uint64_t at, c.maker().put(std::as_bytes(std::span(bytes))));
    BATON_TRY(c.maker().checked("msgsnd", what("message queue", queue.owner()), SYS_msgsnd,
                                {u(queue.owner().id()), at, message.text().size(), IPC_NOWAIT}));
  }
  return {};
}

Result<void> make_queue(Construction& c, const pb::SysvQueue& queue) {
  const pb::IpcOwner& owner = queue.owner();
  BATON_TRY(set_next_id(c, "msg_next_id", owner.id()));
  BATON_ASSIGN(std::uint64_t got, c.maker().checked("msgget", what("message queue", owner), SYS_msgget,
                                                    {u(owner.key()), u(IPC_CREAT | IPC_EXCL | static_cast<int>(owner.mode()))}));
  BATON_TRY(is_wanted(got, owner, "message queue"));
  msqid_ds capacity{};
  capacity.msg_qbytes = queue.capacity_bytes();
  BATON_ASSIGN(std::uint64_t facts, put_facts(c, &msqid_ds::msg_perm, owner, capacity));
  BATON_TRY(c.maker().checked("IPC_SET", what("message queue", owner), SYS_msgctl, {got, IPC_SET, facts}));
  return send_messages(c, queue);
}

Result<void> drain(Construction& c, const pb::SysvQueue& queue) {
  for (;;) {
    BATON_ASSIGN(std::uint64_t room, c.maker().put(std::string(64, '\0')));
    BATON_ASSIGN(std::int64_t got, c.maker().call(SYS_msgrcv, {u(queue.owner().id()), room, 0, 0, IPC_NOWAIT | MSG_NOERROR}));
    if (got < 0) return {};
  }
}

// mq_open(3) takes the name without its slash.
Result<std::uint64_t> open_posix(Construction& c, const pb::PosixQueue& queue, int flags) {
  if (queue.name().size() < 2) return make_error(Code::kCorrupt, "build", "a message queue without a name");
  mq_attr facts{};
  facts.mq_maxmsg = queue.max_messages();
  facts.mq_msgsize = queue.message_bytes();
  BATON_ASSIGN(std::uint64_t name, c.maker().put(queue.name().substr(1)));
  BATON_ASSIGN(std::uint64_t at, c.maker().put(std::as_bytes(std::span(&facts, 1)), 512));
  return c.maker().checked("mq_open", queue.name(), SYS_mq_open, {name, u(flags | O_CLOEXEC), queue.mode(), at});
}

Result<void> send_posix(Construction& c, const pb::PosixQueue& queue, std::uint64_t fd) {
  const std::int64_t past[2] = {0, 0};
  for (const auto& message : queue.messages()) {
    if (message.text().size() + 64 > kAreaDataBytes) {
      return make_error(Code::kUnsupported, "build", "message queue " + queue.name() + ": a message of " + std::to_string(message.text().size()) + " bytes");
    }
    BATON_ASSIGN(std::uint64_t time, c.maker().put(std::as_bytes(std::span(past))));
    BATON_ASSIGN(std::uint64_t at, c.maker().put(std::as_bytes(std::span(message.text())), 64));
    BATON_TRY(c.maker().checked("mq_send", queue.name(), SYS_mq_timedsend, {fd, at, message.text().size(), message.priority(), time}));
  }
  return {};
}

Result<void> make_posix(Construction& c, const pb::PosixQueue& queue) {
  BATON_ASSIGN(std::uint64_t fd, open_posix(c, queue, O_CREAT | O_EXCL | O_RDWR));
  BATON_TRY(c.maker().checked("fchown", queue.name(), SYS_fchown, {fd, queue.uid(), queue.gid()}));
  BATON_TRY(c.maker().checked("fchmod", queue.name(), SYS_fchmod, {fd, queue.mode()}));
  BATON_TRY(send_posix(c, queue, fd));
  BATON_TRY(c.maker().call(SYS_close, {fd}));
  return {};
}

// What waits now, instead of what waited.
Result<void> refill(Construction& c, const pb::PosixQueue& queue) {
  BATON_ASSIGN(std::uint64_t fd, open_posix(c, queue, O_RDWR | O_NONBLOCK));
  for (;;) {
    BATON_ASSIGN(std::int64_t got, c.maker().call(SYS_mq_timedreceive, {fd, c.maker().data(), kAreaDataBytes, 0, 0}));
    if (got < 0) break;
  }
  BATON_TRY(send_posix(c, queue, fd));
  BATON_TRY(c.maker().call(SYS_close, {fd}));
  return {};
}

bool same_posix(const pb::PosixQueue& a, const pb::PosixQueue& b) {
  return a.name() == b.name() && a.mode() == b.mode() && a.uid() == b.uid() && a.gid() == b.gid() && a.max_messages() == b.max_messages() &&
         a.message_bytes() == b.message_bytes();
}

template <typename List>
bool same_objects(const List& a, const List& b) {
  if (a.size() != b.size()) return false;
  for (int i = 0; i < a.size(); ++i) {
    if (a.Get(i).owner().SerializeAsString() != b.Get(i).owner().SerializeAsString()) return false;
  }
  return true;
}

}  // namespace

Result<void> make_ipc(Construction& c) {
  for (const auto& segment : c.state.sysv_segments()) BATON_TRY(make_segment(c, segment));
  for (const auto& set : c.state.sysv_semaphores()) BATON_TRY(make_semaphores(c, set));
  for (const auto& queue : c.state.sysv_queues()) BATON_TRY(make_queue(c, queue));
  for (const auto& queue : c.state.posix_queues()) BATON_TRY(make_posix(c, queue));
  return {};
}

// A segment that has been removed goes with its last attachment: not before everybody has attached it.
Result<void> settle_ipc(Construction& c) {
  for (const auto& segment : c.state.sysv_segments()) {
    const std::uint64_t id = u(segment.owner().id());
    if (segment.locked()) BATON_TRY(c.maker().checked("SHM_LOCK", what("segment", segment.owner()), SYS_shmctl, {id, SHM_LOCK, 0}));
    if (segment.removed()) BATON_TRY(c.maker().checked("IPC_RMID", what("segment", segment.owner()), SYS_shmctl, {id, IPC_RMID, 0}));
  }
  return {};
}

Result<void> check_ipc_follows(const pb::LinuxState& old, const pb::LinuxState& now) {
  bool sizes = same_objects(old.sysv_semaphores(), now.sysv_semaphores());
  for (int i = 0; sizes && i < now.sysv_semaphores_size(); ++i) {
    sizes = old.sysv_semaphores(i).values_size() == now.sysv_semaphores(i).values_size();
  }
  bool segments = same_objects(old.sysv_segments(), now.sysv_segments());
  for (int i = 0; segments && i < now.sysv_segments_size(); ++i) {
    const auto &a = old.sysv_segments(i), &b = now.sysv_segments(i);
    segments = a.size_bytes() == b.size_bytes() && a.object() == b.object() && a.removed() == b.removed() && a.locked() == b.locked();
  }
  bool queues = std::equal(old.posix_queues().begin(), old.posix_queues().end(), now.posix_queues().begin(), now.posix_queues().end(), same_posix);
  if (sizes && segments && queues && same_objects(old.sysv_queues(), now.sysv_queues())) return {};
  return make_error(Code::kConflict, "apply", "other System V objects or message queues are there");
}

Result<void> follow_ipc(Construction& c, const pb::LinuxState& old) {
  for (int i = 0; i < c.state.sysv_semaphores_size(); ++i) {
    const auto& set = c.state.sysv_semaphores(i);
    if (set.SerializeAsString() != old.sysv_semaphores(i).SerializeAsString()) BATON_TRY(set_values(c, set));
  }
  for (int i = 0; i < c.state.sysv_queues_size(); ++i) {
    const auto& queue = c.state.sysv_queues(i);
    if (queue.SerializeAsString() == old.sysv_queues(i).SerializeAsString()) continue;
    BATON_TRY(drain(c, queue));
    BATON_TRY(send_messages(c, queue));
  }
  for (int i = 0; i < c.state.posix_queues_size(); ++i) {
    const auto& queue = c.state.posix_queues(i);
    if (queue.SerializeAsString() != old.posix_queues(i).SerializeAsString()) BATON_TRY(refill(c, queue));
  }
  return {};
}

}  // namespace baton::restore
