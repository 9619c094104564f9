#include "agent/backend/linux/memory/vm_flags.h"

#include <cstdio>
#include <cstdlib>
#include <set>
#include <sstream>

#include "agent/backend/linux/remote/proc.h"

namespace baton::linux_backend {

Result<std::map<std::uint64_t, VmFlags>> read_vm_flags(pid_t pid) {
  // Source: proc(5), fs/proc/task_mmu.c (show_smap_vma_flags).
  static const std::set<std::string> kKept = {"gd", "nr", "lo", "lf", "dc", "dd", "wf", "hg", "nh", "mg", "rr", "sr", "sl"};
  BATON_ASSIGN(std::string text, read_proc("/proc/" + std::to_string(pid) + "/smaps"));
  std::map<std::uint64_t, VmFlags> all;
  std::uint64_t start = 0;
  VmFlags now;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    unsigned long long from = 0, to = 0;
    if (!line.empty() && (line[0] < 'A' || line[0] > 'Z') && std::sscanf(line.c_str(), "%llx-%llx ", &from, &to) == 2) {
      start = from;
      now = {};
      now.end = to;
    } else if (line.rfind("ProtectionKey:", 0) == 0) {
      int key = std::atoi(line.c_str() + 14);
      if (key != 0) now.flags.push_back("pk" + std::to_string(key));
    } else if (line.rfind("VmFlags:", 0) == 0) {   // the last line of a mapping
      std::istringstream words(line.substr(8));
      for (std::string word; words >> word;) {
        if (kKept.count(word) != 0) now.flags.push_back(word);
      }
      if (!now.flags.empty()) all.emplace(start, std::move(now));
      now = {};
    }
  }
  return all;
}

}  // namespace baton::linux_backend
