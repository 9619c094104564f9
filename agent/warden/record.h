// What the warden remembers of its workloads across its own death: one file per
// workload, NAME.workload in the state directory, replaced whole. Not synced: a record
// means something only until the next boot, since PIDs do, and activation cannot wait for a disk.
//
// File: 8 bytes "BATONWR1", 4 bytes little-endian length, 4 bytes CRC-32 (zlib's polynomial)
// of what follows, then a WardenRecord. A file that fails its check is moved aside
// (NAME.workload.corrupt) and reported; the workload's processes are left alone.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "proto/warden.pb.h"

namespace baton::warden {

// [a-z0-9][a-z0-9-]{0,62}: also safe as a file and cgroup name. Fails: kInvalid.
Result<void> check_name(const std::string& name_untrusted);

class RecordStore {
 public:
  // Makes the directory (mode 0700). Fails: kNotAllowed, kNoSpace.
  static Result<RecordStore> open(std::string directory);

  Result<void> save(const pb::WardenRecord& record) const;
  // Removes the record, the log and the exit file.
  void remove(const pb::WardenRecord& record) const;
  std::vector<pb::WardenRecord> load_all() const;

  std::string log_path(const std::string& workload) const { return directory_ + "/" + workload + ".log"; }
  // A fresh name for the socket of a volume's server, in a folder that is there.
  Result<std::string> volume_socket() const;
  std::string exit_path(const std::string& workload) const { return directory_ + "/" + workload + ".exit"; }
  const std::string& directory() const { return directory_; }

 private:
  explicit RecordStore(std::string directory) : directory_(std::move(directory)) {}
  std::string record_path(const std::string& workload) const { return directory_ + "/" + workload + ".workload"; }
  std::string directory_;
};

std::string encode_record(const pb::WardenRecord& record);
Result<pb::WardenRecord> decode_record(std::string_view bytes_untrusted);

// This machine's /proc/sys/kernel/random/boot_id.
std::string boot_id();

}  // namespace baton::warden
