// The backend "linux": Linux processes, with nothing but an ordinary kernel. It enters itself
// into the registry (agent/backend/registry.h) under that name; a program that wants it links
// baton_backend_linux and baton_backend.
//
// Threads: see agent/backend/backend.h. What it captures and refuses: docs/coverage.md.
#pragma once

#include "agent/backend/backend.h"

namespace baton::linux_backend {

class LinuxBackend final : public backend::Backend {
 public:
  std::string_view name() const override { return "linux"; }
  std::vector<pb::Feature> probe() override;
  std::vector<std::string> trackers() override;   // those that work here, best first
  Result<void> check_spec(const pb::WorkloadSpec& spec) override;
  Result<backend::Inspection> inspect(const backend::AttachTarget& target) override;
  Result<std::unique_ptr<backend::Attachment>> attach(const backend::AttachTarget& target) override;
  Result<std::unique_ptr<backend::Build>> build(const pb::Manifest& manifest,
                                                const backend::BuildTarget& target) override;
};

}  // namespace baton::linux_backend
