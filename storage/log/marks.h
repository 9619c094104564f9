// The payloads of catalog log entries 5 (marks of a checkpoint) and 6 (retention policy);
// docs/formats/store.md. Readers take bytes from a damaged or hostile file: everything is
// bounded, and false means that nothing was changed.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "storage/catalog.h"

namespace baton::storage {

bool is_valid_tag(std::string_view tag_untrusted);

std::string write_marks(const CheckpointInfo& info);
bool read_marks(std::span<const std::byte> payload_untrusted, CheckpointInfo& info);

std::string write_policy(const RetentionPolicy& policy);
bool read_policy(std::span<const std::byte> payload_untrusted, RetentionPolicy& policy);

}  // namespace baton::storage
