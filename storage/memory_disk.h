// MemoryDisk: files and folders that exist in memory only: for nodes without a disk, and for
// tests. Each file is a memfd, so that whatever reads a store's file by its descriptor works
// unchanged; what is written is gone with the object.
//
// The store on top keeps its formats: pages stay compressed and checksummed, its budget bounds
// the memory. kFlushed and kSynced promise nothing more than kMemory does here.
// Threads: any.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "storage/disk.h"

namespace baton::storage {

class MemoryDisk : public Disk {
 public:
  Result<Fd> create(const std::string& path) override;
  Result<Fd> open(const std::string& path) override;
  Result<void> sync(int) override { return {}; }
  Result<void> make_folder(const std::string& path) override;
  Result<std::vector<std::string>> list(const std::string& folder) override;
  bool is_folder(const std::string& path) override;
  Result<void> rename(const std::string& from, const std::string& to) override;
  Result<void> unlink(const std::string& path) override;
  void remove_tree(const std::string& path) override;
  Result<void> sync_folder(const std::string&) override { return {}; }
  Result<std::string> read(const std::string& path, std::size_t max_bytes) override;
  Result<void> replace(const std::string& path, std::string_view content) override;
  Result<Fd> lock(const std::string&) override { return Fd(); }  // nobody else can reach it
  Result<void> allocate(int, std::uint64_t) override { return {}; }
  std::uint64_t free_bytes(const std::string&) override { return 0; }

 protected:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Fd>> files_;
  std::set<std::string> folders_;
};

}  // namespace baton::storage
