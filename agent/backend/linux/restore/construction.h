// What the steps of a build share: the manifest, the puppets, and where things stand.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "agent/backend/backend.h"
#include "agent/backend/linux/restore/keeper_client.h"
#include "agent/backend/linux/restore/puppet.h"
#include "proto/checkpoint.pb.h"
#include "proto/linux_state.pb.h"

namespace baton::restore {

struct BuiltProcess {
  const pb::ProcessState* state = nullptr;
  std::vector<Puppet> threads;             // the leader first; empty: a zombie
  Puppet& leader() { return threads.front(); }
};

struct SharedObject {
  int number = -1;                         // descriptor in the template and every process built from it
  Fd ours;                                 // for filling
  std::uint64_t size_bytes = 0;
};

struct Construction {
  const pb::Manifest* manifest = nullptr;
  pb::LinuxState state;
  std::int64_t monotonic_shift_ns = 0;     // workload's CLOCK_MONOTONIC minus ours
  std::uint64_t area = 0;                  // the driver's area; twice kAreaBytes above it are free too
  int first_number = 0;                    // descriptors from here on are the build's own
  int next_number = 0;
  PuppetGroup group = std::make_shared<std::set<pid_t>>();
  std::vector<Puppet> template_process;    // 0 or 1: opens everything, is the ancestor of all
  std::map<std::uint64_t, SharedObject> objects;
  std::vector<int> open_numbers;           // LinuxState.open_files index -> descriptor number
  std::map<int, BuiltProcess> processes;   // by PID inside
  std::map<std::uint64_t, int> private_owner;  // memory object -> PID inside
  Puppet& maker() { return template_process.front(); }
};

// tree.cc: all processes (without memory), sessions and groups, zombies; then their threads.
Result<void> make_processes(Construction& c);
Result<void> make_threads(Construction& c);

// open_files.cc, open_sockets.cc: in the template, before the tree; then into place.
Result<void> make_objects(Construction& c);
Result<void> open_files(Construction& c);
Result<int> open_socket(Construction& c, const pb::OpenFile& file, std::map<std::uint32_t, std::pair<int, int>>& pairs);
Result<void> place_descriptors(Construction& c, BuiltProcess& process);
Result<int> keep_number(Construction& c, int low, const std::string& subject);   // moves it up, out of the way

// address_space.cc
Result<void> build_address_space(Construction& c, BuiltProcess& process);
Result<void> fill_private(Construction& c, BuiltProcess& process, std::uint64_t first_page, std::span<const std::byte> pages);

// attributes.cc: what can be set before the memory is filled; activation.cc: the rest, and off.
Result<void> set_attributes(Construction& c, BuiltProcess& process);
Result<void> finish_process(Construction& c, BuiltProcess& process);
Result<void> take_identity(BuiltProcess& process);              // credentials.cc
Result<void> set_timers(Construction& c, BuiltProcess& process);  // timers.cc
Result<void> release_process(BuiltProcess& process);

}  // namespace baton::restore
