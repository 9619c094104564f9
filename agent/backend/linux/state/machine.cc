// This machine, and whether it can carry what another one saved.
#include <cpuid.h>
#include <openssl/sha.h>
#include <sys/auxv.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <sstream>

#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/state/machine.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {

// Flags of /proc/cpuinfo that a program may have chosen its code by. Others (power, virtual
// machines, mitigations) do not show in a program.
bool is_instruction_set(const std::string& flag) {
  static const std::set<std::string> kOthers = {
      "3dnow", "3dnowext", "3dnowprefetch", "abm", "adx", "aes", "avx", "avx2", "avx_vnni", "avx512_bf16", "avx512_bitalg", "avx512_fp16",
      "avx512_vbmi2", "avx512_vnni", "avx512_vp2intersect", "avx512_vpopcntdq", "avx512bw",
      "avx512cd", "avx512dq", "avx512er", "avx512f", "avx512ifma", "avx512pf", "avx512vbmi",
      "avx512vl", "amx_bf16", "amx_int8", "amx_tile", "bmi1", "bmi2", "cldemote", "clflush",
      "clflushopt", "clwb", "clzero", "cmov", "cx16", "cx8", "erms", "f16c", "fma", "fma4",
      "fsgsbase", "fsrm", "fxsr", "gfni", "lzcnt", "mmx", "mmxext", "movbe", "movdir64b",
      "movdiri", "osxsave", "pclmulqdq", "pku", "pni", "popcnt", "rdpid", "rdrand", "rdseed",
      "rdtscp", "rtm", "sha_ni", "sse", "sse2", "sse4_1", "sse4_2", "sse4a", "ssse3", "tbm",
      "vaes", "vpclmulqdq", "waitpkg", "xop", "xsave", "xsavec", "xsaveopt"};
  return kOthers.count(flag) != 0;
}

std::uint64_t enabled_features() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return 0;
  std::uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

struct VdsoRange { std::uint64_t start = 0, end = 0; };
VdsoRange own_vdso() {
  auto maps = read_proc("/proc/self/maps");
  if (!maps) return {};
  std::istringstream lines(*maps);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("[vdso]") == std::string::npos) continue;
    unsigned long long start = 0, end = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx", &start, &end) == 2) return {start, end};
  }
  return {};
}

// Offsets of the time namespace of `pid`'s children (its own, for a program of ours), relative
// to the initial one. Without time namespaces: none.
ClockOffsets read_offsets(const std::string& pid) {
  ClockOffsets o;
  auto text = read_proc("/proc/" + pid + "/timens_offsets");
  if (!text) return o;
  std::istringstream lines(*text);
  std::string name;
  long long seconds = 0, nanoseconds = 0;
  while (lines >> name >> seconds >> nanoseconds) {
    std::int64_t value = seconds * 1'000'000'000ll + nanoseconds;
    if (name == "monotonic" || name == "1") o.monotonic = value;
    if (name == "boottime" || name == "7") o.boottime = value;
  }
  return o;
}

}  // namespace

namespace {
std::vector<pb::XsaveComponent> read_xsave_layout() {
  std::vector<pb::XsaveComponent> layout;
  std::uint64_t enabled = enabled_features();
  auto add = [&](unsigned number, unsigned offset, unsigned bytes) {
    pb::XsaveComponent c;
    c.set_number(number);
    c.set_offset(offset);
    c.set_bytes(bytes);
    layout.push_back(std::move(c));
  };
  for (unsigned i = 2; i < 63; ++i) {   // x87 and SSE lie in the fixed part
    if ((enabled >> i & 1) == 0) continue;
    unsigned bytes = 0, offset = 0, c = 0, d = 0;
    __cpuid_count(0xD, i, bytes, offset, c, d);
    if ((c & 1) == 0) add(i, offset, bytes);   // bit 0: a supervisor state, which is not the program's
  }
  return layout;
}

std::string read_vdso_digest() {
  VdsoRange range = own_vdso();
  if (range.start == 0) return {};
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(range.start), range.end - range.start,
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

}  // namespace

const std::vector<pb::XsaveComponent>& xsave_layout() {
  static const std::vector<pb::XsaveComponent> layout = read_xsave_layout();
  return layout;
}

const std::string& vdso_digest() {
  static const std::string digest = read_vdso_digest();
  return digest;
}

std::size_t xsave_bytes() {
  unsigned a = 0, bytes = 0, c = 0, d = 0;
  __cpuid_count(0xD, 0, a, bytes, c, d);
  return std::max<std::size_t>(bytes, 576);
}

Result<void> check_xsave(std::uint64_t used) {
  std::uint64_t missing = used & ~(enabled_features() | 3);
  if (missing == 0) return {};
  static constexpr const char* kNames[] = {"x87", "SSE", "AVX", "MPX bounds", "MPX configuration", "AVX-512 mask", "AVX-512 upper half",
                                           "AVX-512 upper", "PT", "PKRU", "PASID", "shadow stack", "supervisor shadow stack", "HDC",
                                           "UINTR", "LBR", "HWP", "AMX configuration", "AMX tile"};
  unsigned number = static_cast<unsigned>(__builtin_ctzll(missing));
  std::string name = number < std::size(kNames) ? kNames[number] : "number " + std::to_string(number);
  return make_error(Code::kUnsupported, "build", "this node's processor lacks the " + name + " registers, which the program's saved state uses",
                    "Choose a node whose processor has them (baton node show).");
}

pb::MachineState machine_state() {
  pb::MachineState m;
  utsname names{};
  ::uname(&names);
  m.set_arch(names.machine);
  m.set_kernel(names.release);
  m.set_xsave_features(enabled_features());
  unsigned a = 0, bytes = 0, c = 0, d = 0;
  __cpuid_count(0xD, 0, a, bytes, c, d);
  m.set_xsave_bytes(bytes);
  if (auto info = read_proc("/proc/cpuinfo")) {
    std::istringstream lines(*info);
    for (std::string line; std::getline(lines, line) && !line.empty();) {
      auto colon = line.find(": ");
      if (colon == std::string::npos) continue;
      if (line.rfind("model name", 0) == 0) m.set_cpu_model(line.substr(colon + 2));
      if (line.rfind("flags", 0) != 0) continue;
      std::istringstream flags(line.substr(colon + 2));
      for (std::string flag; flags >> flag;) {
        if (is_instruction_set(flag)) m.add_cpu_features(flag);
      }
    }
  }
  return m;
}

Result<void> check_machine(const pb::MachineState& machine) {
  pb::MachineState here = machine_state();
  if (machine.arch() != here.arch()) {
    return make_error(Code::kUnsupported, "build", "the program was saved on " + machine.arch() + ", this node is " + here.arch());
  }
  std::set<std::string> have(here.cpu_features().begin(), here.cpu_features().end());
  std::string missing;
  for (const auto& feature : machine.cpu_features()) {
    if (have.count(feature) == 0) missing += (missing.empty() ? "" : ", ") + feature;
  }
  if (!missing.empty()) {
    return make_error(Code::kUnsupported, "build", "this node's processor lacks " + missing + ", which the program may be using",
                      "Choose a node whose processor has these features (baton node show).");
  }
  std::uint64_t lacking = machine.xsave_features() & ~here.xsave_features();
  if (lacking != 0) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(lacking));
    return make_error(Code::kUnsupported, "build", std::string("this node does not enable register state ") + text + " (XCR0), which the program's saved registers use");
  }
  return {};
}

Result<ClockOffsets> read_clock_offsets(pid_t pid) {
  ClockOffsets own = read_offsets("self"), theirs = read_offsets(std::to_string(pid));
  return ClockOffsets{theirs.monotonic - own.monotonic, theirs.boottime - own.boottime};
}

pb::ClockState read_clocks(const ClockOffsets& offsets) {
  pb::ClockState clocks;
  clocks.set_monotonic_ns(static_cast<std::uint64_t>(read_clock(CLOCK_MONOTONIC).count() + offsets.monotonic));
  clocks.set_boottime_ns(static_cast<std::uint64_t>(read_clock(CLOCK_BOOTTIME).count() + offsets.boottime));
  clocks.set_realtime_ns(static_cast<std::uint64_t>(read_clock(CLOCK_REALTIME).count()));
  return clocks;
}

}  // namespace baton::linux_backend::state
