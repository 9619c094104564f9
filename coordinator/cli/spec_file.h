// Spec files: TOML, one [[workload]] per workload. Everything that is not understood is
// refused with FILE:LINE and, where one is near, the key that was probably meant.
//
//   [[workload]]
//   name = "redis"
//   command = ["redis-server", "--save", ""]
//   standby = ["ecu2"]           # the other keys: those of spec_fields()
//   interval = "20ms"
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "proto/workload.pb.h"

namespace baton::cli {

inline constexpr std::size_t kMaxSpecFileBytes = 1u << 20;

// Reads the file. Fails: kInvalid (with FILE:LINE), kNotFound.
Result<std::vector<pb::WorkloadSpec>> read_spec_file(const std::string& path);
// The same for text; `name` stands for the file in errors.
Result<std::vector<pb::WorkloadSpec>> parse_spec_text(const std::string& text_untrusted,
                                                      const std::string& name);

}  // namespace baton::cli
