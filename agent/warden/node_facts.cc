#include "agent/warden/node_facts.h"

#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "agent/warden/record.h"
#include "base/fd.h"

namespace baton::warden {
namespace {

std::string trimmed(const std::string& text) {
  auto first = text.find_first_not_of(" \t");
  auto last = text.find_last_not_of(" \t\n");
  return first == std::string::npos ? std::string() : text.substr(first, last - first + 1);
}

// The first processor of /proc/cpuinfo; x86 says "model name" and "flags", ARM "CPU part" and "Features".
void read_cpuinfo(pb::NodeFacts& facts) {
  auto text = read_file("/proc/cpuinfo");
  if (!text) return;
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line) && !line.empty();) {
    auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    std::string key = trimmed(line.substr(0, colon)), value = trimmed(line.substr(colon + 1));
    if (key == "model name" || (key == "CPU part" && facts.cpu_model().empty())) facts.set_cpu_model(value);
    if (key == "flags" || key == "Features") {
      std::istringstream words(value);
      for (std::string word; words >> word;) facts.add_cpu_features(word);
    }
  }
}

std::uint64_t meminfo_bytes(const std::string& text, std::string_view key) {
  auto at = text.find(std::string(key) + ":");
  return at == std::string::npos ? 0 : std::strtoull(text.c_str() + at + key.size() + 1, nullptr, 10) * 1024;
}

}  // namespace

pb::NodeFacts collect_node_facts(const std::vector<backend::Backend*>& backends) {
  pb::NodeFacts facts;
  char host[256] = {};
  ::gethostname(host, sizeof host - 1);
  facts.set_name(host);
  utsname kernel{};
  ::uname(&kernel);
  facts.set_kernel(kernel.release);
  facts.set_arch(kernel.machine);
  read_cpuinfo(facts);
  facts.set_cpus(static_cast<std::uint32_t>(std::max(1, ::get_nprocs())));
  if (auto memory = read_file("/proc/meminfo")) {
    facts.set_memory_bytes(meminfo_bytes(*memory, "MemTotal"));
    facts.set_memory_free_bytes(meminfo_bytes(*memory, "MemAvailable"));
  }
  facts.set_boot_id(boot_id());
  facts.set_version(kVersion);
  std::set<std::string> trackers;
  for (backend::Backend* backend : backends) {
    facts.add_backends(std::string(backend->name()));
    for (auto& feature : backend->probe()) *facts.add_features() = std::move(feature);
    for (auto& tracker : backend->trackers()) trackers.insert(std::move(tracker));
    // The register state that this machine can carry is the backend's to say: it knows the
    // processor, and a capture here says the same of itself.
    backend::AttachTarget self;
    self.root = ::getpid();
    if (auto seen = backend->inspect(self); seen && facts.xsave_bytes() == 0) {
      facts.set_xsave_features(seen->machine.xsave_features());
      facts.set_xsave_bytes(seen->machine.xsave_bytes());
    }
  }
  for (const auto& tracker : trackers) facts.add_trackers(tracker);
  return facts;
}

}  // namespace baton::warden
