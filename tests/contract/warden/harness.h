// A warden in a process of its own, in a folder of its own, to be killed and started again.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <condition_variable>

#include <gtest/gtest.h>

#include "agent/warden/client.h"

namespace baton::warden::testing {

// Waits until `condition` holds; false after ten seconds.
bool eventually(const std::function<bool()>& condition);

class WardenProcess {
 public:
  // `program`: path of the warden. Root only.
  explicit WardenProcess(std::string program);
  ~WardenProcess();      // ends it and everything that it started, removes the folder

  void start(std::vector<std::string> more = {}, std::map<std::string, std::string> environment = {});
  void kill(int signal);           // and waits for its end
  bool running();
  int wait();                      // wait status
  pid_t pid() const { return pid_; }
  std::string socket() const { return folder_ + "/warden.sock"; }
  std::string folder() const { return folder_; }
  std::string state() const { return folder_ + "/state"; }
  // Writes BATON_FAULT_FILE.
  void arm(const std::string& faults);

  // Connected, with its events collected in `events()`.
  std::unique_ptr<WardenClient> connect();
  std::vector<pb::WardenEvent> events();
  bool wait_event(const std::string& workload, pb::WardenEvent& out);
  int lost();

 private:
  std::string program_, folder_;
  pid_t pid_ = -1;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<pb::WardenEvent> events_;
  int lost_ = 0;
};

pb::WorkloadSpec spec_of(const std::string& name, std::vector<std::string> argv, std::vector<std::string> env = {});
bool alive(pid_t pid);
char state_of(pid_t pid);          // R, S, T, t, …; '?' when gone

// Kills and reaps a child of the test on destruction.
class Child {
 public:
  explicit Child(std::vector<std::string> argv);
  ~Child();
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

}  // namespace baton::warden::testing
