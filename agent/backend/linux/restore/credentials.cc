// Credentials, thread by thread: with no fixing-up of capabilities by the kernel, each set is
// put where it was; what is given away comes last.
#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/securebits.h>
#include <sys/syscall.h>

#include "agent/backend/linux/restore/construction.h"

#ifndef PR_CAP_AMBIENT
#define PR_CAP_AMBIENT 47
#endif

namespace baton::restore {
namespace {

struct CapabilityData { std::uint32_t effective, permitted, inheritable; };

Result<void> set_capabilities(Puppet& puppet, const std::string& about, std::uint64_t effective, std::uint64_t permitted, std::uint64_t inheritable) {
  struct {
    std::uint32_t version;
    std::int32_t pid;
    CapabilityData data[2];
  } request{_LINUX_CAPABILITY_VERSION_3, 0, {}};
  for (int i = 0; i < 2; ++i) {
    request.data[i] = {static_cast<std::uint32_t>(effective >> (32 * i)), static_cast<std::uint32_t>(permitted >> (32 * i)), static_cast<std::uint32_t>(inheritable >> (32 * i))};
  }
  BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&request, 1))));
  BATON_TRY(puppet.checked("capset", about, SYS_capset, {at, at + 8}));
  return {};
}

Result<std::uint64_t> permitted_now(Puppet& puppet) {
  struct {
    std::uint32_t version;
    std::int32_t pid;
    CapabilityData data[2];
  } request{_LINUX_CAPABILITY_VERSION_3, 0, {}};
  BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&request, 1))));
  BATON_TRY(puppet.checked("capget", "thread", SYS_capget, {at, at + 8}));
  BATON_TRY(puppet.read(at, std::as_writable_bytes(std::span(&request, 1))));
  return request.data[0].permitted | static_cast<std::uint64_t>(request.data[1].permitted) << 32;
}

Result<void> take_identity_of(Puppet& puppet, const pb::Thread& thread) {
  const auto& want = thread.credentials();
  std::string about = "thread " + std::to_string(thread.tid());
  if (want.uids_size() != 4 || want.gids_size() != 4) return make_error(Code::kCorrupt, "build", about + ": incomplete credentials");
  auto prctl = [&](const char* what, std::initializer_list<std::uint64_t> args) -> Result<void> {
    BATON_TRY(puppet.checked(what, about, SYS_prctl, args));
    return {};
  };
  BATON_TRY(prctl("PR_SET_SECUREBITS", {PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS}));
  std::vector<std::uint32_t> groups(want.groups().begin(), want.groups().end());
  BATON_ASSIGN(std::uint64_t list, puppet.put(std::as_bytes(std::span(groups))));
  BATON_TRY(puppet.checked("setgroups", about, SYS_setgroups, {groups.size(), list}));
  BATON_TRY(puppet.checked("setresgid", about, SYS_setresgid, {want.gids(0), want.gids(1), want.gids(2)}));
  BATON_TRY(puppet.call(SYS_setfsgid, {want.gids(3)}));
  BATON_TRY(puppet.checked("setresuid", about, SYS_setresuid, {want.uids(0), want.uids(1), want.uids(2)}));
  BATON_TRY(puppet.call(SYS_setfsuid, {want.uids(3)}));

  BATON_ASSIGN(std::uint64_t have, permitted_now(puppet));
  if ((want.cap_permitted() & ~have) != 0) {
    return make_error(Code::kUnsupported, "build", about + ": it holds capabilities that this node's warden has not (" + std::to_string(want.cap_permitted() & ~have) + ")",
                      "Give the warden's service these capabilities.");
  }
  BATON_TRY(set_capabilities(puppet, about, have, have, want.cap_inheritable()));
  for (std::uint64_t cap = 0; cap < 64; ++cap) {
    if ((want.cap_ambient() >> cap & 1) != 0) BATON_TRY(prctl("PR_CAP_AMBIENT", {PR_CAP_AMBIENT, 2 /* RAISE */, cap, 0, 0}));
  }
  std::vector<PuppetRecord> drops;
  for (std::uint64_t cap = 0; cap < 64; ++cap) {
    if ((want.cap_bounding() >> cap & 1) != 0) continue;
    PuppetRecord r;
    r.number = SYS_prctl;
    r.args[0] = PR_CAPBSET_DROP;
    r.args[1] = cap;
    r.flags = kMayFail;   // numbers this kernel has not
    drops.push_back(r);
  }
  BATON_TRY(puppet.batch(drops));
  BATON_TRY(prctl("PR_SET_SECUREBITS", {PR_SET_SECUREBITS, want.securebits()}));
  BATON_TRY(set_capabilities(puppet, about, want.cap_effective(), want.cap_permitted(), want.cap_inheritable()));
  if (want.no_new_privs()) BATON_TRY(prctl("PR_SET_NO_NEW_PRIVS", {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0}));
  if (thread.pdeathsig() != 0) BATON_TRY(prctl("PR_SET_PDEATHSIG", {PR_SET_PDEATHSIG, thread.pdeathsig()}));
  return {};
}

}  // namespace

Result<void> take_identity(BuiltProcess& process) {
  for (int i = 0; i < process.state->threads_size(); ++i) {
    BATON_TRY(take_identity_of(process.threads[static_cast<std::size_t>(i)], process.state->threads(i)));
  }
  // 2 ("root only") cannot be set by anybody; 0 is as closed to other users.
  std::uint64_t dumpable = process.state->dumpable() == 1 ? 1 : 0;
  BATON_TRY(process.leader().call(SYS_prctl, {PR_SET_DUMPABLE, dumpable}));
  return {};
}

}  // namespace baton::restore
