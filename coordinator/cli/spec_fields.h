// The fields of a workload's spec that a person may set: one table for the flags of run
// and protect and for the keys of a spec file, so that both accept and refuse the same.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "proto/workload.pb.h"

namespace baton::cli {

enum class FieldKind {
  kText,    // one value
  kList,    // several values; on the command line the flag is repeated
  kSwitch,  // true or false; on the command line without a value
};

struct SpecField {
  std::string key;   // in a spec file: max_slowdown; as a flag: --max-slowdown
  FieldKind kind;
  std::string form;  // "DURATION", "hot|warm|cold"
  std::string help;
  bool only_run = false;
  // Sets or (lists) adds one value. Fails: kInvalid.
  Result<void> (*set)(pb::WorkloadSpec& spec, const std::string& text_untrusted);

  std::string flag() const;
};

const std::vector<SpecField>& spec_fields();

// A spec before anything was said: one standby where another node exists.
pb::WorkloadSpec new_spec(pb::Origin origin);

// The environment of a run program: PATH and HOME, unless `given` has its own.
void complete_environment(pb::WorkloadSpec& spec);

}  // namespace baton::cli
