// What the steps of a build share: the manifest, the puppets, and where things stand.
#pragma once

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "agent/backend/backend.h"
#include "agent/backend/linux/restore/keeper_client.h"
#include "agent/backend/linux/restore/puppet.h"
#include "agent/volume/volume_client.h"
#include "proto/checkpoint.pb.h"
#include "proto/linux_state.pb.h"

namespace baton::restore {

struct PlacedDescriptor {
  int made = -1;                           // the template's number for it
  bool close_on_exec = false;
};
// Epoll, target, events, data; and the template's number for what is watched, when `target` is
// closed or something else by now (-1: it is not).
using PlacedWatch = std::tuple<int, int, std::uint32_t, std::uint64_t, int>;

struct BuiltProcess {
  const pb::ProcessState* state = nullptr;
  std::vector<Puppet> threads;             // the leader first; empty: a zombie
  std::map<int, PlacedDescriptor> placed;  // what its descriptors are at present
  std::set<PlacedWatch> watches;
  Puppet& leader() { return threads.front(); }
};

struct SharedObject {
  int number = -1;                         // descriptor in the template and every process built from it
  Fd ours;                                 // for filling
  std::uint64_t size_bytes = 0;
  int segment = -1;                        // System V: attached by this id, and no descriptor
  std::string temporary;                   // POSIX shared memory: its name until the activation
};

struct BuiltVolume {
  std::string folder;
  std::unique_ptr<volume::VolumeClient> server;
};

struct BuiltTerminal { int master = -1, slave = -1; };   // the template's descriptors

// Of unix sockets, until all open files are there: the template's descriptors.
struct UnixEnds {
  std::map<std::uint32_t, std::pair<int, int>> pairs;   // by pair: its first, its second end
  std::map<int, int> gone;                 // by open file: the other end, which nobody has
};

struct LiveConnection {
  Fd ours;                                 // a copy of the descriptor
  const pb::Socket* socket = nullptr;
};

struct Construction {
  const pb::Manifest* manifest = nullptr;
  pb::LinuxState state;
  std::int64_t monotonic_shift_ns = 0;     // workload's CLOCK_MONOTONIC minus ours
  std::uint64_t area = 0;                  // the driver's area; twice kAreaBytes above it are free too
  int first_number = 0;                    // descriptors from here on are the build's own
  int next_number = 0;
  std::vector<int> free_numbers;           // given back since
  bool shadow = false;                     // it stands by: see BuildTarget::shadow
  int keeper_out = -1, keeper_err = -1;    // the template's descriptors of the keeper's pipes
  PuppetGroup group = std::make_shared<std::set<pid_t>>();
  std::vector<Puppet> template_process;    // 0 or 1: opens everything, is the ancestor of all
  std::map<std::uint64_t, SharedObject> objects;
  std::vector<int> open_numbers;           // LinuxState.open_files index -> descriptor number; -1: comes at activation
  std::map<int, BuiltProcess> processes;   // by PID inside
  std::map<std::uint64_t, int> private_owner;  // memory object -> PID inside
  std::map<std::uint64_t, BuiltVolume> volumes;   // by memory object; mounted at activation
  bool connections = false;                // TCP connections go on; else they are found reset
  std::vector<LiveConnection> live;
  std::map<std::uint32_t, BuiltTerminal> terminals;   // by number
  std::set<int> signalling;                // O_ASYNC is set by the program's own number for them, open_numbers
  std::vector<LiveConnection> waiting;     // datagram sockets whose queue is filled once all are bound
  Puppet& maker() { return template_process.front(); }
};

// tree.cc: all processes (without memory), sessions and groups, zombies; then their threads.
Result<void> make_processes(Construction& c);
Result<void> make_threads(Construction& c);

// open_files.cc, open_sockets.cc: in the template, before the tree; then into place.
Result<void> make_objects(Construction& c);
// ipc.cc: in the template: segments become objects; then, once all have attached what they have.
Result<void> make_ipc(Construction& c);
Result<void> settle_ipc(Construction& c);
Result<void> check_ipc_follows(const pb::LinuxState& old, const pb::LinuxState& now);
Result<void> follow_ipc(Construction& c, const pb::LinuxState& old);
// terminals.cc: in the template; then by the leader of a session as soon as it is one; then for all.
Result<void> make_terminals(Construction& c);
Result<void> take_terminal(Construction& c, const pb::ProcessState& leader, Puppet& puppet);
Result<void> settle_terminals(Construction& c);
Result<void> check_terminals_follow(const pb::LinuxState& old, const pb::LinuxState& now);
Result<void> follow_terminals(Construction& c, const pb::LinuxState& old);
Result<void> open_files(Construction& c);
Result<int> open_socket(Construction& c, const pb::OpenFile& file);   // not of AF_UNIX
// open_unix_sockets.cc: LinuxState.open_files[index]; then, when all of `which` are there.
Result<int> open_unix_socket(Construction& c, int index, UnixEnds& ends);
Result<void> settle_unix_sockets(Construction& c, const std::vector<int>& which, UnixEnds& ends);
bool unix_socket_comes_late(const Construction& c, const pb::OpenFile& file);
Result<void> open_some(Construction& c, const std::vector<int>& which);      // fills open_numbers
Result<Fd> fetch(pid_t pid, int number);   // our copy of a descriptor of that process
// connections.cc: into `fd`, a fresh socket of the template; then once all are there; then at activation.
Result<void> open_connection(Construction& c, int fd, const pb::Socket& socket);
Result<void> open_datagrams(Construction& c, int fd, const pb::Socket& socket);
Result<void> settle_connections(Construction& c);
Result<void> resume_connections(Construction& c);
Result<void> place_descriptors(Construction& c, BuiltProcess& process);
Result<void> set_watches(Construction& c, BuiltProcess& process);            // until they are what the state says
Result<void> set_record_locks(Construction& c, BuiltProcess& process);
Result<std::int64_t> change_watch(const Construction& c, BuiltProcess& process, const PlacedWatch& watch, int operation);   // -errno
Result<void> set_owner(Construction& c, BuiltProcess& process, const pb::Descriptor& descriptor);   // F_SETOWN, F_SETSIG, O_ASYNC
void forget_number(Construction& c, int number);
bool comes_at_activation(const Construction& c, const pb::OpenFile& file);
// The template's descriptor `made` becomes `to` in another process.
Result<void> bring_descriptor(Construction& c, Puppet& puppet, int made, int to, bool close_on_exec);
Result<void> set_timerfd(Construction& c, const pb::OpenFile& file, int number);
Result<void> close_kept(Construction& c, int number);            // one of keep_number's
Result<int> keep_number(Construction& c, int low, const std::string& subject);   // moves it up, out of the way

// volumes.cc: their servers; mounted where only the program will see them; at activation, before
// anything that lies in them is opened; once it runs, where this node sees them, too.
Result<void> start_volumes(Construction& c, const std::vector<backend::VolumePlace>& places);
Result<void> mount_volumes(Construction& c, pid_t keeper);
Result<void> settle_volumes(Construction& c, bool used);    // the fills of one checkpoint are complete
void show_volumes(Construction& c);
bool in_volume(const Construction& c, std::string_view path);

// address_space.cc
Result<void> build_address_space(Construction& c, BuiltProcess& process);
Result<void> fill_private(Construction& c, BuiltProcess& process, std::uint64_t first_page, std::span<const std::byte> pages);

// The same for what has been built from `old` already; `remade`: mappings without content now.
Result<void> check_address_space_follows(const Construction& c, const pb::ProcessState& old, const pb::ProcessState& now);
Result<void> follow_address_space(Construction& c, BuiltProcess& process, const pb::ProcessState& old, std::vector<backend::PageRange>& remade);
Result<void> map_volume_files(Construction& c, BuiltProcess& process);   // at activation, once they are mounted
Result<void> drop_private(BuiltProcess& process, std::span<const backend::PageRange> pages);

// follow_files.cc: open files and descriptors, from those of `old` to those of c.state.
Result<void> follow_files(Construction& c, const pb::LinuxState& old);
Result<void> name_memory(Construction& c);       // POSIX shared memory gets its names, at activation
Result<void> open_late_files(Construction& c);   // at activation, from a shadow

// follow.cc: what else a process is.
Result<void> check_follows(const Construction& c, const pb::Manifest& next, const pb::LinuxState& state);
Result<void> follow_threads(BuiltProcess& process, const pb::ProcessState& old);
Result<void> follow_attributes(Construction& c, BuiltProcess& process, const pb::ProcessState& old);

// attributes.cc: what can be set before the memory is filled; activation.cc: the rest, and off.
Result<void> enter_folder(BuiltProcess& process);   // its working directory, when that lies in a volume
Result<void> set_attributes(Construction& c, BuiltProcess& process);
Result<void> set_options(Construction& c, BuiltProcess& process);   // attributes.cc
Result<void> finish_process(Construction& c, BuiltProcess& process);
Result<void> take_identity(BuiltProcess& process);              // credentials.cc
Result<void> set_timers(Construction& c, BuiltProcess& process);  // timers.cc
Result<void> release_process(BuiltProcess& process);
void await_stop(pid_t pid);                                     // released with a SIGSTOP pending: for some ms

}  // namespace baton::restore
