// What a folder holds becomes a volume's, and back.
#pragma once

#include <string>

#include "agent/volume/file_tree.h"
#include "base/error.h"

namespace baton::volume {

// The files of `folder` (made, if it is not there) become those of the empty `tree`: owners, modes,
// times, hard links, holes. Sockets stay out. Fails: kUnsupported (something else than files is
// mounted or what it holds cannot be taken), kNoSpace.
Result<void> import_folder(FileTree& tree, const std::string& folder);

// The other way round. What the folder held is removed once all of the new is there: a crash leaves
// one or the other, the new in FOLDER/.baton-new until it is whole. A folder that the tree was not
// imported from keeps what it held, in FOLDER/.baton-before.
Result<void> export_folder(const FileTree& tree, const std::string& folder);

}  // namespace baton::volume
