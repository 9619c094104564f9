// FuseSession: a FileTree as a file system of the kernel's. It is this process's alone and knows
// of every change, so the kernel may keep what it has read: names, attributes and content.
//
// Threads: one at a time, with the tree.
#pragma once

#include <memory>
#include <string>

#include "agent/volume/file_tree.h"
#include "base/error.h"
#include "base/fd.h"

struct fuse_session;

namespace baton::volume {

class FuseSession {
 public:
  // `name`: what the table of mounts shows as its source.
  // Fails: kUnsupported (no /dev/fuse), kFailed.
  static Result<std::unique_ptr<FuseSession>> start(FileTree& tree, const std::string& name);
  ~FuseSession();

  int fd() const;             // readable: serve
  bool ended() const;         // it is mounted nowhere any more
  void serve();               // answers what is waiting
  // A mount of it that is nowhere yet: for move_mount(2), or open_tree(2) of it. The first requests of
  // the kernel wait for serve().
  const Fd& mount() const { return mount_; }
  void let_mount_go() { mount_.reset(); }

 private:
  explicit FuseSession(FileTree& tree) : tree_(tree) {}
  FileTree& tree_;
  fuse_session* session_ = nullptr;
  Fd mount_;
  std::string buffer_;
};

}  // namespace baton::volume
