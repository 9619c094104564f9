// Pseudo-terminals under the numbers that the programs know, in the build's own devpts.
#include <asm/termbits.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cerrno>

#include "agent/backend/linux/restore/construction.h"

namespace baton::restore {
namespace {

constexpr std::uint32_t kMaxTerminal = 4096;
constexpr std::uint64_t kAtCwd = static_cast<std::uint64_t>(AT_FDCWD);

std::uint64_t u(int value) { return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)); }

std::string subject(const pb::Terminal& terminal) { return "terminal " + std::to_string(terminal.number()); }

Result<int> open_path(Construction& c, const std::string& path, std::uint64_t flags) {
  BATON_ASSIGN(std::uint64_t at, c.maker().put(path));
  BATON_ASSIGN(std::uint64_t got, c.maker().checked("open", path, SYS_openat, {kAtCwd, at, flags | O_NOCTTY | O_CLOEXEC, 0}));
  return static_cast<int>(got);
}

template <typename Value>
Result<void> set(Construction& c, const pb::Terminal& terminal, const char* what, int number, std::uint64_t request, const Value& value) {
  BATON_ASSIGN(std::uint64_t at, c.maker().put(std::as_bytes(std::span(&value, 1))));
  BATON_TRY(c.maker().checked(what, subject(terminal), SYS_ioctl, {u(number), request, at}));
  return {};
}

Result<void> set_look(Construction& c, const pb::Terminal& terminal, const BuiltTerminal& built) {
  if (terminal.settings().size() != sizeof(termios2)) return make_error(Code::kCorrupt, "build", subject(terminal) + ": its settings");
  BATON_ASSIGN(std::uint64_t at, c.maker().put(std::as_bytes(std::span(terminal.settings()))));
  BATON_TRY(c.maker().checked("TCSETS2", subject(terminal), SYS_ioctl, {u(built.master), TCSETS2, at}));
  auto cells = [](std::uint32_t n) { return static_cast<unsigned short>(n); };
  const winsize size{cells(terminal.rows()), cells(terminal.columns()), cells(terminal.width()), cells(terminal.height())};
  return set(c, terminal, "TIOCSWINSZ", built.master, TIOCSWINSZ, size);
}

// The kernel gives the lowest free number: those before it are held until it comes.
Result<int> open_master(Construction& c, const pb::Terminal& terminal) {
  if (terminal.number() > kMaxTerminal) return make_error(Code::kUnsupported, "build", subject(terminal) + ": its number is too high");
  std::vector<int> before;
  Result<int> found = make_error(Code::kFailed, "build", subject(terminal) + ": its number is taken");
  for (;;) {
    BATON_ASSIGN(int master, open_path(c, "/dev/pts/ptmx", O_RDWR));
    BATON_TRY(c.maker().checked("TIOCGPTN", subject(terminal), SYS_ioctl, {u(master), TIOCGPTN, c.maker().data()}));
    std::uint32_t number = 0;
    BATON_TRY(c.maker().read(c.maker().data(), std::as_writable_bytes(std::span(&number, 1))));
    if (number == terminal.number()) {
      found = master;
      break;
    }
    before.push_back(master);
    if (number > terminal.number()) break;
  }
  for (int master : before) BATON_TRY(c.maker().call(SYS_close, {u(master)}));
  return found;
}

Result<void> set_foreground(Construction& c, const pb::Terminal& terminal) {
  auto leader = c.processes.find(terminal.session());
  auto built = c.terminals.find(terminal.number());
  if (terminal.foreground() == 0 || leader == c.processes.end() || leader->second.threads.empty() || built == c.terminals.end()) return {};
  Puppet& puppet = leader->second.leader();
  // By any descriptor of it that the leader has: its own, or the build's.
  int number = built->second.slave;
  for (const auto& d : leader->second.state->descriptors()) {
    if (leader->second.placed.count(d.number()) == 0) continue;   // what is placed has been checked
    const auto& file = c.state.open_files(static_cast<int>(d.open_file()));
    if (file.kind() == pb::OPEN_FILE_TERMINAL && file.terminal() == terminal.number() + 1) number = d.number();
  }
  const int group = terminal.foreground();
  BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&group, 1))));
  BATON_TRY(puppet.checked("TIOCSPGRP", subject(terminal), SYS_ioctl, {u(number), TIOCSPGRP, at}));
  return {};
}

}  // namespace

Result<void> make_terminals(Construction& c) {
  for (const auto& terminal : c.state.terminals()) {
    BuiltTerminal built;
    BATON_ASSIGN(int master, open_master(c, terminal));
    BATON_ASSIGN(built.master, keep_number(c, master, subject(terminal)));
    BATON_TRY(set(c, terminal, "TIOCSPTLCK", built.master, TIOCSPTLCK, 0));
    BATON_ASSIGN(int slave, open_path(c, "/dev/pts/" + std::to_string(terminal.number()), O_RDWR));
    BATON_ASSIGN(built.slave, keep_number(c, slave, subject(terminal)));
    BATON_TRY(c.maker().checked("fchown", subject(terminal), SYS_fchown, {u(built.slave), terminal.uid(), terminal.gid()}));
    BATON_TRY(c.maker().checked("fchmod", subject(terminal), SYS_fchmod, {u(built.slave), terminal.mode()}));
    BATON_TRY(set_look(c, terminal, built));
    if (terminal.packet_mode()) BATON_TRY(set(c, terminal, "TIOCPKT", built.master, TIOCPKT, 1));
    c.terminals.emplace(terminal.number(), built);
  }
  return {};
}

Result<void> take_terminal(Construction& c, const pb::ProcessState& leader, Puppet& puppet) {
  auto built = leader.terminal() == 0 ? c.terminals.end() : c.terminals.find(leader.terminal() - 1);
  if (built == c.terminals.end()) return {};
  for (const auto& terminal : c.state.terminals()) {
    if (terminal.number() != built->first || terminal.session() != leader.pid()) continue;
    BATON_TRY(puppet.checked("TIOCSCTTY", subject(terminal), SYS_ioctl, {u(built->second.slave), TIOCSCTTY, 0}));
  }
  return {};
}

Result<void> settle_terminals(Construction& c) {
  for (const auto& terminal : c.state.terminals()) {
    BATON_TRY(set_foreground(c, terminal));
    if (terminal.locked()) BATON_TRY(set(c, terminal, "TIOCSPTLCK", c.terminals.at(terminal.number()).master, TIOCSPTLCK, 1));
  }
  return {};
}

Result<void> check_terminals_follow(const pb::LinuxState& old, const pb::LinuxState& now) {
  auto lasting = [](pb::Terminal terminal) {
    terminal.clear_settings();
    for (auto clear : {&pb::Terminal::clear_rows, &pb::Terminal::clear_columns, &pb::Terminal::clear_width, &pb::Terminal::clear_height, &pb::Terminal::clear_foreground}) (terminal.*clear)();
    return terminal.SerializeAsString();
  };
  bool same = old.terminals_size() == now.terminals_size();
  for (int i = 0; same && i < now.terminals_size(); ++i) same = lasting(old.terminals(i)) == lasting(now.terminals(i));
  return same ? Result<void>() : make_error(Code::kConflict, "apply", "other terminals are there");
}

Result<void> follow_terminals(Construction& c, const pb::LinuxState& old) {
  for (int i = 0; i < c.state.terminals_size(); ++i) {
    const auto& terminal = c.state.terminals(i);
    if (terminal.SerializeAsString() == old.terminals(i).SerializeAsString()) continue;
    BATON_TRY(set_look(c, terminal, c.terminals.at(terminal.number())));
    BATON_TRY(set_foreground(c, terminal));
  }
  return {};
}

}  // namespace baton::restore
