// Credentials, thread by thread: with no fixing-up of capabilities by the kernel, each set is
// put where it was; what is given away comes last.
#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/securebits.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/backend/linux/restore/batch.h"
#include "agent/backend/linux/restore/construction.h"

#ifndef PR_CAP_AMBIENT
#define PR_CAP_AMBIENT 47
#endif

namespace baton::restore {
namespace {

struct CapabilityData { std::uint32_t effective, permitted, inheritable; };

// What every puppet has permitted: it descends from this process and has given nothing away.
std::uint64_t permitted_now() {
  struct {
    std::uint32_t version;
    std::int32_t pid;
  } header{_LINUX_CAPABILITY_VERSION_3, 0};
  CapabilityData data[2]{};
  if (::syscall(SYS_capget, &header, data) != 0) return 0;
  return data[0].permitted | static_cast<std::uint64_t>(data[1].permitted) << 32;
}

void set_capabilities(Batch& batch, std::uint64_t effective, std::uint64_t permitted, std::uint64_t inheritable) {
  struct {
    std::uint32_t version;
    std::int32_t pid;
    CapabilityData data[2];
  } request{_LINUX_CAPABILITY_VERSION_3, 0, {}};
  for (int i = 0; i < 2; ++i) {
    request.data[i] = {static_cast<std::uint32_t>(effective >> (32 * i)), static_cast<std::uint32_t>(permitted >> (32 * i)), static_cast<std::uint32_t>(inheritable >> (32 * i))};
  }
  std::uint64_t at = batch.value(request);
  batch.add("capset", SYS_capset, {at, at + 8});
}

Result<void> take_identity_of(Puppet& puppet, const pb::Thread& thread, std::uint64_t have, bool leader, std::uint64_t dumpable) {
  const auto& want = thread.credentials();
  std::string about = "thread " + std::to_string(thread.tid());
  if (want.uids_size() != 4 || want.gids_size() != 4) return make_error(Code::kCorrupt, "build", about + ": incomplete credentials");
  if ((want.cap_permitted() & ~have) != 0) {
    return make_error(Code::kUnsupported, "build", about + ": it holds capabilities that this node's warden has not (" + std::to_string(want.cap_permitted() & ~have) + ")",
                      "Give the warden's service these capabilities.");
  }
  Batch batch(puppet, about);
  batch.add("PR_SET_SECUREBITS", SYS_prctl, {PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS});
  std::vector<std::uint32_t> groups(want.groups().begin(), want.groups().end());
  std::uint64_t list = batch.bytes(std::as_bytes(std::span(groups)));
  batch.add("setgroups", SYS_setgroups, {groups.size(), list});
  batch.add("setresgid", SYS_setresgid, {want.gids(0), want.gids(1), want.gids(2)});
  batch.add("setfsgid", SYS_setfsgid, {want.gids(3)}, kMayFail);
  batch.add("setresuid", SYS_setresuid, {want.uids(0), want.uids(1), want.uids(2)});
  batch.add("setfsuid", SYS_setfsuid, {want.uids(3)}, kMayFail);
  set_capabilities(batch, have, have, want.cap_inheritable());
  for (std::uint64_t cap = 0; cap < 64; ++cap) {
    if ((want.cap_ambient() >> cap & 1) != 0) batch.add("PR_CAP_AMBIENT", SYS_prctl, {PR_CAP_AMBIENT, 2 /* RAISE */, cap, 0, 0});
  }
  for (std::uint64_t cap = 0; cap < 64; ++cap) {
    if ((want.cap_bounding() >> cap & 1) == 0) batch.add("PR_CAPBSET_DROP", SYS_prctl, {PR_CAPBSET_DROP, cap}, kMayFail);   // numbers this kernel has not
  }
  batch.add("PR_SET_SECUREBITS", SYS_prctl, {PR_SET_SECUREBITS, want.securebits()});
  set_capabilities(batch, want.cap_effective(), want.cap_permitted(), want.cap_inheritable());
  if (want.no_new_privs()) batch.add("PR_SET_NO_NEW_PRIVS", SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
  if (thread.pdeathsig() != 0) batch.add("PR_SET_PDEATHSIG", SYS_prctl, {PR_SET_PDEATHSIG, thread.pdeathsig()});
  if (leader) batch.add("PR_SET_DUMPABLE", SYS_prctl, {PR_SET_DUMPABLE, dumpable}, kMayFail);
  return batch.run();
}

}  // namespace

Result<void> take_identity(BuiltProcess& process) {
  // 2 ("root only") cannot be set by anybody; 0 is as closed to other users. Credentials of a
  // later thread would reset it, so the leader comes last.
  std::uint64_t dumpable = process.state->dumpable() == 1 ? 1 : 0;
  const std::uint64_t have = permitted_now();
  for (int i = process.state->threads_size() - 1; i >= 0; --i) {
    BATON_TRY(take_identity_of(process.threads[static_cast<std::size_t>(i)], process.state->threads(i), have, i == 0, dumpable));
  }
  return {};
}

}  // namespace baton::restore
